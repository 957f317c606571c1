"""Files of faiss: both ways with the same answers, and what cannot be read or written."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from indexes import FlatIndex, HammingIndex, Hits, HNSWIndex, IVFIndex, IVFPQIndex, ScanIndex
from indexes.codecs import OPQ, PQ, SQ, Chain, Float32
from indexes.dense.faiss_base import faiss_threads
from indexes.dense.faiss_files import read_faiss, write_faiss
from indexes.errors import CorruptIndex, InvalidIds, InvalidParameter, WrongKind

N, D, K = 400, 16, 8


def vectors(n: int = N, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=(12, D))
    return (3 * centres[rng.integers(0, 12, n)] + rng.normal(size=(n, D))).astype(np.float32)


QUERIES = vectors(20, seed=1)
OURS = {
    "flat": lambda m: FlatIndex(metric=m).add(vectors()),
    "ivf": lambda m: IVFIndex(
        nlist=10, codec=Float32(), metric=m, rerank=None, nprobe=10).fit(vectors()).add(vectors()),
    "ivf-reranked": lambda m: IVFIndex(nlist=10, metric=m, nprobe=10, candidates=N).fit(vectors()).add(vectors()),
    "hnsw": lambda m: HNSWIndex(metric=m, M=8, ef_search=77).add(vectors()),
    "ivfpq": lambda m: IVFPQIndex(metric=m, bytes=4, nlist=6, nprobe=3).fit(vectors()).add(vectors()),
    "ivfpq-plain": lambda m: IVFPQIndex(metric=m, bytes=4, nlist=6, opq=False).fit(vectors()).add(vectors()),
    "pq": lambda m: ScanIndex(codec=PQ(M=4), metric=m, rerank=None).fit(vectors()).add(vectors()),
    "pq4": lambda m: ScanIndex(codec=PQ(M=8, bits=4), metric=m, rerank=None).fit(vectors()).add(vectors()),
    "opq": lambda m: ScanIndex(
        codec=Chain(OPQ(M=4), PQ(M=4)), metric=m, rerank=None).fit(vectors()).add(vectors()),
}  # fmt: skip


def found_by_faiss(path, k: int = K):
    held = faiss.read_index(str(path))
    return held.search(QUERIES, k)


def assert_same(ids: np.ndarray, scores: np.ndarray, expected: Hits) -> None:
    """The same ids, but for those whose scores differ by no more than rounding."""
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-4, atol=1e-3)
    assert (ids == expected.ids).mean() > 0.97


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("name", OURS)
def test_written_and_read_the_answers_stay(name, metric, tmp_path):
    index = OURS[name](metric)
    path = tmp_path / "index.faiss"
    write_faiss(index, path)
    expected = index.search(QUERIES, K)
    scores, ids = found_by_faiss(path)
    assert_same(ids, -scores if metric == "l2" else scores, expected)
    again = read_faiss(path)
    assert (type(again), len(again), again.metric) == (type(index), N, metric)
    hits = again.search(QUERIES, K)
    assert_same(hits.ids, hits.scores, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["index.faiss"]


@pytest.mark.parametrize("name", OURS)
def test_ids_of_the_caller_and_removals(name, tmp_path):
    ids = 10 * np.random.default_rng(3).permutation(N) + 2**40
    renamed = OURS[name]("ip")
    renamed.remove(np.arange(N))
    renamed.add(vectors(), ids) if name != "hnsw" else (renamed := HNSWIndex(M=8).add(vectors(), ids))
    gone = ids[5:50]
    assert renamed.remove(gone) == 45
    write_faiss(renamed, tmp_path / "f")
    again = read_faiss(tmp_path / "f")
    np.testing.assert_array_equal(np.sort(again.ids), np.sort(renamed.ids))
    expected, hits = renamed.search(QUERIES, K), again.search(QUERIES, K)
    if name == "hnsw":  # built anew
        assert (hits.ids == expected.ids).mean() > 0.95
    else:
        np.testing.assert_array_equal(hits.ids, expected.ids)
    assert not np.isin(hits.ids, gone).any() and (found_by_faiss(tmp_path / "f")[1] == hits.ids).mean() > 0.95
    again.add(vectors(3, seed=8))  # goes on from there
    assert len(again) == N - 45 + 3 and (again.search(QUERIES, K).ids >= 0).all()


def test_binary_codes(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (100, 6), np.uint8)
    for ids in (None, np.arange(100) * 3 + 1):
        index = HammingIndex().add(codes, ids)
        write_faiss(index, tmp_path / "b")
        again = read_faiss(tmp_path / "b")
        np.testing.assert_array_equal(again.search(codes[:9], 5).ids, index.search(codes[:9], 5).ids)
        theirs = faiss.read_index_binary(str(tmp_path / "b"))
        assert theirs.search(codes[:9], 1)[1][:, 0].tolist() == index.ids[:9].tolist()


# -- files that faiss made ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize(
    "factory", ["Flat", "IVF8,Flat", "HNSW8,Flat", "IVF8,PQ4x6", "OPQ4,IVF8,PQ4x6", "PQ4x4", "OPQ4,PQ4", "IDMap,Flat"]
)
def test_made_by_faiss(factory, metric, tmp_path):
    theirs = faiss.index_factory(D, factory, metric)
    inner = theirs
    if "OPQ" in factory:
        rotation, inner = faiss.downcast_VectorTransform(theirs.chain.at(0)), faiss.downcast_index(theirs.index)
        rotation.niter = rotation.niter_pq = rotation.niter_pq_0 = 2
    if "PQ" in factory:
        inner.do_polysemous_training = False  # takes seconds, and changes only the order of centroids
    with faiss_threads(1):
        theirs.train(vectors())
    ids = np.random.default_rng(5).permutation(N) + 1000
    if factory.startswith(("IDMap", "IVF")):
        theirs.add_with_ids(vectors(), ids)
    else:
        theirs.add(vectors())
    if "IVF" in factory:
        faiss.extract_index_ivf(theirs).nprobe = 8
    faiss.write_index(theirs, str(tmp_path / "f"))
    scores, found = theirs.search(QUERIES, K)
    expected = Hits(-scores if metric == faiss.METRIC_L2 else scores, found)
    hits = read_faiss(tmp_path / "f").search(QUERIES, K)
    if "PQ" not in factory:
        assert_same(hits.ids, hits.scores, expected)
    np.testing.assert_allclose(hits.scores, expected.scores, rtol=1e-4, atol=1e-3)
    for mine, other in zip(hits, expected, strict=True):  # equal codes have equal scores, and bring ties
        both = dict(mine).keys() & dict(other).keys()
        assert both
        np.testing.assert_allclose([dict(mine)[i] for i in both], [dict(other)[i] for i in both], rtol=1e-4, atol=1e-3)


def test_what_cannot_be_read(tmp_path):
    def refused(held, match, error=WrongKind):
        faiss.write_index(held, str(tmp_path / "f"))
        with pytest.raises(error, match=match):
            read_faiss(tmp_path / "f")

    refused(faiss.IndexFlat(D, faiss.METRIC_L1), "metric 2 of faiss's MetricType; those that can be read are 0.*and 1")
    refused(faiss.index_factory(D, "SQ8"), "holds IndexScalarQuantizer; what can be read: IndexFlat")
    refused(faiss.index_factory(D, "PCA4,Flat"), "holds PCAMatrix before IndexFlat")
    refused(faiss.IndexPQ(D, 4, 6), "of 6 bits; those that can be read have 4 or 8")
    twice = faiss.IndexIDMap(faiss.IndexFlatL2(D))
    twice.add_with_ids(vectors(3), np.array([4, 4, 5]))
    refused(twice, "id 4 is given more than once", InvalidIds)
    with pytest.raises(FileNotFoundError):
        read_faiss(tmp_path / "missing")


def test_damaged_files(tmp_path):
    path = tmp_path / "f"
    for name in ("flat", "ivf", "hnsw", "opq"):
        write_faiss(OURS[name]("ip"), path)
        whole = path.read_bytes()
        for size in (0, 3, 40, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(CorruptIndex, match="faiss cannot read it"):
                read_faiss(path)
    path.write_bytes(b"IBxF" + bytes(3))
    with pytest.raises(CorruptIndex, match="faiss cannot read it"):
        read_faiss(path)


def test_what_cannot_be_written(tmp_path):
    def refused(index, match, error=WrongKind):
        with pytest.raises(error, match=match):
            write_faiss(index, tmp_path / "f")
        assert not list(tmp_path.iterdir())

    refused(FlatIndex(), "FlatIndex is empty", InvalidParameter)
    refused(ScanIndex(codec=SQ(), rerank=None).fit(vectors()).add(vectors()), r"SQ\(.*what can be written: FlatIndex")
    refused(ScanIndex(codec=PQ(M=4)).fit(vectors()).add(vectors()), "rerank='float32'")
    refused(IVFIndex(nlist=4, rerank="float16").fit(vectors()).add(vectors()), "holds no float32: rerank is 'float16'")
    refused(type("Other", (FlatIndex,), {})().add(vectors()), "Other has no counterpart in faiss")


def test_cosine_is_written_as_inner_products_of_normalised_vectors(tmp_path):
    index = FlatIndex(metric="cosine").add(vectors())
    write_faiss(index, tmp_path / "f")
    again = read_faiss(tmp_path / "f")
    normalised = QUERIES / np.linalg.norm(QUERIES, axis=1, keepdims=True)
    assert again.metric == "ip"
    np.testing.assert_array_equal(again.search(normalised, K).ids, index.search(QUERIES, K).ids)
