"""What of the encoding is trained: nothing, a low-rank adapter of queries, their encoder, or one for documents too."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from retrieval.errors import TrainingError
from retrieval.retriever import Progress

TUNES = ("code", "adapter", "encoder", "encoders")
PRETRAINED = {"encoder": 0.01, "encoders": 0.1}  # learning rate of a pretrained model, as a share of an adapter's
READ = 16  # documents that a step reads at once


class QuerySide(nn.Module, ABC):
    """What turns queries into vectors: those of training by their rows, and others that are only searched for."""

    @abstractmethod
    def forward(self, rows: np.ndarray) -> Tensor:
        """Vectors float32 (B, d) of queries by their rows int64 (B,)."""

    @abstractmethod
    def embed(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        """What becomes of queries (nq, d) that were not trained on, float32 (nq, d)."""

    def asked(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        """What a codec is asked by that has `matrix` in it, float32 (nq, d): `matrix` times these is `embed`."""
        return vectors

    @abstractmethod
    def matrix(self) -> np.ndarray:
        """float32 (d, d) by which a codec can do to float queries what was learned here."""


class FrozenQueries(QuerySide):
    """Query vectors as they were embedded."""

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__()
        self.vectors = torch.from_numpy(vectors)

    def forward(self, rows: np.ndarray) -> Tensor:
        return self.vectors[torch.from_numpy(rows)]

    def embed(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        return vectors

    def matrix(self) -> np.ndarray:
        return np.eye(self.vectors.shape[1], dtype=np.float32)


class AdaptedQueries(FrozenQueries):
    """q + U V^T q: a residual of low rank over an embedding that is a black box.

    Adapted Dense Retrieval ("Augmented Embeddings for Custom Retrievals", 2023). U starts at 0, so that training
    starts from the embedding as it is.
    """

    def __init__(self, vectors: np.ndarray, rank: int, seed: int) -> None:
        super().__init__(vectors)
        d = vectors.shape[1]
        generator = torch.Generator().manual_seed(seed)
        self.down = nn.Parameter(torch.randn(rank, d, generator=generator) / d**0.5)
        self.up = nn.Parameter(torch.zeros(d, rank))

    def forward(self, rows: np.ndarray) -> Tensor:
        vectors = super().forward(rows)
        return vectors + vectors @ self.down.T @ self.up.T

    def embed(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        return vectors @ self.matrix().T

    def matrix(self) -> np.ndarray:
        with torch.no_grad():
            return super().matrix() + (self.up @ self.down).numpy()


class EncodedQueries(QuerySide):
    """A sentence-transformers model that is trained, on the texts of the queries, without dropout.

    Where documents stay as they were embedded, which was without, it would be noise on one side of every product only;
    where the model encodes documents too, what is trained is so what will be searched.
    """

    def __init__(self, model: Any, texts: Sequence[str], d: int, batch_size: int = 64) -> None:
        super().__init__()
        self.model, self.texts, self.d, self.batch_size = model, list(texts), d, batch_size

    def forward(self, rows: np.ndarray) -> Tensor:
        return self._vectors([self.texts[row] for row in rows])

    def train(self, mode: bool = True) -> EncodedQueries:
        super().train(mode)
        self.model.eval()
        return self

    def embed(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        if texts is None:
            raise TrainingError("queries have no texts, which a trained query encoder needs")
        with torch.no_grad():
            starts = range(0, len(texts), self.batch_size)
            return torch.cat([self._vectors(texts[i : i + self.batch_size]) for i in starts]).numpy()

    def read(self, texts: Sequence[str]) -> Tensor:
        """Vectors float32 (m, d) of documents, with gradients. Of more than `READ` texts no more are held in memory at
        once: the others are read again for the gradients (gradient checkpointing, Chen et al., 2016)."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        parts = [[texts[row] for row in order[i : i + READ]] for i in range(0, len(order), READ)]
        if len(parts) == 1:
            return self._vectors(texts)
        vectors = torch.cat([checkpoint(self._vectors, part, use_reentrant=False) for part in parts])
        return vectors[torch.from_numpy(np.argsort(order))]

    def embed_documents(self, texts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
        """float32 (n, d) of all documents, by the model as it is now."""
        vectors = np.empty((len(texts), self.d), np.float32)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            with torch.no_grad():
                vectors[rows] = self._vectors([texts[row] for row in rows]).numpy()
            if progress:
                progress("encoding documents anew", start + len(rows), len(order))
        return vectors

    def _vectors(self, texts: Sequence[str]) -> Tensor:
        read = getattr(self.model, "preprocess", None) or self.model.tokenize  # sentence-transformers before 6
        return F.normalize(self.model(read(list(texts)))["sentence_embedding"].float(), dim=1)

    def asked(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        return self.embed(vectors, texts)

    def matrix(self) -> np.ndarray:
        return np.eye(self.d, dtype=np.float32)

    def save(self, folder: str | Path) -> None:
        """The trained model as a folder that `SentenceTransformerEncoder` opens."""
        self.model.save(str(folder), safe_serialization=True)


def query_side(
    tune: str, vectors: np.ndarray, texts: Sequence[str] | None, model: Any, *, rank: int, seed: int
) -> QuerySide:
    """The queries' side for `tune`, one of `TUNES`; encoders need `texts` and a loaded `model`."""
    if tune not in TUNES:
        raise TrainingError(f"tune is {tune!r}; it must be one of {', '.join(TUNES)}")
    if tune == "code":
        return FrozenQueries(vectors)
    if tune == "adapter":
        return AdaptedQueries(vectors, rank, seed)
    if texts is None or model is None:
        raise TrainingError(f"tune={tune!r} needs the texts of the queries and the model that embedded them")
    return EncodedQueries(model, texts, vectors.shape[1])
