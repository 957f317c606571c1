"""Saved files: what is wrong with them is found and named, and an interrupted save loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import indexes
from indexes import BM25, EagerIndex, FlatIndex, HNSWIndex, storage
from indexes.errors import CorruptIndex, NewerIndex, WrongKind

ROOT = Path(__file__).resolve().parents[2]
VECTORS = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)


@pytest.fixture(params=["flat", "hnsw", "eager"])
def saved(request, tmp_path):
    """A folder with an index in it."""
    make = {"flat": FlatIndex, "hnsw": HNSWIndex, "eager": lambda: EagerIndex(weighting=BM25())}[request.param]
    make().add(np.abs(VECTORS) if request.param == "eager" else VECTORS).save(tmp_path / "index")
    return tmp_path / "index"


def header_of(folder) -> dict:
    return json.loads((folder / "index.json").read_text())


def data_files(folder) -> list[Path]:
    return [folder / entry["file"] for entry in header_of(folder)["files"].values()]


def change_header(folder, change) -> None:
    header = header_of(folder)
    change(header)
    (folder / "index.json").write_text(json.dumps(header))


def refused(folder, error=CorruptIndex, match=None, verify=True) -> None:
    for mmap in (True, False):
        with pytest.raises(error, match=match):
            indexes.load(folder, mmap, verify=verify)


# -- data files --------------------------------------------------------------------------------------------------------


def test_truncated_or_longer_file(saved):
    for path in data_files(saved):
        whole = path.read_bytes()
        for altered in (whole[:-1], whole[: len(whole) // 2], b"", whole + b"\0"):
            path.write_bytes(altered)
            refused(saved, match=f"{path.name}.*bytes", verify=False)
        path.write_bytes(whole)
    indexes.load(saved)


def test_one_flipped_bit(saved):
    for path in data_files(saved):
        whole = path.read_bytes()
        for place in (0, 60, len(whole) // 2, len(whole) - 1):
            altered = bytearray(whole)
            altered[place] ^= 1
            path.write_bytes(altered)
            refused(saved, match=f"{path.name}.*SHA-256")
        path.write_bytes(whole)
    indexes.load(saved)


def test_missing_file(saved):
    for path in data_files(saved):
        path.rename(saved / "elsewhere")
        refused(saved, match=f"{path.name}.*missing", verify=False)
        path.mkdir()  # nor does a folder of that name do
        refused(saved, match=f"{path.name}.*missing", verify=False)
        path.rmdir()
        (saved / "elsewhere").rename(path)
    indexes.load(saved)


def test_every_byte_of_an_array_header_may_be_garbage(tmp_path):
    """Even without digests: what can be opened holds the right type and shape, the rest is refused by name."""
    FlatIndex().add(VECTORS).save(tmp_path)
    path = next(path for path in data_files(tmp_path) if path.name.startswith("vectors"))
    whole, opened = path.read_bytes(), 0
    for place in range(128):
        for value in (0x20, 0x29, 0x39, 0xFF):
            altered = bytearray(whole)
            altered[place] = value
            path.write_bytes(altered)
            try:
                index = indexes.load(tmp_path, verify=False)
            except CorruptIndex as problem:
                assert path.name in str(problem)
            else:
                opened += 1
                assert index.vectors.shape == VECTORS.shape
                assert index.vectors.dtype == np.float32
    assert 0 < opened < 128 * 4


def with_digest(folder, part, path) -> None:
    """Make the header agree with a file that was put in the place of `part`."""

    def change(header):
        header["files"][part] |= {"bytes": path.stat().st_size, "sha256": storage._sha256(path)}

    change_header(folder, change)


@pytest.mark.parametrize(
    "array",
    [
        VECTORS.astype(np.float64),
        VECTORS[:, :4],
        VECTORS[None],
        VECTORS.astype(">f4"),
        np.asfortranarray(VECTORS),
        VECTORS.view(np.dtype([("a", "f4"), ("b", "f4")])),
    ],
    ids=["dtype", "width", "rank", "byte order", "by column", "record"],
)
def test_array_that_is_not_what_the_header_says(array, tmp_path):
    FlatIndex().add(VECTORS).save(tmp_path)
    path = tmp_path / header_of(tmp_path)["files"]["vectors"]["file"]
    np.save(path, array)
    with_digest(tmp_path, "vectors", path)
    refused(tmp_path, match="vectors.*holds")


def test_pickled_objects_are_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    FlatIndex().add(VECTORS).save(tmp_path / "index")
    path = tmp_path / "index" / header_of(tmp_path / "index")["files"]["vectors"]["file"]
    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    with_digest(tmp_path / "index", "vectors", path)
    change_header(tmp_path / "index", lambda header: header["files"]["vectors"].update(dtype="|O", shape=[1]))
    refused(tmp_path / "index", match="vectors.*holds")
    assert not (tmp_path / "exploded").exists()


def test_a_file_of_another_library_that_it_cannot_read(tmp_path):
    HNSWIndex().add(VECTORS).save(tmp_path)
    path = tmp_path / header_of(tmp_path)["files"]["index.faiss"]["file"]
    path.write_bytes(b"nonsense" * 20)
    with_digest(tmp_path, "index.faiss", path)
    refused(tmp_path, match="index.*faiss cannot read it")


# -- the header --------------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path):
    refused(tmp_path, FileNotFoundError, "nothing saved here")
    refused(tmp_path / "no such folder", FileNotFoundError, "nothing saved here")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"text"', b"7", b"{}", b"\xff\xfe", b'{"format": 1}'])
def test_header_that_is_no_header(saved, text):
    (saved / "index.json").write_bytes(text)
    refused(saved, match="index.json: not a readable header")


@pytest.mark.parametrize("number", [2, 10**9])
def test_newer_format(saved, number):
    change_header(saved, lambda header: header.update(format=number, files="something new"))
    refused(saved, NewerIndex, f"format {number} is newer than 1")


@pytest.mark.parametrize("number", [0, -1, "1", None, 1.5])
def test_no_format(saved, number):
    change_header(saved, lambda header: header.update(format=number))
    refused(saved, match="no format number")


@pytest.mark.parametrize("kind", ["hologram", None, 3, ["flat"]])
def test_unknown_kind(saved, kind):
    change_header(saved, lambda header: header.update(kind=kind))
    refused(saved, WrongKind, r"this release knows .*flat")


def test_missing_keys(saved):
    whole = (saved / "index.json").read_text()
    for key in ("format", "files", "n", "parameters", "state"):
        change_header(saved, lambda header, key=key: header.pop(key))
        refused(saved)
        (saved / "index.json").write_text(whole)
    for part, entry in header_of(saved)["files"].items():
        for key in entry:
            change_header(saved, lambda header, part=part, key=key: header["files"][part].pop(key))
            refused(saved)
            (saved / "index.json").write_text(whole)
        change_header(saved, lambda header, part=part: header["files"].pop(part))
        refused(saved)
        (saved / "index.json").write_text(whole)
    for key in header_of(saved)["state"]:
        change_header(saved, lambda header, key=key: header["state"].pop(key))
        refused(saved)
        (saved / "index.json").write_text(whole)
    indexes.load(saved)


ALLOWED = [(5, "M"), (5, "ef_construction"), (5, "ef_search"), (None, "weighting"), ({}, "parameters")]  # defaults


@pytest.mark.parametrize("value", [None, 5, -1, "text", [], {}, [1, 2]], ids=repr)
def test_values_of_the_wrong_type(saved, value):
    whole, header = (saved / "index.json").read_text(), header_of(saved)
    places = [("n",), ("parameters",), ("state",), ("files",), *(("state", key) for key in header["state"])]
    places += [("files", part) for part in header["files"]]
    places += [("files", part, key) for part, entry in header["files"].items() for key in entry]
    places += [("parameters", name) for name in header["parameters"]]
    for *path, last in places:
        altered = json.loads(whole)
        inner = altered
        for step in path:
            inner = inner[step]
        if inner[last] == value or (value, last) in ALLOWED:
            continue
        inner[last] = value
        (saved / "index.json").write_text(json.dumps(altered))
        refused(saved)


@pytest.mark.parametrize(
    "change", [{"n": 29}, {"n": 31}, {"state": {"d": 7}}, {"parameters": {"no_such": 1}}, {"kind": "flat"}], ids=repr
)
def test_header_that_disagrees_with_the_arrays(change, tmp_path):
    for index in (HNSWIndex(), FlatIndex()):
        index.add(VECTORS).save(tmp_path)
        if header_of(tmp_path).items() >= change.items():
            continue
        change_header(tmp_path, lambda header: header.update(change))
        refused(tmp_path)


@pytest.mark.parametrize("V", [0, 7, 9])
def test_another_vocabulary_size(V, tmp_path):
    EagerIndex().add(np.abs(VECTORS)).save(tmp_path)
    change_header(tmp_path, lambda header: header.update(state={"V": V}))
    refused(tmp_path)


@pytest.mark.parametrize("name", ["../outside{0}", "/tmp/outside{0}", "..", ".", "", "sub/inside{0}", "plain.npy"])
def test_a_file_outside_of_the_folder_or_with_another_name(saved, name):
    first, entry = next(iter(header_of(saved)["files"].items()))
    for folder in (saved.parent, saved / "sub"):
        folder.mkdir(exist_ok=True)
        for outside in ("outside", "inside"):
            shutil.copy(saved / entry["file"], folder / f"{outside}-0123456789ab.npy")
    shutil.copy(saved / entry["file"], saved / "plain.npy")
    change_header(saved, lambda header: header["files"][first].update(file=name.format("-0123456789ab.npy")))
    refused(saved, match="index.json: not a readable header.*not the name of a data file of this folder")


# -- interrupted saves -------------------------------------------------------------------------------------------------


class Unplugged(Exception):
    pass


def interrupt(monkeypatch, at: int) -> None:
    """`os.replace` stops the save at its call number `at`."""
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == at:
            raise Unplugged
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)


def same(one, other) -> bool:
    a, b = one.search(VECTORS[:3], 30), other.search(VECTORS[:3], 30)
    return len(one) == len(other) and (a.ids == b.ids).all() and (a.scores == b.scores).all()


def test_interrupted_at_each_step(tmp_path):
    old, new = HNSWIndex().add(VECTORS[:20]), HNSWIndex().add(VECTORS)
    steps = 4  # ids, slots, index.faiss, index.json
    for at in range(1, steps + 1):
        first, again = tmp_path / f"first{at}", tmp_path / f"again{at}"
        old.save(again)
        opened = indexes.load(again)
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(Unplugged):
                new.save(first)
        refused(first, FileNotFoundError, "nothing saved here")
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(Unplugged):
                new.save(again)
        assert same(indexes.load(again), old)
        assert same(opened, old)
        for folder in (first, again):
            assert not list(folder.glob(".*")), "a temporary file stays"
            new.save(folder)
            assert same(indexes.load(folder), new)
            assert set(folder.iterdir()) == {folder / "index.json", *data_files(folder)}, "leftovers stay"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, steps + 1)
        new.save(tmp_path / "whole")  # there is no further step


def test_leftovers_of_a_killed_process_are_removed_and_files_of_others_are_not(tmp_path):
    FlatIndex().add(VECTORS[:5]).save(tmp_path)
    leftovers = {"vectors-0123456789ab.npy", "index-0123456789ab.faiss", ".ids.npy.4711.tmp", ".index.json.4711.tmp"}
    others = {"vectors.npy", "mine.faiss", "notes.txt", ".hidden", "a-0123456789ab.txt", "my-ids.npy", "ids-12.npy"}
    for name in leftovers | others:
        (tmp_path / name).write_text("x")
    FlatIndex().add(VECTORS).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == others | {"index.json"} | {path.name for path in data_files(tmp_path)}


def test_a_header_that_json_cannot_hold_leaves_the_old_index(tmp_path):
    storage.save(tmp_path, {"kind": "x"}, {"a": np.arange(3)})
    with pytest.raises(TypeError):
        storage.save(tmp_path, {"kind": object()}, {"a": np.arange(4)})
    arrays, _ = storage.load_arrays(tmp_path, storage.load_header(tmp_path), mmap=False, verify=True)
    assert arrays["a"].tolist() == [0, 1, 2]


def run(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)


FULL_DISK = """
import resource, signal, sys
import numpy as np
import indexes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
vectors = np.random.default_rng(0).random((300, 16)).astype(np.float32)
for make in (indexes.FlatIndex, indexes.HNSWIndex, indexes.EagerIndex):
    folder = f"{sys.argv[1]}/{make.kind}"
    old, new = make().add(vectors[:9]), make().add(vectors)
    old.save(folder)
    new.save(f"{sys.argv[1]}/sizes")
    sizes = {entry["bytes"] for entry in indexes.storage.load_header(f"{sys.argv[1]}/sizes")["files"].values()}
    # also one byte short of each file, where a library that buffers notices at the very last moment
    for limit in {0, 100, 700, 4096, *(size - 1 for size in sizes)}:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            new.save(folder)
        except OSError:
            pass
        else:
            raise SystemExit(f"{make.kind}: a save on a disk full at {limit} bytes per file said nothing")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        loaded = indexes.load(folder)
        assert len(loaded) == 9
        assert (loaded.search(vectors[:3], 9).ids == old.search(vectors[:3], 9).ids).all()
    new.save(folder)
    assert len(indexes.load(folder)) == 300
