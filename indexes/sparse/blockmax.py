"""Block-max search: exact answers without looking at most documents.

Documents stand in an order of similarity; blocks of them know the highest weight of each of their terms, and a query
looks only into blocks whose maxima say that an answer may be there. Block-Max Pruning (Mallia, Suel and Tonellotto,
SIGIR 2024) with superblocks above the blocks; `indexes.kernels.blockmax` draws the path of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.base import available_threads, in_chunks
from indexes.errors import CorruptIndex, InvalidParameter
from indexes.kernels import blockmax, topk
from indexes.sparse.base import Queries, SparseIndex, stacked
from indexes.sparse.ordering import ORDERS
from indexes.sparse.segment import PRECISIONS, Segment, build
from indexes.sparse.weighting import Weighting, from_settings, weigh

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LIGHT = 0.6  # terms below this share of a query's mean term are bounded by groups of documents only, at first


class BlockMaxIndex(SparseIndex):
    """Exact top-k by block-max pruning: the scores and ids of `EagerIndex`, to the last bit.

    `weighting`: as in `EagerIndex`: None for given weights, `BM25(...)` or `TFIDF()` for counts of terms.
    `precision`: of the stored weights. "float32" keeps them as given. "uint8" rounds each row's weights to 255ths of
    the highest of them: half the memory, and exact for the rounded weights.
    `order`: "bisection" puts similar rows together; "graph" does so by recursive graph bisection, the literature's
    reference: a little faster to search, and 20 times as long to build; "insertion" keeps the order in which rows are
    added, for collections that already stand in a good one (by URL, by given clusters).

    Search parameters, each exact by default:
    `alpha`: below 1, also skips blocks whose bound times alpha is below the k-th best score so far.
    `query_cut`: let only so many of a query's heaviest terms choose the blocks; 0 for all. Scores count every term.
    `budget`: score at most so many blocks of 4 rows per query and segment; 0 for no limit.

    Rows added together become a segment at the next search or save; small segments are merged into larger ones, so
    that there are few. With a `weighting` every change makes one segment of all, since it changes all scores.
    `indexes.sparse.streaming.build_on_disk` makes the index of more rows than memory holds.
    """

    kind = "blockmax"
    search_knobs = {  # noqa: RUF012
        "alpha": lambda value: isinstance(value, int | float) and 0 < value <= 1,
        "query_cut": lambda value: isinstance(value, int) and value >= 0,
        "budget": lambda value: isinstance(value, int) and value >= 0,
    }
    search_ladders = {  # noqa: RUF012
        "alpha": (1.0, 0.98, 0.95, 0.9, 0.8),
        "query_cut": (0, 20, 15, 12, 10, 7, 5),
        "budget": (0, 1000, 300, 150, 80, 40),
    }

    def __init__(
        self, *, weighting: Weighting | None = None, precision: str = "float32", order: str = "bisection",
        alpha: float = 1.0, query_cut: int = 0, budget: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if precision not in PRECISIONS:
            raise InvalidParameter(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if order not in ORDERS:
            raise InvalidParameter(f"order is {order!r}; it must be one of {', '.join(ORDERS)}")
        self.weighting, self.precision, self.order = weighting, precision, order
        self.alpha, self.query_cut, self.budget = alpha, query_cut, budget
        self._settings({"alpha": alpha, "query_cut": query_cut, "budget": budget})
        self._segments: list[Segment] = []
        self._pending: list[csr_matrix] = []
        self._changed = False
        self._base = np.empty(0, np.float64)

    def parameters(self) -> dict[str, Any]:
        weighting = self.weighting.settings() if self.weighting else None
        knobs = {name: getattr(self, name) for name in self.search_knobs}
        return {"weighting": weighting, "precision": self.precision, "order": self.order, **knobs}

    @classmethod
    def _rebuild(cls, parameters: dict[str, Any]) -> BlockMaxIndex:
        settings = parameters.pop("weighting")
        return cls(weighting=from_settings(settings) if settings else None, **parameters)

    def _add(self, vectors: csr_matrix, ids: np.ndarray) -> None:
        self._pending.append(vectors)
        self._changed = True
        self._widen(vectors.shape[1])

    def _widen(self, V: int) -> None:
        given = self.weighting.statistics if self.weighting else None
        # in BM25L and BM25+ terms score here too that only documents elsewhere have
        self.V = max(self.V, V, 0 if given is None else len(given.df))

    def _remove(self, keep: np.ndarray) -> None:
        self._changed = True
        new = np.where(keep, np.cumsum(keep) - 1, -1)
        start = len(keep) - sum(part.shape[0] for part in self._pending)
        for segment in self._segments:
            segment.renumber(new)
        for i, part in enumerate(self._pending):
            self._pending[i] = part[keep[start : start + part.shape[0]]]
            start += part.shape[0]

    def _build(self) -> None:
        """Make segments of the rows added since, merged with smaller ones: sizes fall at least by half."""
        if not self._changed:
            return
        self._changed = False
        sparse = [segment for segment in self._segments if 2 * len(segment) < len(segment.rows)]
        if not self._pending and not sparse and self.weighting is None:
            return
        from scipy.sparse import csr_matrix

        merged: list[Segment] = []
        size = sum(part.shape[0] for part in self._pending)
        for segment in sorted(self._segments, key=len):
            if self.weighting is not None or segment in sparse or len(segment) < 2 * size:
                merged.append(segment)
                size += len(segment)
        parts = [segment.vectors(self.V) for segment in merged]
        start = len(self._ids) - sum(part.shape[0] for part in self._pending)
        for part in self._pending:
            parts.append((part, np.arange(start, start + part.shape[0])))
            start += part.shape[0]
        rows = np.concatenate([rows for _, rows in parts])
        vectors = stacked([part for part, _ in parts], self.V)
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows)
            rows, vectors = rows[order], vectors[order]
        counts = None
        if self.weighting is not None:
            counts = vectors.data
            scores, self._base = weigh(self.weighting, vectors)
            vectors = csr_matrix((scores, vectors.indices, vectors.indptr), shape=vectors.shape)
        made = build(
            vectors, rows, self._ids[rows], precision=self.precision, order=self.order, counts=counts,
            threads=available_threads(),
        )  # fmt: skip
        kept = [segment for segment in self._segments if segment not in merged]
        self._segments = [segment for segment in [*kept, made] if len(segment)]
        self._pending = []

    def _search(
        self, queries: Queries, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        self._build()
        heap_scores, heap_ids = topk.empty_heaps(queries.shape[0], k)
        alpha, query_cut, budget = float(knobs["alpha"]), knobs["query_cut"], knobs["budget"]
        segments = [(segment, segment.allowed(allow)) for segment in self._segments]

        def work(a: int, b: int) -> None:
            for segment, allowed in segments:
                workspace = segment.take_workspace()
                blockmax.search(
                    queries.starts[a : b + 1], queries.terms, queries.weights, self._base, workspace, allowed,
                    alpha, query_cut, budget, LIGHT, heap_scores[a:b], heap_ids[a:b],
                )  # fmt: skip
                segment.give_workspace(workspace)
            topk.sort_heaps(heap_scores[a:b], heap_ids[a:b])

        in_chunks(work, queries.shape[0], threads)
        return heap_scores, heap_ids

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        self._build()
        arrays = {"base": self._base}
        for number, segment in enumerate(self._segments):
            arrays.update({f"{number}-{name}": array for name, array in segment.state().items()})
        return {"V": self.V, "segments": len(self._segments)}, arrays, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        self.V, self._base = state["V"], arrays["base"]
        for number in range(state["segments"]):
            prefix = f"{number}-"
            parts = {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}
            segment = Segment.restore(parts)
            if segment.rows.max(initial=-1) >= len(self._ids):
                raise CorruptIndex(f"segment {number} names row {segment.rows.max()} of {len(self._ids)}")
            self._segments.append(segment)

    def _chosen(self) -> dict[str, Any]:
        return {"segments": [len(segment) for segment in self._segments]}

    def _postings(self) -> int:
        return sum(len(segment.arrays.terms) for segment in self._segments)
