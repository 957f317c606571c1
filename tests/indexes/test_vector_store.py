"""Vectors kept as 8-bit levels, beside what they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from indexes import FlatIndex, GraphIndex, IVFIndex, ScanIndex, load
from indexes.codecs import LVQ, SQ
from indexes.dense.store import BOUNDS, VectorStore, in_levels, of_levels
from indexes.errors import CorruptIndex, InvalidParameter
from indexes.kernels import exact
from indexes.tuning import tune


def vectors_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)),
                     elements=st.floats(-(2.0**60), 2.0**60, width=32)))  # fmt: skip
def test_levels_are_off_by_half_a_step_at_most(vectors):
    rows = in_levels(vectors)
    assert rows.shape == (len(vectors), BOUNDS + -(-vectors.shape[1] // 4) * 4) and rows.dtype == np.uint8
    spread = vectors.max(axis=1, keepdims=True).astype(np.float64) - vectors.min(axis=1, keepdims=True)
    rounding = 1e-6 * np.abs(vectors).max(axis=1, keepdims=True) + 1e-37
    difference = np.abs(of_levels(rows, vectors.shape[1]).astype(np.float64) - vectors)
    assert (difference <= spread / 510 + rounding).all()


def test_equal_numbers_are_kept_exactly():
    vectors = np.full((2, 5), 0.3, np.float32)
    vectors[1] = 0
    np.testing.assert_array_equal(of_levels(in_levels(vectors), 5), vectors)


@pytest.mark.parametrize("d", [1, 7, 64, 130])
@pytest.mark.parametrize("l2", [False, True])
def test_scores_are_those_of_the_decoded_vectors(d, l2):
    levels, queries = in_levels(vectors_of(40, d)), vectors_of(3, d, seed=1)
    decoded = of_levels(levels, d)
    whole = -((queries[:, None] - decoded) ** 2).sum(axis=2) if l2 else queries @ decoded.T
    rows = np.random.default_rng(d).integers(-1, 40, (3, 12))
    some, every = np.full(rows.shape, np.nan, np.float32), np.full((3, 40), np.nan, np.float32)
    exact.chosen(levels, queries, rows, l2, some)
    exact.every(levels, 0, 40, queries, l2, every)
    np.testing.assert_allclose(every, whole, rtol=1e-4, atol=1e-4)
    expected = np.where(rows >= 0, np.take_along_axis(whole, np.maximum(rows, 0), 1), np.nan)
    np.testing.assert_allclose(some, expected, rtol=1e-4, atol=1e-4)


def test_store_grows_keeps_and_opens():
    vectors = vectors_of(30, 6)
    store = VectorStore("lvq8", "-")
    store.add(vectors[:10])
    store.add(vectors[10:])
    kept = np.arange(30) % 3 > 0
    store.keep(kept)
    np.testing.assert_array_equal(store.stored(6), in_levels(vectors)[kept])
    np.testing.assert_array_equal(store.vectors(6), of_levels(in_levels(vectors), 6)[kept])
    np.testing.assert_array_equal(store.at(np.array([3, 0]), 6), store.vectors(6)[[3, 0]])
    opened = VectorStore("lvq8", "-")
    opened.open(store.stored(6), 20, 6)
    np.testing.assert_array_equal(opened.vectors(6), store.vectors(6))
    for n, d, rows in ((19, 6, store.stored(6)), (20, 9, store.stored(6)), (20, 6, store.vectors(6))):
        with pytest.raises(CorruptIndex, match="vectors are"):
            VectorStore("lvq8", "-").open(rows, n, d)


INDEXES = {
    "scan": lambda: ScanIndex(codec=SQ(bits=4), rerank="lvq8"),
    "ivf": lambda: IVFIndex(nlist=20, codec=SQ(bits=4), rerank="lvq8", nprobe=20),
    "ivf-balanced": lambda: IVFIndex(nlist=20, codec=SQ(bits=4), rerank="lvq8", nprobe=20, balance=1.5),
    "graph": lambda: GraphIndex(codec=LVQ(bits=4), rerank="lvq8"),
}


@pytest.mark.parametrize("name", INDEXES)
def test_indexes_rank_again_by_levels(name, tmp_path):
    """Nearly what float32 gives, from a quarter of its bytes; saved, and loaded from disk or to memory."""
    vectors, queries = vectors_of(3000, 32), vectors_of(50, 32, seed=1)
    index = INDEXES[name]().fit(vectors).add(vectors)
    index.remove(index.ids[::10])
    hits = index.search(queries, 10)
    exactly = FlatIndex().add(vectors)
    exactly.remove(np.arange(0, 3000, 10))
    wanted = exactly.search(queries, 10).ids
    assert np.mean([len(set(a) & set(b)) for a, b in zip(hits.ids, wanted, strict=True)]) > 9.5
    decoded = of_levels(in_levels(vectors), 32)
    np.testing.assert_allclose(hits.scores, np.einsum("qd,qkd->qk", queries, decoded[hits.ids]), rtol=1e-4, atol=1e-4)
    index.save(tmp_path / "index")
    for mmap in (False, True):
        again = load(tmp_path / "index", mmap=mmap).search(queries, 10)
        np.testing.assert_array_equal(again.ids, hits.ids)


def test_bad_input():
    """A store that does not exist; tuning without an exact twin, which levels are not."""
    index = ScanIndex(codec=SQ(bits=8), rerank="lvq8").fit(vectors_of(20, 4)).add(vectors_of(20, 4))
    with pytest.raises(InvalidParameter, match="rerank is 'int8'; it must be one of float32, float16, lvq8"):
        ScanIndex(rerank="int8")
    with pytest.raises(InvalidParameter, match="holds no vectors"):
        tune(index, vectors_of(5, 4), target_recall=0.9)
