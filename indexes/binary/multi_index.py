"""Multi-index hashing (Norouzi, Punjani and Fleet, "Fast Search in Hamming Space with Multi-Index Hashing", 2012)."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.binary.base import gather, kernels
from indexes.binary.hamming import HammingIndex
from indexes.errors import CorruptIndex, InvalidParameter

WIDEST = 24  # bits of a substring: the starts of its table take 4 * 2 ** bits bytes


class MultiIndexHashing(HammingIndex):
    """Exact search by tables of substrings; the same answers as `HammingIndex`, to the bit.

    Fast where answers are near: a small radius, or codes with close neighbours. Where they are not (random codes), a
    scan takes over once look-ups would cost more than half of it: a query then costs up to about twice that scan.
    `substring_bits`: 1 to 24; None chooses log2 n (section 3.2 of the paper: lists of about one row each), at most 20.
    The tables take 4 bytes per substring and row, and 4 * 2 ** bits per substring.
    """

    kind = "multi-index-hashing"

    def __init__(self, *, substring_bits: int | None = None) -> None:
        super().__init__()
        whole = isinstance(substring_bits, int | np.integer) and not isinstance(substring_bits, bool)
        if substring_bits is not None and not (whole and 1 <= substring_bits <= WIDEST):
            raise InvalidParameter(f"substring_bits is {substring_bits!r}; it must be from 1 to {WIDEST}, or None")
        self.substring_bits = substring_bits

    def parameters(self) -> dict[str, Any]:
        return {"substring_bits": self.substring_bits}

    def _chosen(self) -> dict[str, Any]:
        firsts = self._firsts()
        return {"substring_bits": int(np.diff(firsts).max()), "substrings": len(firsts) - 1}

    def _firsts(self) -> np.ndarray:
        """Where the substrings begin and the last ends, int64 (m + 1,): widths differ by at most one."""
        bits = 8 * (self.nbytes or 1)
        width = self.substring_bits or int(np.clip(np.rint(np.log2(max(2, self._packed))), 1, 20))
        m = -(-bits // width)
        return np.arange(m + 1) * bits // m

    def _pack(self, codes: np.ndarray) -> None:
        from indexes.kernels.multi_index import tables

        super()._pack(codes)
        self._starts, self._rows = tables(kernels("hamming").as_words(codes), self._firsts())

    def _nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        lengths, complete, near, found = self._probe(queries, k, queries.shape[1] * 64, allowed, threads)
        scores, places = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
        there = np.arange(k) < lengths[:, None]
        scores[there], places[there] = -near, found
        left = np.flatnonzero(~complete)
        if len(left):
            scores[left], places[left] = super()._nearest(queries[left], k, allowed, threads)
        return scores, places

    def _within(
        self, queries: np.ndarray, radius: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths, complete, distances, places = self._probe(queries, len(self), radius, allowed, threads)
        left = np.flatnonzero(~complete)
        if len(left):
            more, *scanned = super()._within(queries[left], radius, allowed, threads)
            query = np.concatenate([np.repeat(np.arange(len(queries)), lengths), np.repeat(left, more)])
            order = np.argsort(query, kind="stable")
            distances, places = (np.concatenate(pair)[order] for pair in zip((distances, places), scanned, strict=True))
            lengths[left] = more
        return lengths, distances, places

    def _probe(
        self, queries: np.ndarray, k: int, radius: int, allowed: np.ndarray, threads: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Up to k documents within the radius of each query, and for which queries look-ups were cheap enough."""
        from indexes.kernels.multi_index import search

        firsts = self._firsts()
        lengths, complete, distances, places = gather(
            lambda a, b: search(
                self.words, firsts, self._starts, self._rows, queries[a:b], allowed, k, radius
            ), len(queries), threads,
        )  # fmt: skip
        return lengths, complete, distances, places

    def _arrays(self) -> dict[str, np.ndarray]:
        return {**super()._arrays(), "starts": self._starts, "rows": self._rows}

    def _open(self, arrays: dict[str, np.ndarray]) -> None:
        super()._open(arrays)
        self._starts, self._rows = arrays["starts"], arrays["rows"]
        firsts = self._firsts()
        m = len(firsts) - 1
        expected = {"starts": (m, 2 ** int(np.diff(firsts).max()) + 1), "rows": (m, len(self))}
        for name, shape in expected.items():
            if arrays[name].shape != shape or arrays[name].dtype != np.int32:
                raise CorruptIndex(f"{name} are {arrays[name].dtype} {arrays[name].shape}, not int32 {shape}")
