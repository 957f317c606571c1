"""Binary autoencoder: codes of bits that are searched for, so that a linear map takes them back to the vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.codecs.base import Codec, Scorer, check_integer
from indexes.codecs.linear import PCA, RandomRotation
from indexes.codecs.packing import by_tables, pack_signs, sign_tables, unpack_signs

SAMPLE = 65_536  # vectors, at most, that `fit` learns from
ROUNDS = 12, 3  # of fit: with signs that start as they were, and then with signs from nothing, as `encode` finds them
TURNS = 8  # rounds over all bits, at most, in which single signs are turned around
SHARPNESS = 0.7, 12.0  # of annealing, first and last
BEYOND = 0.15  # of the range of the sample's lengths, so far beyond it others may lie
FAST = 6  # steps of annealing while fitting


class BinaryAutoencoder(Codec):
    """Bits that each add a vector or take it away, and a length: x is near mean + length * (the sum of sign_j c_j).

    Carreira-Perpinan and Raziperchikolaei, "Hashing with Binary Autoencoders", CVPR 2015: in turn the best signs for
    the vectors c_j, and, by least squares, the best vectors for the signs. Their result is a hash function; here codes
    stay what the search for signs finds (their Z step), by mean-field annealing: sums leave 55 to 70% of the squared
    error of OPQ at 48 bytes (MiniLM), though `centroids` are no more numbers than its rotation. They come out shorter
    than the vectors, some more than others, which inner products see before all else; the last byte undoes that (as
    RaBitQ's factor does for signs), and is worth 2 to 8 points of recall@10. Scores are those of `SignBits` behind a
    linear map of queries, and as fast.

    `bytes`: of a code, 8 (bytes - 1) bits, which may be more than dimensions, and the length. `steps`: of annealing; 16
    take 0.3 ms a vector at 48 bytes (384 dimensions; four times as long at twice the bytes), 6 leave 5% more error in
    under half the time, 40 leave 1% less. `seed`: of the rotation that `fit` starts from, and of the sample where there
    are more than 65,536 vectors. `centroids` float32 (8 (bytes - 1), d); `lengths` float32 (2,): the length that byte 0
    stands for, and how much each further one adds.
    """

    kind = "binary-autoencoder"

    def __init__(self, *, bytes: int = 48, steps: int = 16, seed: int = 0) -> None:
        super().__init__()
        check_integer("bytes", bytes, 2)
        check_integer("steps", steps, 1)
        check_integer("seed", seed, 0)
        self.bytes, self.steps, self.seed = bytes, steps, seed
        self.mean: np.ndarray
        self.centroids: np.ndarray
        self.lengths: np.ndarray

    @property
    def bits(self) -> int:
        return 8 * (self.bytes - 1)

    def parameters(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "steps": self.steps, "seed": self.seed}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"mean": (d,), "centroids": (self.bits, d), "lengths": (2,)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        from indexes.kernels import autoencoder

        if len(vectors) > SAMPLE:
            rows = np.random.default_rng(self.seed).choice(len(vectors), SAMPLE, replace=False)
            vectors = vectors[np.sort(rows)]
        self.mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = vectors - self.mean
        signs = self._first(centred)
        warm, cold = ROUNDS
        for _ in range(warm):
            self.centroids = _least_squares(signs, centred)
            autoencoder.improve(centred, self.centroids, self._gram(), signs, 2)
        for _ in range(cold):
            self.centroids = _least_squares(signs, centred)
            self._search(centred, signs, FAST)
        self.centroids = _least_squares(signs, centred)
        found = _ratios(centred, signs @ self.centroids)
        beyond = BEYOND * (found.max() - found.min())
        self.lengths = np.array([found.min() - beyond, (np.ptp(found) + 2 * beyond) / 255], np.float32)

    def _first(self, centred: np.ndarray) -> np.ndarray:
        """Signs float32 (n, bits) of principal components, turned at random: as many times as it takes."""
        count = self.bits
        components = PCA(dimensions=min(count, centred.shape[1])).fit(centred).transform(centred)
        turns = [
            RandomRotation(seed=self.seed + i).fit(components[:1]).projection
            for i in range(-(-count // components.shape[1]))
        ]
        return np.where(components @ np.concatenate(turns)[:count].T >= 0, np.float32(1), np.float32(-1))

    def _gram(self) -> np.ndarray:
        return np.ascontiguousarray(self.centroids @ self.centroids.T)

    def _search(self, centred: np.ndarray, signs: np.ndarray, steps: int) -> None:
        """The signs float32 (n, bits) of centred vectors, written over what `signs` holds."""
        from indexes.kernels import autoencoder

        sharpness = np.geomspace(*SHARPNESS, steps, dtype=np.float32)
        autoencoder.anneal(centred, self.centroids, self._gram(), sharpness, signs, TURNS)

    def _bytes(self, d: int) -> int:
        return self.bytes

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        centred, signs = vectors - self.mean, np.empty((len(vectors), self.bits), np.float32)
        self._search(centred, signs, self.steps)
        lowest, step = self.lengths
        numbers = np.rint((_ratios(centred, signs @ self.centroids) - lowest) / max(step, np.float32(1e-30)))
        last = np.clip(numbers, 0, 255).astype(np.uint8)
        return np.concatenate([pack_signs(signs), last[:, None]], axis=1)

    def lengths_of(self, codes: np.ndarray) -> np.ndarray:
        """What sums are multiplied by, float32 (n,), by codes uint8 (n, bytes)."""
        return self.lengths[0] + self.lengths[1] * codes[:, -1].astype(np.float32)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        sums = unpack_signs(codes[:, :-1], self.bits) @ self.centroids
        return self.lengths_of(codes)[:, None] * sums + self.mean

    def _scorer(self, queries: np.ndarray) -> Scorer:
        score, base = by_tables(sign_tables(queries @ self.centroids.T)), (queries @ self.mean)[:, None]
        return lambda codes: score(codes) * self.lengths_of(codes) + base


def _ratios(vectors: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """float32 (n,): how many times as long vectors (n, d) are as sums (n, d); 1 where there is no telling."""
    length, other = np.linalg.norm(vectors, axis=1), np.linalg.norm(sums, axis=1)
    return np.where(other > 0, length / np.where(other > 0, other, 1), np.float32(1)).astype(np.float32)


def _least_squares(signs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The vectors float32 (b, d) whose sums by signs (n, b) are nearest to vectors (n, d), a little shrunk."""
    moment = (signs.T @ signs).astype(np.float64)
    moment[np.diag_indices(len(moment))] += 1e-3 * len(signs)
    return np.linalg.solve(moment, (signs.T @ vectors).astype(np.float64)).astype(np.float32)
