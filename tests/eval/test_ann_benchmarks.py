"""Files of ann-benchmarks: one that is written here, and broken ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import knn_recall, read_ann_benchmarks
from eval.errors import FormatError, MissingExtra


def parts() -> dict[str, Any]:
    """30 vectors, 4 queries, their 5 nearest."""
    generator = np.random.default_rng(1)
    train, test = generator.random((30, 6), dtype=np.float32), generator.random((4, 6), dtype=np.float32)
    distances = np.linalg.norm(train[None] - test[:, None], axis=2)
    neighbors = np.argsort(distances, axis=1)[:, :5].astype(np.int32)
    return {
        "train": train, "test": test, "neighbors": neighbors,
        "distances": np.take_along_axis(distances, neighbors, axis=1),
    }  # fmt: skip


def written(path: Path, arrays: dict[str, Any], **attributes: Any) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if array is None:
                file.create_group(name)
            else:
                file[name] = array
        file.attrs.update(attributes)
    return path


@pytest.mark.parametrize("metric", ["euclidean", np.bytes_(b"euclidean")])
def test_a_file_is_read_whole(tmp_path: Path, metric: Any) -> None:
    arrays = parts()
    found = read_ann_benchmarks(written(tmp_path / "x.hdf5", arrays, distance=metric, type="dense"))
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(found, name), array)
    assert found.metric == "euclidean"
    assert found.neighbors.dtype == np.int64
    assert found.train.dtype == np.float32
    assert (knn_recall(found.neighbors, found.neighbors, -found.distances, 5) == 1).all()


def test_a_file_without_attributes_is_read(tmp_path: Path) -> None:
    assert read_ann_benchmarks(str(written(tmp_path / "x.hdf5", parts()))).metric == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": np.zeros(30)}, "train must be an array of numbers with two axes"),
        ({"train": None}, "train must be an array of numbers with two axes"),
        ({"test": np.zeros((4, 5))}, "train has 6 dimensions, test has 5"),
        ({"neighbors": np.zeros((4, 5))}, "neighbors must be integers, got float64"),
        ({"neighbors": np.zeros((4, 4), int)}, r"there are 4 queries, but neighbors \(4, 4\), distances \(4, 5\)"),
        ({"test": np.zeros((3, 6))}, "there are 3 queries, but"),
        ({"neighbors": np.full((4, 5), 30)}, "neighbors must be rows of train, 0 to 29, got 30 to 30"),
        ({"neighbors": np.full((4, 5), -2)}, "0 to 29, got -2 to -2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = written(tmp_path / "x.hdf5", {**parts(), **change})
    with pytest.raises(FormatError, match=message) as caught:
        read_ann_benchmarks(path)
    assert caught.value.path == path


def test_a_missing_part_and_sparse_vectors_are_refused(tmp_path: Path) -> None:
    arrays = parts()
    del arrays["distances"]
    with pytest.raises(FormatError, match="no part 'distances'; there are neighbors, test, train"):
        read_ann_benchmarks(written(tmp_path / "x.hdf5", arrays))
    with pytest.raises(FormatError, match="it holds sparse vectors"):
        read_ann_benchmarks(written(tmp_path / "y.hdf5", parts(), type="sparse"))


def test_what_is_no_file_of_hdf5_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with pytest.raises(FileNotFoundError, match=r"no\.hdf5"):
        read_ann_benchmarks(tmp_path / "no.hdf5")
    (tmp_path / "text.hdf5").write_text("train")
    with pytest.raises(FormatError, match="not a whole HDF5 file"):
        read_ann_benchmarks(tmp_path / "text.hdf5")
    whole = written(tmp_path / "x.hdf5", parts()).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="not a whole HDF5 file"):
        read_ann_benchmarks(tmp_path / "cut.hdf5")


def test_without_h5py_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtra, match=r"needs the package h5py: pip install 'retrieval\[hdf5\]'"):
        read_ann_benchmarks(tmp_path / "x.hdf5")
