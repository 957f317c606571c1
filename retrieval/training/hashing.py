"""What the trainers of hashes share: a linear head whose signs are the codes, averaged over steps, and candidates.

    documents x --> P (x - mean) --> signs: the code --+
    queries q ----> A q, which stay floats ------------+--> scores: (A q) . signs

P and A start as ITQ's projection. The result is `Chain(Learned(...), SignBits())`, which any index of codes takes;
`TwoStageIndex` gets the same bits from documents and queries that went through its `Learned`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from indexes.codecs import Codec
from retrieval.training.data import TrainingData, nearest
from retrieval.training.itq import bits, hash_codec, itq, sizes
from retrieval.training.method import Method, sampled, search_codes

DEPTH = 30  # candidates that each query brings into a batch, of each kind
FOLLOW = 0.01  # share of the newest step in the average


class Head(nn.Module, ABC):
    """What is trained of both sides: numbers of documents, of which codes are made, and the queries that meet them."""

    @abstractmethod
    def forward(self, documents: Tensor) -> Tensor:
        """Numbers float32 (m, b) of documents (m, d)."""

    @abstractmethod
    def asked(self, queries: Tensor) -> Tensor:
        """float32 (B, b) of queries (B, d)."""

    @abstractmethod
    def codec(self, query_matrix: np.ndarray) -> Codec:
        """What has been learned, for queries that `query_matrix` (d, d) turns first."""


class HashHead(Head):
    """P and A, float32 (b, d), that start as one `projection` of `documents` (n, d).

    Both are trained in units in which what is hashed has a root mean square of 1, so that one learning rate suits both;
    `scale` brings products back to the size of inner products. `tied`: A stays equal to P.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, projection: np.ndarray, documents: np.ndarray, *, tied: bool = False) -> None:
        super().__init__()
        mean, typical, root = sizes(documents, projection)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.tensor([root * typical], dtype=torch.float32))
        self.documents = nn.Parameter(torch.from_numpy(projection / np.float32(root)))
        self.queries = self.documents if tied else nn.Parameter(self.documents.detach().clone())

    def forward(self, documents: Tensor) -> Tensor:
        """Numbers float32 (m, b) of which documents (m, d) keep the signs."""
        return (documents - self.mean) @ self.documents.T

    def asked(self, queries: Tensor) -> Tensor:
        """float32 (B, b) of queries (B, d); products with signs, times `scale`, are scores."""
        return queries @ self.queries.T

    def codec(self, query_matrix: np.ndarray) -> Codec:
        """The signs, for queries that `query_matrix` (d, d) turns first."""
        asking = self.queries.detach().numpy() @ query_matrix
        return hash_codec(self.documents.detach().numpy().copy(), asking, self.mean.numpy().copy(), float(self.scale))


class Hasher(Method):
    """Base of the methods that train a head: the start, the average, the candidates of a batch.

    What is saved and searched is the head's average over some 100 steps: each step turns signs over, and the average
    settles. Candidates are shared by the queries of a batch, so that a document is hashed once per step.
    """

    epochs = 6
    tied = False
    bytes: int
    head: Head
    random: int = 100
    """Documents drawn at random into each batch's candidates."""
    lr = 1e-2

    def begin(self, data: TrainingData) -> None:
        self.head = self.start_head(data, sampled(data.documents, self.seed))
        self.average = AveragedModel(self.head, avg_fn=_followed)
        self.modules["head"], self.modules["average"] = self.head, self.average
        self.teacher = nearest(data.queries, data.documents, DEPTH)
        self.student = self.teacher[:, :0]

    def start_head(self, data: TrainingData, sample: np.ndarray) -> Head:
        """The head before the first step; `sample` is of the documents."""
        projection = itq(sample, bits(self.bytes, sample.shape[1]), seed=self.seed)
        return HashHead(projection, sample, tied=self.tied)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.head.parameters()), "lr": self.rate()}, *super().groups()[1:]]

    def epoch(self, data: TrainingData, number: int) -> None:
        asked = self.asked(data.queries, data.texts)
        self.student = search_codes(self.codec(), self.codes(data), asked, DEPTH)

    def loss(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        self.average.update_parameters(self.head)
        return self.step(data, rows, random)

    @abstractmethod
    def step(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        """See `loss`."""

    def steps(self) -> int:
        """Taken so far, with the one being taken."""
        return int(self.average.n_averaged)

    def codec(self) -> Codec:
        head = self.average.module if self.steps() else self.head
        assert isinstance(head, Head)
        return head.codec(self.queries.matrix())

    def candidates(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Rows int64 (m,) of documents, ascending: of each query the nearest by the float vectors and by the codes,
        relevant ones where there are labels, and some at random."""
        drawn = random.integers(0, len(data.documents), self.random)
        parts = [self.teacher[rows].ravel(), self.student[rows].ravel(), drawn]
        if data.positives is not None:
            parts += [data.positives[row] for row in rows]
        return np.unique(np.concatenate(parts))


def _followed(average: Tensor, newest: Tensor, steps: Tensor | int) -> Tensor:
    """The average after another step: of the last half of them at first, of some 100 later."""
    return average + (newest - average) * max(FOLLOW, 2 / (int(steps) + 2))


def signs(numbers: Tensor) -> Tensor:
    """1 and -1, with the gradients of tanh: straight through (Bengio et al., 2013)."""
    soft = torch.tanh(numbers)
    return soft + (torch.where(numbers >= 0, 1.0, -1.0) - soft).detach()


def targets(
    positives: list[np.ndarray], candidates: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query one relevant candidate, its place int64 (B,), and which others are relevant too, bool (B, m)."""
    known = np.stack([np.isin(candidates, some) for some in positives])
    chosen = np.searchsorted(candidates, [random.choice(some) for some in positives])
    known[np.arange(len(chosen)), chosen] = False
    return chosen, known
