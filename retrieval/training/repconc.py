"""RepCONC: codes are learned too, by a clustering in which every centroid must be used.

Zhan et al., "Learning Discrete Representations via Constrained Clustering for Effective and Efficient Dense Retrieval",
WSDM 2022. Its first stage trains documents' vectors and centroids together; its second is JPQ, on the codes it found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retrieval.retriever import Progress
from retrieval.training import losses
from retrieval.training.codebooks import Codebooks, balanced
from retrieval.training.data import TrainingData
from retrieval.training.jpq import JPQ
from retrieval.training.query_side import TUNES

TOGETHER = 512  # documents that are coded together


class RepCONC(JPQ):
    """Contrastive learning through balanced codes (section 4), then JPQ's ranking loss with codes as they are.

    `bytes`, `tune`, `cut`, `scale`: as of `JPQ`; codebooks are products. `first`: epochs of the first stage, out of
    all. `epsilon`: of Sinkhorn's iteration, in units of the mean squared distance (the authors' 0.05). `mse`: weight of
    the squared error between vectors and their codes (the authors' 0.05). `temperature`: of the contrastive loss over
    relevant, mined and in-batch documents.
    Documents' embeddings are frozen here: what the paper trains in the document encoder is a residual map of low rank
    (`rank`) over them, which the codec applies to new documents too. Balance is asked for within each batch, as in the
    paper, which others of the documents fill up to 512: among fewer than there are centroids it means nothing.
    With tune="encoders" the encoder is trained, as in the paper: each step reads the texts of its queries, and of a
    relevant and a mined document of each. Those that fill up are as encoded before the epoch, and no negatives: to tell
    what moves from what does not is no retrieval. The second stage moves centroids alone, since one encoder serves both
    sides.
    """

    name = "repconc"
    tunes = TUNES
    epochs = 10

    def __init__(
        self, *, bytes: int = 48, tune: str = "adapter", rank: int = 16, lr: float = 1e-2, query_lr: float = 1e-4,
        first: int = 4, epsilon: float = 0.05, mse: float = 0.05, temperature: float = 0.05, cut: int = 200,
        scale: float = 20.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(bytes=bytes, tune=tune, rank=rank, lr=lr, query_lr=query_lr, cut=cut, scale=scale, seed=seed)
        self.first, self.epsilon, self.mse, self.temperature = first, epsilon, mse, temperature

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        width = len(self.quantizer.rotation)
        self.down, self.up = nn.Linear(width, self.rank, bias=False), nn.Linear(self.rank, width, bias=False)
        nn.init.zeros_(self.up.weight)  # documents start as they are
        self.modules["documents"] = nn.Sequential(self.down, self.up)
        self.second = False

    def restarts(self) -> frozenset[int]:
        return frozenset({self.first + 1})

    def groups(self) -> list[dict[str, Any]]:
        groups = [{"params": list(self.quantizer.books.parameters()), "lr": self.rate()}]
        residual = {"params": list(self.modules["documents"].parameters()), "lr": self.query_lr}
        return [*groups, residual, *super().groups()[1:]]

    def epoch(self, data: TrainingData, number: int) -> None:
        if number <= self.first + 1:
            self._recode(data)
        self.second = number > self.first
        if self.tune == "encoders":
            self.queries.requires_grad_(not self.second)
        super().epoch(data, number)

    def anew(self, data: TrainingData, progress: Progress | None = None) -> TrainingData:
        if self.tune != "encoders" or self.second:
            return data
        data = super().anew(data, progress)
        self._recode(data)
        return data

    def _recode(self, data: TrainingData) -> None:
        """Codes by the nearest of the trained centroids: balance guides the training only (section 4.4)."""
        with torch.no_grad():
            residual = (self.up.weight @ self.down.weight).numpy()
            self.quantizer.projection = self.quantizer.rotation + residual @ self.quantizer.rotation
        self.code_anew(data)

    def loss(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        if self.second:
            return super().loss(data, rows, random)
        assert data.positives is not None
        relevant = [data.positives[row] for row in rows]
        mined = [np.setdiff1d(self.negatives[row], some) for row, some in zip(rows, relevant, strict=True)]
        drawn = [random.choice(some) for some in relevant] + [random.choice(some) for some in mined if len(some)]
        others = random.integers(0, len(data.documents), max(0, TOGETHER - len(drawn)))
        turned = self._turned(data, drawn, others)
        documents = turned + self.modules["documents"](turned)
        books = self.quantizer.books
        assert isinstance(books, Codebooks)
        codes = balanced(books.distances(documents.detach()), self.epsilon)
        coded = books.decode(codes)
        through = coded + documents - documents.detach()  # straight through: gradients reach centroids and documents
        scores = (self.queries(rows) @ self.quantizer.turn) @ through.T
        known = torch.from_numpy(np.stack([np.isin([*drawn, *others], some) for some in relevant]))
        if self.tune == "encoders":
            known[:, len(drawn) :] = True
        target = torch.arange(len(rows))
        known[target, target] = False  # other relevant documents of a query are no negatives
        contrast = losses.info_nce(scores.masked_fill(known, -torch.inf), target, self.temperature)
        return contrast + self.mse * (documents - coded).square().sum(dim=1).mean()

    def _turned(self, data: TrainingData, drawn: list[int], others: np.ndarray) -> Tensor:
        """Documents (m, d) as OPQ turns them, before the residual map; gradients reach those that are read."""
        if self.tune != "encoders":
            rows = [*drawn, *others]
            return torch.from_numpy((data.documents[rows] - self.quantizer.mean) @ self.quantizer.rotation.T)
        vectors = torch.cat([self.vectors(data, np.array(drawn)), torch.from_numpy(data.documents[others])])
        return (vectors - torch.from_numpy(self.quantizer.mean)) @ self.quantizer.turn
