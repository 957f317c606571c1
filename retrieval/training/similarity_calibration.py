"""Similarity distribution calibration: similarities of codes are to use the whole range, in the order of the vectors'.

Ng, Bian, Hoe et al., "Unsupervised Hashing with Similarity Distribution Calibration", 2023. Signs of vectors that are
all alike have similarities that are all alike: the few values that counts of bits can take then tell little apart.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from retrieval.training import losses
from retrieval.training.data import TrainingData
from retrieval.training.hashing import Hasher


class SimilarityCalibration(Hasher):
    """The cosine of each pair of codes is to be what a Beta distribution has at the rank of the pair's float cosine.

    `bytes`: of a code, 8 bits each. `alpha`, `beta`: of the distribution, from -1 to 1; equal ones are symmetric, and
    smaller ones spread wider. Pairs are those of a query or one of `random` documents with another of these. Labels are
    not looked at.
    """

    name = "similarity-calibration"
    tied = True

    def __init__(
        self, *, bytes: int = 48, alpha: float = 20.0, beta: float = 20.0, lr: float = 1e-3, random: int = 256,
        seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.alpha, self.beta, self.lr, self.random, self.seed = bytes, alpha, beta, lr, random, seed

    def step(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        from scipy.stats import beta

        drawn = torch.from_numpy(data.documents[random.integers(0, len(data.documents), self.random)])
        vectors = torch.cat([torch.from_numpy(data.queries[rows]), drawn])
        codes = torch.tanh(self.head(vectors))
        first, second = torch.triu_indices(len(vectors), len(vectors), 1)
        places = (np.arange(len(first)) + 0.5) / len(first)
        quantiles = torch.from_numpy((2 * beta.ppf(places, self.alpha, self.beta) - 1).astype(np.float32))
        return losses.calibration(_cosines(codes)[first, second], _cosines(vectors)[first, second], quantiles)


def _cosines(vectors: Tensor) -> Tensor:
    """float32 (m, m) of vectors (m, d) with one another."""
    units = F.normalize(vectors, dim=1)
    return units @ units.T
