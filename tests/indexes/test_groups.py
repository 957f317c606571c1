"""search_groups: the same answers as one search for each query, whatever the filters have in common."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import EagerIndex, FlatIndex, HNSWIndex, search_groups
from indexes import groups as grouping
from indexes.errors import InvalidAllow, InvalidParameter, InvalidVectors, UnknownParameter

D = 12


def whole(n: int, seed: int = 0) -> np.ndarray:
    """Vectors of small whole numbers: their products are exact, and many are equal."""
    return np.random.default_rng(seed).integers(-3, 4, (n, D)).astype(np.float32)


def assert_one_by_one(index, queries, k, allow, group) -> None:
    hits = search_groups(index, queries, k, allow, group)
    assert hits.ids.shape == hits.scores.shape == (queries.shape[0], k)
    assert (hits.ids.dtype, hits.scores.dtype) == (np.int64, np.float32)
    for q, one in enumerate(group):
        alone = index.search(queries[[q]], k, allow=np.asarray(allow)[one])
        np.testing.assert_array_equal(hits.ids[q], alone.ids[0])
        np.testing.assert_allclose(hits.scores[q], alone.scores[0], rtol=1e-6)


@pytest.fixture(autouse=True, params=[0.0, 1.0], ids=["shared", "by cost"])
def cost(request, monkeypatch) -> None:
    """All tests with filters that always share a pass where one is possible, and with the choice between two ways."""
    monkeypatch.setattr(grouping, "MASKED", grouping.MASKED * request.param)
    monkeypatch.setattr(grouping, "BIT", grouping.BIT * request.param)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 15), st.floats(0, 1), st.integers(0, 10**6),
       st.sampled_from(["ip", "l2", "cosine"]))  # fmt: skip
def test_any_filters(n, g, nq, share, seed, metric):
    rng = np.random.default_rng(seed)
    index = FlatIndex(metric=metric).add(whole(n), rng.permutation(n) * 2)
    allow, group = rng.random((g, n)) < share, rng.integers(0, g, nq)
    if metric != "cosine":
        assert_one_by_one(index, whole(nq, seed=1), 5, allow, group)
    hits = search_groups(index, whole(nq, seed=1), 70, allow, group)
    for ids, one in zip(hits.ids, group, strict=True):
        assert set(ids[ids >= 0]) == set(index.ids[allow[one]])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_many_rows_and_ranges(dtype, monkeypatch):
    monkeypatch.setattr(grouping, "PART", 64)
    rng = np.random.default_rng(0)
    year, starts = rng.integers(0, 100, 3000), rng.integers(0, 90, 70)
    index = FlatIndex(dtype=dtype).add(whole(3000), rng.permutation(3000))
    allow = (year >= starts[:, None]) & (year < starts[:, None] + 10)
    assert_one_by_one(index, whole(120, seed=1), 10, allow, rng.integers(0, 70, 120))


def test_other_indexes():
    rng = np.random.default_rng(0)
    allow, group = rng.random((4, 200)) < 0.5, rng.integers(0, 4, 30)
    assert_one_by_one(HNSWIndex(metric="l2").add(whole(200)), whole(30, seed=1), 5, allow, group)
    counts = sparse.csr_matrix(rng.integers(0, 3, (200, 20)).astype(np.float32))
    assert_one_by_one(EagerIndex().add(counts), counts[:30], 5, allow, group)
    hits = search_groups(HNSWIndex().add(whole(200)), whole(2), 5, allow, [0, 1], ef_search=50)
    assert hits.ids.shape == (2, 5)


def test_which_way(cost):
    rng = np.random.default_rng(0)
    column, starts = rng.random(20_000), rng.random(300) * 0.9
    ranges = (column >= starts[:, None]) & (column < starts[:, None] + 0.1)
    own, few = np.arange(300), np.arange(300) % 3
    always = grouping.MASKED == 0
    assert grouping._shared_parts(ranges, own) is not None, "a pass for each of 300 large filters"
    assert (grouping._shared_parts(rng.random((300, 20_000)) < 0.01, own) is not None) == always, "nothing in common"
    assert (grouping._shared_parts(ranges & (column < 0.001), own) is not None) == always, "hardly anything there"
    assert (grouping._shared_parts(ranges, few) is not None) == always, "enough queries for each"


def test_rows_that_the_same_filters_allow_lie_side_by_side():
    rng = np.random.default_rng(0)
    filters = rng.random((20, 500)) < 0.1
    used = np.array([3, 1, 17, 8, 9, 0, 11, 12, 2])
    rows, bits = grouping._alike(filters, used)
    assert sorted(rows) == np.flatnonzero(filters[used].any(axis=0)).tolist()
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1, count=9).view(bool), filters[used][:, rows].T)
    kinds = [tuple(row) for row in bits.tolist()]
    assert kinds == sorted(kinds)
    for kind in set(kinds):
        same = rows[[one == kind for one in kinds]]
        assert (np.diff(same) > 0).all()


def test_a_group_without_queries_and_a_filter_without_rows():
    index, allow = FlatIndex().add(whole(10)), np.zeros((3, 10), bool)
    allow[2, 4] = True
    hits = search_groups(index, whole(3, seed=1), 2, allow, [2, 0, 2])
    assert hits.ids.tolist() == [[4, -1], [-1, -1], [4, -1]]
    assert (hits.scores[1] == -np.inf).all()
    assert search_groups(index, whole(3)[:0], 2, allow, []).ids.shape == (0, 2)
    assert search_groups(FlatIndex(), whole(3), 2, np.zeros((1, 0), bool), [0, 0, 0]).ids.tolist() == [[-1, -1]] * 3
    assert search_groups(index, whole(1, seed=1)[0], 2, allow, [2]).ids.tolist() == [[4, -1]]


def test_what_is_refused():
    index, queries, allow = FlatIndex().add(whole(10)), whole(3), np.ones((2, 10), bool)
    for wrong in (allow[:, :9], allow[0], allow.astype(np.uint8)):
        with pytest.raises(InvalidAllow, match=r"allow is .* must be bool \(g, 10\)"):
            search_groups(index, queries, 2, wrong, [0, 0, 1])
    for group in ([0, 1], [[0, 1, 1]], [0.0, 1.0, 1.0]):
        with pytest.raises(InvalidAllow, match=r"group is .* must be int \(3,\)"):
            search_groups(index, queries, 2, allow, group)
    for group in ([0, 1, 2], [-1, 0, 1]):
        with pytest.raises(InvalidAllow, match="allow has 2 filters"):
            search_groups(index, queries, 2, allow, group)
    with pytest.raises(InvalidParameter, match="k is 0"):
        search_groups(index, queries, 0, allow, [0, 0, 1])
    with pytest.raises(UnknownParameter, match="nprobe"):
        search_groups(index, queries, 2, allow, [0, 0, 1], nprobe=3)
    with pytest.raises(InvalidVectors):
        search_groups(index, np.full((3, D), np.nan), 2, allow, [0, 0, 1])
