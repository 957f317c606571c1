"""The tests against scipy's, the corrections against their definitions, comparisons of systems."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eval import Comparison, Evaluation, compare
from eval.significance import bonferroni, holm, paired_t_test, randomization_test

pairs = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=30)


def evaluation(*values: float, measure: str = "P@1") -> Evaluation:
    queries = tuple(f"q{i}" for i in range(len(values)))
    return Evaluation(queries, {measure: dict(zip(queries, values, strict=True))}, {measure: float(np.mean(values))})


@given(pairs)
def test_t_test_equals_scipy(values: list[tuple[int, int]]) -> None:
    a, b = np.array(values).T / 8
    differences = a - b
    if not differences.any():
        assert paired_t_test(a, b) == 1.0
    elif np.ptp(differences) == 0:
        assert paired_t_test(a, b) == 0.0
    else:
        assert paired_t_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert paired_t_test(a, b) == paired_t_test(b, a)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=9))
def test_small_randomization_test_is_exact_as_in_scipy(values: list[tuple[int, int]]) -> None:
    a, b = np.array(values).T / 8  # exact sums, which scipy needs
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue
    assert randomization_test(a, b) == pytest.approx(expected)


def test_sums_that_differ_by_rounding_only_are_equal() -> None:
    differences = np.array([0.1, -0.6, -0.1, 0.6])  # their sum is 0, or nearly: every pattern is as extreme
    assert (
        randomization_test(differences[[0, 1, 3, 2]], np.zeros(4)) == randomization_test(differences, np.zeros(4)) == 1
    )
    assert randomization_test([0.1, 0.2, 0.3, 0.7], [0.4, 0.2, 0.0, 0.7]) == 1


def test_large_randomization_test_agrees_with_scipy_and_the_t_test() -> None:
    generator = np.random.default_rng(7)
    a = generator.random(60)
    for shift in (0.0, 0.02, 0.06):
        b = a + generator.normal(shift, 0.15, 60)
        expected = stats.permutation_test(
            (a, b), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=10_000, rng=generator
        ).pvalue
        p = randomization_test(a, b)
        assert p == pytest.approx(expected, abs=0.025)
        assert p == pytest.approx(paired_t_test(a, b), abs=0.04)
        assert p == randomization_test(a, b) == randomization_test(b, a)
        assert p != randomization_test(a, b, seed=1)
    assert randomization_test(a, a + 1.0 + generator.random(60), permutations=99) == 0.01  # never 0


def test_what_cannot_be_told_apart_has_p_1() -> None:
    for test in (paired_t_test, randomization_test):
        assert test([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1.0
        assert test([0.5] * 500, [0.5] * 500) == 1.0
        assert test([1.0], [0.0]) == 1.0


def test_queries_without_a_difference_do_not_change_the_randomization_test() -> None:
    a, b = [0.1, 0.4, 0.9, 0.3, 0.7], [0.0, 0.5, 0.2, 0.1, 0.2]
    assert randomization_test(a + [0.5] * 100, b + [0.5] * 100) == randomization_test(a, b) == 6 / 32


@pytest.mark.parametrize("test", [paired_t_test, randomization_test])
@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ([1.0], [1.0, 2.0], "pair up"),
        ([], [], "at least one"),
        ([[1.0]], [[1.0]], "pair up"),
        ([np.nan], [1.0], "finite"),
    ],
)
def test_bad_values_are_refused(test, a: list, b: list, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        test(a, b)


def test_permutations_must_be_positive() -> None:
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        randomization_test([1.0, 2.0], [2.0, 1.0], permutations=0)


def test_corrections_of_a_known_example() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bonferroni(p_values) == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert holm([]) == bonferroni([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_rejects_as_its_definition_says(p_values: list[float]) -> None:
    """Step down from the smallest p; stop at the first that is above level / number of tests left."""
    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        for p in sorted(p_values):
            if p * (len(p_values) - rejected) > level:
                break
            rejected += 1
        assert sum(p <= level for p in adjusted) == rejected
    assert all(p <= h <= b for p, h, b in zip(p_values, adjusted, bonferroni(p_values), strict=True))


def test_all_pairs() -> None:
    systems = {"x": evaluation(1, 0, 1, 0, 1), "y": evaluation(0, 0, 1, 0, 0.5), "z": evaluation(0, 1, 0, 0, 0)}
    found = compare(systems, "P@1")
    assert [(c.a, c.b) for c in found] == [("x", "y"), ("x", "z"), ("y", "z")]
    first = found[0]
    assert (first.wins, first.ties, first.losses) == (2, 3, 0)
    assert first.difference == pytest.approx(0.3)
    assert first.p == pytest.approx(stats.ttest_rel([1, 0, 1, 0, 1], [0, 0, 1, 0, 0.5]).pvalue)
    assert [c.p_corrected for c in found] == holm([c.p for c in found])


def test_against_a_baseline() -> None:
    systems = {"x": evaluation(1, 0, 1), "base": evaluation(0, 0, 1), "same": evaluation(0, 0, 1)}
    found = compare(systems, "P@1", baseline="base", test="randomization", correction="bonferroni")
    assert found == [
        Comparison("P@1", "x", "base", pytest.approx(1 / 3), 1.0, 1.0, 1, 2, 0, "randomization", "bonferroni"),
        Comparison("P@1", "same", "base", 0.0, 1.0, 1.0, 0, 3, 0, "randomization", "bonferroni"),
    ]


def test_bad_comparisons_are_refused() -> None:
    two = {"x": evaluation(1, 0), "y": evaluation(0, 0)}
    cases = [
        ({"x": evaluation(1)}, {}, "at least two systems, got x"),
        ({**two, "z": evaluation(1, 0, 1)}, {}, "different queries .*z: 3"),
        (two, {"baseline": "z"}, "baseline must be one of x, y, got 'z'"),
        (two, {"test": "wilcoxon"}, "test must be one of t-test, randomization, got 'wilcoxon'"),
        (two, {"correction": "none"}, "correction must be one of holm, bonferroni"),
        (two, {"measure": "MAP"}, "'MAP' was not computed; there are P@1"),
    ]
    for systems, arguments, problem in cases:
        with pytest.raises(ValueError, match=problem):
            compare(systems, **{"measure": "P@1", **arguments})
