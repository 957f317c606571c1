"""What was refused, or ran out of memory half-way, leaves an index as it was."""

from __future__ import annotations

import numpy as np
import pytest

from indexes import FlatIndex, HammingIndex, IVFIndex, MultiIndexHashing, TenantIndex, UsearchIndex
from indexes.clustering import k_means
from indexes.codecs import Float32
from indexes.errors import InvalidParameter, InvalidVectors

VECTORS = np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)
QUERIES = VECTORS[:5] + np.float32(0.1)


@pytest.mark.parametrize("make", [lambda: IVFIndex(nlist=20, nprobe=20), lambda: TenantIndex(nlist=20)])
def test_a_refused_fit_keeps_what_was_learned(make):
    """A sample of text, one with NaN, and one smaller than nlist."""
    index = make().fit(VECTORS)
    for sample in (["a"], np.full((50, 8), np.nan), VECTORS[:10]):
        with pytest.raises((InvalidVectors, InvalidParameter)):
            index.fit(sample)
        with pytest.raises(InvalidVectors, match="this index has 8"):
            index.add(VECTORS[:, :4])
    index.add(VECTORS)
    assert (index.search(QUERIES, 1).ids[:, 0] == FlatIndex().add(VECTORS).search(QUERIES, 1).ids[:, 0]).all()


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_lists_around_given_centroids(metric):
    centroids = k_means(VECTORS, 20)
    index = IVFIndex(codec=Float32(), rerank=None, metric=metric).fit(VECTORS, centroids=centroids).add(VECTORS)
    learned = IVFIndex(nlist=20, codec=Float32(), rerank=None, metric=metric).fit(VECTORS)
    assert index.describe()["nlist"] == 20 == len(learned._centroids)
    exact = FlatIndex(metric=metric).add(VECTORS).search(QUERIES, 10).ids
    np.testing.assert_array_equal(index.search(QUERIES, 10, nprobe=20).ids, exact)
    for wrong in (centroids[:, :4], centroids[0], np.full((3, 8), np.inf)):
        with pytest.raises(InvalidVectors, match="centroids have shape"):
            IVFIndex().fit(VECTORS, centroids=wrong)
    with pytest.raises(InvalidParameter, match="nlist=7"):
        IVFIndex(nlist=7, metric=metric).fit(VECTORS, centroids=centroids)


def test_a_library_that_fails_leaves_no_rows_behind(monkeypatch):
    pytest.importorskip("usearch")
    index = UsearchIndex().add(VECTORS[:1000])
    extend = index._extend
    monkeypatch.setattr(index, "_extend", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        index.add(VECTORS[1000:1500])
    monkeypatch.setattr(index, "_extend", extend)
    assert len(index) == 1000 == len(index.vectors)
    index.add(VECTORS[1500:])
    expected = FlatIndex(dtype="float16").add(VECTORS[:1000]).add(VECTORS[1500:])
    np.testing.assert_array_equal(index.vectors, expected.vectors)
    np.testing.assert_array_equal(index.search(QUERIES, 1).ids, expected.search(QUERIES, 1).ids)


@pytest.mark.parametrize("kind", [HammingIndex, MultiIndexHashing])
def test_codes_outlive_a_build_that_fails(kind, monkeypatch):
    codes = np.random.default_rng(1).integers(0, 256, (300, 4), np.uint8)
    ids = np.random.default_rng(2).permutation(300)
    index, expected = kind().add(codes[:200], ids[:200]), HammingIndex().add(codes, ids)
    index.search(codes[:1], 1)
    index.add(codes[200:], ids[200:])
    pack = index._pack

    def fail(packed: np.ndarray) -> None:
        pack(packed)
        raise MemoryError

    monkeypatch.setattr(index, "_pack", fail)
    with pytest.raises(MemoryError):
        index.search(codes[:1], 1)
    monkeypatch.setattr(index, "_pack", pack)
    np.testing.assert_array_equal(index.codes, codes)
    np.testing.assert_array_equal(index.search(codes, 5).ids, expected.search(codes, 5).ids)
