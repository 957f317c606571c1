"""Codecs made of parts that training gave: the map, the centroids that score, and sums of centroids."""

from __future__ import annotations

import numpy as np
import pytest

from indexes import ScanIndex, load
from indexes.codecs import OPQ, PQ, RQ, Chain, Codec, Float32, Learned, Retrained
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted

D = 12
rng = np.random.default_rng(5)
DOCUMENTS = rng.normal(size=(400, D)).astype(np.float32)
QUERIES = rng.normal(size=(20, D)).astype(np.float32)


def trained_pq():
    """What JPQ gives: codes by the first centroids, scores by others, a map of queries that is not the documents'."""
    opq = OPQ(M=4).fit(DOCUMENTS)
    pq = PQ(M=4).fit(opq.transform(DOCUMENTS))
    queries = opq.projection @ (np.eye(D) + 0.1 * rng.normal(size=(D, D)))
    moved = pq.centroids + 0.05 * rng.normal(size=pq.centroids.shape).astype(np.float32)
    return Chain.of(Learned.of(opq.projection, queries, opq.mean), Retrained.of(pq, moved)), opq, pq, moved, queries


def test_first_centroids_choose_codes_and_trained_ones_score():
    codec, opq, pq, moved, queries = trained_pq()
    codes = codec.encode(DOCUMENTS)
    np.testing.assert_array_equal(codes, pq.encode(opq.transform(DOCUMENTS)))
    behind = moved[np.arange(4), codes].reshape(len(codes), D)
    expected = (QUERIES @ queries.T) @ behind.T + (QUERIES @ opq.mean)[:, None]
    np.testing.assert_allclose(codec.scores(QUERIES, codes), expected, atol=1e-5)
    np.testing.assert_allclose(QUERIES @ codec.decode(codes).T, expected, atol=1e-5)


def test_sums_of_centroids_are_scored_as_decoded():
    rq = RQ(M=3).fit(DOCUMENTS)
    codes = rq.encode(DOCUMENTS)
    moved = rq.centroids + np.float32(0.1)
    codec = Retrained.of(rq, moved)
    expected = sum(moved[m, codes[:, m]] for m in range(3))
    np.testing.assert_allclose(codec.decode(codes), expected, atol=1e-6)
    np.testing.assert_allclose(codec.scores(QUERIES, codes), QUERIES @ expected.T, atol=1e-5)
    np.testing.assert_array_equal(codec.encode(DOCUMENTS), codes)


def test_each_level_of_rq_leaves_less():
    codecs = [RQ(M=M).fit(DOCUMENTS) for M in (1, 2, 3)]
    errors = [np.square(DOCUMENTS - codec.decode(codec.encode(DOCUMENTS))).mean() for codec in codecs]
    assert errors[0] > errors[1] > errors[2]


def test_a_beam_of_one_takes_the_nearest_centroid_of_each_level():
    rq = RQ(M=3, beam=1).fit(DOCUMENTS)
    rest, expected = DOCUMENTS.astype(np.float64), []
    for book in rq.centroids:
        chosen = ((rest[:, None] - book) ** 2).sum(axis=2).argmin(axis=1)
        expected.append(chosen)
        rest = rest - book[chosen]
    assert (rq.encode(DOCUMENTS) == np.stack(expected, axis=1)).mean() > 0.99  # float32 may see a tie where none is


@pytest.mark.parametrize("kind", ["product", "additive", "bare map"])
def test_saved_and_opened_in_an_index(tmp_path, kind):
    codec = {
        "product": lambda: trained_pq()[0],
        "additive": lambda: Retrained.of(rq := RQ(M=2).fit(DOCUMENTS), rq.centroids * np.float32(1.1)),
        "bare map": lambda: Chain.of(Learned.of(np.eye(5, D), np.ones((5, D))), Float32().fit(np.zeros((1, 5)))),
    }[kind]()
    index = ScanIndex(codec=codec, rerank=None).add(DOCUMENTS)
    hits = index.search(QUERIES, 5)
    index.save(tmp_path / "index")
    for mmap in (True, False):
        opened = load(tmp_path / "index", mmap)
        found = opened.search(QUERIES, 5)
        np.testing.assert_array_equal(found.ids, hits.ids)
        np.testing.assert_array_equal(found.scores, hits.scores)
    opened.add(DOCUMENTS[:3])
    assert len(opened) == 403
    np.testing.assert_allclose(hits.scores[:, 0], codec.scores(QUERIES, codec.encode(DOCUMENTS)).max(axis=1), atol=1e-5)


def test_restored_from_header_and_arrays():
    codec = trained_pq()[0]
    again = Codec.restore(codec.header(), codec.arrays())
    np.testing.assert_array_equal(again.decode(again.encode(DOCUMENTS)), codec.decode(codec.encode(DOCUMENTS)))


def test_bad_parts_are_named():
    pq, rq = PQ(M=4).fit(DOCUMENTS), RQ(M=4).fit(DOCUMENTS)
    with pytest.raises(InvalidParameter, match=r"centroids .* float32 \(4, 255, 3\)"):
        Retrained.of(pq, pq.centroids[:, :255])
    with pytest.raises(InvalidParameter, match=r"must be float32 \(4, 256, 12\)"):
        Retrained.of(rq, rq.centroids[:, :, :5])
    with pytest.raises(InvalidParameter, match="cannot score"):
        Retrained.of(PQ(M=4), pq.centroids)
    with pytest.raises(InvalidParameter, match="made by training"):
        Retrained.of(pq, pq.centroids).fit(DOCUMENTS)
    with pytest.raises(InvalidParameter, match="made by training"):
        Learned.of(np.eye(D), np.eye(D)).fit(DOCUMENTS)
    with pytest.raises(InvalidParameter, match="not"):
        Chain.of(Learned.of(np.eye(5, D), np.eye(5, D)), pq)
    with pytest.raises(NotFitted):
        Retrained(pq).encode(DOCUMENTS)
    with pytest.raises(InvalidVectors, match="at least 256"):
        RQ(M=4).fit(DOCUMENTS[:255])
    header, arrays = Retrained.of(pq, pq.centroids).header(), Retrained.of(pq, pq.centroids).arrays()
    with pytest.raises(CorruptIndex):
        Codec.restore(header, arrays | {"centroids": arrays["centroids"].astype(np.float64)})
    with pytest.raises(CorruptIndex):
        Codec.restore(header, {name: array for name, array in arrays.items() if name != "centroids"})
