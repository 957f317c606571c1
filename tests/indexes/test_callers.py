"""Several callers of one index: what was added is built once, by the first of them; then they search side by side."""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import sparse

from indexes import BinaryIVFIndex, BlockMaxIndex, HammingIndex, MultiIndexHashing
from indexes.sparse import blockmax

CODES = np.random.default_rng(0).integers(0, 256, (400, 8), np.uint8)
COUNTS = sparse.random(400, 50, 0.2, "csr", np.float32, random_state=0)
KINDS = {
    "hamming": HammingIndex,
    "multi-index-hashing": MultiIndexHashing,
    "binary-ivf": lambda: BinaryIVFIndex(nlist=5, nprobe=5).fit(CODES),
}


def slowed(work, started):
    """It lets others run before and after it does its work."""

    def run(*arguments, **named):
        started.set()
        time.sleep(0.03)
        done = work(*arguments, **named)
        time.sleep(0.03)
        return done

    return run


@pytest.mark.parametrize("name", KINDS)
def test_the_first_caller_builds_and_others_wait(name, monkeypatch):
    ids = np.random.default_rng(1).permutation(400)
    index, other = (KINDS[name]().add(CODES[:200], ids[:200]) for _ in range(2))
    for change in (lambda one: one.add(CODES[200:], ids[200:]), lambda one: one.remove(ids[::3])):
        change(index)
        change(other)
        started = threading.Event()
        monkeypatch.setattr(index, "_pack", slowed(type(index)._pack.__get__(index), started))
        with ThreadPoolExecutor(4) as pool:
            found = [pool.submit(index.search, CODES[:9], 5)]
            started.wait(5)
            found += [pool.submit(index.search, CODES[:9], 5) for _ in range(2)]
            within = pool.submit(index.search_radius, CODES[:9], 9)
        expected = other.search(CODES[:9], 5)
        for hits in (*(done.result() for done in found), index.search(CODES[:9], 5)):
            np.testing.assert_array_equal(hits.ids, expected.ids)
        np.testing.assert_array_equal(within.result().ids, other.search_radius(CODES[:9], 9).ids)


def test_segments_are_built_once(monkeypatch):
    index, started = BlockMaxIndex().add(COUNTS), threading.Event()
    monkeypatch.setattr(blockmax, "build", slowed(blockmax.build, started))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(index.search, COUNTS[:9], 5)
        started.wait(5)
        second = pool.submit(index.search, COUNTS[:9], 5)
    np.testing.assert_array_equal(first.result().ids, second.result().ids)
    assert (second.result().ids >= 0).all()


def test_later_callers_do_not_wait_for_each_other(monkeypatch):
    index, both = HammingIndex().add(CODES), threading.Barrier(2)
    index.search(CODES[:1])
    nearest = index._nearest
    monkeypatch.setattr(index, "_nearest", lambda *some, **named: (both.wait(20), nearest(*some, **named))[1])
    with ThreadPoolExecutor(2) as pool:
        assert all(len(hits) == 3 for hits in pool.map(index.search, [CODES[:3], CODES[3:6]]))


def test_an_index_can_be_copied():
    index = HammingIndex().add(CODES)
    twin = copy.deepcopy(index)
    index.remove(index.ids)
    np.testing.assert_array_equal(twin.search(CODES[:9], 1).ids[:, 0], np.arange(9))
