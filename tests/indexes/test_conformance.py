"""What every index does: adding, searching, filtering and removing. `case` runs over the list in conftest.py."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import sparse

from indexes.base import KINDS, Hits
from indexes.errors import InvalidAllow, InvalidIds, InvalidParameter, InvalidVectors, UnknownParameter

# -- helpers -----------------------------------------------------------------------------------------------------------


def assert_ranked(hits: Hits) -> None:
    """Types, order, ties and padding, as `Hits` promises them."""
    assert (hits.scores.dtype, hits.ids.dtype, hits.scores.shape) == (np.float32, np.int64, hits.ids.shape)
    for scores, ids in zip(hits.scores, hits.ids, strict=True):
        count = int((ids >= 0).sum())
        assert (ids[count:] == -1).all() and (scores[count:] == -np.inf).all() and np.isfinite(scores[:count]).all()
        assert len(set(ids[:count].tolist())) == count
        pairs = list(zip((-scores[:count]).tolist(), ids[:count].tolist(), strict=True))
        assert pairs == sorted(pairs)


def assert_same(case, one: Hits, other: Hits) -> None:
    """The same answers. Approximate indexes may return other documents of the same score."""
    assert_ranked(one)
    assert_ranked(other)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5, atol=1e-5)
    if case.exact:
        np.testing.assert_array_equal(one.ids, other.ids)


def score_of(hits: Hits, query: int) -> dict[int, float]:
    return dict(list(hits)[query])


def test_every_kind_of_index_is_here():
    from index_cases import CASES

    assert {case.make().kind for case in CASES} == set(KINDS)


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_empty_index(case):
    index, queries = case.make(), case.vectors(3)
    for step in ("new", "zero rows added"):
        assert len(index) == 0 and index.ids.dtype == np.int64 and index.ids.shape == (0,), step
        for allow in (None, np.zeros(0, bool)):
            hits = index.search(queries, 4, allow=allow)
            assert hits.scores.shape == (3, 4)
            assert (hits.ids == -1).all() and (hits.scores == -np.inf).all()
        assert list(hits) == [[], [], []]
        assert index.remove([0, 5]) == 0
        assert index.describe()["n"] == 0
        index.add(queries[:0])
        index.add(queries[:0], ids=[])
    index.add(queries)  # nothing of the above gets into the way
    assert_same(case, index.search(queries, 2), case.make().add(queries).search(queries, 2))


def test_one_row(case):
    index = case.make().add(case.vectors(1), ids=[7])
    hits = index.search(case.vectors(2, seed=1), 3)
    assert_ranked(hits)
    np.testing.assert_array_equal(hits.ids, [[7, -1, -1]] * 2)
    assert next(iter(hits)) == [(7, float(hits.scores[0, 0]))]


def test_duplicates_everywhere(case):
    index = case.make().add(case.vectors(1)[np.zeros(300, int)])
    hits = index.search(case.vectors(2, seed=1), 250)
    assert_ranked(hits)
    assert (hits.ids >= 0).all() and (hits.scores == hits.scores[:, :1]).all()
    if case.exact:
        np.testing.assert_array_equal(hits.ids, [np.arange(250)] * 2)


def test_rows_of_zeros(case):
    vectors, mask = case.vectors(5), np.array([1, 0, 1, 0, 1])[:, None]
    vectors = vectors.multiply(mask).tocsr() if case.sparse else (vectors * mask).astype(vectors.dtype)
    index = case.make().add(vectors)
    hits = index.search(case.vectors(3, seed=1), 5)
    assert_ranked(hits)
    assert len(index) == 5
    if case.sparse:  # they share no term with any query
        assert {id for row in hits for id, _ in row} == {0, 2, 4}
    else:
        assert (np.sort(hits.ids) == np.arange(5)).all()
    nothing = index.search(vectors[[1]], 5)
    assert_ranked(nothing)
    assert list(nothing) == [[]] if case.sparse else (nothing.ids >= 0).all()
    only_zeros = case.make().add(vectors[[1, 3]])
    assert_ranked(only_zeros.search(vectors, 3))


def test_k_around_n(case):
    index = case.make().add(case.vectors(20))
    for k in (19, 20, 21, 1000):
        hits = index.search(case.vectors(3, seed=1), k)
        assert hits.ids.shape == (3, k)
        assert_ranked(hits)
        assert (hits.ids >= 0).sum(axis=1).tolist() == [min(k, 20)] * 3


def test_invalid_k_and_threads(case):
    index = case.make().add(case.vectors(3))
    for k in (0, -1, 2.5, "3", None):
        with pytest.raises(InvalidParameter, match=f"k is {k!r}"):
            index.search(case.vectors(1), k)
    for threads in (0, -1, 1.5):
        with pytest.raises(InvalidParameter, match=f"threads is {threads!r}"):
            index.search(case.vectors(1), 1, threads=threads)


# -- ids ---------------------------------------------------------------------------------------------------------------


def test_ids_beyond_32_and_53_bits(case):
    ids = np.array([2**31 + 1, 2**53 + 1, 2**62 + 3, 2**31, 5])
    index = case.make().add(case.vectors(5), ids=ids)
    assert sorted(index.search(case.vectors(1, seed=1), 5).ids[0].tolist()) == sorted(ids.tolist())
    assert index.remove([2**53 + 1, 2**53]) == 1
    assert index.ids.tolist() == [2**31 + 1, 2**62 + 3, 2**31, 5]
    index.add(case.vectors(2, seed=2))
    assert index.ids[-2:].tolist() == [2**62 + 4, 2**62 + 5]


def test_ties_go_to_the_smaller_id_whatever_the_order_of_rows(case):
    vectors, queries = case.vectors(40), case.vectors(3, seed=1)
    ids = np.random.default_rng(2).permutation(40) * 10
    shuffled = case.make().add(vectors[:17], ids[:17]).add(vectors[17:], ids[17:])
    order = np.argsort(ids)
    for k in (1, 7, 40):
        assert_same(case, shuffled.search(queries, k), case.make().add(vectors[order], ids[order]).search(queries, k))


BAD_IDS = {
    "given more than once": [1, 1, 2],
    "is negative": [1, -2, 3],
    "in the index already": [1, 0, 2],
    "ids are float64": [1.0, 2.0, 3.0],
    "ids are bool": [True, False, True],
    "ids are <U1": ["1", "2", "3"],
    "ids are object": [1, 2, 2**70],
    r"ids has shape \(2,\)": [1, 2],
    r"ids has shape \(1, 3\)": [[1, 2, 3]],
    r"ids has shape \(\)": 4,
}


def test_bad_ids_are_refused_and_nothing_is_added(case):
    index = case.make().add(case.vectors(4), ids=[5, 0, 9, 3])
    before = index.search(case.vectors(2, seed=1), 8)
    for problem, ids in BAD_IDS.items():
        with pytest.raises(InvalidIds, match=problem):
            index.add(case.vectors(3, seed=1), ids)
        assert index.ids.tolist() == [5, 0, 9, 3]
    assert_same(case, index.search(case.vectors(2, seed=1), 8), before)


# -- vectors and queries -----------------------------------------------------------------------------------------------


def bad_vectors(case):
    good = case.vectors(3)
    for value in (np.nan, np.inf, -np.inf, 1e39):
        bad = good.astype(np.float64)
        bad[1, 0] = value
        yield bad
    if case.sparse:
        yield -good
        yield good.astype(complex)
        yield np.array([["a"]])
        for column in (good.shape[1], -1):
            broken = good.copy()
            broken.indices[2] = column
            yield broken
    else:
        wide = np.ones((3, good.shape[1] + 1))
        yield from (wide, good[:, :-1], good[None], good.astype(str), good.astype(complex), np.ones((3, 0)), None)


def test_bad_vectors_are_refused_and_nothing_is_added(case):
    index, queries = case.make().add(case.vectors(4)), case.vectors(2, seed=1)
    before = index.search(queries, 5)
    for bad in bad_vectors(case):
        with pytest.raises(InvalidVectors):
            index.add(bad)
        with pytest.raises(InvalidVectors):
            index.search(bad, 5)
        assert len(index) == 4
        assert_same(case, index.search(queries, 5), before)


def layouts(case, vectors):
    """The same numbers in other clothes."""
    if case.sparse:
        unsorted = vectors.copy()
        for row in range(vectors.shape[0]):
            part = slice(*unsorted.indptr[row : row + 2])
            unsorted.indices[part], unsorted.data[part] = unsorted.indices[part][::-1], unsorted.data[part][::-1]
        unsorted.has_sorted_indices = False
        halves = sparse.csr_matrix(
            (np.repeat(vectors.data / 2, 2), np.repeat(vectors.indices, 2), vectors.indptr * 2), vectors.shape
        )
        zeros = vectors.copy()
        zeros.data = np.append(zeros.data, np.float32(0))
        zeros.indices, zeros.indptr = np.append(zeros.indices, 1).astype(np.int32), zeros.indptr.copy()
        zeros.indptr[-1] += 1
        yield from (vectors.tocsc(), vectors.tocoo(), sparse.csr_array(vectors), vectors.astype(np.float64))
        yield from (vectors.astype(np.int64), vectors.toarray(), unsorted, halves, zeros)
        frozen = vectors.copy()
        for part in (frozen.data, frozen.indices, frozen.indptr):
            part.setflags(write=False)
        yield frozen
    else:
        frozen = vectors.copy()
        frozen.setflags(write=False)
        yield from (np.asfortranarray(vectors), vectors.repeat(2, axis=0)[::2], vectors.repeat(2, axis=1)[:, ::2])
        yield from (vectors[::-1].copy()[::-1], frozen)
        if not case.binary:  # codes are bytes and nothing else
            yield from (vectors.astype(np.float64), vectors.astype(np.float16), vectors.astype(np.int8))
            yield from (vectors.astype(">f4"), vectors.tolist())


def test_layouts_and_types(case):
    vectors, queries = case.vectors(30), case.vectors(4, seed=1)
    expected = case.make().add(vectors).search(queries, 10)
    for given in layouts(case, vectors):
        assert_same(case, case.make().add(given).search(queries, 10), expected)
    index = case.make().add(vectors)
    for given in layouts(case, queries):
        assert_same(case, index.search(given, 10), expected)


def test_what_the_caller_gave_is_neither_changed_nor_kept(case):
    vectors, queries, ids = case.random(30), case.random(3, seed=1), np.arange(30) * 2
    index = case.make().add(vectors, ids)
    expected = index.search(queries, 30)
    for given, again in ((vectors, case.random(30)), (queries, case.random(3, seed=1))):
        assert abs(given - again).max() == 0
    if case.sparse:
        vectors.data[:] = 1
        vectors.indices[:] = 0
    else:
        vectors[:] = 1
    ids[:] = 0
    allow = np.ones(30, bool)
    assert_same(case, index.search(queries, 30, allow=allow), expected)
    assert allow.all()
    assert index.ids.tolist() == list(range(0, 60, 2))


def test_one_query_without_a_batch(case):
    index, queries = case.make().add(case.vectors(20)), case.vectors(1, seed=1)
    flat = queries.toarray()[0] if case.sparse else queries[0]
    hits = index.search(flat, 5)
    assert hits.ids.shape == (1, 5)
    assert_same(case, hits, index.search(queries, 5))


def test_zero_queries(case):
    index = case.make().add(case.vectors(20))
    hits = index.search(case.vectors(3)[:0], 5)
    assert hits.ids.shape == hits.scores.shape == (0, 5)
    assert list(hits) == []


def test_a_batch_equals_its_queries_one_by_one(case):
    index, queries = case.make().add(case.random(200)), case.random(40, seed=1)
    batch = index.search(queries, 200)
    for i in range(0, 40, 4):
        single = index.search(queries[[i]], 200)
        assert_ranked(single)
        expected = score_of(batch, i)
        assert score_of(single, 0) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_threads_do_not_change_results(case):
    index, queries = case.make().add(case.random(200)), case.random(40, seed=1)
    one, two = index.search(queries, 10, threads=1), index.search(queries, 10, threads=2)
    np.testing.assert_array_equal(one.ids, two.ids)
    np.testing.assert_array_equal(one.scores, two.scores)


def test_unknown_and_invalid_search_parameters(case):
    index, queries = case.make().add(case.vectors(5)), case.vectors(1)
    with pytest.raises(UnknownParameter) as caught:
        index.search(queries, 2, no_such_knob=3)
    assert "no_such_knob" in str(caught.value)
    for knob in index.search_knobs:
        assert knob in str(caught.value)
        with pytest.raises(InvalidParameter, match=knob):
            index.search(queries, 2, **{knob: "nonsense"})


# -- filters -----------------------------------------------------------------------------------------------------------


def some(n: int, count: int, seed: int = 0) -> np.ndarray:
    allow = np.zeros(n, bool)
    allow[np.random.default_rng(seed).permutation(n)[:count]] = True
    return allow


def test_filters(case):
    """The answer under a filter is the whole ranking without the excluded rows."""
    ids = np.random.default_rng(1).permutation(60) + 100
    index, queries = case.make().add(case.vectors(60), ids), case.vectors(4, seed=1)
    everything = index.search(queries, 60)
    for count, k in itertools.product((0, 1, 6, 20, 59, 60), (1, 10, 60)):
        allow = some(60, count)
        allowed = set(ids[allow].tolist())
        hits = index.search(queries, k, allow=allow)
        assert_ranked(hits)
        for row, whole in zip(hits, everything, strict=True):
            expected = [(id, score) for id, score in whole if id in allowed][:k]
            assert len(row) == min(k, count) == len(expected)
            assert {id for id, _ in row} <= allowed
            assert [score for _, score in row] == pytest.approx([score for _, score in expected], rel=1e-5, abs=1e-5)
            if case.exact:
                assert [id for id, _ in row] == [id for id, _ in expected]


def test_filters_on_many_rows(case):
    index, queries = case.make().add(case.random(2000)), case.random(5, seed=1)
    for count in (3, 40, 250, 1500):
        allow = some(2000, count, seed=count)
        hits = index.search(queries, 20, allow=allow)
        assert_ranked(hits)
        assert allow[hits.ids[hits.ids >= 0]].all()
        assert ((hits.ids >= 0).sum(axis=1) == min(20, count)).all()


def test_filters_after_removing(case):
    """`allow` is over the rows that are there now."""
    index, queries = case.make().add(case.vectors(60)), case.vectors(3, seed=1)
    index.remove(np.arange(0, 60, 3))
    allow = some(40, 15)
    hits = index.search(queries, 20, allow=allow)
    assert_ranked(hits)
    assert (np.sort(hits.ids[:, :15]) == np.sort(index.ids[allow])).all()


def test_wrong_allow(case):
    index, row_numbers = case.make().add(case.vectors(20)), [0, 1]
    shapes = (np.ones(19, bool), np.ones(21, bool), np.ones((1, 20), bool), True)
    for wrong in (*shapes, np.ones(20, np.uint8), np.ones(20), row_numbers):
        with pytest.raises(InvalidAllow, match=r"it must be bool \(20,\)"):
            index.search(case.vectors(1), 2, allow=wrong)


def test_read_only_and_strided_allow(case):
    index, queries = case.make().add(case.vectors(20)), case.vectors(2, seed=1)
    allow = some(20, 9)
    frozen, strided = allow.copy(), np.repeat(allow, 2)[::2]
    frozen.setflags(write=False)
    for given in (frozen, strided, allow.tolist()):
        assert_same(case, index.search(queries, 12, allow=given), index.search(queries, 12, allow=allow))


# -- removing and adding -----------------------------------------------------------------------------------------------


def test_remove_ignores_absent_ids(case):
    index = case.make().add(case.vectors(10), ids=np.arange(10) * 2)
    before = index.search(case.vectors(2, seed=1), 10)
    assert index.remove([1, 3, -1, 2**40]) == 0
    assert index.remove([]) == 0
    assert_same(case, index.search(case.vectors(2, seed=1), 10), before)
    assert index.remove([4, 4, 5]) == 1
    assert index.remove(np.int64(6)) == 1
    assert index.ids.tolist() == [0, 2, 8, 10, 12, 14, 16, 18]


def test_remove_refuses_what_are_no_ids(case):
    index = case.make().add(case.vectors(10))
    for wrong in ([1.0], [1.5], ["1"], None, [True]):
        with pytest.raises(InvalidIds):
            index.remove(wrong)
    assert len(index) == 10


def test_removed_rows_are_as_if_never_added(case):
    vectors, queries = case.vectors(60), case.vectors(4, seed=1)
    for count in (6, 30, 54):
        gone = some(60, count)
        index = case.make().add(vectors[:30]).add(vectors[30:])
        assert index.remove(np.flatnonzero(gone)) == count
        fresh = case.make().add(vectors[~gone], np.flatnonzero(~gone))
        np.testing.assert_array_equal(index.ids, fresh.ids)
        for k in (5, 60):
            assert_same(case, index.search(queries, k), fresh.search(queries, k))


def test_remove_everything_and_start_again(case):
    vectors, queries = case.vectors(30), case.vectors(3, seed=1)
    index = case.make().add(vectors)
    assert index.remove(range(30)) == 30
    assert len(index) == 0
    assert (index.search(queries, 5).ids == -1).all()
    assert index.describe()["n"] == 0
    index.add(vectors, ids=np.arange(30) + 3)
    assert_same(case, index.search(queries, 8), case.make().add(vectors, np.arange(30) + 3).search(queries, 8))


def test_removed_ids_can_be_added_again(case):
    vectors, queries = case.vectors(40), case.vectors(3, seed=1)
    index = case.make().add(vectors)
    index.remove([3, 4, 39])
    index.add(vectors[[0, 1]], ids=[39, 3])  # other vectors under these ids
    rows = [*(i for i in range(39) if i not in (3, 4)), 0, 1]
    fresh = case.make().add(vectors[rows], ids=[*(i for i in range(39) if i not in (3, 4)), 39, 3])
    assert_same(case, index.search(queries, 39), fresh.search(queries, 39))


def test_adding_piecemeal_equals_adding_at_once(case):
    vectors, queries = case.vectors(50), case.vectors(3, seed=1)
    index = case.make()
    for row in range(0, 50, 7):
        index.add(vectors[row : row + 7])
        index.search(queries, 2)  # between adds, so that nothing may be left stale
    assert_same(case, index.search(queries, 50), case.make().add(vectors).search(queries, 50))
