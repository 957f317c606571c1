"""The HDF5 files of ann-benchmarks (Aumüller, Bernhardsson, Faithfull, 2018): vectors, queries and exact answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.errors import FormatError, MissingExtra


@dataclass(frozen=True, eq=False)
class AnnBenchmark:
    """One file. `train`: the vectors to index (n, d); `test`: the queries (nq, d); both of the file's dtype.

    `neighbors`: rows of `train`, int64 (nq, K), nearest first, K usually 100; `distances`: theirs, (nq, K), lower is
    nearer. `metric`: as the file names it, "euclidean", "angular" (1 less the cosine), "hamming" ..., or "" if it does
    not. For `knn_recall`: `knn_recall(hits.ids, file.neighbors, -file.distances)`.
    """

    train: np.ndarray
    test: np.ndarray
    neighbors: np.ndarray
    distances: np.ndarray
    metric: str


def read_ann_benchmarks(path: str | Path) -> AnnBenchmark:
    """Read one file into memory, such as sift-128-euclidean.hdf5.

    Raises MissingExtra without h5py, FileNotFoundError for no such file, FormatError for a file that is not HDF5,
    lacks a part, holds sparse vectors, or whose parts do not fit each other.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingExtra("h5py", "hdf5", "reading files of ann-benchmarks") from error
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with h5py.File(path, "r") as file:
            if _text(file.attrs.get("type", "dense")) != "dense":
                raise FormatError(path, None, f"it holds {_text(file.attrs['type'])} vectors; only dense ones are read")
            parts = {name: _part(path, file, name) for name in ("train", "test", "neighbors", "distances")}
            metric = _text(file.attrs.get("distance", ""))
    except OSError as error:
        raise FormatError(path, None, f"not a whole HDF5 file: {error}") from error
    parts["neighbors"] = parts["neighbors"].astype(np.int64)
    _check(path, **parts)
    return AnnBenchmark(**parts, metric=metric)


def _part(path: Path, file: Any, name: str) -> np.ndarray:
    if name not in file:
        raise FormatError(path, None, f"it has no part {name!r}; there are {', '.join(file) or 'none'}")
    part = file[name]
    shape = getattr(part, "shape", None)  # a group has none
    if shape is None or len(shape) != 2 or part.dtype.kind not in "fiub":
        raise FormatError(path, None, f"{name} must be an array of numbers with two axes, got {part!r}")
    if name == "neighbors" and part.dtype.kind not in "iu":
        raise FormatError(path, None, f"neighbors must be integers, got {part.dtype}")
    return np.asarray(part[()])


def _check(path: Path, train: np.ndarray, test: np.ndarray, neighbors: np.ndarray, distances: np.ndarray) -> None:
    if train.shape[1] != test.shape[1]:
        raise FormatError(path, None, f"train has {train.shape[1]} dimensions, test has {test.shape[1]}")
    if neighbors.shape != distances.shape or len(neighbors) != len(test):
        shapes = f"neighbors {neighbors.shape}, distances {distances.shape}"
        raise FormatError(path, None, f"there are {len(test)} queries, but {shapes}")
    if neighbors.size and not (neighbors.min() >= -1 and neighbors.max() < len(train)):
        span = f"{neighbors.min()} to {neighbors.max()}"
        raise FormatError(path, None, f"neighbors must be rows of train, 0 to {len(train) - 1}, got {span}")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
