"""Scalar quantisation: each number as one of 256, 16 or 4 evenly spaced levels."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.codecs.base import Codec, Scorer, by_products, check_choice
from indexes.codecs.floats import power_of_two
from indexes.codecs.packing import pack_nibbles, pack_quarters, unpack_nibbles, unpack_quarters
from indexes.errors import InvalidVectors

BITS = (2, 4, 8)
SAMPLE = 4096  # vectors on which the range is chosen
SHARES = np.linspace(1, 0.2, 17)  # of the sample's range
REFITS = 3  # of the bounds of a vector in 2 bits: more change the error by under 0.1%


class SQ(Codec):
    """Levels between two bounds that `fit` learns: int8, int4 and int2.

    `bits`: 8, 4 or 2 per dimension. `scope`: "dimension" (bounds for each dimension) or "global" (the same for all, for
    when d is large beside the sample, or dimensions are alike, as after a rotation).
    The bounds are those, around the middle of the sample's range, with the least squared error over the sample: with 2
    or 4 bits, clipping a few large numbers is better than coarse steps for all. Numbers beyond become the bound.
    """

    kind = "sq"

    def __init__(self, *, bits: int = 8, scope: str = "dimension") -> None:
        super().__init__()
        check_choice("bits", bits, BITS)
        check_choice("scope", scope, ("dimension", "global"))
        self.bits, self.scope = bits, scope
        self.lower: np.ndarray
        self.step: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {"bits": self.bits, "scope": self.scope}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        width = d if self.scope == "dimension" else 1
        return {"lower": (width,), "step": (width,)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        columns = vectors if self.scope == "dimension" else vectors.reshape(-1, 1)
        lowest, highest = columns.min(axis=0).astype(np.float64), columns.max(axis=0).astype(np.float64)
        some = vectors[:: -(-len(vectors) // SAMPLE)].reshape(-1, columns.shape[1])
        least = np.full(columns.shape[1], np.inf)
        self.lower, self.step = lowest.astype(np.float32), np.zeros(columns.shape[1], np.float32)
        for share in SHARES:
            margin = (highest - lowest) * (1 - share) / 2
            lower = (lowest + margin).astype(np.float32)
            step = ((highest - lowest - 2 * margin) / (2**self.bits - 1)).astype(np.float32)
            difference = some - (lower + step * _levels(some, lower, step, self.bits))
            error = np.einsum("ij,ij->j", difference, difference, dtype=np.float64)
            better = error < least
            least[better], self.lower[better], self.step[better] = error[better], lower[better], step[better]

    def _bytes(self, d: int) -> int:
        return -(-d * self.bits // 8)

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        return _pack(_levels(vectors, self.lower, self.step, self.bits), self.bits)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self.lower + self.step * _unpack(codes, self._width(), self.bits)

    def _scorer(self, queries: np.ndarray) -> Scorer:
        base = (queries * self.lower).sum(axis=1, dtype=np.float64).astype(np.float32)[:, None]
        score = by_products(queries * self.step, lambda codes: _unpack(codes, self._width(), self.bits))
        return lambda codes: score(codes) + base


class LVQ(Codec):
    """Locally-adaptive vector quantisation: levels between the smallest and the largest number of each vector.

    Aguerrebere et al., "Similarity search in the blink of an eye with compressed indices", VLDB 2023. `fit` learns the
    mean, which is subtracted first; the code holds the levels, `bits` (8, 4 or 2) per dimension, then the
    vector's smallest number and its range as float16 (4 bytes), in units of the sample's largest number. No number is
    off by more than half a step. Two levels, LVQ-4x8, are `Residual(LVQ(bits=4), LVQ(bits=8))`.
    With 2 bits, four levels from the smallest to the largest number would leave most numbers at the two in the middle:
    the lowest level and the range are then those of the least squared error, and numbers beyond become the bound.
    `encode` raises `InvalidVectors` for a vector some 30,000 times larger than the sample's.
    """

    kind = "lvq"

    def __init__(self, *, bits: int = 8) -> None:
        super().__init__()
        check_choice("bits", bits, BITS)
        self.bits = bits
        self.mean: np.ndarray
        self.scale: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {"bits": self.bits}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"mean": (d,), "scale": (1,)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        self.mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.scale = power_of_two(np.abs(vectors - self.mean).max())

    def _bytes(self, d: int) -> int:
        return -(-d * self.bits // 8) + 4

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        centred = (vectors - self.mean) / self.scale
        least, most = _narrow(centred) if self.bits == 2 else (centred.min(axis=1), centred.max(axis=1))
        lower = -_half_above(-least[:, None])
        spread = _half_above(most[:, None] - lower.astype(np.float32))
        bounds = np.concatenate([lower, spread], axis=1)
        if not np.isfinite(bounds).all():
            row = int(np.argmin(np.isfinite(bounds).all(axis=1)))
            raise InvalidVectors(f"vector {row} is over 30,000 times larger than the vectors that LVQ was fitted on")
        step = spread.astype(np.float32) / np.float32(2**self.bits - 1)
        levels = _levels(centred, lower.astype(np.float32), step, self.bits)
        return np.concatenate([_pack(levels, self.bits), bounds.astype("<f2").view(np.uint8)], axis=1)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        lower, step = self._bounds(codes)
        return self.mean + self.scale * (lower + step * self._unpacked(codes))

    def _scorer(self, queries: np.ndarray) -> Scorer:
        scaled = queries * self.scale
        base, total = (queries @ self.mean)[:, None], scaled.sum(axis=1)[:, None]
        score = by_products(scaled, self._unpacked)

        def scores(codes: np.ndarray) -> np.ndarray:
            lower, step = self._bounds(codes)
            return score(codes) * step.T + total * lower.T + base

        return scores

    def _unpacked(self, codes: np.ndarray) -> np.ndarray:
        return _unpack(codes[:, :-4], self._width(), self.bits)

    def _bounds(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest number and the step of each vector, float32 (n, 1), in units of `scale`."""
        bounds = np.ascontiguousarray(codes[:, -4:]).view("<f2").astype(np.float32)
        return bounds[:, :1], bounds[:, 1:] / np.float32(2**self.bits - 1)


