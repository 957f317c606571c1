"""Local intrinsic dimensionality: its definition, vectors of known dimension, zero and equal distances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import lid, lid_summary
from eval.ann import true_distances


def defined(distances: list[float]) -> float:
    """Levina and Bickel's estimate, term by term."""
    used = [r for r in distances if 0 < r < math.inf]
    if len(used) < 2:
        return math.nan
    total = sum(math.log(max(used) / r) for r in used)
    return (len(used) - 1) / total if total else math.inf


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 1e-12, 1e12, math.inf]), max_size=9))
def test_lid_is_its_definition(distances: list[float]) -> None:
    found = lid(np.array(distances).reshape(1, -1))
    assert found.shape == (1,)
    np.testing.assert_allclose(found, [defined(distances)], rtol=1e-9)


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=20), st.floats(1e-30, 1e30))
def test_lid_has_no_unit_and_squares_halve_it(distances: list[float], scale: float) -> None:
    if max(distances) < 1.01 * min(distances):
        return
    (found,) = lid([distances])
    assert lid([[scale * r for r in distances]])[0] == pytest.approx(found, rel=1e-6)
    assert lid([[r * r for r in distances]])[0] == pytest.approx(found / 2, rel=1e-9)


def test_points_without_an_estimate() -> None:
    found = lid([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [2.0, 2.0, 2.0], [0.0, 1.0, math.e]])
    np.testing.assert_allclose(found, [np.nan, np.nan, np.inf, 1.0])
    np.testing.assert_array_equal(lid(np.empty((2, 0))), [np.nan, np.nan])
    assert np.isfinite(lid([[5e-324, 1.7e308]])).all()


def test_duplicates_of_a_point_do_not_change_its_lid() -> None:
    assert lid([[0.0, 0.0, 0.0, 0.3, 0.7, 0.9]]) == lid([[0.3, 0.7, 0.9]])


@pytest.mark.parametrize("dimension", [2, 5, 10])
def test_lid_finds_the_dimension_of_a_subspace(dimension: int) -> None:
    generator = np.random.default_rng(dimension)
    basis = np.linalg.qr(generator.standard_normal((40, dimension)))[0].T
    points = generator.uniform(-1, 1, (4000, dimension)) @ basis
    middle = (generator.uniform(-0.2, 0.2, (100, dimension))) @ basis  # away from the border, which biases
    every = true_distances(middle, points, np.tile(np.arange(4000), (100, 1)))
    near = np.sort(every, axis=1)[:, :100]
    found = lid_summary(lid(near))
    assert found.harmonic_mean == pytest.approx(dimension, rel=0.1)
    assert found.p10 < found.median < found.p90
    assert (found.points, found.undefined) == (100, 0)


def test_lid_refuses() -> None:
    with pytest.raises(ValueError, match=r"distances must be \(n, k\), got shape \(3,\)"):
        lid([1.0, 2.0, 3.0])
    for bad in (-1.0, math.nan):
        with pytest.raises(ValueError, match="0 or more, got negative ones or NaN"):
            lid([[1.0, bad]])


def test_the_summary_leaves_out_what_is_not_finite() -> None:
    found = lid_summary([2.0, math.nan, 6.0, math.inf])
    assert (found.points, found.undefined) == (4, 2)
    assert (found.mean, found.median) == (4.0, 4.0)
    assert found.harmonic_mean == pytest.approx(3.0)
    assert lid_summary([0.0, 1.0]).harmonic_mean == 0


def test_the_summary_of_nothing() -> None:
    found = lid_summary([math.nan])
    assert (found.points, found.undefined) == (1, 1)
    assert math.isnan(found.mean) and math.isnan(found.harmonic_mean) and math.isnan(found.median)
    for bad in ([[1.0]], [-1.0]):
        with pytest.raises(ValueError, match=r"lids must be \(n,\) and not negative"):
            lid_summary(bad)
