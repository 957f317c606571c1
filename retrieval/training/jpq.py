"""JPQ: the query side and the centroids are trained together, on the negatives that the index itself returns.

Zhan et al., "Jointly Optimizing Query Encoder and Product Quantization to Improve Retrieval Performance", CIKM 2021.
Documents are coded once, by OPQ and PQ, and their codes never change; so trained centroids are not what chooses codes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrieval.training import losses, teachers
from retrieval.training.data import TrainingData
from retrieval.training.method import search_codes
from retrieval.training.quantizer import QuantizerMethod

DEPTH = 200  # candidates of the current index, as in the paper


class JPQ(QuantizerMethod):
    """Pairs of a relevant document and one that the current index returns, weighed by LambdaRank.

    `bytes`: of a code. `codebooks`: "product" (OPQ and PQ, as in the paper), "additive" (RQ: sums of centroids of all
    dimensions) or "binary" (`BinaryAutoencoder`: each bit adds or takes away a centroid, and scores are as fast as
    those of signs). `lr`: None is 0.01, but 0.001 for additive codebooks.
    `cut`: ranks beyond it weigh nothing (section 4.1; 200 for passages, 10 for documents).
    `scale`: scores are multiplied by it in the loss, which was made for inner products of some 10, not for cosines.
    Negatives are the current index's best 200, found anew before each epoch; the paper does so at each step, which
    costs a search per step and gives nearly the same lists while centroids move slowly. Negatives that come with the
    data join them.
    `gpl`: see `Method`. Margins between a positive and the data's negatives are learned then, by their squared error,
    as INCOME (Thakur, Reimers and Lin, 2023) adapts JPQ to a collection without labels; `cut`, `scale` and what the
    index returns play no part.
    """

    name = "jpq"
    needs_labels = True

    def __init__(
        self, *, bytes: int = 48, codebooks: str = "product", tune: str = "adapter", rank: int = 16,
        lr: float | None = None, query_lr: float = 1e-4, cut: int = DEPTH, scale: float = 20.0, gpl: str | None = None,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.codebooks, self.tune, self.rank = bytes, codebooks, tune, rank
        self.lr = (0.001 if codebooks == "additive" else 0.01) if lr is None else lr
        self.query_lr, self.cut, self.scale, self.gpl, self.seed = query_lr, cut, scale, gpl, seed

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        self.negatives = np.empty((0, 0), np.int64)

    def epoch(self, data: TrainingData, number: int) -> None:
        if self.gpl is not None:
            return
        asked = self.asked(data.queries, data.texts)
        self.negatives = search_codes(self.codec(), self.coded, asked, DEPTH)

    def loss(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        if self.gpl is not None:
            scores = self.quantizer.scores(self.queries(rows), self.coded, teachers.candidates(data, rows))
            assert data.teacher is not None
            return losses.margin_mse(scores, torch.from_numpy(data.teacher[rows]))
        assert data.positives is not None
        found = self.negatives[rows]
        if data.negatives is not None:
            given = data.negatives[rows]
            known = (given[:, :, None] == found[:, None, :]).any(axis=2)
            found = np.concatenate([found, np.where(known, -1, given)], axis=1)
        candidates, relevant = with_positives(found, [data.positives[row] for row in rows])
        scores = self.quantizer.scores(self.queries(rows), self.coded, candidates)
        return losses.lambda_rank(self.scale * scores, torch.from_numpy(relevant), self.cut)


def with_positives(found: np.ndarray, positives: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Candidates int64 (B, m), -1 for none, and bool (B, m): those found, int64 (B, c), and relevant ones not found.

    At most as many relevant ones are appended as were found at all, the first ones.
    """
    both = list(zip(found, positives, strict=True))
    lists = [np.concatenate([row, np.setdiff1d(some, row)[: len(row)]]) for row, some in both]
    candidates = np.full((len(lists), max(map(len, lists))), -1, np.int64)
    relevant = np.zeros(candidates.shape, np.bool_)
    for i, (row, some) in enumerate(zip(lists, positives, strict=True)):
        candidates[i, : len(row)] = row
        relevant[i, : len(row)] = np.isin(row, some)
    return candidates, relevant
