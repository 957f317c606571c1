"""Exact Hamming search by a scan over all codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.binary.base import BinaryIndex, gather, in_shares
from indexes.errors import CorruptIndex

BATCH = 512  # queries whose lists are kept at once: 12 bytes for each of some 2 k entries


class HammingIndex(BinaryIndex):
    """Every distance is computed: exact, without parameters, at the speed of memory for a single query.

    A batch of queries reads the codes from the cache, and is two to three times as fast per query.
    """

    kind = "hamming"
    words: np.ndarray
    """uint64 (blocks, W, LANES), the layout of `indexes.kernels.hamming`; there once something was searched."""

    def parameters(self) -> dict[str, Any]:
        return {}

    def _pack(self, codes: np.ndarray) -> None:
        from indexes.kernels.hamming import interleave

        self.words = interleave(codes)

    def _unpack(self) -> np.ndarray:
        from indexes.kernels.hamming import separate

        assert self.nbytes is not None
        return separate(self.words, self._packed, self.nbytes)

    def _nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import hamming

        distances, places = np.zeros((len(queries), k), np.int32), np.full((len(queries), k), -1)

        def work(a: int, b: int) -> None:
            for start in range(a, b, BATCH):
                part = slice(start, min(b, start + BATCH))
                hamming.nearest(self.words, len(self), queries[part], allowed, distances[part], places[part])

        in_shares(work, len(queries), threads)
        return distances, places

    def _within(
        self, queries: np.ndarray, radius: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        from indexes.kernels import hamming

        lengths, distances, places = gather(
            lambda a, b: hamming.within(self.words, len(self), queries[a:b], allowed, radius), len(queries), threads
        )
        return lengths, distances, places

    def _arrays(self) -> dict[str, np.ndarray]:
        return {"words": self.words}

    def _open(self, arrays: dict[str, np.ndarray]) -> None:
        from indexes.kernels.hamming import LANES

        self.words = arrays["words"]
        expected = (-(-len(self) // LANES), -(-(self.nbytes or 1) // 8), LANES)
        if self.words.shape != expected or self.words.dtype != np.uint64:
            raise CorruptIndex(f"words are {self.words.dtype} {self.words.shape}, not uint64 {expected}")
