"""Seismic: approximate search over learned sparse vectors by summaries of clustered inverted lists.

Bruch, Nardini, Rulli and Venturini (SIGIR 2024, arXiv:2404.18812); the order of blocks and the graph of neighbours
follow their SeismicWave (CIKM 2024, arXiv:2408.04443). `indexes.kernels.seismic` draws the path of a query. What
differs from the published system:

- A list is cut into blocks by balanced bisection of its documents' random projections, not by the nearest of random
  representatives. On 200,000 SPLADE-like documents, 300 postings a list, blocks of 8, `query_cut` 10 and
  `heap_factor` 0.9, that answered at recall 0.981 with 307 documents scored a query. Runs of one order of all
  documents: 0.966 with 354. Random representatives, in the space of the projections: 0.990 with 972, since blocks that
  are not balanced become large, and four times as long to cut.
- The blocks of all lists are visited in one order, that of their summaries' scores, not list by list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.base import available_threads, in_chunks
from indexes.errors import CorruptIndex, InvalidParameter
from indexes.sparse.base import Queries, SparseIndex, stacked
from indexes.sparse.ordering import projected
from indexes.sparse.segment import PRECISIONS

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from indexes.kernels.seismic import Lists, Rows, Scratch

SUMMARIES = 4096  # made at a time: bounds the room for what is cut off them


class SeismicIndex(SparseIndex):
    """Approximate top-k of inner products with given weights (SPLADE and the like); `BlockMaxIndex` is its exact twin.

    `postings`: how many a term's list keeps, the heaviest; by default n^(2/3) / 12 and at least 100, which is 285 for
    200,000 rows, 833 for 1,000,000 and 3,550 for MS MARCO's 8,800,000, close to what the paper uses.
    `block`: rows in a block. `energy`: the share of a summary's sum that is kept.
    `neighbors`: of each row in the graph; 0 is without. It costs a search per row and 4 bytes per neighbour.
    `precision`: of the stored weights, "float32" or "uint8", as in `BlockMaxIndex`; returned scores are exact for them.

    Search parameters:
    `query_cut`: so many of a query's heaviest terms choose the blocks. Scores count every term.
    `heap_factor`: blocks are skipped whose summary scores less than this times the k-th best score so far. Smaller is
    slower and finds more.

    Where fewer than `k` rows are found that way, all rows are scored. Removed rows are skipped; adding rows makes
    the lists anew, at the next search or save.
    """

    kind = "seismic"
    search_knobs = {  # noqa: RUF012
        "query_cut": lambda value: isinstance(value, int) and value >= 1,
        "heap_factor": lambda value: isinstance(value, int | float) and 0 <= value < np.inf,
    }
    search_ladders = {  # noqa: RUF012
        "query_cut": (40, 20, 15, 10, 7, 5, 3),
        "heap_factor": (0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
    }

    def __init__(
        self, *, postings: int | None = None, block: int = 8, energy: float = 0.4, neighbors: int = 0,
        precision: str = "float32", query_cut: int = 10, heap_factor: float = 0.9,
    ) -> None:  # fmt: skip
        super().__init__()
        if postings is not None and not (isinstance(postings, int) and postings >= 1):
            raise InvalidParameter(f"postings is {postings!r}; it must be an integer of at least 1, or None")
        if not (isinstance(block, int) and block >= 1):
            raise InvalidParameter(f"block is {block!r}; it must be an integer of at least 1")
        if not 0 < energy <= 1:
            raise InvalidParameter(f"energy is {energy!r}; it must be above 0 and at most 1")
        if not (isinstance(neighbors, int) and neighbors >= 0):
            raise InvalidParameter(f"neighbors is {neighbors!r}; it must be an integer of at least 0")
        if precision not in PRECISIONS:
            raise InvalidParameter(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
        self.postings, self.block, self.energy, self.neighbors = postings, block, energy, neighbors
        self.precision, self.query_cut, self.heap_factor = precision, query_cut, heap_factor
        self._settings({"query_cut": query_cut, "heap_factor": heap_factor})
        self._pending: list[csr_matrix] = []
        self._rows = np.empty(0, np.int32)  # of each place; -1: removed
        self._lists: Lists | None = None
        self._documents: Rows | None = None
        self._summaries: Rows | None = None
        self._free: list[Scratch] = []

    def parameters(self) -> dict[str, Any]:
        names = ("postings", "block", "energy", "neighbors", "precision", *self.search_knobs)
        return {name: getattr(self, name) for name in names}

    def _add(self, vectors: csr_matrix, ids: np.ndarray) -> None:
        self._pending.append(vectors)
        self.V = max(self.V, vectors.shape[1])

    def _remove(self, keep: np.ndarray) -> None:
        stored = len(keep) - sum(part.shape[0] for part in self._pending)
        for i, part in enumerate(self._pending):
            self._pending[i] = part[keep[stored : stored + part.shape[0]]]
            stored += part.shape[0]
        new = np.where(keep, np.cumsum(keep) - 1, -1)
        self._rows = np.where(self._rows >= 0, new[self._rows], -1).astype(np.int32)

    @property
    def vectors(self) -> csr_matrix:
        """The stored vectors (n, V), float32 as `precision` rounded them, by row. Made at each call."""
        from scipy.sparse import csr_matrix

        parts = self._pending
        if self._lists is not None and self._documents is not None:
            documents = self._documents
            names = np.empty(len(self._lists.list_blocks) - 1, np.int32)
            terms = np.flatnonzero(self._lists.ranks >= 0)
            names[self._lists.ranks[terms]] = terms
            weights = documents.weights.astype(np.float32)
            if len(documents.row_scales):
                weights *= np.repeat(documents.row_scales, np.diff(documents.starts))
            shape = (len(self._rows), len(self._lists.ranks))
            stored = csr_matrix((weights, names[documents.terms], documents.starts), shape=shape)
            parts = [stored[self._rows >= 0], *parts]
        return stacked(parts, self.V)

    def _build(self) -> None:
        """Make the lists anew if rows were added, or most were removed."""
        if not self._pending and 2 * len(self) >= len(self._rows):
            return
        vectors = self.vectors
        self._documents, ranks = _forward(vectors, self.precision)
        self._lists, self._summaries = self._inverted(vectors, self._documents, ranks)
        self._rows, self._pending, self._free = np.arange(len(self), dtype=np.int32), [], []
        if self.neighbors:
            self._lists = self._lists._replace(neighbors=self._graph(vectors))

    def _inverted(self, vectors: csr_matrix, documents: Rows, ranks: np.ndarray) -> tuple[Lists, Rows]:
        from indexes.kernels import seismic
        from indexes.kernels.postings import transpose

        n, used, threads = vectors.shape[0], int(ranks.max(initial=-1)) + 1, available_threads()
        starts, places, weights = transpose(documents.starts, documents.terms, vectors.data, used)
        keep = np.empty(len(places), np.bool_)
        postings = self._chosen_postings(n)
        in_chunks(lambda a, b: seismic.prune(starts, weights, postings, keep, a, b), used, threads)
        places = places[keep]
        list_starts = np.concatenate([[0], np.cumsum(keep)])[starts]
        points = projected(vectors, threads)
        in_chunks(lambda a, b: seismic.cluster(points, list_starts, places, self.block, a, b), used, threads)
        counts = -(-np.diff(list_starts) // self.block)
        list_blocks = np.concatenate([[0], np.cumsum(counts)])
        firsts = list_starts[:-1] - self.block * list_blocks[:-1]
        block_starts = np.repeat(firsts, counts) + self.block * np.arange(list_blocks[-1])
        block_starts = np.append(block_starts, len(places))
        summaries = _summarize(documents, block_starts, places, self.energy, used, threads)
        lists = seismic.Lists(self._ids.copy(), ranks, list_blocks, block_starts, places, np.empty((n, 0), np.int32))
        return lists, summaries

    def _graph(self, vectors: csr_matrix) -> np.ndarray:
        """int32 (n, neighbors): the places that searching for each place's own vector finds, -1 beyond them."""
        from indexes.kernels import seismic, topk

        assert self._lists is not None
        n = len(self)
        scores, found = topk.empty_heaps(n, self.neighbors + 1)
        lists = self._lists._replace(ids=np.arange(n))
        starts = vectors.indptr.astype(np.int64)

        def work(a: int, b: int) -> None:
            scratch = self._take_scratch()
            seismic.search(
                starts[a : b + 1], vectors.indices, vectors.data, lists, self._documents, self._summaries,
                np.empty(0, np.bool_), scratch, 10, 1.0, False, scores[a:b], found[a:b],
            )  # fmt: skip
            topk.sort_heaps(scores[a:b], found[a:b])
            self._free.append(scratch)

        in_chunks(work, n, available_threads())
        itself = found == np.arange(n)[:, None]
        order = np.argsort(itself, axis=1, kind="stable")[:, : self.neighbors]
        found[itself] = -1
        return np.take_along_axis(found, order, axis=1).astype(np.int32)

    def _search(
        self, queries: Queries, k: int, allow: np.ndarray | None, threads: int, **knobs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        from indexes.kernels import seismic, topk

        self._build()
        heap_scores, heap_ids = topk.empty_heaps(queries.shape[0], k)
        allowed = np.empty(0, np.bool_)
        if allow is not None:
            allowed = allow[self._rows] & (self._rows >= 0)
        elif len(self) < len(self._rows):
            allowed = self._rows >= 0
        query_cut, heap_factor = knobs["query_cut"], float(knobs["heap_factor"])

        def work(a: int, b: int) -> None:
            scratch = self._take_scratch()
            seismic.search(
                queries.starts[a : b + 1], queries.terms, queries.weights,
                self._lists, self._documents, self._summaries, allowed, scratch,
                query_cut, heap_factor, True, heap_scores[a:b], heap_ids[a:b],
            )  # fmt: skip
            topk.sort_heaps(heap_scores[a:b], heap_ids[a:b])
            self._free.append(scratch)

        in_chunks(work, queries.shape[0], threads)
        return heap_scores, heap_ids

    def _take_scratch(self) -> Scratch:
        """Room for one thread's queries."""
        from indexes.kernels.seismic import Scratch

        try:
            return self._free.pop()
        except IndexError:
            assert self._lists is not None
            n, used, blocks = len(self._rows), len(self._lists.list_blocks) - 1, len(self._lists.block_starts) - 1
            return Scratch(
                weights=np.zeros(used, np.float32),
                visited=np.zeros(n // 8 + 1, np.uint8),
                queue=np.empty(blocks, np.int32),
                bounds=np.empty(blocks, np.float32),
                scored=np.empty(n, np.int32),
                scores=np.empty(n, np.float32),
                work=np.zeros(3, np.int64),
            )

    def _state(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Callable[[str], None]]]:
        self._build()
        if self._lists is None or self._documents is None or self._summaries is None:
            return {"V": self.V}, {}, {}
        lists = self._lists._asdict()
        del lists["ids"]
        documents = {f"documents-{name}": array for name, array in self._documents._asdict().items()}
        summaries = {f"summaries-{name}": array for name, array in self._summaries._asdict().items()}
        return {"V": self.V}, {"rows": self._rows, **lists, **documents, **summaries}, {}

    def _restore(self, state: dict[str, Any], arrays: dict[str, np.ndarray], foreign: dict[str, Path]) -> None:
        from indexes.kernels.seismic import Lists, Rows

        self.V = state["V"]
        if not arrays:
            return
        self._rows = rows = arrays["rows"]
        if np.count_nonzero(rows >= 0) != len(self._ids) or rows.max(initial=-1) != len(self._ids) - 1:
            raise CorruptIndex(f"{len(rows)} places do not hold {len(self._ids)} rows")
        ids = np.full(len(rows), -1, np.int64)
        ids[rows >= 0] = self._ids
        self._lists = Lists(ids, **{name: arrays[name] for name in Lists._fields[1:]})
        self._documents = Rows(*(arrays[f"documents-{name}"] for name in Rows._fields))
        self._summaries = Rows(*(arrays[f"summaries-{name}"] for name in Rows._fields))
        blocks = len(self._lists.block_starts) - 1
        ends = (
            (len(self._lists.ranks), self.V),
            (int(self._lists.list_blocks[-1]), blocks),
            (int(self._lists.block_starts[-1]), len(self._lists.places)),
            (len(self._lists.neighbors), len(rows)),
            (len(self._documents.starts), len(rows) + 1),
            (int(self._documents.starts[-1]), len(self._documents.terms)),
            (len(self._documents.weights), len(self._documents.terms)),
            (len(self._summaries.starts), blocks + 1),
            (int(self._summaries.starts[-1]), len(self._summaries.terms)),
            (len(self._summaries.weights), len(self._summaries.terms)),
            (len(self._summaries.row_scales), blocks),
        )
        if any(one != other for one, other in ends):
            raise CorruptIndex("the arrays of the lists, the documents and the summaries do not fit together")

    def _chosen_postings(self, n: int) -> int:
        return self.postings if self.postings is not None else max(100, round(n ** (2 / 3) / 12))

    def _chosen(self) -> dict[str, Any]:
        return {"postings": self._chosen_postings(len(self))}


def _forward(vectors: csr_matrix, precision: str) -> tuple[Rows, np.ndarray]:
    """The documents with their terms numbered from the most frequent to the least, and int32 (V,): those ranks."""
    from indexes.kernels.blockmax_build import quantize
    from indexes.kernels.seismic import Rows

    df = np.bincount(vectors.indices, minlength=vectors.shape[1])
    used = int(np.count_nonzero(df))
    ranks = np.full(vectors.shape[1], -1, np.int32)
    ranks[np.argsort(-df, kind="stable")[:used]] = np.arange(used)
    terms = ranks[vectors.indices]
    if used <= 1 << 16:
        terms = terms.astype(np.uint16)
    starts, weights, row_scales = vectors.indptr.astype(np.int64), vectors.data, np.empty(0, np.float32)
    if precision == "uint8":
        weights, row_scales = np.empty(len(terms), np.uint8), np.empty(vectors.shape[0], np.float32)
        quantize(starts, vectors.data, weights, row_scales)
    return Rows(starts, terms, weights, row_scales), ranks


def _summarize(
    documents: Rows, block_starts: np.ndarray, places: np.ndarray, energy: float, used: int, threads: int
) -> Rows:
    from indexes.kernels import seismic

    blocks = len(block_starts) - 1
    sizes, scales = np.zeros(blocks, np.int64), np.empty(blocks, np.float32)
    parts: list[Any] = [None] * -(-blocks // SUMMARIES)

    def work(first: int, last: int) -> None:
        codes = np.empty(used, np.uint8)
        for part in range(first, last):
            a, b = part * SUMMARIES, min(blocks, (part + 1) * SUMMARIES)
            here = places[block_starts[a] : block_starts[b]]
            room = int((documents.starts[here + 1] - documents.starts[here]).sum())
            terms, weights = np.empty(room, documents.terms.dtype), np.empty(room, np.uint8)
            size = seismic.summarize(
                documents, block_starts, places, energy, codes, a, b, sizes, terms, weights, scales
            )  # fmt: skip
            parts[part] = terms[:size].copy(), weights[:size].copy()

    in_chunks(work, len(parts), threads)
    terms = np.concatenate([np.empty(0, documents.terms.dtype), *(part[0] for part in parts)])
    weights = np.concatenate([np.empty(0, np.uint8), *(part[1] for part in parts)])
    return seismic.Rows(np.concatenate([[0], np.cumsum(sizes)]), terms, weights, scales)
