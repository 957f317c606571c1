"""What every index keeps when it is saved and loaded, what it says about itself, and that builds repeat to the byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import indexes
from indexes import EagerIndex, FlatIndex, HNSWIndex, Index
from indexes.errors import WrongKind

ROOT = Path(__file__).resolve().parents[2]


def digests(folder) -> dict[str, str]:
    header = json.loads((Path(folder) / "index.json").read_text())
    return {part: entry["sha256"] for part, entry in header["files"].items()}


def assert_equal(one: Index, other: Index, case) -> None:
    """The same to the bit."""
    assert type(one) is type(other)
    assert one.parameters() == other.parameters()
    assert one.describe() == other.describe()
    np.testing.assert_array_equal(one.ids, other.ids)
    queries = case.random(8, seed=9)
    allow = np.arange(len(one)) % 3 == 0
    for filter in (None, allow):
        a, b = one.search(queries, 12, allow=filter), other.search(queries, 12, allow=filter)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)


@pytest.fixture(params=[True, False], ids=["mmap", "read"])
def mmap(request):
    return request.param


def test_a_loaded_index_equals_the_saved_one(case, mmap, tmp_path):
    index = case.make().add(case.random(80), np.random.default_rng(0).permutation(80) + 2**40)
    index.remove(index.ids[:11])
    index.save(tmp_path / "deep" / "folder")
    for loaded in (
        indexes.load(tmp_path / "deep" / "folder", mmap),
        type(index).load(str(tmp_path / "deep" / "folder"), mmap=mmap, verify=False),
        Index.load(tmp_path / "deep" / "folder", mmap=mmap),
    ):
        assert_equal(loaded, index, case)
        assert loaded.ids.flags.writeable  # kernels would be compiled once more for read-only arrays


def test_an_empty_index_can_be_saved(case, mmap, tmp_path):
    case.make().save(tmp_path)
    loaded = indexes.load(tmp_path, mmap)
    assert len(loaded) == 0
    assert (loaded.search(case.vectors(2), 3).ids == -1).all()
    assert_equal(loaded.add(case.random(30)), case.make().add(case.random(30)), case)


def test_an_emptied_index_can_be_saved(case, mmap, tmp_path):
    index = case.make().add(case.random(20))
    index.remove(range(20))
    index.save(tmp_path)
    loaded = indexes.load(tmp_path, mmap)
    assert len(loaded) == 0
    loaded.add(case.random(30), np.arange(30))
    hits, fresh = loaded.search(case.random(3), 30), case.make().add(case.random(30)).search(case.random(3), 30)
    np.testing.assert_allclose(hits.scores, fresh.scores, rtol=1e-6)


def test_a_loaded_index_goes_on(case, mmap, tmp_path):
    """Add, remove and save into the folder from which it was loaded, in turn; the folder never grows."""
    here, there = case.make().add(case.random(40)), case.make().add(case.random(40))
    for turn in range(3):
        here.save(tmp_path)
        here = indexes.load(tmp_path, mmap)
        for index in (here, there):
            index.remove(np.arange(turn, 200, 7))
            index.add(case.random(25, seed=turn))
        np.testing.assert_array_equal(here.ids, there.ids)
        queries = case.random(5, seed=50)
        a, b = here.search(queries, len(here)), there.search(queries, len(there))
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5, atol=1e-6)
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "index.json") == sorted(
            entry["file"] for entry in json.loads((tmp_path / "index.json").read_text())["files"].values()
        )


def test_a_loaded_index_is_not_changed_by_a_later_save(case, mmap, tmp_path):
    index = case.make().add(case.random(40))
    index.save(tmp_path)
    opened = indexes.load(tmp_path, mmap)
    case.make().add(case.random(15, seed=5)).save(tmp_path)
    assert_equal(opened, index, case)
    assert_equal(indexes.load(tmp_path, mmap), case.make().add(case.random(15, seed=5)), case)


def test_searching_does_not_change_the_files(case, tmp_path):
    case.make().add(case.random(40)).save(tmp_path)
    before = digests(tmp_path)
    loaded = indexes.load(tmp_path)
    loaded.search(case.random(5), 40)
    loaded.save(tmp_path / "again")
    assert digests(tmp_path / "again") == before
    indexes.load(tmp_path)  # verifies the digests


def test_wrong_kind(case, tmp_path):
    index = case.make().add(case.random(5))
    index.save(tmp_path)
    for other in (FlatIndex, HNSWIndex, EagerIndex):
        if not isinstance(index, other):
            with pytest.raises(WrongKind, match=f"{type(index).__name__}.*not {other.__name__}"):
                other.load(tmp_path)


def test_describe(case, tmp_path):
    index = case.make().add(case.random(50))
    index.save(tmp_path)
    for described in (index.describe(), indexes.load(tmp_path).describe()):
        assert json.loads(json.dumps(described)) == described
        assert described["kind"] == index.kind
        assert described["n"] == 50
        for name, value in index.parameters().items():
            if value is not None and name != "bytes":  # None is chosen from n; "bytes" is the total here
                assert described[name] == value
        assert described["bytes"] == sum(described["bytes_per_part"].values())
        files = json.loads((tmp_path / "index.json").read_text())["files"]
        assert set(files) == set(described["bytes_per_part"])
        for part, entry in files.items():  # an .npy file has a header of up to 128 bytes
            assert 0 <= entry["bytes"] - described["bytes_per_part"][part] <= 128


def test_parameters_make_the_same_index(case):
    index = case.make()
    parameters = json.loads(json.dumps(index.parameters()))
    assert type(index)._rebuild(parameters).parameters() == index.parameters()


def test_two_builds_are_the_same_bytes(case, tmp_path):
    for folder in ("one", "two"):
        index = case.make().add(case.random(70))
        index.search(case.random(3), 5)
        index.save(tmp_path / folder)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    one, two = (json.loads((tmp_path / folder / "index.json").read_text()) for folder in ("one", "two"))
    assert one == two


BUILD = """
import sys
sys.path.insert(0, sys.argv[1])
from index_cases import INSTALLED
for case in INSTALLED:
    case.make().add(case.random(300)).save(f"{sys.argv[2]}/{case.name}")
"""


def test_two_processes_build_the_same_bytes(tmp_path):
    from index_cases import INSTALLED

    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": seed, "OPENBLAS_NUM_THREADS": seed}
        subprocess.run(
            [sys.executable, "-c", BUILD, str(Path(__file__).parent), str(tmp_path / seed)],
            check=True, cwd=ROOT, env=environment,
        )  # fmt: skip
    for case in INSTALLED:
        assert digests(tmp_path / "1" / case.name) == digests(tmp_path / "2" / case.name), case.name
