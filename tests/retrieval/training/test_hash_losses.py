"""The hashers' own losses against their formulas, by hand and by finite differences; their optima on toy problems."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from retrieval.training import losses  # noqa: E402


def test_distance_from_signs_is_the_mean_square_of_what_signs_lose():
    numbers = torch.tensor([[0.5, -2.0], [1.0, 0.0]])
    assert losses.distance_from_signs(numbers).item() == pytest.approx((0.25 + 1 + 0 + 1) / 4)


def test_calibration_gives_each_pair_the_quantile_of_its_rank():
    quantiles, teacher = torch.tensor([-0.5, 0.0, 0.5]), torch.tensor([0.9, 0.1, 0.3])
    similarities = torch.tensor([0.4, 0.0, 0.0])  # wanted: 0.5, -0.5, 0.0
    assert losses.calibration(similarities, teacher, quantiles).item() == pytest.approx((0.1 + 0.5 + 0) / 3)
    assert losses.calibration(torch.tensor([0.5, -0.5, 0.0]), teacher, quantiles).item() == 0
    same_order = torch.tensor([0.7, -0.9, 0.2])
    assert losses.calibration(same_order, teacher, quantiles).item() == pytest.approx(
        ((0.7 - 0.5) + (0.9 - 0.5) + 0.2) / 3
    )


@pytest.mark.parametrize(
    "loss",
    [
        losses.distance_from_signs,
        lambda x: losses.calibration(x[0], torch.tensor([3.0, 1.0, 2.0]), torch.tensor([-0.5, 0.1, 0.6]).double()),
    ],
)
def test_gradients_are_those_of_finite_differences(loss):
    point = torch.tensor([[0.3, -1.2, 0.7], [0.2, 0.9, -0.4]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (point,))


def test_descent_on_calibration_reaches_the_wanted_similarities():
    quantiles, teacher = torch.linspace(-0.8, 0.8, 9), torch.from_numpy(np.random.default_rng(0).normal(size=9))
    similarities = torch.zeros(9, requires_grad=True)
    optimizer = torch.optim.SGD([similarities], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        losses.calibration(similarities, teacher, quantiles).backward()
        optimizer.step()
    assert similarities.detach().argsort().equal(teacher.argsort())
    np.testing.assert_allclose(np.sort(similarities.detach()), quantiles, atol=0.02)
