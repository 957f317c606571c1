"""Exact Hamming search by a scan over all codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.binary.base import BinaryIndex, gather, in_shares, kernels
from indexes.errors import CorruptIndex


class HammingIndex(BinaryIndex):
    """Every distance is computed: exact, without parameters, at the speed of memory for a single query.

    A batch of queries reads the codes from the cache, and is three to six times as fast per query.
    """

    kind = "hamming"
    words: np.ndarray
    """uint64 (blocks, W, LANES), the layout of `indexes.kernels.hamming`; there once something was searched."""

    def parameters(self) -> dict[str, Any]:
        return {}

    def _pack(self, codes: np.ndarray) -> None:
        self.words = kernels("hamming").interleave(codes)

    def _unpack(self) -> np.ndarray:
        assert self.nbytes is not None
        return kernels("hamming").separate(self.words, self._packed, self.nbytes)

    def _nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        scores, places = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def work(a: int, b: int) -> None:
            kernels("hamming").nearest(self.words, len(self), queries[a:b], allowed, scores[a:b], places[a:b])

        in_shares(work, len(queries), threads)
        return scores, places

    def _within(
        self, queries: np.ndarray, radius: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        within = kernels("hamming").within
        lengths, distances, places = gather(
            lambda a, b: within(self.words, len(self), queries[a:b], allowed, radius), len(queries), threads
        )
        return lengths, distances, places

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"words": self.words}

    def _open(self, arrays: dict[str, np.ndarray]) -> None:
        lanes = kernels("hamming").LANES
        self.words = arrays["words"]
        expected = (-(-len(self) // lanes), -(-(self.nbytes or 1) // 8), lanes)
        if self.words.shape != expected or self.words.dtype != np.uint64:
            raise CorruptIndex(f"words are {self.words.dtype} {self.words.shape}, not uint64 {expected}")
