"""K-means clustering, by faiss: the same centroids for the same vectors and seed, on any number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from indexes.errors import InvalidParameter

PER_CENTROID = 256  # vectors that are looked at for each; more change little
CHOICES = 16  # of other clusters that a member looks at before those with room are looked for anew


def k_means(vectors: np.ndarray, count: int, *, seed: int = 0, iterations: int = 20) -> np.ndarray:
    """`count` centroids, float32 (count, d), of vectors float32 (n, d), by Lloyd's algorithm from random vectors.

    Of more than 256 `count` vectors, so many are drawn. Raises `InvalidParameter` when count is not in 1 to n.
    """
    import faiss

    from indexes.dense.faiss_base import faiss_threads

    if not 1 <= count <= len(vectors):
        raise InvalidParameter(f"count is {count}; it must be from 1 to the number of vectors, {len(vectors)}")
    trainer = faiss.Kmeans(
        vectors.shape[1], count, niter=iterations, seed=seed, max_points_per_centroid=PER_CENTROID,
        min_points_per_centroid=1,
    )  # fmt: skip
    with faiss_threads(1):
        trainer.train(np.ascontiguousarray(vectors, np.float32))
    return np.asarray(trainer.centroids, np.float32).reshape(count, -1)


def usual_count(n: int) -> int:
    """How many lists are learned from a sample of n vectors or codes where nothing else is said.

    Its square root times 4, with at least 24 of the sample for each, and at most 65,536.
    """
    return max(1, min(int(4 * math.sqrt(n)), n // 24, 65_536))


def nearest_centroids(vectors: np.ndarray, centroids: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances float32 (n, count) and numbers int64 (n, count) of the nearest centroids, nearest first."""
    import faiss

    from indexes.dense.faiss_base import faiss_threads

    with faiss_threads(1):  # the last bits of distances, and so ties, depend on the threads
        distances, numbers = faiss.knn(np.ascontiguousarray(vectors), np.ascontiguousarray(centroids), count)
    return np.asarray(distances), np.asarray(numbers)


def spread(
    clusters: np.ndarray, vectors: Callable[[np.ndarray], np.ndarray], centroids: np.ndarray, most: int
) -> np.ndarray:
    """Clusters int64 (n,) with at most `most` members each: those too many go where there is room, as near as may be.

    An overfull cluster gives away its farthest members; those that lose least choose first. `vectors(rows)` are
    float32 (m, d), of the members of overfull clusters only. `most` times the number of centroids must be n or more.
    """
    counts = np.bincount(clusters, minlength=len(centroids))
    full = np.flatnonzero(counts > most)
    if not len(full):
        return clusters
    leaving = []
    for cluster in full.tolist():
        members = np.flatnonzero(clusters == cluster)
        distances = np.square(vectors(members) - centroids[cluster]).sum(axis=1)
        leaving.append(members[np.argsort(distances, kind="stable")[most:]])
    rows, moved = np.concatenate(leaving), clusters.copy()
    counts[full] = most
    while len(rows):
        room = np.flatnonzero(counts < most)
        distances, near = nearest_centroids(vectors(rows), centroids[room], min(len(room), CHOICES))
        staying = np.ones(len(rows), np.bool_)
        for i in np.argsort(distances[:, 0], kind="stable").tolist():
            for choice in room[near[i]].tolist():
                if counts[choice] < most:
                    moved[rows[i]] = choice
                    counts[choice] += 1
                    staying[i] = False
                    break
        rows = rows[staying]
    return moved
