"""A build on disk against the build in memory: the same bytes, whatever the budget, the parts and the accidents."""

from __future__ import annotations

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import BM25, TFIDF, BlockMaxIndex, EagerIndex, SeismicIndex, load, storage
from indexes.errors import CorruptIndex, InvalidIds, InvalidParameter, InvalidVectors
from indexes.sparse import streaming
from indexes.sparse.segment import PART
from indexes.sparse.streaming import LEAST, build_on_disk
from indexes.sparse.weighting import METHODS, Statistics

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    {},
    {"precision": "uint8"},
    {"order": "insertion"},
    {"weighting": BM25()},
    {"weighting": BM25(method="bm25+"), "precision": "uint8"},
    {"weighting": TFIDF(), "order": "insertion", "alpha": 0.9},
]


def rows(n, V=3000, entries=12, seed=0):
    """Counts: terms from very frequent to very rare, rows without any, entries that are 0."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 2 * entries, n) * (rng.random(n) < 0.9)
    terms = np.minimum(rng.pareto(0.8, sizes.sum()) * 5, V - 1).astype(int)
    made = sparse.csr_matrix((rng.integers(1, 6, len(terms)), terms, np.concatenate([[0], np.cumsum(sizes)])), (n, V))
    made.sum_duplicates()
    made.data = made.data.astype(np.float32)
    made.data[rng.random(made.nnz) < 0.02] = 0
    return made


def parts_of(vectors, size):
    return [vectors[start : start + size] for start in range(0, vectors.shape[0], size)]


def content(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def assert_same_bytes(folder, other):
    ours, theirs = content(folder), content(other)
    assert ours["index.json"].decode() == theirs["index.json"].decode()
    assert ours == theirs


# -- the same bytes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch):
    """Runs of 700 entries, and windows of as few documents as there can be: some rows are collected from many runs."""
    monkeypatch.setattr(streaming, "AT_ONCE", LEAST // 700)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("size", [97, 10_000])
def test_many_runs_and_windows(setting, size, tmp_path, small_pieces):
    vectors = rows(3 * PART + 5)
    BlockMaxIndex(**setting).add(vectors).save(tmp_path / "memory")
    index = build_on_disk(BlockMaxIndex(**setting), parts_of(vectors, size), tmp_path / "disk", memory_bytes=LEAST)
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")
    assert not (tmp_path / "disk.building").exists()
    queries, again = rows(5, seed=1), load(tmp_path / "memory")
    assert (index.search(queries).scores == again.search(queries).scores).all()


@pytest.mark.parametrize("memory_bytes", [LEAST, 3 * LEAST, 1 << 30])
def test_any_budget(memory_bytes, tmp_path):
    vectors = rows(9000)
    BlockMaxIndex(weighting=BM25()).add(vectors).save(tmp_path / "memory")
    build_on_disk(
        BlockMaxIndex(weighting=BM25()), parts_of(vectors, 1000), tmp_path / "disk", memory_bytes=memory_bytes
    )
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")


def test_gaps_longer_than_an_entry_can_hold(tmp_path):
    """Lists whose entries lie more than 65,535 blocks apart, in windows of their own."""
    n = 280_000
    where = np.array([0, 1, 2, 270_000, 279_999])
    vectors = sparse.csr_matrix((np.ones(5), (where, [0, 1, 0, 1, 0])), shape=(n, 2), dtype=np.float32)
    for order in ("insertion", "bisection"):
        BlockMaxIndex(order=order).add(vectors).save(tmp_path / "memory")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "AT_ONCE", LEAST)
            index = build_on_disk(BlockMaxIndex(order=order), [vectors], tmp_path / "disk", memory_bytes=LEAST)
        assert_same_bytes(tmp_path / "disk", tmp_path / "memory")
        assert index.search(sparse.eye(2, format="csr"), 3).ids.tolist() == [[0, 2, 279_999], [1, 270_000, -1]]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_parts(tmp_path_factory, data):
    """Parts of any sizes and widths, none included, with ids or without, against one `add` after the other."""
    setting = data.draw(st.sampled_from([*SETTINGS, *({"weighting": BM25(method=m)} for m in METHODS)]))
    parts, used = [], 0
    for seed, count in enumerate(data.draw(st.lists(st.integers(0, 9), max_size=4))):
        part = rows(count, V=data.draw(st.integers(1, 9)), entries=data.draw(st.integers(1, 4)), seed=seed)
        if data.draw(st.booleans()):
            ids = np.random.default_rng(seed).permutation(count) + used
            parts.append((part, ids))
        else:
            parts.append((part, None))
        used += count
    folder, index = tmp_path_factory.mktemp("any"), BlockMaxIndex(**setting)
    for part, ids in parts:
        index.add(part, ids)
    index.save(folder / "memory")
    build_on_disk(BlockMaxIndex(**setting), parts, folder / "disk", memory_bytes=LEAST)
    assert_same_bytes(folder / "disk", folder / "memory")


def test_ids_follow_the_highest_so_far(tmp_path):
    vectors = rows(9)
    parts = [(vectors[:3], [70, 4, 9]), vectors[3:5], (vectors[5:7], [3, 5]), vectors[7:]]
    index = build_on_disk(BlockMaxIndex(), parts, tmp_path / "disk")
    assert index.ids.tolist() == [70, 4, 9, 71, 72, 3, 5, 73, 74]


def test_statistics_wider_than_the_rows(tmp_path):
    """A shard of a collection: terms that only other shards have count for its V, in memory and on disk."""
    vectors = rows(50, V=20)
    weighting = BM25(method="bm25+", statistics=Statistics(900, np.full(33, 40), 5000.0))
    BlockMaxIndex(weighting=weighting).add(vectors).save(tmp_path / "memory")
    index = build_on_disk(BlockMaxIndex(weighting=weighting), [vectors], tmp_path / "disk")
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")
    queries, exact = rows(4, V=33, seed=3), EagerIndex(weighting=weighting).add(vectors)
    assert index.V == exact.V == 33
    hits, expected = index.search(queries), exact.search(queries)
    assert (hits.ids == expected.ids).all() and (hits.scores == expected.scores).all()


def test_an_older_index_is_replaced(tmp_path):
    BlockMaxIndex().add(rows(5)).save(tmp_path / "disk")
    BlockMaxIndex().add(rows(50, seed=2)).save(tmp_path / "memory")
    build_on_disk(BlockMaxIndex(), [rows(50, seed=2)], tmp_path / "disk")
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")


def test_the_given_index_stays_empty_and_progress_is_told(tmp_path):
    told: list[tuple[str, int, int]] = []
    index = BlockMaxIndex(weighting=BM25())
    build_on_disk(index, parts_of(rows(20), 15), tmp_path / "disk", progress=lambda *what: told.append(what))
    assert len(index) == index.V == 0
    assert told[:2] == [("reading", 15, 0), ("reading", 20, 0)]
    steps = ["counting", "weighing", "projecting", "ordering", "sorting", "bounding"]
    assert [what for what, _, _ in told[2:]] == steps
    assert [(done, total) for what, done, total in told[2:] if what != "ordering"] == [(20, 20)] * 5


# -- interrupted builds ------------------------------------------------------------------------------------------------


class Unplugged(Exception):
    pass


def until(parts, stop) -> Iterator:
    """The first `stop` parts, then an accident."""
    yield from itertools.islice(parts, stop)
    raise Unplugged


@pytest.fixture
def often(monkeypatch):
    """A checkpoint every 1,000 bytes."""
    monkeypatch.setattr(streaming, "CHECKPOINTS", 1000)


@pytest.mark.parametrize("jump", [False, True], ids=["from the beginning", "from a row on"])
def test_rows_that_were_stored_are_not_stored_again(jump, tmp_path, often):
    vectors, asked = rows(1000), []
    BlockMaxIndex().add(vectors).save(tmp_path / "memory")

    def parts(row):
        asked.append(row)
        return parts_of(vectors[row:], 70)

    for stop in (0, 4, 3, 9):
        source = (lambda row, stop=stop: until(parts(row), stop)) if jump else until(parts(0), stop)
        with pytest.raises(Unplugged):
            build_on_disk(BlockMaxIndex(), source, tmp_path / "disk")
    assert not (tmp_path / "disk").exists()
    stored = json.loads((tmp_path / "disk.building" / "checkpoint.json").read_text())["rows"]
    assert stored == (350 + 9 * 70 if jump else 9 * 70)
    build_on_disk(BlockMaxIndex(), parts if jump else parts(0), tmp_path / "disk")
    if jump:
        assert asked == [0, 0, 210, 350, 910]  # from the checkpoint before the last on
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")
    assert not (tmp_path / "disk.building").exists()


def test_what_follows_the_last_checkpoint_is_cut_off(tmp_path, often):
    vectors = rows(400)
    BlockMaxIndex().add(vectors).save(tmp_path / "memory")
    with pytest.raises(Unplugged):
        build_on_disk(BlockMaxIndex(), until(parts_of(vectors, 50), 4), tmp_path / "disk")
    for path in (tmp_path / "disk.building").iterdir():
        if path.name != "checkpoint.json":
            with open(path, "ab") as out:
                out.write(b"half a number: 7")
    build_on_disk(BlockMaxIndex(), parts_of(vectors, 50), tmp_path / "disk")
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")


def test_other_parameters_may_be_given(tmp_path, often):
    vectors, weighting = rows(300), BM25(k1=2.0)
    BlockMaxIndex(weighting=weighting, precision="uint8").add(vectors).save(tmp_path / "memory")
    with pytest.raises(Unplugged):
        build_on_disk(BlockMaxIndex(), until(parts_of(vectors, 50), 4), tmp_path / "disk")
    index = BlockMaxIndex(weighting=weighting, precision="uint8")
    build_on_disk(index, parts_of(vectors, 60), tmp_path / "disk", memory_bytes=LEAST)
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")


def another(vectors, change):
    altered = vectors.copy()
    if change == "terms":
        altered.indices[altered.indptr[150] : altered.indptr[151]] += 1
    elif change == "weights":
        altered.data[altered.indptr[150]] += 1
    elif change == "sizes":
        altered = sparse.vstack([vectors[:150], vectors[151:]], format="csr")
    return altered


@pytest.mark.parametrize("change", ["terms", "weights", "sizes", "ids"])
@pytest.mark.parametrize("jump", [False, True], ids=["iterable", "function"])
def test_other_rows_are_refused_or_begun_anew(change, jump, tmp_path, often):
    rng = np.random.default_rng(0)
    vectors = sparse.random(400, 90, 0.1, "csr", np.float32, rng)
    altered, ids = another(vectors, change), np.arange(400) + (change == "ids")
    with pytest.raises(Unplugged):
        build_on_disk(BlockMaxIndex(), until(parts_of(vectors, 100), 2), tmp_path / "disk")

    def parts(row):
        yield altered[row:], ids[row : altered.shape[0]]

    source = parts if jump else list(parts(0))
    before = content(tmp_path / "disk.building")
    with pytest.raises(InvalidVectors, match=rf"differ in {change}; .*holds 200 rows.*resume=False"):
        build_on_disk(BlockMaxIndex(), source, tmp_path / "disk")
    assert content(tmp_path / "disk.building") == before
    build_on_disk(BlockMaxIndex(), source, tmp_path / "disk", resume=False)
    BlockMaxIndex().add(*next(parts(0))).save(tmp_path / "memory")
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")


def test_fewer_rows_are_refused(tmp_path, often):
    vectors = rows(400)
    with pytest.raises(Unplugged):
        build_on_disk(BlockMaxIndex(), until(parts_of(vectors, 50), 4), tmp_path / "disk")
    with pytest.raises(InvalidVectors, match=r"parts end at row 190; .*holds 200 rows"):
        build_on_disk(BlockMaxIndex(), [vectors[:190]], tmp_path / "disk")


def test_interrupted_while_the_index_is_moved(tmp_path, monkeypatch):
    """At each step: the old index stays whole, and the next call ends with the bytes of the new one."""
    vectors, real, weighting = rows(300), os.replace, BM25()
    BlockMaxIndex(weighting=weighting).add(vectors).save(tmp_path / "memory")
    steps = 1 + 9 + 2 * 8 + 1  # the checkpoint, small arrays, files that are moved and then named, index.json
    for at in range(1, steps + 2):
        BlockMaxIndex().add(rows(7)).save(tmp_path / "disk")
        calls = []

        def replace(source, target, at=at, calls=calls):
            calls.append(target)
            if len(calls) == at:
                raise Unplugged
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            if at > steps:  # there is no further step
                build_on_disk(BlockMaxIndex(weighting=weighting), [vectors], tmp_path / "disk")
                break
            with pytest.raises(Unplugged):
                build_on_disk(BlockMaxIndex(weighting=weighting), [vectors], tmp_path / "disk")
        assert len(load(tmp_path / "disk")) == 7
        build_on_disk(BlockMaxIndex(weighting=weighting), [vectors], tmp_path / "disk")
        assert_same_bytes(tmp_path / "disk", tmp_path / "memory")
        assert not (tmp_path / "disk.building").exists()


KILLED = """
import sys
import numpy as np
from scipy import sparse
from indexes import BM25, BlockMaxIndex
from indexes.sparse import streaming

