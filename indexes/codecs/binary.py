"""One bit per dimension: plain signs, and RaBitQ, which corrects what signs lose."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.codecs.base import Codec, Scorer, check_integer
from indexes.codecs.linear import RandomRotation
from indexes.codecs.packing import by_tables, pack_signs, sign_tables, unpack_signs


class SignBits(Codec):
    """The sign of each number: d / 8 bytes.

    `fit` learns the mean size of a number, which makes scores as large as inner products. Signs of embeddings say
    most when the dimensions are alike and centred: `Chain(RandomRotation(), SignBits())`.
    """

    kind = "sign"

    def __init__(self) -> None:
        super().__init__()
        self.scale: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"scale": (1,)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        self.scale = np.array([np.abs(vectors).mean(dtype=np.float64)], np.float32)

    def _bytes(self, d: int) -> int:
        return -(-d // 8)

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        return pack_signs(vectors)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self.scale * unpack_signs(codes, self._width())

    def _scorer(self, queries: np.ndarray) -> Scorer:
        return by_tables(sign_tables(queries * self.scale))


class RaBitQ(Codec):
    """Signs after a random rotation, and one number that makes the estimated inner products unbiased: d / 8 + 4 bytes.

    Gao and Long, "RaBitQ: Quantizing High-Dimensional Vectors with a Theoretical Error Bound for Approximate Nearest
    Neighbor Search", SIGMOD 2024. `fit` learns the mean c, and draws the rotation P from `seed`. With r = P (x - c),
    the estimate of q.x is q.c + (|r|^2 / sum |r_i|) * (P q).sign(r) (section 3.2): over all rotations its mean is q.x,
    and its error falls as 1 / sqrt(d). Queries are not quantised.
    `decode` gives the vector whose inner product with a query is that estimate. It is longer than x, by a fourth on
    average: the estimate has to make up for what the signs do not hold.
    """

    kind = "rabitq"

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        check_integer("seed", seed, 0)
        self.seed = seed
        self.mean: np.ndarray
        self.projection: np.ndarray

    def parameters(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        return {"mean": (d,), "projection": (d, d)}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        rotation = RandomRotation(seed=self.seed).fit(vectors)
        self.mean, self.projection = rotation.mean, rotation.projection

    def _bytes(self, d: int) -> int:
        return -(-d // 8) + 4

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        rotated = (vectors - self.mean) @ self.projection.T
        total = np.abs(rotated).sum(axis=1, keepdims=True)
        largest = np.abs(rotated).max(axis=1, keepdims=True)
        # one factor of the square is divided first, so that very short vectors do not vanish
        shares = rotated / np.where(total > 0, total, 1)
        factors = np.einsum("ij,ij->i", rotated / np.where(largest > 0, largest, 1), shares)[:, None] * largest
        return np.concatenate([pack_signs(rotated), factors.astype("<f4").view(np.uint8)], axis=1)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        signs = unpack_signs(codes[:, :-4], self._width())
        return (signs * _factors(codes)[:, None]) @ self.projection + self.mean

    def _scorer(self, queries: np.ndarray) -> Scorer:
        base = (queries @ self.mean)[:, None]
        score = by_tables(sign_tables(queries @ self.projection.T))

        def scores(codes: np.ndarray) -> np.ndarray:
            return score(codes) * _factors(codes) + base

        return scores


def _factors(codes: np.ndarray) -> np.ndarray:
    """float32 (n,): the number at the end of each code."""
    return np.ascontiguousarray(codes[:, -4:]).view("<f4").astype(np.float32)[:, 0]
