"""Build a block-max index of more documents than memory holds, and go on with a build that was killed.

    parts --> the spool: rows as they come, checkpointed                                      `Spool.read`
          --> scores of counts, where there is a weighting; projections, and from them the order, run by run
          --> windows of documents in that order, gathered from the runs                      `_gather`
          --> their maxima, window by window                                                  `_fill`
          --> the saved index: the finished files are moved there

A run is a stretch of rows, a window one of places in the order; memory holds a run and a window at a time. This is an
external sort whose keys are known before anything moves: rows go from their run straight to their place, and runs
need no merging. What is on disk besides, until the index is moved to its place: 8 bytes for each posting (12 with a
weighting), 20 for each row, and 192 more while they are ordered by bisection.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from indexes import storage
from indexes.base import available_threads
from indexes.errors import InvalidParameter
from indexes.sparse import ordering
from indexes.sparse.blockmax import BlockMaxIndex
from indexes.sparse.segment import PART, Layout, gather
from indexes.sparse.spool import CHECKPOINT, COLUMNS, Parts, Progress, Spool
from indexes.sparse.weighting import CHUNK, Statistics, Weighting, holders, scorer

LEAST = 1 << 20  # bytes of memory
AT_ONCE = 32  # bytes of memory for an entry of a run and one of a window
CHECKPOINTS = 8 << 20  # bytes between them: a fraction of a second to write, seconds to encode again
FILES = (
    "terms", "weights", "counts", "block_rows", "super_rows", "group_rows", "list_gaps", "list_maxima",
)  # fmt: skip


def build_on_disk(
    index: BlockMaxIndex, parts: Parts, path: str | Path, *, memory_bytes: int = 1 << 30, resume: bool = True,
    progress: Progress | None = None,
) -> BlockMaxIndex:  # fmt: skip
    """Save into the folder `path`, byte for byte, what `index.add(vectors, ids).save(path)` would for all `parts`.

    `index`: an empty one, for its parameters. Returns the saved index, memory-mapped.
    `parts`: sparse matrices (m, V), V may grow, or pairs (matrix, ids int64 (m,)); without ids rows are numbered on
    from the highest id so far. A part is in memory at once: 10,000 rows are a good size.
    `memory_bytes`: what postings may take in memory, mapped pages included, at least 1 MB. Beside it each row takes
    about 40 bytes, each term 50, and the projections of `order="bisection"` are a file that the system keeps in memory
    as far as there is room (192 bytes for each row).
    `resume`: go on where an interrupted build to this `path` stopped. Rows are kept in the folder `path` + ".building"
    until the index is saved; call again with the same `parts`: rows that are there are compared, not stored again.
    Other parameters may be given, other rows may not. `parts` may also be a function `parts(row)` that gives the rows
    from `row` on, so that a source that can jump, or is slow, need not begin at 0: `row` is 0 at first, and on resuming
    some megabytes before the end of what is there. False begins anew.
    `progress`: called with what is being done, rows done, and rows in all (0 while unknown).

    One process at a time may build to a `path`; an index that is there is replaced at the very end, atomically.
    Raises `InvalidVectors`, `InvalidIds` as `add` does (ids in two parts are found out after the last part);
    `InvalidVectors` also when rows are not those of the interrupted build; `InvalidParameter`; `CorruptIndex` when
    files of the interrupted build were cut; `OSError` (disk full).
    """
    if len(index):
        raise InvalidParameter(f"index holds {len(index)} rows; give an empty one, for its parameters")
    if index.order == "graph":
        raise InvalidParameter("order is 'graph', which needs all postings in memory; use 'bisection' or 'insertion'")
    if not isinstance(memory_bytes, int) or memory_bytes < LEAST:
        raise InvalidParameter(f"memory_bytes is {memory_bytes!r}; it must be an integer of at least {LEAST}")
    folder = Path(f"{path}.building")
    if not resume:
        _remove(folder)
    index = BlockMaxIndex._rebuild(index.parameters())  # the caller's own stays empty
    spool = Spool(folder, min(CHECKPOINTS, memory_bytes // 16))
    spool.read(parts, index, progress)
    if spool.rows:
        index._widen(spool.V)
        arrays = _Build(index, spool, memory_bytes // AT_ONCE, progress).arrays()
        state = {"V": index.V, "segments": 1}
        header = {"kind": index.kind, "n": spool.rows, "parameters": index.parameters(), "state": state}
        storage.save(path, header, arrays)
    else:
        index.save(path)
    _remove(folder)
    return BlockMaxIndex.load(path, verify=False)


class _Build:
    """From a complete spool to the arrays of an index of one segment. `most`: entries of a run, and of a window."""

    def __init__(self, index: BlockMaxIndex, spool: Spool, most: int, progress: Progress | None) -> None:
        self.index, self.spool, self.most, self.progress = index, spool, most, progress
        self.folder, self.n = spool.folder, spool.rows
        self.starts = _starts(spool.column("sizes"))
        self.scores = "scores" if index.weighting else "weights"

    def arrays(self) -> dict[str, np.ndarray | Path]:
        """As `BlockMaxIndex` saves them; the large ones as files, finished."""
        df = np.zeros(self.index.V, np.int64)
        for a, b in self._runs("counting"):
            df += np.bincount(self._mapped("terms", a, b), minlength=len(df))
        base = self._weigh(self.index.weighting, df) if self.index.weighting else np.empty(0, np.float64)
        places = self._order()
        self.layout = Layout(df, self.n, self.index.precision)
        self.new_starts = _starts(np.diff(self.starts)[places])
        row_scales = self._gather(places)
        self._fill(row_scales)
        ids = self.spool.column("ids")
        arrays: dict[str, Any] = {name: self.folder / f"{name}.npy" for name in FILES}
        if not self.index.weighting:
            del arrays["counts"]
        arrays |= {
            "ids": ids[places],
            "rows": places.astype(np.int32),
            "ranks": self.layout.ranks,
            "scales": self.layout.scales,
            "list_starts": self.layout.list_starts,
            "starts": self.new_starts,
            "row_scales": row_scales,
        }
        return {"ids": ids, "base": base, **{f"0-{name}": array for name, array in arrays.items()}}

    def _weigh(self, weighting: Weighting, df: np.ndarray) -> np.ndarray:
        """Put the scores of all counts into the file `scores`; returns what each term adds to every score."""
        lengths = self.spool.column("lengths")
        score, base = scorer(weighting, Statistics(self.n, df, float(lengths.sum(dtype=np.float64))), lengths)
        with open(self.folder / "scores", "wb") as out:
            for a, b in self._runs("weighing"):
                starts, terms, counts = self._local(a, b), self._mapped("terms", a, b), self._mapped("weights", a, b)
                for start in range(0, len(terms), CHUNK):
                    part = slice(start, min(start + CHUNK, len(terms)))
                    rows = a + holders(starts, part.start, part.stop)
                    out.write(score(terms[part], rows, counts[part]).astype(np.float32).data)
        return base

    def _order(self) -> np.ndarray:
        """int64 (n,): the row at each place."""
        if self.index.order == "insertion":
            return np.arange(self.n)
        _create(self.folder / "points.npy", np.float32, (self.n, ordering.DIMENSIONS))
        onto = ordering.directions(self.index.V)
        for a, b in self._runs("projecting"):
            terms, scores = self._mapped("terms", a, b), self._mapped(self.scores, a, b)
            points = self._opened("points")[a:b]
            ordering.project(self._local(a, b), terms, scores, onto, points, available_threads())
        if self.progress:
            self.progress("ordering", 0, 0)
        places = ordering.bisected(self._opened("points"))
        (self.folder / "points.npy").unlink()
        return places

    def _gather(self, places: np.ndarray) -> np.ndarray:
        """Put terms, weights and counts in order, and measure them; returns the scales of the rows."""
        entries, layout = (int(self.starts[-1]),), self.layout
        dtypes = {"terms": layout.terms, "weights": np.float32 if layout.precision == "float32" else np.uint8}
        if self.index.weighting:
            dtypes["counts"] = np.float32
        for name, dtype in dtypes.items():
            _create(self.folder / f"{name}.npy", dtype, entries)
        all_scales = []
        for a, b in self._windows("sorting"):
            window, starts = slice(self.new_starts[a], self.new_starts[b]), self.new_starts[a : b + 1]
            starts = starts - starts[0]
            terms, exact = self._opened("terms")[window], np.empty(starts[-1], np.float32)
            self._collect(places[a:b], starts, self.scores, terms, exact)
            self._opened("weights")[window], row_scales = layout.measure(starts, terms, exact, a)
            all_scales.append(row_scales)
            if self.index.weighting:
                self._collect(places[a:b], starts, "weights", terms, self._opened("counts")[window])
        return np.concatenate(all_scales)

    def _collect(self, rows: np.ndarray, starts: np.ndarray, name: str, terms: np.ndarray, out: np.ndarray) -> None:
        """Copy `rows`, in this order, from their runs: their terms, and their numbers in the file `name`."""
        order = np.argsort(rows)
        ascending, targets = rows[order], starts[order]
        for a, b in _pieces(self.starts, self.most):
            first, stop = np.searchsorted(ascending, [a, b])
            if first < stop:
                run = self._local(a, b), self._mapped("terms", a, b), self._mapped(name, a, b)
                gather(*run, ascending[first:stop] - a, self.layout.ranks, targets[first:stop], terms, out,
                       available_threads())  # fmt: skip

    def _fill(self, row_scales: np.ndarray) -> None:
        self.layout.measured()
        for name, (shape, dtype) in self.layout.shapes.items():
            _create(self.folder / f"{name}.npy", dtype, shape)
        for a, b in self._windows("bounding"):
            window, starts = slice(self.new_starts[a], self.new_starts[b]), self.new_starts[a : b + 1]
            maxima = {name: self._opened(name) for name in self.layout.shapes}
            terms, weights = self._opened("terms")[window], self._opened("weights")[window]
            self.layout.fill(starts - starts[0], terms, weights, row_scales[a:b], maxima, a)

    def _runs(self, what: str) -> Iterator[tuple[int, int]]:
        return self._reported(what, _pieces(self.starts, self.most))

    def _windows(self, what: str) -> Iterator[tuple[int, int]]:
        return self._reported(what, _pieces(self.new_starts, self.most, PART))

    def _reported(self, what: str, pieces: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for a, b in pieces:
            yield a, b
            if self.progress:
                self.progress(what, b, self.n)

    def _local(self, a: int, b: int) -> np.ndarray:
        return self.starts[a : b + 1] - self.starts[a]

    def _mapped(self, name: str, a: int, b: int) -> np.ndarray:
        """The entries of rows `a` to `b`, of a file of the spool or the `scores`."""
        return self.spool.mapped(name, int(self.starts[a]), int(self.starts[b]), COLUMNS.get(name, np.float32))

    def _opened(self, name: str) -> np.ndarray:
        """A file of `_create`, mapped. Opened for each piece, so that earlier pieces' pages do not stay in memory."""
        return np.asarray(np.load(self.folder / f"{name}.npy", mmap_mode="r+"))


def _starts(sizes: np.ndarray) -> np.ndarray:
    starts = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    return starts


def _pieces(starts: np.ndarray, most: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Stretches of rows with up to `most` entries, in multiples of `unit` rows; one unit may have more."""
    a, n = 0, len(starts) - 1
    while a < n:
        fit = int(np.searchsorted(starts, starts[a] + most, side="right")) - 1
        b = min(max(fit if fit == n else fit // unit * unit, a + unit), n)
        yield a, b
        a = b


def _create(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    """A `.npy` file of zeros. Its room on disk is taken now: a map of a full disk would kill the process."""
    with open(path, "wb") as out:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        out.flush()
        size = out.tell() + math.prod(shape) * np.dtype(dtype).itemsize
        out.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(out.fileno(), 0, size)
            except OSError as problem:
                if problem.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # file systems that cannot
                    raise


def _remove(folder: Path) -> None:
    """Remove the files of a build, and the folder if there is nothing else in it."""
    names = [CHECKPOINT, f"{CHECKPOINT}.tmp", *COLUMNS, "scores", "points.npy", *(f"{name}.npy" for name in FILES)]
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