"""

READ_ONLY = """
import os, sys
import numpy as np
import indexes
vectors = np.ones((4, 3), np.float32)
index = indexes.FlatIndex().add(vectors)
index.save(sys.argv[1])
for mmap in (True, False):  # imports and compiles all, as the other user may not be able to read Python's own files
    indexes.load(sys.argv[1], mmap).search(vectors, 1)
os.chdir(sys.argv[1])  # so that no folder above needs to be readable
os.chmod(".", 0o555)
for name in os.listdir("."):
    os.chmod(name, 0o444)
if os.getuid() == 0:
    os.setuid(65534)
before = sorted(os.listdir("."))
try:
    indexes.FlatIndex().add(vectors[:2]).save(".")
except PermissionError:
    pass
else:
    raise SystemExit("a save into a read-only folder said nothing")
assert sorted(os.listdir(".")) == before
for mmap in (True, False):
    loaded = indexes.load(".", mmap)
    assert len(loaded) == 4
    assert loaded.add(vectors).search(vectors[:1], 8).ids[0].tolist() == list(range(8))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are of POSIX")
def test_full_disk(tmp_path):
    run(FULL_DISK, str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are of POSIX")
def test_read_only_folder(tmp_path):
    run(READ_ONLY, str(tmp_path))
    os.chmod(tmp_path, 0o755)


def test_saving_where_a_file_stands(tmp_path):
    (tmp_path / "index").write_text("mine")
    with pytest.raises(OSError):
        FlatIndex().add(VECTORS).save(tmp_path / "index")
    assert (tmp_path / "index").read_text() == "mine"
