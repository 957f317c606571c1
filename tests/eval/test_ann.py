"""Measures of approximate search against slow definitions, and what each refuses."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import Comparison, approximation_effect, comparison_table, evaluate, knn_recall, latency
from eval.ann import distance_ratio, epsilon_recall, relative_distance_error, true_distances
from eval.significance import paired_t_test


def exact_search(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of scores (nq, n): ids, scores; ties by the smaller id, padded with -1 and -inf."""
    ids = np.full((len(scores), k), -1)
    best = np.full((len(scores), k), -np.inf)
    for i, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda j: (-row[j], j))[:k]
        ids[i, : len(order)], best[i, : len(order)] = order, row[order]
    return ids, best


# -- recall ------------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.data())
def test_recall_is_the_share_of_answers_that_are_as_good_as_the_kth(data: st.DataObject) -> None:
    n, k = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    truth = np.array([data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))], dtype=float)  # many ties
    found = data.draw(st.lists(st.integers(-1, n - 1), min_size=k, max_size=k))
    kth = sorted(truth[0], reverse=True)[:k][-1]
    right = {j for j in range(n) if truth[0, j] >= kth}
    expected = len(right & set(found)) / min(k, n)

    exact_ids, exact_scores = exact_search(truth, n + k)
    assert knn_recall([found], exact_ids, exact_scores, k) == [expected]
    # only k exact answers are known, but the scores of the found ones are: the same
    scores = [[truth[0, j] if j >= 0 else -np.inf for j in found]]
    assert knn_recall([found], exact_ids[:, :k], exact_scores[:, :k], k, scores=scores) == [expected]


def test_a_tie_beyond_the_columns_is_seen_by_its_score_only() -> None:
    exact_ids, exact_scores = [[4, 7]], [[0.9, 0.5]]
    found = [[4, 8]]  # 8 scores 0.5 as well
    assert knn_recall(found, exact_ids, exact_scores, 2) == [0.5]
    assert knn_recall(found, exact_ids, exact_scores, 2, scores=[[0.9, 0.5]]) == [1.0]
    assert knn_recall(found, exact_ids, exact_scores, 2, scores=[[0.9, 0.4999]]) == [0.5]
    assert knn_recall(found, exact_ids, exact_scores, 2, scores=[[0.9, 0.4999]], tolerance=1e-3) == [1.0]
    assert knn_recall(found, [[4, 7, 8]], [[0.9, 0.5, 0.5]], 2) == [1.0]


@pytest.mark.parametrize("kth", [100.0, -100.0, 1e-9])
def test_the_tolerance_is_a_share_of_the_score_whatever_its_sign(kth: float) -> None:
    for off, expected in ((0.5e-6, 1.0), (2e-6, 0.0)):
        scores = [[kth - off * abs(kth)]]
        assert knn_recall([[1]], [[0]], [[kth]], 1, scores=scores) == [expected]
        assert knn_recall([[1]], [[0]], [[kth]], 1, scores=scores, tolerance=0) == [0.0]


def test_an_id_that_is_given_twice_counts_once_and_padding_never() -> None:
    exact_ids, exact_scores = [[0, 1, 2, 3]], [[4.0, 3.0, 2.0, 1.0]]
    assert knn_recall([[0, 0, 0, 0]], exact_ids, exact_scores, 4, scores=[[4.0] * 4]) == [0.25]
    assert knn_recall([[0, -1, -1, -1]], exact_ids, exact_scores, 4) == [0.25]
    assert knn_recall([[0, -1, -1, -1]], exact_ids, exact_scores, 4, scores=[[4.0] * 4]) == [0.25]
    assert knn_recall([[9, 0, 1, 2]], exact_ids, exact_scores, 2) == [0.5]  # the first two only


