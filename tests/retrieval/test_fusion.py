"""Fusion against its definition written out in plain Python, and each rule of its docstring."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.fusion import METHODS, contributions, fuse, fuse_runs

scores = st.one_of(st.integers(-5, 5).map(float), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)))
lists = st.lists(st.dictionaries(st.integers(-20, 20), scores, max_size=8), max_size=4)
methods = st.sampled_from(sorted(METHODS))


def slow_part(ranking, id, method):
    """What one list gives to one id, by definition."""
    if not ranking:
        return 0.0
    if method == "rrf":
        order = sorted(ranking, key=lambda x: (-ranking[x], x))
        return 1 / (60 + order.index(id) + 1) if id in ranking else 0.0
    values = list(ranking.values())
    if method != "none" and min(values) == max(values):
        return 1.0 if id in ranking else 0.0
    score = ranking.get(id, min(values))
    if method == "minmax":
        return (score - min(values)) / (max(values) - min(values))
    if method == "zscore":
        return (score - statistics.fmean(values)) / statistics.pstdev(values)
    return score


@given(lists, methods, st.data())
def test_agrees_with_the_definition(rankings, method, data):
    weights = data.draw(st.lists(st.sampled_from([0.25, 1.0, 3.0]), min_size=len(rankings), max_size=len(rankings)))
    parts = contributions(rankings, method=method, weights=weights)
    assert set(parts) == {id for ranking in rankings for id in ranking}
    for id, part in parts.items():
        expected = [w * slow_part(ranking, id, method) for ranking, w in zip(rankings, weights, strict=True)]
        assert part == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(lists, methods)
def test_fused_scores_are_the_sums_of_the_contributions_in_order(rankings, method):
    fused = fuse(rankings, method=method)
    parts = contributions(rankings, method=method)
    assert dict(fused) == {id: math.fsum(part) for id, part in parts.items()}
    assert fused == sorted(fused, key=lambda entry: (-entry[1], entry[0]))
    assert fuse(rankings, method=method, k=2) == fused[:2]


@given(lists, methods, st.randoms(use_true_random=False))
def test_order_of_lists_and_entries_does_not_matter(rankings, method, rng):
    shuffled = [dict(rng.sample(list(r.items()), len(r))) for r in rng.sample(rankings, len(rankings))]
    one, other = fuse(rankings, method=method), fuse(shuffled, method=method)
    assert dict(one) == pytest.approx(dict(other))
    if method in ("rrf", "minmax", "none"):  # a mean depends on the order of its terms in the last bit
        assert one == other


@given(lists, methods)
def test_an_empty_or_weightless_list_changes_nothing(rankings, method):
    expected = fuse(rankings, method=method)
    ones = [1.0] * len(rankings)
    assert fuse([*rankings, {}], method=method) == expected
    if rankings:
        assert fuse([*rankings, {99: 5.0, 98: 4.0}], method=method, weights=[*ones, 0.0]) == expected


@given(lists.filter(lambda rankings: all(rankings)), st.sampled_from(["minmax", "zscore", "none"]))
def test_a_missing_document_gets_the_lowest_score_of_the_list(rankings, method):
    parts = contributions(rankings, method=method)
    for i, ranking in enumerate(rankings):
        if method != "none" and len(set(ranking.values())) == 1:
            assert all(part[i] == (id in ranking) for id, part in parts.items())
            continue
        lowest = min(parts[id][i] for id in ranking)
        assert all(part[i] == lowest for id, part in parts.items() if id not in ranking)


def test_negative_scores_are_not_outranked_by_absence():
    sparse, dense = {"a": -1.0, "b": -2.0}, {"a": -1.0, "c": -3.0}
    assert fuse([sparse, dense], method="none") == [("a", -2.0), ("b", -5.0), ("c", -5.0)]


def test_rrf_by_hand_with_ties_by_smaller_id():
    fused = fuse([{"b": 2.0, "a": 2.0, "c": 9.0}, {"b": 0.1}], method="rrf", weights=[1, 2])
    assert fused == [("b", pytest.approx(1 / 63 + 2 / 61)), ("c", pytest.approx(1 / 61)), ("a", pytest.approx(1 / 62))]
    assert fuse([{"a": 1.0}], method="rrf", rrf_k=0) == [("a", 1.0)]


def test_a_lone_hit_counts():
    assert fuse([{"a": 3.0, "b": 1.0}, {"c": 0.2}]) == [("a", 1.0), ("c", 1.0), ("b", 0.0)]
    assert fuse([{"c": 0.2}], method="zscore") == [("c", 1.0)]


def test_ties_are_broken_by_the_kind_of_id():
    assert [id for id, _ in fuse([{10: 1.0, 9: 1.0}])] == [9, 10]
    assert [id for id, _ in fuse([{"10": 1.0, "9": 1.0}])] == ["10", "9"]


@pytest.mark.parametrize("method", ["minmax", "zscore"])
def test_extreme_scores_stay_finite(method):
    for ranking in ({1: 1.7e308, 2: -1.7e308, 3: 0.0}, {1: 3e-200, 2: 1e-200, 3: 2e-200}, {1: 1e16 + 2, 2: 1e16}):
        fused = fuse([ranking], method=method)
        assert [id for id, _ in fused] == sorted(ranking, key=lambda id: -ranking[id])
        assert all(math.isfinite(score) for _, score in fused)
        assert len({score for _, score in fused}) == len(ranking)


def test_no_lists_give_no_documents():
    assert fuse([]) == []
    assert fuse([{}, {}]) == []
    assert fuse([], weights=[]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "borda"}, r"method='borda': expected one of rrf, minmax, zscore, none"),
        ({"weights": [1.0]}, r"weights=\[1.0\]: expected 2"),
        ({"weights": [1.0, -0.5]}, r"weights=\[1.0, -0.5\].*none negative"),
        ({"weights": [1.0, math.inf]}, r"weights=\[1.0, inf\]: expected finite"),
        ({"weights": [0.0, 0.0]}, r"weights=\[0.0, 0.0\].*at least one above 0"),
        ({"k": 0}, r"k=0: expected at least 1"),
        ({"rrf_k": -1}, r"rrf_k=-1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        fuse([{"a": 1.0}, {"b": 1.0}], **arguments)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_bad_scores_are_named(bad, method):
    with pytest.raises(ValueError, match=r"rankings\[1\]\['b'\]=-?(nan|inf): expected a finite score"):
        fuse([{"a": 1.0}, {"a": 1.0, "b": bad}], method=method)


def test_runs():
    rng = random.Random(0)
    one = {f"q{i}": {f"d{rng.randrange(9)}": rng.random() for _ in range(5)} for i in (2, 0, 1)}
    two = {f"q{i}": {f"d{rng.randrange(9)}": rng.random() for _ in range(5)} for i in (1, 3)}
    fused = fuse_runs([one, two], method="rrf", weights=[1, 2], k=3)
    assert list(fused) == ["q2", "q0", "q1", "q3"]
    for query, ranking in fused.items():
        expected = fuse([one.get(query, {}), two.get(query, {})], method="rrf", weights=[1, 2], k=3)
        assert list(ranking.items()) == expected
    assert fuse_runs([]) == {}
