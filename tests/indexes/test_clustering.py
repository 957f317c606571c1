"""K-means, nearest centroids and clusters of bounded size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.clustering import k_means, nearest_centroids, spread, usual_count
from indexes.dense.faiss_base import faiss_threads
from indexes.errors import InvalidParameter

RNG = np.random.default_rng(0)
VECTORS = (5 * RNG.normal(size=(6, 8))[RNG.integers(0, 6, 500)] + RNG.normal(size=(500, 8))).astype(np.float32)


def test_the_same_centroids_on_any_number_of_threads():
    one = k_means(VECTORS, 6, seed=3)
    with faiss_threads(4):
        np.testing.assert_array_equal(one, k_means(VECTORS, 6, seed=3))
    assert one.shape == (6, 8) and one.dtype == np.float32
    distances, numbers = nearest_centroids(VECTORS, one)
    own = np.stack([VECTORS[numbers[:, 0] == i].mean(axis=0) for i in range(6)])
    np.testing.assert_allclose(one, own, atol=1e-3)  # every centroid is the mean of those nearest to it
    worse = k_means(VECTORS, 2)
    assert distances.sum() < nearest_centroids(VECTORS, worse)[0].sum()


def test_bad_counts():
    for count in (0, 501, -1):
        with pytest.raises(InvalidParameter, match=f"count is {count}; it must be from 1 to .* 500"):
            k_means(VECTORS, count)


def test_usual_counts():
    counts = {1: 1, 47: 1, 48: 2, 10_000: 400, 9_216: 384, 9_215: 383, 1_000_000: 4_000, 10**12: 65_536}
    assert {n: usual_count(n) for n in counts} == counts


def test_nearest_centroids():
    centroids = k_means(VECTORS, 9)
    distances, numbers = nearest_centroids(VECTORS[:50], centroids, 4)
    every = np.square(VECTORS[:50, None] - centroids).sum(axis=2)
    np.testing.assert_array_equal(numbers, np.argsort(every, axis=1)[:, :4])
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :4], rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3), st.integers(0, 10))
def test_clusters_of_bounded_size(n, count, room, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (n, 2)).astype(np.float32)  # many are equal
    centroids = rng.normal(size=(count, 2)).astype(np.float32)
    clusters = nearest_centroids(vectors, centroids)[1][:, 0]
    most = -(-n // count) + room
    asked = []

    def members(rows):
        asked.extend(rows.tolist())
        return vectors[rows]

    moved = spread(clusters, members, centroids, most)
    counts, before = np.bincount(moved, minlength=count), np.bincount(clusters, minlength=count)
    assert counts.max() <= most and counts.sum() == n
    assert (before[clusters[asked]] > most).all()
    np.testing.assert_array_equal(clusters, nearest_centroids(vectors, centroids)[1][:, 0])  # not changed in place
    for cluster in range(count):  # those that stay are no farther than those that leave, and fill what they had
        mine = np.square(vectors - centroids[cluster]).sum(axis=1)
        stay, leave = (clusters == cluster) & (moved == cluster), (clusters == cluster) & (moved != cluster)
        assert stay.sum() == min(most, before[cluster])
        assert not leave.any() or mine[stay].max() <= mine[leave].min() + 1e-6
