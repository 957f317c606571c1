"""The trainable side of quantisation: centroids as tensors, and scores of codes by them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indexes.codecs import BinaryAutoencoder
from indexes.codecs.packing import unpack_signs


class Codebooks(nn.Module):
    """Centroids (M, ksub, width): of parts of a vector (width d / M, as in PQ) or of all of it (width d, as in RQ).

    `linear`: SimVQ (Zhu et al., "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
    2024): centroids are a fixed basis times one trained matrix per codebook, so that every step moves all of them.
    Without it what is trained are the numbers of each codebook in units of their root mean square, so that a learning
    rate means the same for all of them: the last codebooks of RQ are a hundred times smaller than the first.
    """

    def __init__(self, centroids: np.ndarray, d: int, *, linear: bool = False) -> None:
        super().__init__()
        start = torch.from_numpy(np.array(centroids, np.float32))
        self.M, self.ksub, self.width = start.shape
        self.d, self.whole = d, self.width == d
        self.basis: Tensor | None
        self.size: Tensor
        self.register_buffer("size", start.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12))
        self.register_buffer("basis", start if linear else None)
        if linear:
            self.weight = nn.Parameter(torch.eye(self.width).repeat(self.M, 1, 1))
        else:
            self.weight = nn.Parameter(start / self.size)

    @property
    def centroids(self) -> Tensor:
        """(M, ksub, width)."""
        return self.weight * self.size if self.basis is None else self.basis @ self.weight

    def tables(self, queries: Tensor) -> Tensor:
        """Products (B, M, ksub) of queries (B, d) with all centroids."""
        if self.whole:
            return (queries @ self.centroids.reshape(-1, self.d).T).view(len(queries), self.M, self.ksub)
        parts = queries.view(len(queries), self.M, self.width).transpose(0, 1)
        return torch.bmm(parts, self.centroids.transpose(1, 2)).transpose(0, 1)

    def scores(self, queries: Tensor, codes: np.ndarray) -> Tensor:
        """Products (B, m) of queries (B, d) with the vectors behind codes uint8 (B, m, M)."""
        places = torch.from_numpy(codes.astype(np.int64)) + torch.arange(self.M) * self.ksub
        flat = self.tables(queries).reshape(len(queries), -1)
        return flat.gather(1, places.view(len(queries), -1)).view(codes.shape).sum(dim=2)

    def decode(self, codes: np.ndarray) -> Tensor:
        """Vectors (m, d) behind codes uint8 (m, M)."""
        places = torch.from_numpy(codes.astype(np.int64)) + torch.arange(self.M) * self.ksub
        flat = self.centroids.reshape(-1, self.width)
        if self.whole:
            return F.embedding_bag(places, flat, mode="sum")
        return F.embedding(places, flat).view(len(codes), self.d)

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared distances (M, m, ksub) of the parts of vectors (m, d) from the centroids; of products only."""
        parts = vectors.view(len(vectors), self.M, self.width).transpose(0, 1)
        centroids = self.centroids
        products = torch.bmm(parts, centroids.transpose(1, 2))
        return parts.square().sum(2)[:, :, None] - 2 * products + centroids.square().sum(2)[:, None, :]

    def array(self) -> np.ndarray:
        """The centroids float32 (M, ksub, width), as codecs hold them."""
        return np.ascontiguousarray(self.centroids.detach().numpy().copy())


class SignedSums(nn.Module):
    """The centroids (b, d) of a `BinaryAutoencoder`, of which each bit of a code adds one or takes it away.

    `codec`: the fitted one; lengths of sums stay as it codes them. What is trained are the centroids' numbers in units
    of their root mean square, as of `Codebooks`.
    """

    def __init__(self, codec: BinaryAutoencoder) -> None:
        super().__init__()
        self.codec = codec
        start = torch.from_numpy(np.array(codec.centroids, np.float32))
        self.size: Tensor
        self.register_buffer("size", start.square().mean().sqrt().clamp(min=1e-12))
        self.weight = nn.Parameter(start / self.size)

    @property
    def centroids(self) -> Tensor:
        """(b, d)."""
        return self.weight * self.size

    def scores(self, queries: Tensor, codes: np.ndarray) -> Tensor:
        """Products (B, m) of queries (B, d) with the vectors behind codes uint8 (B, m, b / 8 + 1)."""
        signs = self._signed(codes.reshape(-1, codes.shape[2])).view(*codes.shape[:2], -1)
        return torch.bmm(signs, (queries @ self.centroids.T)[:, :, None])[:, :, 0]

    def decode(self, codes: np.ndarray) -> Tensor:
        """Vectors (m, d) behind codes uint8 (m, b / 8 + 1), without the mean."""
        return self._signed(codes) @ self.centroids

    def _signed(self, codes: np.ndarray) -> Tensor:
        """Signs times lengths, float32 (m, b)."""
        return torch.from_numpy(unpack_signs(codes[:, :-1], self.codec.bits) * self.codec.lengths_of(codes)[:, None])

    def array(self) -> np.ndarray:
        """The centroids float32 (b, d), as the codec holds them."""
        return np.ascontiguousarray(self.centroids.detach().numpy().copy())


def balanced(distances: Tensor, epsilon: float = 0.05, rounds: int = 20) -> np.ndarray:
    """Codes uint8 (m, M) that use all centroids evenly: the largest entries of a transport plan.

    RepCONC (Zhan et al., WSDM 2022, section 4.2): minimal total of squared distances (M, m, ksub) where every centroid
    is to get m / ksub vectors, by Sinkhorn's iteration on exp(-distance / epsilon). Distances are in units of their
    mean here, so that `epsilon`, the authors' 0.05, means the same for embeddings of any length. What each vector is
    from its nearest centroid is taken off, which changes no plan; in float64 nothing but an epsilon below 0.002
    vanishes then, and where it does, the nearest centroid is the code.
    """
    costs = (distances - distances.amin(dim=2, keepdim=True)).double()
    kernel = torch.exp(-costs / (epsilon * distances.mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)))
    M, m, ksub = kernel.shape
    rows = torch.ones(M, m, 1, dtype=torch.float64)
    columns = torch.ones(M, 1, ksub, dtype=torch.float64)
    for _ in range(rounds):
        columns = (m / ksub) / torch.bmm(rows.transpose(1, 2), kernel).clamp(min=1e-300)
        rows = 1 / torch.bmm(kernel, columns.transpose(1, 2)).clamp(min=1e-300)
    plan = kernel * columns  # the scaling of rows moves no maximum
    whole = torch.isfinite(plan).all(dim=2) & (plan > 0).any(dim=2)
    return torch.where(whole, plan.argmax(dim=2), distances.argmin(dim=2)).T.numpy().astype(np.uint8)


def usage(codes: np.ndarray, ksub: int = 256) -> float:
    """How evenly codes uint8 (n, M) use the centroids: the mean over the codebooks of 2^entropy / ksub, up to 1."""
    shares = np.stack([np.bincount(column, minlength=ksub) for column in codes.T]) / max(1, len(codes))
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
    return float((2**entropy / ksub).mean())
