"""Each loss against its formula, worked by hand on a tiny case, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
from retrieval.training import losses  # noqa: E402

INF = float("inf")


def softplus(x):
    return math.log1p(math.exp(x))


def nothing(places):
    """Places of three queries that hold no candidate."""
    return torch.full((3, places), -INF)


def test_lambda_rank_weighs_pairs_by_what_swapping_does_to_reciprocal_ranks():
    scores = torch.tensor([[2.0, 1.0, 0.0, -INF]])
    relevant = torch.tensor([[False, True, False, False]])
    first, third = (1 - 1 / 2) * softplus(2 - 1), (1 / 2 - 1 / 3) * softplus(0 - 1)
    assert losses.lambda_rank(scores, relevant).item() == pytest.approx((first + third) / 2)
    assert losses.lambda_rank(scores, relevant, cut=1).item() == pytest.approx(softplus(1) / 2)  # only rank 1 counts
    assert losses.lambda_rank(scores, torch.zeros(1, 4, dtype=torch.bool)).item() == 0  # no pair
    assert losses.lambda_rank(scores, torch.ones(1, 4, dtype=torch.bool)).item() == 0


def test_list_net_is_the_divergence_of_two_softmaxes():
    scores, teacher = torch.tensor([[1.0, 0.0, -INF]]), torch.tensor([[0.0, 0.0, -INF]])
    given = [math.e / (1 + math.e), 1 / (1 + math.e)]
    expected = sum(0.5 * math.log(0.5 / p) for p in given)
    assert losses.list_net(scores, teacher, 1.0).item() == pytest.approx(expected)
    assert losses.list_net(teacher, teacher, 0.1).item() == pytest.approx(0, abs=1e-7)
    halved = losses.list_net(scores, teacher, 2.0).item()
    assert halved == pytest.approx(losses.list_net(scores / 2, teacher / 2, 1.0).item())


def test_info_nce_is_the_cross_entropy_of_the_right_candidate():
    scores = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    expected = (softplus((1 - 3) / 0.5) + math.log(2)) / 2
    assert losses.info_nce(scores, torch.tensor([0, 1]), 0.5).item() == pytest.approx(expected)


def test_margin_ranking_is_zero_beyond_the_margin():
    scores = torch.tensor([[5.0, 4.0, 2.0, -INF]])
    assert losses.margin_ranking(scores, torch.tensor([0]), 2.0).item() == pytest.approx((2 - 5 + 4 + 0) / 2)
    assert losses.margin_ranking(scores, torch.tensor([0]), 1.0).item() == pytest.approx(0.0)


def test_margin_mse_compares_differences_to_the_positive():
    scores, teacher = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[10.0, 9.0, 8.0]])
    assert losses.margin_mse(scores, teacher).item() == pytest.approx(((2 - 1) ** 2 + (3 - 2) ** 2) / 2)


def test_orthogonal_cosine_takes_the_margin_off_the_right_class():
    codes, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    right, wrong = 8 * (math.sqrt(0.5) - 0.3), 8 * math.sqrt(0.5)
    assert losses.orthogonal_cosine(codes, targets, torch.tensor([1])).item() == pytest.approx(softplus(wrong - right))


def test_pairwise_likelihood_of_similar_and_other_pairs():
    first, second = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    expected = (softplus(1) - 1 + softplus(0)) / 2
    assert losses.pairwise_likelihood(first, second, torch.tensor([1.0, 0.0])).item() == pytest.approx(expected)


CASES = {
    "lambda_rank": lambda x: losses.lambda_rank(x, torch.eye(3, 4, dtype=torch.bool)),
    "list_net": lambda x: losses.list_net(x, torch.arange(12.0, dtype=torch.float64).view(3, 4).sin(), 0.5),
    "info_nce": lambda x: losses.info_nce(x, torch.tensor([0, 3, 1]), 0.3),
    "margin_ranking": lambda x: losses.margin_ranking(x, torch.tensor([0, 3, 1]), 0.7),
    "margin_mse": lambda x: losses.margin_mse(x, torch.arange(12.0, dtype=torch.float64).view(3, 4).cos()),
    "orthogonal_cosine": lambda x: losses.orthogonal_cosine(x, torch.eye(3, 4, dtype=torch.float64), torch.arange(3)),
    "pairwise_likelihood": lambda x: losses.pairwise_likelihood(x[:1], x[1:2], torch.ones(1, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_finite_differences(name):
    torch.manual_seed(3)
    assert torch.autograd.gradcheck(CASES[name], (torch.randn(3, 4, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("name", ["lambda_rank", "list_net", "info_nce", "margin_ranking", "margin_mse"])
def test_a_place_without_a_candidate_changes_nothing_and_gets_a_finite_gradient(name):
    torch.manual_seed(4)
    scores = torch.randn(3, 4)
    call = {
        "lambda_rank": lambda x, n: losses.lambda_rank(x, torch.eye(3, n, dtype=torch.bool)),
        "list_net": lambda x, n: losses.list_net(x, torch.cat([scores.sin(), nothing(n - 4)], dim=1), 0.5),
        "info_nce": lambda x, n: losses.info_nce(x, torch.tensor([0, 3, 1]), 0.3),
        "margin_ranking": lambda x, n: losses.margin_ranking(x, torch.tensor([0, 3, 1]), 0.7),
        "margin_mse": lambda x, n: losses.margin_mse(x, torch.cat([scores.cos(), nothing(n - 4)], dim=1)),
    }[name]
    wide = torch.cat([scores, torch.full((3, 2), -INF)], dim=1).requires_grad_()
    value = call(wide, 6)
    assert value.item() == pytest.approx(call(scores, 4).item(), rel=1e-5)
    value.backward()
    assert torch.isfinite(wide.grad[:, :4]).all()
