"""What the trainers of hashes share: a linear head whose signs are the codes, and learning without labels.

    documents x --> P (x - mean) --> signs: the code --+
    queries q ----> A q, which stay floats ------------+--> scores: (A q) . signs

P and A start as one projection, of ITQ. The result is `Chain(Learned(...), SignBits())`, which any index of codes takes;
`TwoStageIndex` gets the same bits from the vectors that its `Learned` makes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from indexes.codecs import Chain, Codec, Learned, SignBits
from retrieval.training.data import TrainingData, nearest
from retrieval.training.itq import itq
from retrieval.training.method import Method, sampled, search_codes

DEPTH = 100  # of the teacher's and the student's nearest documents


class HashHead(nn.Module):
    """P and A, float32 (b, d), from one `projection` of length-keeping rows; `documents` (n, d) tell mean and sizes.

    Both are trained in units in which what is hashed has a root mean square of 1, so that one learning rate suits both,
    and `scale` brings scores back to the size of inner products. `tied`: queries are asked by P too.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, projection: np.ndarray, documents: np.ndarray, *, tied: bool = False) -> None:
        super().__init__()
        mean = documents.mean(axis=0, dtype=np.float64).astype(np.float32)
        reduced = (documents - mean) @ projection.T
        size = max(float(np.sqrt(np.square(reduced).mean(dtype=np.float64))), 1e-12)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("scale", torch.tensor([size * float(np.abs(reduced).mean(dtype=np.float64))]))
        self.documents = nn.Parameter(torch.from_numpy(projection / np.float32(size)))
        self.queries = self.documents if tied else nn.Parameter(self.documents.detach().clone())

    def forward(self, documents: Tensor) -> Tensor:
        """What is hashed, float32 (m, b), of documents (m, d)."""
        return (documents - self.mean) @ self.documents.T

    def asked(self, queries: Tensor) -> Tensor:
        """float32 (B, b) of queries (B, d); its products with signs, times `scale`, are scores."""
        return queries @ self.queries.T

    def codec(self, query_matrix: np.ndarray) -> Codec:
        """The signs of the head, for queries that `query_matrix` (d, d) turns first."""
        projection, asking = self.documents.detach().numpy(), self.queries.detach().numpy()
        bits = SignBits.restore(
            {"kind": SignBits.kind, "d": len(projection), "parameters": {}}, {"scale": self.scale.numpy().copy()}
        )
        return Chain.of(Learned.of(projection, asking @ query_matrix, self.mean.numpy()), bits)


class Hasher(Method):
    """Base of the methods that train a `HashHead`, of 8 `bytes` bits, which may be more than there are dimensions."""

    bytes: int
    tied = False

    def begin(self, data: TrainingData) -> None:
        sample = sampled(data.documents, self.seed)
        self.head = HashHead(itq(sample, bits(self.bytes), seed=self.seed), sample, tied=self.tied)
        self.modules["head"] = self.head

    def codec(self) -> Codec:
        return self.head.codec(self.queries.matrix())


class Distilled(Hasher):
    """Base of the hashers that can do without labels: they learn in what order the float vectors rank.

    Candidates are shared by the queries of a batch: of each the documents nearest by the float vectors and by the
    codes, found anew before each epoch, those of the others, and `random` more. Documents are hashed once per step,
    not once per query.
    """

    temperature: float
    random: int

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        self.teacher = nearest(data.queries, data.documents, DEPTH)
        self.student = self.teacher[:, :0]

    def epoch(self, data: TrainingData, number: int) -> None:
        asked = self.queries.embed(data.queries, data.texts)
        self.student = search_codes(self.codec(), self.codes(data), asked, DEPTH)

    def candidates(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator, depth: int) -> np.ndarray:
        """Rows int64 (m,) of the documents that a batch of queries is compared with, ascending."""
        drawn = random.integers(0, len(data.documents), self.random)
        parts = [self.teacher[rows, :depth].ravel(), self.student[rows, :depth].ravel(), drawn]
        if data.positives is not None:
            parts += [data.positives[row] for row in rows]
        return np.unique(np.concatenate(parts))
