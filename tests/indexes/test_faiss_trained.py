"""What training gave, written for faiss: the same answers there."""

import faiss
import numpy as np
import pytest

from indexes import ScanIndex
from indexes.codecs import PQ, RQ, Chain, Learned, Retrained, SignBits
from indexes.dense.faiss_files import read_faiss, write_faiss
from indexes.errors import WrongKind

N, D, K = 600, 16, 10


def vectors(n, seed):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(12, D))
    return (3 * centres[random.integers(0, 12, n)] + random.normal(size=(n, D)) + 0.5).astype(np.float32)


def trained(width=D, metric="ip", ids=None):
    """As JPQ leaves it: documents and queries turned by other matrices, centroids moved since they chose codes."""
    random = np.random.default_rng(1)
    documents = vectors(N, 2)
    if metric == "cosine":
        documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    mean = documents.mean(axis=0)
    turn = np.linalg.qr(random.normal(size=(D, D)))[0][:width].astype(np.float32)
    asking = (turn + 0.1 * random.normal(size=turn.shape)).astype(np.float32)
    first = PQ(M=4).fit((documents - mean) @ turn.T)
    moved = first.centroids + 0.05 * random.normal(size=first.centroids.shape).astype(np.float32)
    codec = Chain.of(Learned.of(turn, asking, mean), Retrained.of(first, moved))
    return ScanIndex(codec=codec, metric=metric, rerank=None).add(documents, ids)


@pytest.mark.parametrize("width", [D, D - 4])
@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_faiss_gives_the_same_documents(width, metric, tmp_path):
    index = trained(width, metric)
    write_faiss(index, tmp_path / "f")
    held = faiss.read_index(str(tmp_path / "f"))
    assert type(faiss.downcast_index(held.index)).__name__ == "IndexPQ" and held.ntotal == N
    queries = vectors(40, 3)
    if metric == "cosine":
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    expected, (scores, ids) = index.search(queries, K), held.search(queries, K)
    # what the mean adds is the same for all documents of a query, and cannot be had in fewer dimensions
    offset = (scores - expected.scores)[:, :1]
    np.testing.assert_allclose(scores - offset, expected.scores, rtol=1e-4, atol=1e-4)
    assert width < D or np.abs(offset).max() < 1e-3
    close = 1e-5 * np.abs(expected.scores).max()
    gaps = np.diff(expected.scores, axis=1) < -close  # a place whose score differs from both beside it is sure
    sure = np.pad(gaps, ((0, 0), (1, 0)), constant_values=True) & np.pad(gaps, ((0, 0), (0, 1)), constant_values=False)
    assert sure.sum() > 100 and np.array_equal(ids[sure], expected.ids[sure])


def test_ids_of_the_caller_are_kept(tmp_path):
    index = trained(ids=np.arange(N)[::-1] * 3)
    write_faiss(index, tmp_path / "f")
    held = faiss.read_index(str(tmp_path / "f"))
    queries = vectors(5, 3)
    assert np.array_equal(held.search(queries, 1)[1], index.search(queries, 1).ids)


def test_what_faiss_has_not_is_refused(tmp_path):
    documents = vectors(N, 2)
    turn = Learned.of(np.eye(D, dtype=np.float32), np.eye(D, dtype=np.float32))
    rq = RQ(M=2).fit(documents)
    for codec in (Chain.of(turn, Retrained.of(rq, rq.centroids)), Chain.of(turn, SignBits().fit(documents))):
        with pytest.raises(WrongKind, match="what can be written"):
            write_faiss(ScanIndex(codec=codec, rerank=None).add(documents), tmp_path / "f")
    with pytest.raises(WrongKind, match="l2"):
        write_faiss(trained(metric="l2"), tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_it_is_for_searching_only(tmp_path):
    write_faiss(trained(), tmp_path / "f")
    with pytest.raises(WrongKind, match="not a rotation alone"):
        read_faiss(tmp_path / "f")


def test_a_trained_index_is_not_fitted_and_keeps_what_was_learned_when_emptied(tmp_path):
    index = trained()
    assert index.trained and not index.needs_fit
    index.save(tmp_path / "i")
    for full in (index, ScanIndex.load(tmp_path / "i")):
        assert full.trained and not full.needs_fit
        empty = full.emptied()
        assert len(empty) == 0 and empty.trained and not empty.needs_fit
        again = empty.add(vectors(N, 2)).search(vectors(5, 3), K)
        assert np.array_equal(again.ids, index.search(vectors(5, 3), K).ids)


def test_an_index_that_fit_made_learns_anew_when_emptied():
    index = ScanIndex(codec=PQ(M=4)).fit(vectors(N, 2)).add(vectors(N, 2))
    assert not index.trained
    empty = index.emptied()
    assert empty.needs_fit and empty.codec.d is None and len(empty) == 0
    given = ScanIndex(codec=index.codec)
    assert not given.needs_fit and len(given.add(vectors(3, 4))) == 3
