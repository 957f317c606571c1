"""Recurrent binary codes with trained maps: each level holds signs of what the levels before it left over."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.codecs.base import Codec, Scorer, by_products, check_choice, check_integer
from indexes.codecs.packing import pack_nibbles, pack_quarters, pack_signs, unpack_nibbles, unpack_quarters
from indexes.errors import InvalidParameter, InvalidVectors

LEVELS = (1, 2, 4, 8)


class Recurrent(Codec):
    """`dimensions` numbers of `levels` bits: levels * dimensions / 8 bytes.

    Gan et al., "Binary Embedding-based Retrieval at Tencent", KDD 2023, section 3.1, with linear blocks. With
    r_0 = x - mean, level i holds b_i = sign(W_i r_i), and r_(i+1) = r_i - R_i b_i is left over; the code stands for the
    numbers c = the sum of 2^-i b_i, and scores of queries q are (A q).c + q.mean. The maps come from training:
    `Recurrent.of(binarize, rebuild, queries, mean)`; `fit` refuses.
    """

    kind = "recurrent"
    trained = True

    def __init__(self, *, dimensions: int, levels: int) -> None:
        super().__init__()
        check_integer("dimensions", dimensions, 1)
        check_choice("levels", levels, LEVELS)
        self.dimensions, self.levels = dimensions, levels
        self.mean: np.ndarray
        self.binarize: np.ndarray
        self.rebuild: np.ndarray
        self.queries: np.ndarray

    @classmethod
    def of(cls, binarize: np.ndarray, rebuild: np.ndarray, queries: np.ndarray, mean: np.ndarray) -> Recurrent:
        """W `binarize` (levels, d', d), R `rebuild` (levels - 1, d, d'), A `queries` (d', d), `mean` (d,)."""
        levels, width, d = binarize.shape
        arrays = {"mean": mean, "binarize": binarize, "rebuild": rebuild, "queries": queries}
        header = {"kind": cls.kind, "d": d, "parameters": {"dimensions": width, "levels": levels}}
        return cls.restore(header, {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()})

    def parameters(self) -> dict[str, Any]:
        return {"dimensions": self.dimensions, "levels": self.levels}

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """What codes uint8 (n, bytes) stand for: float32 (n, dimensions), odd multiples of 2^(1 - levels) below 2.

        Products of these with those of queries that were encoded too are the paper's symmetric distance calculation.
        Needs no maps. Raises `InvalidVectors`.
        """
        width = self._bytes(0)
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
            raise InvalidVectors(f"codes are {codes.dtype} {codes.shape}; {self!r} takes uint8 (n, {width})")
        if self.levels == 1:
            whole = np.unpackbits(codes, axis=1, count=self.dimensions, bitorder="little")
        elif self.levels == 2:
            whole = unpack_quarters(codes, self.dimensions)
        else:
            whole = unpack_nibbles(codes, self.dimensions) if self.levels == 4 else codes
        return (2 * whole.astype(np.float32) - (2**self.levels - 1)) * np.float32(2.0 ** (1 - self.levels))

    def _shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        width = self.dimensions
        maps = {"binarize": (self.levels, width, d), "rebuild": (self.levels - 1, d, width), "queries": (width, d)}
        return {"mean": (d,), **maps}

    def _fit(self, vectors: np.ndarray, queries: np.ndarray | None) -> None:
        raise InvalidParameter(f"{self!r} is made by training, not by fit; train it anew")

    def _bytes(self, d: int) -> int:
        return -(-self.dimensions * self.levels // 8)

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        rest, whole = vectors - self.mean, np.zeros((len(vectors), self.dimensions), np.uint8)
        for level, binarize in enumerate(self.binarize):
            bits = rest @ binarize.T >= 0
            whole = 2 * whole + bits
            if level + 1 < self.levels:
                rest = rest - np.where(bits, np.float32(1), np.float32(-1)) @ self.rebuild[level].T
        if self.levels == 1:
            return pack_signs(whole.astype(np.float32) - 0.5)
        return whole if self.levels == 8 else (pack_quarters if self.levels == 2 else pack_nibbles)(whole)

    def _decode(self, codes: np.ndarray) -> np.ndarray:
        return self.numbers(codes) @ self.queries + self.mean

    def _scorer(self, queries: np.ndarray) -> Scorer:
        score, base = by_products(queries @ self.queries.T, self.numbers), (queries @ self.mean)[:, None]
        return lambda codes: score(codes) + base
