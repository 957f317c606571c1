"""DPSH: pairs are similar or not, and products of codes say which.

Li, Wang and Kang, "Feature Learning based Deep Supervised Hashing with Pairwise Labels", IJCAI 2016.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrieval.training import losses
from retrieval.training.data import TrainingData
from retrieval.training.hashing import Hasher


class DPSH(Hasher):
    """The likelihood of pairs of a query and a document, and a penalty for numbers that are far from their signs.

    A document is similar to a query where it is relevant, or among the `similar` nearest by the float vectors where
    there are no labels. Similar and other pairs of a batch's candidates weigh alike; other candidates are mostly such
    as the index returns.
    `bytes`: of a code, 8 bits each. `quantisation`: weight of the penalty (the paper's eta). Both sides are hashed by
    one projection. Products are divided by the number of bits and multiplied by `sharpness`, since plain ones saturate
    the likelihood with hundreds of bits; the paper had 12 to 48.
    """

    name = "dpsh"
    tied = True

    def __init__(
        self, *, bytes: int = 48, similar: int = 10, quantisation: float = 0.1, sharpness: float = 8.0,
        lr: float = 5e-3, random: int = 100, seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.similar, self.quantisation, self.sharpness = bytes, similar, quantisation, sharpness
        self.lr, self.random, self.seed = lr, random, seed

    def step(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        candidates = self.candidates(data, rows, random)
        if data.positives is None:
            known = np.stack([np.isin(candidates, some) for some in self.teacher[rows, : self.similar]])
        else:
            known = np.stack([np.isin(candidates, data.positives[row]) for row in rows])
        yes, others = np.nonzero(known), np.nonzero(~known)
        if not len(yes[0]) or not len(others[0]):
            return next(self.head.parameters()).sum() * 0  # nothing to tell apart
        drawn = random.integers(0, len(others[0]), len(yes[0]))
        queries = torch.from_numpy(np.concatenate([yes[0], others[0][drawn]]))
        documents = torch.from_numpy(np.concatenate([yes[1], others[1][drawn]]))
        similar = torch.from_numpy(np.repeat(np.array([1, 0], np.float32), len(yes[0])))
        asked, numbers = self.head(self.queries(rows)), self.head(torch.from_numpy(data.documents[candidates]))
        unit = (self.sharpness / numbers.shape[1]) ** 0.5
        likelihood = losses.pairwise_likelihood(asked[queries] * unit, numbers[documents] * unit, similar)
        return likelihood + self.quantisation * losses.distance_from_signs(numbers)
