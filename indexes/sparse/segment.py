"""A segment: documents in an order of their own, with the maxima that let a search skip most of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from indexes.base import in_chunks
from indexes.errors import CorruptIndex
from indexes.kernels import blockmax_build as kernels
from indexes.kernels.blockmax import Scratch, Workspace
from indexes.kernels.blockmax import Segment as Arrays
from indexes.kernels.blockmax_bounds import GROUP, SUPER, TILE
from indexes.kernels.blockmax_score import BLOCK
from indexes.sparse.ordering import arrange

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

PART = BLOCK * SUPER * TILE  # documents of a tile
DENSE = 40  # a term in at least one of so many documents has dense rows of blocks and superblocks
GROUPED = 256  # ... and of groups
PRECISIONS = ("float32", "uint8")


@dataclass(eq=False)  # a segment is itself, whatever its arrays hold
class Segment:
    """`rows` int32 (n,): the row in the index of each place, -1 where it was removed. `arrays`: see the kernel.

    `counts`, for weighted vectors: the counts behind `arrays.weights`, entry by entry.
    """

    arrays: Arrays
    rows: np.ndarray
    counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        self._free: list[Workspace] = []
        self._alive: np.ndarray | None = None
        self._count = int(np.count_nonzero(self.rows >= 0))

    def __len__(self) -> int:
        """Rows that were not removed."""
        return self._count

    def vectors(self, V: int) -> tuple[csr_matrix, np.ndarray]:
        """The vectors (or counts) of the rows that remain, float32 (m, V), and their rows, both ascending."""
        from scipy.sparse import csr_matrix

        arrays = self.arrays
        names = np.empty(len(arrays.scales), np.int32)
        terms = np.flatnonzero(arrays.ranks >= 0)
        names[arrays.ranks[terms]] = terms
        data = arrays.weights if self.counts is None else self.counts
        weights = data.astype(np.float32)
        if self.counts is None and len(arrays.row_scales):
            weights *= np.repeat(arrays.row_scales, np.diff(arrays.starts))
        csr = csr_matrix((weights, names[arrays.terms], arrays.starts), shape=(len(self.rows), V))
        places = np.argsort(self.rows, kind="stable")
        places = places[np.searchsorted(self.rows[places], 0) :]
        return csr[places], self.rows[places]

    def state(self) -> dict[str, np.ndarray]:
        """Its arrays by name, for `restore`."""
        named = {**self.arrays._asdict(), "rows": self.rows}
        return named if self.counts is None else {**named, "counts": self.counts}

    @classmethod
    def restore(cls, named: dict[str, np.ndarray]) -> Segment:
        n, groups = len(named["rows"]), named["group_rows"].shape[1]
        shapes = [named[name].shape[1] for name in ("super_rows", "block_rows")]
        if shapes != [groups * GROUP, groups * GROUP * SUPER] or groups * GROUP * SUPER * BLOCK < n:
            raise CorruptIndex(f"rows of {groups} groups, and of {shapes} superblocks and blocks, do not fit {n} rows; "
                               "an index of an earlier release must be built anew")  # fmt: skip
        return cls(Arrays(**{name: named[name] for name in Arrays._fields}), named["rows"], named.get("counts"))

    def renumber(self, new: np.ndarray) -> None:
        """Rows `r` become `new[r]`, -1 for those removed."""
        self.rows = np.where(self.rows >= 0, new[self.rows], -1).astype(np.int32)
        self._count = int(np.count_nonzero(self.rows >= 0))
        self._alive = None

    def allowed(self, allow: np.ndarray | None) -> np.ndarray:
        """uint8 (blocks,): a bit for each document that may be returned; (0,) if all may."""
        blocks = self.arrays.block_rows.shape[1]
        if allow is not None:
            out = np.empty(blocks, np.uint8)
            kernels.allowed_bits(self.rows, allow, out)
            return out
        if self._alive is None:
            self._alive = np.empty(0, np.uint8)
            if len(self) < len(self.rows):
                self._alive = np.empty(blocks, np.uint8)
                kernels.allowed_bits(self.rows, np.empty(0, np.bool_), self._alive)
        return self._alive

    def take_workspace(self) -> Workspace:
        """Room for one thread's queries; give it back with `give_workspace`."""
        try:
            return self._free.pop()
        except IndexError:  # other threads have them all
            pass
        arrays = self.arrays
        blocks, supers, groups = arrays.block_rows.shape[1], arrays.super_rows.shape[1], arrays.group_rows.shape[1]
        scratch = Scratch(
            weights=np.zeros(len(arrays.scales), np.float32),
            blocks=np.zeros(blocks, np.uint16),
            table=np.zeros(256, np.uint16),
            supers=np.zeros(supers, np.uint16),
            groups=np.zeros(groups, np.uint16),
            rest=np.zeros(groups, np.uint16),
            best=np.zeros(groups, np.uint16),
            opened=np.zeros(supers, np.int32),
            queue=np.zeros(blocks, np.int32),
            bounds=np.zeros(blocks, np.uint16),
            work=np.zeros(4, np.int64),
        )
        return Workspace(arrays, scratch)

    def give_workspace(self, workspace: Workspace) -> None:
        self._free.append(workspace)


