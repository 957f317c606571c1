"""Rows of sparse vectors in plain files, for what takes more of them than memory holds.

The files only grow, and a checkpoint says how much of them counts: what was written after it is cut off and written
again. A killed program therefore loses no more than the rows since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from indexes.errors import CorruptIndex, InvalidIds, InvalidVectors
from indexes.sparse.base import SparseIndex
from indexes.sparse.weighting import row_lengths
from indexes.storage import fsync_folder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Progress = Callable[[str, int, int], None]  # (what is being done, rows done, rows in all, 0 if unknown)
Parts = Iterable[Any] | Callable[[int], Iterable[Any]]

CHECKPOINT = "checkpoint.json"
PER_ROW: dict[str, Any] = {"sizes": np.int32, "lengths": np.float32, "ids": np.int64}
PER_ENTRY: dict[str, Any] = {"terms": np.int32, "weights": np.float32}
COLUMNS = PER_ROW | PER_ENTRY


class Spool:
    """The rows stored in `folder`, those of an earlier program first: `rows` of them, `entries` in all, `V` wide.

    `every`: bytes of entries between checkpoints.
    Raises `CorruptIndex` when the folder's files hold less than its checkpoint says.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self._every = folder, every
        self.rows = self.entries = self.V = self._before = 0
        self._saved = 0, 0  # rows and entries at the last checkpoint
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            try:
                found = json.loads((folder / CHECKPOINT).read_text(encoding="utf-8"))
                self.rows, self.entries, self.V, self._before = map(
                    int, (found["rows"], found["entries"], found["V"], found["before"])
                )
            except (ValueError, KeyError, TypeError) as problem:
                raise CorruptIndex(f"{folder / CHECKPOINT}: not a readable checkpoint ({problem!r})") from problem
            self._saved = self.rows, self.entries
        for name, dtype in COLUMNS.items():
            path = folder / name
            path.touch()
            size = np.dtype(dtype).itemsize * (self.rows if name in PER_ROW else self.entries)
            if path.stat().st_size < size:
                raise CorruptIndex(f"{path}: has {path.stat().st_size} bytes, the checkpoint says {size}")
            os.truncate(path, size)

    def read(self, parts: Parts, index: SparseIndex, progress: Progress | None = None) -> None:
        """Store the rows of `parts`, checked by `index`; rows that are here already are only compared.

        `parts`: matrices (m, V), or pairs of a matrix and ids (m,); or a function that gives those from a row on.
        """
        row = self._before if callable(parts) else 0
        entry = int(self._stored("sizes", 0, row).sum(dtype=np.int64))
        highest = int(self._stored("ids", 0, row).max(initial=-1))
        with contextlib.ExitStack() as opened:
            files = {name: opened.enter_context(open(self.folder / name, "ab")) for name in COLUMNS}
            for part in parts(row) if callable(parts) else parts:
                vectors, ids = part if isinstance(part, tuple) else (part, None)
                checked = index._check_vectors(vectors)
                count = checked.shape[0]
                self.V = max(self.V, checked.shape[1] if count else 0)  # `add` does not widen for no rows
                follow = np.arange(highest + 1, highest + 1 + count)
                new = follow if ids is None else index._check_ids(ids, count)
                known = min(self.rows - row, count)
                if known:
                    self._compare(checked[:known], new[:known], row, entry)
                if known < count:
                    self._append(files, checked[known:] if known else checked, new[known:])
                row, entry, highest = row + count, entry + checked.nnz, max(highest, int(new.max(initial=-1)))
                if progress:
                    progress("reading", row, 0)
            if row < self.rows:
                raise InvalidVectors(f"parts end at row {row}; {self._advice()}")
            self._checkpoint(files)
        ordered = np.sort(self.column("ids"))
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise InvalidIds(f"id {twice[0]} is given more than once")

    def column(self, name: str) -> np.ndarray:
        """One number of each row: `sizes` int32, how many entries; `lengths` float32, their sum; `ids` int64."""
        return self._stored(name, 0, self.rows)

    def mapped(self, name: str, start: int, stop: int, dtype: Any = None) -> np.ndarray:
        """Entries `start` to `stop` of the file `name`, left on disk."""
        dtype = np.dtype(dtype or COLUMNS[name])
        if start == stop:
            return np.empty(0, dtype)
        # copy-on-write, not read-only: numba would compile every kernel again for read-only arrays
        return np.asarray(np.memmap(self.folder / name, dtype, "c", start * dtype.itemsize, (stop - start,)))

    def _stored(self, name: str, start: int, count: int) -> np.ndarray:
        dtype = np.dtype(COLUMNS[name])
        return np.fromfile(self.folder / name, dtype, count, offset=start * dtype.itemsize)

    def _compare(self, vectors: csr_matrix, ids: np.ndarray, row: int, entry: int) -> None:
        for name, values in _columns(vectors, ids):
            stored = self._stored(name, row if name in PER_ROW else entry, len(values))
            if not np.array_equal(stored, values):
                raise InvalidVectors(f"parts: rows {row} to {row + len(ids) - 1} differ in {name}; {self._advice()}")

    def _advice(self) -> str:
        return (
            f"{self.folder} holds {self.rows} rows of an unfinished build: give the same parts again, or resume=False "
            "to begin anew"
        )

    def _append(self, files: Mapping[str, IO[bytes]], vectors: csr_matrix, ids: np.ndarray) -> None:
        for name, values in _columns(vectors, ids):
            files[name].write(values.data)  # numpy's own `tofile` loses the last bytes on a full disk without an error
        self.rows, self.entries = self.rows + len(ids), self.entries + vectors.nnz
        if (self.entries - self._saved[1]) * 8 >= self._every:
            self._checkpoint(files)

    def _checkpoint(self, files: Mapping[str, IO[bytes]]) -> None:
        """Make the rows so far durable."""
        if self._saved == (self.rows, self.entries):
            return
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        self._before, self._saved = self._saved[0], (self.rows, self.entries)
        temporary = self.folder / f"{CHECKPOINT}.tmp"
        with open(temporary, "w", encoding="utf-8") as out:
            json.dump({"rows": self.rows, "entries": self.entries, "V": self.V, "before": self._before}, out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, self.folder / CHECKPOINT)
        fsync_folder(self.folder)


def _columns(vectors: csr_matrix, ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What is stored of some rows: each file's name and numbers."""
    columns = {
        "sizes": np.diff(vectors.indptr),
        "ids": ids,
        "terms": vectors.indices,
        "weights": vectors.data,
        "lengths": row_lengths(vectors),
    }
    for name, values in columns.items():
        yield name, np.ascontiguousarray(values, COLUMNS[name])
