"""The trainable side of inverted lists: centroids and shifts, learned so that queries visit what they would find.

Xiao et al., "Distill-VQ: Learning Retrieval Oriented Vector Quantization By Distilling Knowledge from Dense
Embeddings", SIGIR 2022: the IVF student.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from indexes.clustering import k_means, nearest_centroids
from indexes.dense.centroids import Centroids, shifts_of, usual_probes
from retrieval.errors import TrainingError
from retrieval.training import losses
from retrieval.training.method import sampled

ROUNDS = 10  # of k-means, as in `IVFIndex`
NEAREST = 10  # documents of a query whose lists it is to visit


class Lists(nn.Module):
    """`nlist` lists that start as those of `IVFIndex`, by k-means on at most 65,536 of the documents.

    A list is as near to a query as the inner product with its centroid, less its shift. The paper gives each document
    the score of its list's centroid and learns the teacher's distribution over documents; those of a list are then all
    alike, so what is learned here is the distribution over lists that it amounts to: the list of a document has the
    document's share. Documents lie in the list of the nearest centroid, as the index puts them.
    Both are trained in units of the centroids' root mean square, so that a learning rate means the same for all data.
    """

    size: Tensor

    def __init__(self, documents: np.ndarray, nlist: int, seed: int) -> None:
        super().__init__()
        if not 1 <= nlist <= len(documents):
            raise TrainingError(f"nlist is {nlist}; it must be from 1 to the number of documents, {len(documents)}")
        sample = sampled(documents, seed)
        centroids = k_means(sample, min(nlist, len(sample)), seed=seed, iterations=ROUNDS)
        shifts = shifts_of(sample, centroids, "ip")
        size = np.sqrt(np.square(centroids).mean(dtype=np.float64)).astype(np.float32).clip(1e-12)
        self.register_buffer("size", torch.tensor([size]))
        self.centroids = nn.Parameter(torch.from_numpy(centroids / size))
        self.shifts = nn.Parameter(torch.from_numpy(shifts / size))

    def forward(self, queries: Tensor) -> Tensor:
        """How near lists are to queries (B, d): float32 (B, nlist)."""
        return (queries @ self.centroids.T - queries.norm(dim=1, keepdim=True) * self.shifts) * self.size

    def of(self, documents: np.ndarray) -> np.ndarray:
        """The list of each document (n, d), int64 (n,)."""
        return nearest_centroids(documents, self.learned("ip").vectors)[1][:, 0]

    def visited(self, queries: np.ndarray) -> np.ndarray:
        """bool (nq, nlist): the lists that an `IVFIndex` visits for queries float32 (nq, d) unless it is told."""
        with torch.no_grad():
            near = self(torch.from_numpy(queries))
        nearest = near.topk(usual_probes(near.shape[1]), dim=1).indices
        return torch.zeros_like(near, dtype=torch.bool).scatter(1, nearest, True).numpy()

    def loss(self, queries: Tensor, lists: np.ndarray, scores: Tensor, temperature: float) -> Tensor:
        """ListNet between the teacher's distribution over lists and that of queries (B, d), both by `temperature`.

        `lists` int64 (B, m): those of m documents that the teacher scores `scores` float32 (B, m).
        """
        near = self(queries)
        shares = torch.zeros_like(near).scatter_add(1, torch.from_numpy(lists), (scores / temperature).softmax(dim=1))
        return losses.list_net(near, temperature * shares.log(), temperature)

    def learned(self, metric: str) -> Centroids:
        """What an `IVFIndex` of this metric takes."""
        with torch.no_grad():
            return Centroids((self.centroids * self.size).numpy(), (self.shifts * self.size).numpy(), metric)