def test_recall_where_fewer_than_k_exist() -> None:
    exact_ids, exact_scores = [[5, 2, -1], [-1, -1, -1]], [[0.3, 0.1, -np.inf], [-np.inf] * 3]
    found = [[2, -1, -1], [-1, -1, -1]]
    recall = knn_recall(found, exact_ids, exact_scores, 3)
    assert recall[0] == 0.5
    assert np.isnan(recall[1])
    assert knn_recall([[5, 7, 8]], exact_ids[:1], exact_scores[:1], 3, scores=[[0.3, 0.09, 0.0]]) == [0.5]
    # a filter left 5 and 2; others as good do not make the share more than 1
    assert knn_recall([[5, 2, 7]], [[5, 2, -1]], [[0.3, 0.1, -np.inf]], 3, scores=[[0.3, 0.1, 0.2]]) == [1.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [[0, 1]]}, r"ids must be \(nq, 3 or more\)"),
        ({"ids": [[0.0, 1.0, 2.0]]}, "ids must be integers"),
        ({"ids": [[0, 1, 2], [0, 1, 2]]}, "ids and exact_ids must pair up"),
        ({"exact_ids": [[0, 1, 2, 3]]}, "exact_scores and exact_ids must pair up"),
        ({"exact_scores": [[1.0, 2.0, 3.0]]}, "must descend"),
        ({"exact_scores": [[3.0, np.nan, 1.0]]}, "must not be NaN, got one in row 0"),
        ({"scores": [[1.0, 2.0, 3.0, 4.0]]}, "scores and ids must pair up"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"tolerance": -1e-6}, "tolerance must be at least 0"),
    ],
)
def test_recall_refuses(change: dict[str, object], message: str) -> None:
    good = {"ids": [[0, 1, 2]], "exact_ids": [[0, 1, 2]], "exact_scores": [[3.0, 2.0, 1.0]], "k": 3}
    assert knn_recall(**good) == [1.0]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        knn_recall(**{**good, **change})  # type: ignore[arg-type]


# -- distances ---------------------------------------------------------------------------------------------------------


@given(st.data())
def test_measures_of_distances_are_their_definitions(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 6))
    positive = st.floats(0.125, 8.0, width=16)
    exact = sorted(data.draw(st.lists(positive, min_size=k, max_size=k)))
    found = sorted(d + data.draw(st.floats(0, 4.0, width=16)) for d in exact)
    epsilon = data.draw(st.sampled_from([0.0, 0.1, 1.0]))
    shuffled = data.draw(st.permutations(found))  # the order of an index that estimates
    within = sum(d <= (1 + epsilon) * exact[-1] for d in found) / k
    assert epsilon_recall([shuffled], [exact], k, epsilon=epsilon) == [within]
    ratio = np.mean([a / b for a, b in zip(found, exact, strict=True)])
    assert distance_ratio([shuffled], [exact], k) == pytest.approx([ratio], rel=1e-12)
    error = sum(found) / sum(exact) - 1
    assert relative_distance_error([shuffled], [exact], k) == pytest.approx([error], rel=1e-9, abs=1e-12)


