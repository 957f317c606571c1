"""Mined negatives against a slow definition, and the round trip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval import bm25, dense
from retrieval.errors import TrainingError
from retrieval.training.negatives import mined, round_trip, rows_found

lists = st.lists(st.integers(0, 9), max_size=6, unique=True)


def padded(rows, width=6):
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int64).reshape(-1, width)


@given(st.lists(st.tuples(lists, lists, lists), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 2))
def test_negatives_take_turns_and_leave_positives_out(queries, count, skip):
    one, two, positives = (list(part) for part in zip(*queries, strict=True))
    found = mined([padded(one), padded(two)], [np.array(p, np.int64) for p in positives], count, skip=skip)
    assert found.dtype == np.int64 and found.shape == (len(queries), count)
    for row, a, b, relevant in zip(found.tolist(), one, two, positives, strict=True):
        expected = []
        for place in range(6):
            for own in (a[skip:], b[skip:]):
                if place < len(own) and own[place] not in expected and own[place] not in relevant:
                    expected.append(own[place])
        assert row == (expected + [-1] * count)[:count]


def test_any_retriever_gives_rows_of_the_keys_that_are_asked_for():
    texts = ["wing flow heat", "flow of heat", "shock at the nozzle", "nozzle and wing"]
    keys = np.array([3, 5, 8, 20])
    for retriever in (bm25(), dense("lsa")):
        assert np.all(rows_found(retriever, ["heat"], keys, 2) == -1)  # nothing is in it yet
        retriever.build(keys, lambda: texts)
        expected = [[dict(zip(keys.tolist(), range(4), strict=True))[key] for key, _ in hits]
                    for hits in retriever.search(["nozzle", "flow heat"], 2)]  # fmt: skip
        found = rows_found(retriever, ["nozzle", "flow heat"], keys, 2)
        assert [[row for row in rows if row >= 0] for rows in found.tolist()] == expected
        fewer = rows_found(retriever, ["nozzle"], keys[:3], 4)  # the last document is none of ours
        assert set(fewer[0].tolist()) <= {-1, 0, 1, 2} and 2 in fewer[0]


def test_the_round_trip_keeps_what_leads_back():
    found = np.array([[4, 1], [2, 0], [-1, -1]])
    assert round_trip(found, np.array([1, 1, 0])).tolist() == [True, False, False]
    assert round_trip(found[:, :1], np.array([4, 2, 0])).tolist() == [True, True, False]


def test_bad_input_is_named():
    one = np.zeros((2, 3), np.int64)
    with pytest.raises(TrainingError, match="found are none"):
        mined([], [], 3)
    with pytest.raises(TrainingError, match=r"\(2, 3\).*1 queries"):
        mined([one], [np.zeros(1, np.int64)], 3)
    with pytest.raises(TrainingError, match="count is 0"):
        mined([one], [np.zeros(1, np.int64)] * 2, 0)