def _levels(vectors: np.ndarray, lower: np.ndarray, step: np.ndarray, bits: int) -> np.ndarray:
    """The nearest level of each number, uint8 (n, d); 0 where all levels are one."""
    # in float64: where the levels lie close beside numbers far from 0, float32 has too few digits for the quotient
    ratio = (vectors - lower.astype(np.float64)) / np.where(step > 0, step, np.inf)
    return np.clip(np.rint(ratio), 0, 2**bits - 1).astype(np.uint8)


def _narrow(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest of four levels for each vector, float32 (n,): those of the least squared error.

    From the best levels of Gaussians on (Max, 1960), levels and bounds follow from one another, as in k-means.
    """
    middle, spread = vectors.mean(axis=1, keepdims=True), vectors.std(axis=1, keepdims=True)
    step = spread * np.float32(0.9957)
    lower = middle - np.float32(1.5) * step
    for _ in range(REFITS):
        levels = _levels(vectors, lower, step, 2).astype(np.float32)
        levels_mean = levels.mean(axis=1, keepdims=True)
        away = levels - levels_mean
        squares = np.einsum("ij,ij->i", away, away)[:, None]
        step = np.einsum("ij,ij->i", away, vectors - middle)[:, None] / np.where(squares > 0, squares, np.inf)
        lower = middle - step * levels_mean
    return lower[:, 0], (lower + 3 * step)[:, 0]


def _pack(levels: np.ndarray, bits: int) -> np.ndarray:
    return levels if bits == 8 else pack_nibbles(levels) if bits == 4 else pack_quarters(levels)


def _unpack(codes: np.ndarray, d: int, bits: int) -> np.ndarray:
    """The levels as float32 (n, d)."""
    levels = codes if bits == 8 else unpack_nibbles(codes, d) if bits == 4 else unpack_quarters(codes, d)
    return levels.astype(np.float32)


def _half_above(numbers: np.ndarray) -> np.ndarray:
    """The smallest float16 that is not below each float32 number; infinity beyond the largest."""
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16)
        return np.where(halves < numbers, np.nextafter(halves, np.float16(np.inf)), halves)
