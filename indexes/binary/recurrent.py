"""Recurrent binary codes (Gan et al., "Binary Embedding-based Retrieval at Tencent", KDD 2023): two or four bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from indexes.binary.base import in_shares
from indexes.dense.base import DenseIndex
from indexes.errors import CorruptIndex, InvalidParameter

# levels -> size of the first level, in root mean squares: for Gaussian numbers the least squared error of evenly
# spaced values (Max, "Quantizing for minimum distortion", 1960, table II)
SPREAD = {2: 0.9957, 4: 1.3408}


class RecurrentBinaryIndex(DenseIndex):
    """All vectors as codes of `levels` bits a number; queries are coded alike, and codes are compared without decoding.

    Level 0 holds the signs, each further level the signs of what those before leave over (section 3.1 of the paper,
    without its trained blocks): a number is the sum of 2^-i * b_i, b_i 1 or -1, times one size per vector.
    Approximate by its codes only: each of them is scored, and scores are the same on every machine.
    `metric`: "cosine" (of the codes; a zero vector scores 0) or "ip" (times the sizes of the vectors).
    `levels`: 2 or 4 bits a number: d / 4 or d / 2 bytes a vector, and 4 bytes.
    """

    kind = "recurrent-binary"

    def __init__(self, *, metric: str = "cosine", levels: int = 4) -> None:
        if metric not in ("ip", "cosine"):
            raise InvalidParameter(f"metric is {metric!r}; it must be 'ip' or 'cosine'")
        super().__init__(metric=metric)
        if levels not in SPREAD:
            raise InvalidParameter(f"levels is {levels!r}; it must be one of {', '.join(map(str, SPREAD))}")
        self.levels = levels
        self._words: np.ndarray | None = None  # of the first rows
        self._pending: list[np.ndarray] = []  # codes (n, nbytes) of those added since
        self._factors = np.empty(0, np.float32)

    def parameters(self) -> dict[str, Any]:
        return {"metric": self.metric, "levels": self.levels}

    @property
    def codes(self) -> np.ndarray:
        """The stored codes, uint8 (n, levels * W * 8), W = ceil(d / 64): the planes of each level by row."""
        from indexes.kernels.hamming import separate

        width = self.levels * -(-(self.d or 1) // 64) * 8
        packed = len(self._factors) - sum(len(part) for part in self._pending)
        parts = [] if self._words is None or not packed else [separate(self._words, packed, width)]
        return np.concatenate([np.empty((0, width), np.uint8), *parts, *self._pending])

    def _add(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        self.d = vectors.shape[1]
        codes, factors = self._encode(vectors)
        self._pending.append(codes)
        self._factors = np.concatenate([self._factors, factors])

    def _remove(self, keep: np.ndarray) -> None:
        self._pending, self._words = [self.codes[keep]], None
        self._factors = self._factors[keep]

    def _encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes, and what a product of integers is to be multiplied with on this side."""
        codes, sizes, lengths = recurrent_codes(vectors, self.levels)
        factors = sizes * 2.0 ** (1 - self.levels) if self.metric == "ip" else (sizes > 0) / lengths
        return codes, factors.astype(np.float32)

    def _build(self) -> np.ndarray:
        if self._pending or self._words is None:
            from indexes.kernels.hamming import interleave

            self._words, self._pending = interleave(self.codes), []
        return self._words

    def _search(
        self, queries: np.ndarray, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import recurrent, topk

        codes, factors = self._encode(queries)
        planes, words = codes.view(np.uint64), self._build()
        bitmap = np.empty(0, np.bool_) if allow is None else allow
        heap_scores, heap_ids = topk.empty_heaps(len(queries), k)

        def work(a: int, b: int) -> None:
            recurrent.search(
                words, self._factors, self._ids, self.d, self.levels, planes[a:b], factors[a:b], bitmap,
                heap_scores[a:b], heap_ids[a:b],
            )  # fmt: skip

        in_shares(work, len(queries), threads)
        topk.sort_heaps(heap_scores, heap_ids)
        return heap_scores, heap_ids

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        return {"d": self.d}, {"words": self._build(), "factors": self._factors}, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        from indexes.kernels.hamming import LANES

        self.d, self._words, self._factors = state["d"], arrays["words"], arrays["factors"]
        expected = (-(-len(self) // LANES), self.levels * -(-(self.d or 1) // 64), LANES)
        if self._words.shape != expected or self._words.dtype != np.uint64:
            raise CorruptIndex(f"words are {self._words.dtype} {self._words.shape}, not uint64 {expected}")
        if self._factors.shape != (len(self),) or self._factors.dtype != np.float32:
            raise CorruptIndex(f"factors are {self._factors.dtype} {self._factors.shape}, not float32 ({len(self)},)")


def recurrent_codes(vectors: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of float32 vectors (n, d): planes, sizes and lengths.

    Planes uint8 (n, levels * W * 8), W = ceil(d / 64): for each level d bits, 1 where positive or zero, the first bit
    the lowest, filled up with zeros. A vector is near its size, float64 (n,), times the sum over the levels of
    2^-i * (1 or -1); 0 for a zero vector. Lengths float64 (n,): of the codes as vectors of odd integers, the sum of
    2^(levels-1-i) * (1 or -1).
    """
    n, d = vectors.shape
    sizes = SPREAD[levels] * np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64) / d)
    rest = vectors / np.where(sizes > 0, sizes, 1)[:, None]
    planes = np.zeros((n, levels, -(-d // 64) * 8), np.uint8)
    integers = np.zeros((n, d), np.int32)
    for level in range(levels):
        positive = rest >= 0
        planes[:, level, : -(-d // 8)] = np.packbits(positive, axis=1, bitorder="little")
        signs = np.where(positive, 1, -1)
        rest -= signs * 2.0**-level
        integers += signs << (levels - 1 - level)
    lengths = np.sqrt(np.einsum("ij,ij->i", integers, integers, dtype=np.int64))
    return planes.reshape(n, -1), sizes, lengths
