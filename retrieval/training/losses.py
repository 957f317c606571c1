"""The losses of the trainers, each one formula of its paper. All return the mean over a batch, and take torch tensors.

`scores` float32 (B, m) are of B queries with m candidates each; -inf marks a place that holds no candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lambda_rank(scores: Tensor, relevant: Tensor, cut: int = 200) -> Tensor:
    """Pairs of a relevant and another candidate, weighed by what swapping them does to the reciprocal ranks.

    JPQ (Zhan et al., CIKM 2021, section 4.1): the mean over all pairs of |1 / rank- - 1 / rank+| log(1 + exp(s- - s+)),
    where the reciprocal of a rank beyond `cut` is 0. Ranks are those of `scores` among the candidates.
    `relevant`: bool (B, m). Queries with no pair give 0.
    """
    present = torch.isfinite(scores)
    order = scores.detach().argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order).scatter_(1, order, torch.arange(1, scores.shape[1] + 1).expand_as(order))
    gains = torch.where(ranks <= cut, 1.0 / ranks, 0.0)
    filled = scores.masked_fill(~present, 0)
    query, place = (relevant & present).nonzero(as_tuple=True)
    others = ~relevant[query] & present[query]
    swaps = (gains[query] - gains[query, place][:, None]).abs()
    losses = (swaps * others * F.softplus(filled[query] - filled[query, place][:, None])).sum(dim=1)
    counts = torch.zeros(len(scores)).index_add(0, query, others.sum(dim=1).float())
    totals = torch.zeros_like(scores[:, 0]).index_add(0, query, losses)
    return (totals / counts.clamp(min=1)).mean()


def list_net(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student's distribution over the candidates is from the teacher's.

    Distill-VQ (Xiao et al., SIGIR 2022, section 3.3; ListNet of Cao et al., 2007): the cross-entropy of
    softmax(teacher / t) and softmax(scores / t). The entropy of the teacher is taken off, so that 0 is the best.
    """
    wanted = F.log_softmax(teacher / temperature, dim=1)
    given = F.log_softmax(scores / temperature, dim=1)
    terms = torch.where(torch.isfinite(teacher), wanted.exp() * (wanted - given), torch.zeros_like(wanted))
    return terms.sum(dim=1).mean()


def info_nce(scores: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of picking candidate `target` int64 (B,) from the others, of scores / temperature."""
    return F.cross_entropy(scores / temperature, target)


def margin_ranking(scores: Tensor, target: Tensor, margin: float = 2.0) -> Tensor:
    """The mean over the others of max(0, margin - s+ + s-): BPR's loss of binary codes (Yamada et al., ACL 2021)."""
    best = scores.gather(1, target[:, None])
    others = torch.isfinite(scores).scatter(1, target[:, None], False)
    return (F.relu(margin - best + scores.masked_fill(~others, -torch.inf)) * others).sum() / others.sum().clamp(min=1)


def margin_mse(scores: Tensor, teacher: Tensor) -> Tensor:
    """The squared error of the differences between the first candidate and each other (Hofstaetter et al., 2020; GPL).

    The first candidate is the positive.
    """
    present = torch.isfinite(scores[:, 1:]) & torch.isfinite(teacher[:, 1:])
    difference = (scores[:, :1] - scores[:, 1:]) - (teacher[:, :1] - teacher[:, 1:])
    return difference.masked_fill(~present, 0).square().sum() / present.sum().clamp(min=1)


def orthogonal_cosine(
    codes: Tensor, targets: Tensor, labels: Tensor, margin: float = 0.3, scale: float = 8.0
) -> Tensor:
    """OrthoHash (Hoe et al., NeurIPS 2021): cross-entropy over scale * cosine with each class's code, the right one's
    less `margin`. `codes` float (B, b), `targets` (classes, b) of 1 and -1, `labels` int64 (B,)."""
    cosines = F.normalize(codes, dim=1) @ F.normalize(targets, dim=1).T
    return F.cross_entropy(scale * (cosines - margin * F.one_hot(labels, len(targets))), labels)


def pairwise_likelihood(first: Tensor, second: Tensor, similar: Tensor) -> Tensor:
    """DPSH (Li, Wang and Kang, IJCAI 2016): -log likelihood of pairs under sigmoid(u.v / 2): the mean of
    log(1 + exp(t)) - s t. `first`, `second` float (B, b); `similar` float (B,), 1 or 0."""
    products = (first * second).sum(dim=1) / 2
    return (F.softplus(products) - similar * products).mean()


def distance_from_signs(numbers: Tensor) -> Tensor:
    """The mean of (z - sign z)^2: what hashing loses (DPSH, section 3.2; the paper adds up where this averages)."""
    return (numbers - torch.where(numbers >= 0, 1.0, -1.0)).square().mean()


def calibration(similarities: Tensor, teacher: Tensor, quantiles: Tensor) -> Tensor:
    """The mean of |s - c|, c the quantile whose place is the rank of the pair's similarity by the teacher.

    `similarities`, `teacher` float (m,) of the same pairs; `quantiles` (m,) of the wanted distribution, ascending.
    Where both rank alike it is the 1-Wasserstein distance from that distribution, as in similarity distribution
    calibration (Ng et al., 2023); by the teacher's ranks it asks for the order too.
    """
    wanted = torch.empty_like(quantiles)
    wanted[teacher.argsort(stable=True)] = quantiles
    return (similarities - wanted).abs().mean()
