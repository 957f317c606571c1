"""Codes laid out row by row, as the kernels of a graph read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from indexes.codecs import Codec
from indexes.codecs.levels import levels_of
from indexes.dense.store import LINE, GrowingRows, aligned
from indexes.errors import CorruptIndex, InvalidParameter

if TYPE_CHECKING:
    from indexes.kernels.graph_rows import Graph


class RowCodes:
    """Codes of a fitted codec that are made of small whole numbers; `l2`: whether squared lengths are kept with them.

    A row: the code, then as float32 what `levels.row_terms` gives, and half of the squared length, in whole lines of 64
    bytes. Raises `InvalidParameter` for other codecs.
    """

    def __init__(self, codec: Codec, l2: bool) -> None:
        levels = levels_of(codec)
        if levels is None:
            raise InvalidParameter(f"codec is {codec!r}; it must be SQ, LVQ, SignBits, RaBitQ or a Chain with one")
        self.codec, self.l2, self.levels = codec, l2, levels
        self.scaled = len(levels.row_terms(np.zeros((1, codec.bytes_per_vector), np.uint8))[0]) > 0
        self.at = -(-codec.bytes_per_vector // 4)  # where terms begin, in float32
        self.lines = -(-(4 * (self.at + 2 * self.scaled + l2)) // LINE)
        self._rows = GrowingRows()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, codes: np.ndarray) -> None:
        """Append codes uint8 (n, bytes)."""
        rows = aligned((len(codes), self.lines * LINE), np.uint8)
        rows[:] = 0
        rows[:, : codes.shape[1]] = codes
        terms = rows.view(np.float32)[:, self.at :]
        if self.scaled:
            terms[:, 0], terms[:, 1] = self.levels.row_terms(codes)
        if self.l2:
            decoded = self.codec.decode(codes)
            terms[:, 2 * self.scaled] = np.einsum("ij,ij->i", decoded, decoded) / 2
        self._rows.append(rows)

    def keep(self, rows: np.ndarray) -> None:
        """Only the rows where bool (n,) is True."""
        self._rows.open(_aligned(self.rows()[rows]))

    def rows(self) -> np.ndarray:
        """All rows, uint8 (n, bytes), each of which begins where a line of memory does."""
        return self._rows.all() if len(self) else np.empty((0, self.lines * LINE), np.uint8)

    def graph(self, neighbors: np.ndarray, starts: np.ndarray) -> Graph:
        """With the links, what the kernels take."""
        from indexes.kernels import graph_rows

        flat = self.rows().reshape(-1)
        return graph_rows.Graph(
            neighbors, flat, flat.view(np.float32), self.lines, self.levels.bits, self.at,
            int(self.scaled), int(self.l2), starts,
        )  # fmt: skip

    def decoded(self, rows: np.ndarray) -> np.ndarray:
        """Vectors float32 (m, d) at `rows` int64 (m,)."""
        return self.codec.decode(self._codes(rows))

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Scores float32 (nq, m) of queries (nq, d) with the decoded vectors at `rows` int64 (nq, m), -1 for none."""
        from indexes.kernels import graph_rows

        scores = np.full(rows.shape, -np.inf, np.float32)
        graph = self.graph(np.empty((0, 1), np.int32), np.empty(0, np.int64))
        for q, some in enumerate(rows):
            real, query = some[some >= 0], queries[q : q + 1]
            weights, tilts = self.levels.query_terms(query)
            products = np.empty(len(real), np.float32)
            graph_rows.score_exactly(graph, weights[0], tilts[0], real, products)
            if len(real):  # what all scores of the query have in common
                products += self.codec.scorer(query)(self._codes(real[:1]))[0, 0] - products[0]
            if self.l2:
                halves = self.rows().view(np.float32)[real, self.at + 2 * self.scaled]
                products = np.minimum(2 * (products - halves) - queries[q] @ queries[q], 0)
            scores[q, some >= 0] = products
        return scores

    def _codes(self, rows: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.rows()[rows, : self.codec.bytes_per_vector])

    def open(self, rows: np.ndarray, n: int) -> None:
        """Take a saved array, or `CorruptIndex`."""
        if rows.shape != (n, self.lines * LINE) or rows.dtype != np.uint8:
            seen = f"{rows.dtype} {rows.shape}"
            raise CorruptIndex(f"codes are {seen}; {n} of {self.codec!r} are uint8 ({n}, {self.lines * LINE})")
        self._rows.open(_aligned(rows))


def _aligned(rows: np.ndarray) -> np.ndarray:
    """Rows that begin where a line of memory does, copied where they do not."""
    if not rows.ctypes.data % LINE:
        return rows
    copy = aligned(rows.shape, rows.dtype)
    copy[:] = rows
    return copy
