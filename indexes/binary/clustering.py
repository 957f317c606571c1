"""K-majority clustering of binary codes: k-means under the Hamming distance (Grana et al., "A Fast Approach for
Integrating ORB Descriptors in the Bag of Words Model", 2013)."""

from __future__ import annotations

import numpy as np

from indexes.base import available_threads
from indexes.binary.hamming import HammingIndex
from indexes.clustering import PER_CENTROID
from indexes.errors import InvalidParameter

NOISE = 0.2  # standard deviation, as a share of the members, of the first round's noise
QUIET = 4  # last rounds, without noise


def k_majority(codes: np.ndarray, count: int, *, seed: int = 0, iterations: int = 20) -> np.ndarray:
    """`count` centroids, uint8 (count, nbytes), of packed codes uint8 (n, nbytes), by Lloyd's algorithm.

    It begins at random codes. Each code joins the nearest centroid, of those equally near the first; each bit of a
    centroid becomes what most of its members have, and stays where they are divided evenly (see `majorities`). Whole
    bits have many poor local optima, so that they are first decided with noise, which fades (simulated annealing): 16
    of 1,024 lists of 64-bit codes hold 85% of the ten nearest with it, 82% without, and 87% by k-means over floats,
    which gains nothing any more with 384 bits. A centroid without members moves to a code drawn with probabilities in
    proportion to distances from the centroids; if all are 0, it stays.

    Of more than 256 `count` codes, so many are drawn. The same codes and seed give the same centroids.
    Raises `InvalidParameter` when count is not in 1 to n.
    """
    n = len(codes)
    if not 1 <= count <= n:
        raise InvalidParameter(f"count is {count}; it must be from 1 to the number of codes, {n}")
    rng = np.random.default_rng(seed)
    if n > PER_CENTROID * count:
        n = PER_CENTROID * count
        codes = codes[np.sort(rng.choice(len(codes), n, replace=False))]
    codes = np.require(codes, requirements=["C", "W"])  # kernels are compiled for this layout only
    centroids = codes[rng.choice(n, count, replace=False)]
    for left in range(iterations - 1, -1, -1):
        distances, clusters = nearest_centroids(codes, centroids)
        leanings, members = majorities(codes, clusters, centroids), np.bincount(clusters, minlength=count)
        if left >= QUIET:
            noise = NOISE * (left - QUIET) / max(1, iterations - QUIET)
            leanings += noise * rng.standard_normal(leanings.shape, np.float32) * (members > 0)[:, None]
        moved = np.packbits(leanings > 0, axis=1, bitorder="little")
        empty = np.flatnonzero(members == 0)[: np.count_nonzero(distances)]
        if len(empty):
            moved[empty] = codes[rng.choice(n, len(empty), replace=False, p=distances / distances.sum())]
        if left < QUIET and (moved == centroids).all():
            break
        centroids = moved
    return centroids


def majorities(codes: np.ndarray, clusters: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """By how much more than half of the members have each bit, float32 (count, 8 * nbytes), from -1/2 to 1/2.

    Where exactly half have it, and where there are no members, a hair towards the bit of the centroid, which stays
    then. The lowest bit of a byte comes first. `clusters` int64 (n,): of each code.
    """
    from indexes.kernels.binary_ivf import votes

    ones = np.zeros((len(centroids), 8 * codes.shape[1]), np.int32)
    votes(codes, clusters, ones)
    members = np.bincount(clusters, minlength=len(centroids))[:, None]
    leanings = ((2 * ones - members) / np.maximum(2 * members, 1)).astype(np.float32)
    before = np.unpackbits(centroids, axis=1, bitorder="little")
    return np.where(leanings == 0, np.where(before, np.float32(1e-9), np.float32(-1e-9)), leanings)


def nearest_centroids(codes: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances int32 (n,) and numbers int64 (n,) of the nearest centroids; of those equally near, the first."""
    scores, numbers = HammingIndex().add(centroids).nearest(codes, 1, None, available_threads())
    return -scores[:, 0].astype(np.int32), numbers[:, 0]
