"""OrthoHash: each class has a binary code of its own, far from all others, and vectors are drawn to their class's.

Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective", NeurIPS 2021.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from indexes.clustering import k_means, nearest_centroids
from retrieval.training import losses
from retrieval.training.data import TrainingData
from retrieval.training.hashing import Hasher
from retrieval.training.method import sampled


class OrthoHash(Hasher):
    """Cosine softmax with a margin; classes are `classes` clusters of the documents, by k-means.

    A query is of the class of its first relevant document, or of the nearest where there are no labels.
    `bytes`: of a code, 8 bits each. `margin`: the authors' 0.3; `contrast`: what cosines are multiplied by.
    The paper balances bits by batch normalisation: numbers are centred here for any projection, and are divided by
    their deviation, which no sign sees. Made to tell classes apart, it keeps little of the order within one.
    """

    name = "orthohash"
    tied = True

    def __init__(
        self, *, bytes: int = 48, classes: int = 256, margin: float = 0.3, contrast: float = 8.0, lr: float = 1e-3,
        random: int = 256, seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.classes, self.margin, self.contrast = bytes, classes, margin, contrast
        self.lr, self.random, self.seed = lr, random, seed

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        centroids = k_means(sampled(data.documents, self.seed), min(self.classes, len(data.documents)), seed=self.seed)
        self.labels = nearest_centroids(np.ascontiguousarray(data.documents), centroids)[1][:, 0]
        source = np.random.default_rng([self.seed, len(centroids)])
        self.targets = torch.from_numpy(source.choice(np.array([-1, 1], np.float32), (len(centroids), 8 * self.bytes)))

    def step(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        drawn = random.integers(0, len(data.documents), self.random)
        relevant = self.teacher[rows, 0]
        if data.positives is not None:
            relevant = np.array([some[0] if len(some) else row for some, row in zip(
                [data.positives[row] for row in rows], relevant, strict=True)])  # fmt: skip
        vectors = torch.cat([torch.from_numpy(data.documents[drawn]), self.queries(rows)])
        numbers = self.head(vectors)
        labels = torch.from_numpy(self.labels[np.concatenate([drawn, relevant])])
        codes = numbers / numbers.std(dim=0, keepdim=True).clamp(min=1e-6)
        return losses.orthogonal_cosine(codes, self.targets, labels, self.margin, self.contrast)