streaming.CHECKPOINTS = 20_000

def parts(row):
    for start in range(row, 20_000, 500):
        rng = np.random.default_rng(start)
        yield sparse.csr_matrix(rng.integers(0, 4, (500, 400)) * (rng.random((500, 400)) < 0.05), dtype=np.float32)

def told(what, done, total):
    print(what, done, flush=True)

streaming.build_on_disk(BlockMaxIndex(weighting=BM25()), parts, sys.argv[1], memory_bytes=1 << 20, progress=told)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
def test_kill_9(tmp_path):
    """Killed while rows are read, sorted and bounded; each time the next program goes on."""

    def start(path):
        command = [sys.executable, "-c", KILLED, str(path)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    for last, pause in (("reading 4000", 0.0), ("reading 14500", 0.01), ("projecting", 0.0), ("sorting", 0.02)):
        program = start(tmp_path / "disk")
        for line in program.stdout:
            if line.startswith(last):
                break
        time.sleep(pause)
        os.kill(program.pid, signal.SIGKILL)
        program.stdout.close()
        assert program.wait() == -signal.SIGKILL
        assert not (tmp_path / "disk").exists()
    program = start(tmp_path / "disk")
    output = program.communicate()[0].splitlines()
    assert program.returncode == 0
    first = int(output[0].split()[1])
    assert first > 19_000, "rows that were stored are read again"
    namespace: dict = {}
    exec(KILLED.rsplit("streaming.build_on_disk", 1)[0].replace("streaming.CHECKPOINTS = 20_000", ""), namespace)
    BlockMaxIndex(weighting=BM25()).add(sparse.vstack(list(namespace["parts"](0)))).save(tmp_path / "memory")
    assert_same_bytes(tmp_path / "disk", tmp_path / "memory")
    assert not (tmp_path / "disk.building").exists()


def test_files_of_others_are_not_touched(tmp_path):
    folder = tmp_path / "disk.building"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    build_on_disk(BlockMaxIndex(), [rows(5)], tmp_path / "disk")
    assert content(folder) == {"notes.txt": b"mine"}


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_bad_parts(tmp_path):
    for part in ([[1.0, -1.0]], [[np.nan]], [["a"]]):
        with pytest.raises(InvalidVectors):
            build_on_disk(BlockMaxIndex(), [np.array(part)], tmp_path / "disk")
    for ids in ([1], [1, 1], [-1, 2], [0.5, 1.5]):
        with pytest.raises(InvalidIds):
            build_on_disk(BlockMaxIndex(), [(rows(2), ids)], tmp_path / "disk")
    with pytest.raises(InvalidIds, match="id 8 is given more than once"):
        build_on_disk(BlockMaxIndex(), [(rows(2), [8, 3]), (rows(2), [5, 8])], tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_bad_parameters(tmp_path):
    with pytest.raises(InvalidParameter, match="index holds 4 rows"):
        build_on_disk(BlockMaxIndex().add(rows(4)), [rows(4)], tmp_path / "disk")
    for memory_bytes in (LEAST - 1, 1e9, None):
        with pytest.raises(InvalidParameter, match=r"memory_bytes is .*at least 1048576"):
            build_on_disk(BlockMaxIndex(), [rows(4)], tmp_path / "disk", memory_bytes=memory_bytes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sizes", "lengths", "ids", "terms", "weights"])
def test_a_spool_that_was_cut(name, tmp_path, often):
    with pytest.raises(Unplugged):
        build_on_disk(BlockMaxIndex(), until([rows(200)], 1), tmp_path / "disk")
    path = tmp_path / "disk.building" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(CorruptIndex, match=f"{name}: has .* bytes, the checkpoint says"):
        build_on_disk(BlockMaxIndex(), [rows(200)], tmp_path / "disk")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": null}', '{"rows": 1, "entries": "x", "V": 1, "before": 0}'])
def test_a_checkpoint_that_is_none(text, tmp_path):
    (tmp_path / "disk.building").mkdir()
    (tmp_path / "disk.building" / "checkpoint.json").write_text(text)
    with pytest.raises(CorruptIndex, match="not a readable checkpoint"):
        build_on_disk(BlockMaxIndex(), [rows(9)], tmp_path / "disk")
    assert len(build_on_disk(BlockMaxIndex(), [rows(9)], tmp_path / "disk", resume=False)) == 9


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="elsewhere room on disk is not taken ahead")
def test_full_disk_while_room_is_taken(tmp_path, monkeypatch):
    def full(handle, start, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    def cannot(handle, start, size):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        build_on_disk(BlockMaxIndex(), [rows(9)], tmp_path / "disk")
    monkeypatch.setattr(os, "posix_fallocate", cannot)
    assert len(build_on_disk(BlockMaxIndex(), [rows(9)], tmp_path / "disk")) == 9


# -- what goes with it -------------------------------------------------------------------------------------------------


def test_storage_takes_finished_files(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    storage.save(tmp_path / "copied", {"kind": "x"}, {"a": array})
    path = tmp_path / "a.npy"
    np.save(path, array)
    inode = path.stat().st_ino
    storage.save(tmp_path / "moved", {"kind": "x"}, {"a": path})
    assert_same_bytes(tmp_path / "moved", tmp_path / "copied")
    assert not path.exists()
    assert next((tmp_path / "moved").glob("a-*.npy")).stat().st_ino == inode, "copied, not moved"


@pytest.mark.parametrize("kind", [BlockMaxIndex, EagerIndex])
def test_postings_and_bytes_of_each_are_reported(kind):
    vectors = rows(500)
    described = kind(weighting=BM25()).add(vectors).describe()
    assert described["postings"] == np.count_nonzero(vectors.data)
    assert described["bytes_per_posting"] == round(described["bytes"] / described["postings"], 2) > 4
    assert kind().describe()["bytes_per_posting"] == 0
    assert "bytes_per_posting" not in SeismicIndex().add(vectors).describe()  # whose `postings` is a parameter