def test_distances_of_zero_and_missing_answers() -> None:
    inf = np.inf
    found = [[0.0, 2.0], [0.5, 2.0], [3.0, inf], [inf, inf], [0.0, 0.0], [0.0, 1.0]]
    exact = [[0.0, 1.0], [0.0, 1.0], [2.0, 4.0], [1.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_array_equal(distance_ratio(found, exact, 2), [1.5, inf, 1.5, np.nan, 1.0, inf])
    np.testing.assert_array_equal(relative_distance_error(found, exact, 2), [1.0, 1.5, 0.5, np.nan, 0.0, inf])
    np.testing.assert_array_equal(epsilon_recall(found, exact, 2, epsilon=0), [0.5, 0.5, 0.5, 0.0, 1.0, 0.5])


def test_epsilon_recall_where_fewer_than_k_exist() -> None:
    recall = epsilon_recall([[1.0, np.inf], [np.inf, np.inf]], [[1.0, np.inf], [np.inf, np.inf]], 2)
    np.testing.assert_array_equal(recall, [1.0, np.nan])


def test_measures_of_distances_refuse() -> None:
    for measure in (epsilon_recall, distance_ratio, relative_distance_error):
        with pytest.raises(ValueError, match=r"exact_distances must be 0 or more, got -1\.0"):
            measure([[1.0]], [[-1.0]], 1)
        with pytest.raises(ValueError, match=r"^distances must be 0 or more, got -2\.0"):
            measure([[-2.0]], [[1.0]], 1)
        with pytest.raises(ValueError, match="distances must not be NaN, got one in row 1"):
            measure([[1.0], [np.nan]], [[1.0], [1.0]], 1)
        with pytest.raises(ValueError, match=r"exact_distances must be \(nq, 2 or more\)"):
            measure([[1.0, 2.0]], [[1.0]], 2)
        with pytest.raises(ValueError, match="distances and exact_distances must pair up"):
            measure([[1.0], [2.0]], [[1.0]], 1)
    with pytest.raises(ValueError, match=r"epsilon must be at least 0, got -0\.1"):
        epsilon_recall([[1.0]], [[1.0]], 1, epsilon=-0.1)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_true_distances_are_those_of_the_vectors(metric: str) -> None:
    generator = np.random.default_rng(3)
    queries, documents = generator.standard_normal((4, 5)), generator.standard_normal((20, 5)).astype(np.float32)
    documents[2] = 0
    ids = generator.integers(-1, 20, (4, 7))
    ids[0, 0] = 2
    found = true_distances(queries, documents, ids, metric=metric)
    for i, j in np.ndindex(ids.shape):
        if ids[i, j] < 0:
            assert found[i, j] == np.inf
        elif metric == "l2":
            assert found[i, j] == pytest.approx(np.linalg.norm(queries[i] - documents[ids[i, j]]), rel=1e-12)
        elif ids[i, j] == 2:
            assert found[i, j] == 1
        else:
            a, b = queries[i], documents[ids[i, j]].astype(np.float64)
            assert found[i, j] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-12)


def test_true_distances_tell_close_vectors_apart_in_float32() -> None:
    a = np.full((1, 64), 0.125, dtype=np.float32)
    b = a.copy()
    b[0, 0] = np.nextafter(b[0, 0], np.float32(1))
    step = float(b[0, 0]) - 0.125
    assert true_distances(a, np.concatenate([a, b]), [[0, 1]]).tolist() == [[0.0, step]]
    near = true_distances(a, np.concatenate([a, b]), [[0, 1]], metric="cosine")[0]
    assert near[0] == 0
    assert near[1] == pytest.approx(step**2 * (1 - 1 / 64) / 2, rel=1e-3)  # where 1 - cos is 0 or noise


def test_true_distances_refuse() -> None:
    queries, documents = np.ones((1, 3)), np.ones((5, 3))
    with pytest.raises(ValueError, match="metric must be 'l2' or 'cosine', got 'ip'"):
        true_distances(queries, documents, [[0]], metric="ip")
    for bad, span in (([0, 5], "0 to 5"), ([-2, 4], "-2 to 4")):
        with pytest.raises(ValueError, match=f"ids must be rows from 0 to 4, or -1, got {span}"):
            true_distances(queries, documents, [bad])
    with pytest.raises(ValueError, match=r"must be \(nq, d\), \(n, d\) and \(nq, k\)"):
        true_distances(queries[:, :2], documents, [[0]])


# -- latency -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=300))
def test_percentiles_are_the_least_times_that_so_many_do_not_exceed(milliseconds: list[int]) -> None:
    found = latency([ms / 1000 for ms in milliseconds])
    n = len(milliseconds)
    for p, value in ((50, found.p50), (95, found.p95), (99, found.p99)):
        expected = next(ms for ms in sorted(milliseconds) if sum(m <= ms for m in milliseconds) * 100 >= p * n)
        assert value == pytest.approx(expected)
    assert found.longest == pytest.approx(max(milliseconds))
    assert found.mean == pytest.approx(np.mean(milliseconds))
    assert found.queries == n
    assert found.qps == pytest.approx(1000 * n / sum(milliseconds))


def test_queries_that_ran_at_the_same_time_are_counted_by_the_time_that_passed() -> None:
    assert latency([0.5] * 8).qps == 2.0
    assert latency([0.5] * 8, elapsed=1.0).qps == 8.0
    assert latency([0.5] * 8, elapsed=1.0).p50 == 500.0


@pytest.mark.parametrize("seconds", [[], [[0.1]], [0.1, -0.1], [np.nan], [np.inf]])
def test_latency_refuses_what_are_no_times(seconds: list[float]) -> None:
    with pytest.raises(ValueError, match="seconds must be times"):
        latency(seconds)


def test_latency_refuses_no_time_at_all() -> None:
    with pytest.raises(ValueError, match=r"must have taken some time together, got 0\.0 seconds"):
        latency([0.0, 0.0])
    with pytest.raises(ValueError, match=r"got -1\.0 seconds"):
        latency([0.1], elapsed=-1.0)


# -- effect on measures ------------------------------------------------------------------------------------------------


def test_the_effect_is_that_on_the_measures_not_on_recall() -> None:
    names = [f"d{i}" for i in range(20)]
    queries = [f"q{i}" for i in range(12)]
    exact = {query: {name: 20.0 - i for i, name in enumerate(names)} for query in queries}
    qrels = {query: {"d0": 1, "d3": 1} for query in queries}
    harmless = {
        query: {name: s for name, s in scores.items() if name not in ("d5", "d9")} for query, scores in exact.items()
    }
    harmful = {
        query: {name: s for name, s in scores.items() if i % 3 or name != "d0"}
        for i, (query, scores) in enumerate(exact.items())
    }
    found = approximation_effect(exact, {"harmless": harmless, "harmful": harmful}, qrels, ["nDCG@10", "P@1"])
    assert [(c.measure, c.a, c.b) for c in found] == [
        (measure, name, "exact") for measure in ("nDCG@10", "P@1") for name in ("harmless", "harmful")
    ]
    assert all(isinstance(c, Comparison) for c in found)
    by_name = {(c.measure, c.a): c for c in found}
    assert by_name["nDCG@10", "harmless"].difference == 0
    assert by_name["nDCG@10", "harmless"].p == 1
    worse = by_name["nDCG@10", "harmful"]
    values = [evaluate(run, qrels, ["nDCG@10"]).values("nDCG@10") for run in (harmful, exact)]
    assert worse.difference == pytest.approx(np.mean(values[0]) - np.mean(values[1]))
    assert worse.difference < 0
    assert worse.p == paired_t_test(*values)
    assert worse.p_corrected == pytest.approx(2 * worse.p)
    assert (worse.wins, worse.ties, worse.losses) == (0, 8, 4)
    assert by_name["P@1", "harmful"].difference == pytest.approx(-4 / 12)
    assert "harmful" in comparison_table(found).to_text()


def test_the_effect_hands_on_its_options() -> None:
    exact = {f"q{i}": {f"q{i}": 9.0, "a": 2.0, "b": 1.0} for i in range(3)}
    other = {query: dict(islice(scores.items(), 2)) for query, scores in exact.items()}
    qrels = {query: {"b": 1} for query in exact}
    (found,) = approximation_effect(exact, {"x": other}, qrels, ["MRR@10"], exclude_self=True, test="randomization")
    assert found.difference == -0.5  # b at rank 2, not 3
    assert found.test == "randomization"
    assert found.p == 0.25
    both = approximation_effect(exact, {"x": other, "y": exact}, qrels, ["MRR@10"], correction="bonferroni")
    assert [c.correction for c in both] == ["bonferroni"] * 2


def test_the_effect_refuses() -> None:
    run, qrels = {"q": {"a": 1.0}}, {"q": {"a": 1}}
    with pytest.raises(ValueError, match="named 'exact'"):
        approximation_effect(run, {"exact": run}, qrels)
    with pytest.raises(ValueError, match="at least two systems, got exact"):
        approximation_effect(run, {}, qrels)
