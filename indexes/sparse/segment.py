"""A segment: documents in an order of their own, with the maxima that let a search skip most of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from indexes.base import in_chunks
from indexes.errors import CorruptIndex
from indexes.kernels import blockmax_build as kernels
from indexes.kernels.blockmax import BLOCK, GROUP, SUPER, TILE, Scratch, Workspace
from indexes.kernels.blockmax import Segment as Arrays
from indexes.sparse.ordering import bisection

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

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
        with contextlib.suppress(IndexError):  # other threads take, too
            return self._free.pop()
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


def build(
    vectors: csr_matrix, rows: np.ndarray, ids: np.ndarray, *, precision: str, order: str, counts: np.ndarray | None,
    threads: int,
) -> Segment:  # fmt: skip
    """A segment of `vectors` (m, V), canonical CSR, which are the `rows` of the index, with these `ids` (m,).

    `counts`: what the weights of `vectors` were made from, entry by entry; kept beside them.
    """
    n, V = vectors.shape
    places = bisection(vectors, threads=threads) if order == "bisection" else np.arange(n)
    df = np.bincount(vectors.indices, minlength=V)
    used = int(np.count_nonzero(df))
    ranks = np.full(V, -1, np.int32)
    ranks[np.argsort(-df, kind="stable")[:used]] = np.arange(used)
    starts = np.zeros(n + 1, np.int64)
    np.cumsum(np.diff(vectors.indptr)[places], out=starts[1:])
    old_starts = vectors.indptr.astype(np.int64)
    terms = np.empty(vectors.nnz, np.uint16 if used <= 1 << 16 else np.int32)
    weights = np.empty(vectors.nnz, np.float32)

    def gather(a: int, b: int) -> None:
        kernels.gather(old_starts, vectors.indices, vectors.data, places, ranks, starts, terms, weights, a, b)

    in_chunks(gather, n, threads)
    row_scales = np.empty(0, np.float32)
    if precision == "uint8":
        exact, weights, row_scales = weights, np.empty(len(terms), np.uint8), np.empty(n, np.float32)
        kernels.quantize(starts, exact, weights, row_scales)
        del exact
    kept = None
    if counts is not None:
        kept = np.empty(len(terms), np.float32)
        unused = np.empty_like(terms)
        kernels.gather(old_starts, vectors.indices, counts, places, ranks, starts, unused, kept, 0, n)
    scales = kernels.highest(starts, terms, weights, row_scales, used)
    scales = np.nextafter(np.maximum(scales / np.float32(255), np.float32(1.2e-38)), np.float32(np.inf))
    falling = np.sort(df)[::-1][:used]
    dense, grouped = (int(np.count_nonzero(falling >= n / share)) for share in (DENSE, GROUPED))
    groups = -(-n // (BLOCK * SUPER * TILE)) * (TILE // GROUP)
    group_rows = np.zeros((grouped, groups), np.uint8)
    super_rows = np.zeros((dense, groups * GROUP), np.uint8)
    block_rows = np.zeros((dense, groups * GROUP * SUPER), np.uint8)
    list_starts = kernels.count_entries(starts, terms, used, dense, groups * GROUP * SUPER)
    gaps, maxima = np.empty(list_starts[-1], np.uint16), np.empty(list_starts[-1], np.uint8)
    kernels.fill(
        starts, terms, weights, row_scales, scales, list_starts, block_rows, super_rows, group_rows, gaps, maxima
    )
    arrays = Arrays(
        ids[places], ranks, scales, block_rows, super_rows, group_rows, list_starts, gaps, maxima, starts, terms,
        weights, row_scales,
    )  # fmt: skip
    return Segment(arrays, rows[places].astype(np.int32), kept)