class Layout:
    """How documents with document frequencies `df` int64 (V,) are laid out; says what `Segment` needs beside them.

    The documents pass by twice, in their order, all at once or in parts of multiples of `PART`: `measure` sees them
    first, and `fill` once all are `measured`. Both get a part's `starts` int64 (m + 1,), which begin at 0, its `terms`
    (ranks, of the dtype `terms`) and weights, and how many documents came before: `first`.
    """

    def __init__(self, df: np.ndarray, n: int, precision: str) -> None:
        self.precision = precision
        used = int(np.count_nonzero(df))
        frequent = np.argsort(-df, kind="stable")[:used]
        self.ranks = np.full(len(df), -1, np.int32)
        self.ranks[frequent] = np.arange(used)
        self.terms = np.uint16 if used <= 1 << 16 else np.int32
        self._dense, self._grouped = (int(np.count_nonzero(df[frequent] >= n / share)) for share in (DENSE, GROUPED))
        self._blocks = kernels.places(n)
        self._highest, self._last = np.zeros(used, np.float32), np.full(used, -1, np.int64)
        self._entries = np.zeros(used - self._dense, np.int64)

    def measure(
        self, starts: np.ndarray, terms: np.ndarray, weights: np.ndarray, first: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The weights (float32 here) as they are stored, and the `row_scales` of their documents."""
        row_scales = np.empty(0, np.float32)
        if self.precision == "uint8":
            exact, weights, row_scales = weights, np.empty(len(terms), np.uint8), np.empty(len(starts) - 1, np.float32)
            kernels.quantize(starts, exact, weights, row_scales)
        kernels.highest(starts, terms, weights, row_scales, self._highest)
        kernels.count_entries(starts, terms, first // BLOCK, self._dense, self._last, self._entries)
        return weights, row_scales

    def measured(self) -> None:
        """Settle what follows from all documents: `scales`, `list_starts`, and the `shapes` of the arrays to fill."""
        least = np.float32(1.2e-38)
        self.scales = np.nextafter(np.maximum(self._highest / np.float32(255), least), np.float32(np.inf))
        self.list_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._entries)])
        self._ends, entries = self.list_starts[:-1].copy(), (int(self.list_starts[-1]),)
        self._last[:] = -1
        self.shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "block_rows": ((self._dense, self._blocks), np.uint8),
            "super_rows": ((self._dense, self._blocks // SUPER), np.uint8),
            "group_rows": ((self._grouped, self._blocks // (SUPER * GROUP)), np.uint8),
            "list_gaps": (entries, np.uint16),
            "list_maxima": (entries, np.uint8),
        }

    def fill(
        self, starts: np.ndarray, terms: np.ndarray, weights: np.ndarray, row_scales: np.ndarray,
        maxima: dict[str, np.ndarray], first: int = 0,
    ) -> None:  # fmt: skip
        """Put the maxima of a part into arrays of `shapes`, which are zero before the first."""
        kernels.fill(
            starts, terms, weights, row_scales, self.scales, first // BLOCK, self._last, self._ends,
            *(maxima[name] for name in self.shapes),
        )  # fmt: skip


def gather(
    starts: np.ndarray, terms: np.ndarray, data: np.ndarray, rows: np.ndarray, ranks: np.ndarray, targets: np.ndarray,
    new_terms: np.ndarray, out: np.ndarray, threads: int,
) -> None:  # fmt: skip
    """Copy `rows` int64 (m,) of a CSR matrix to the `targets` int64 (m,) in `new_terms` and `out`, terms as `ranks`."""
    in_chunks(
        lambda a, b: kernels.gather(starts, terms, data, rows, ranks, targets, new_terms, out, a, b), len(rows), threads
    )


def build(
    vectors: csr_matrix, rows: np.ndarray, ids: np.ndarray, *, precision: str, order: str, counts: np.ndarray | None,
    threads: int,
) -> Segment:  # fmt: skip
    """A segment of `vectors` (m, V), canonical CSR, which are the `rows` of the index, with these `ids` (m,).

    `counts`: what the weights of `vectors` were made from, entry by entry; kept beside them.
    """
    n, V = vectors.shape
    places = arrange(vectors, order, threads)
    layout = Layout(np.bincount(vectors.indices, minlength=V), n, precision)
    starts = np.zeros(n + 1, np.int64)
    np.cumsum(np.diff(vectors.indptr)[places], out=starts[1:])
    old_starts, terms = vectors.indptr.astype(np.int64), np.empty(vectors.nnz, layout.terms)

    def gathered(data: np.ndarray) -> np.ndarray:
        out = np.empty(vectors.nnz, np.float32)
        gather(old_starts, vectors.indices, data, places, layout.ranks, starts, terms, out, threads)
        return out

    weights, row_scales = layout.measure(starts, terms, gathered(vectors.data))
    kept = None if counts is None else gathered(counts)
    layout.measured()
    maxima = {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.shapes.items()}
    layout.fill(starts, terms, weights, row_scales, maxima)
    arrays = Arrays(
        ids=ids[places], ranks=layout.ranks, scales=layout.scales, list_starts=layout.list_starts, starts=starts,
        terms=terms, weights=weights, row_scales=row_scales, **maxima,
    )  # fmt: skip
    return Segment(arrays, rows[places].astype(np.int32), kept)
