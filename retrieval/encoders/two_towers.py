"""Two towers: documents by a model as it is, queries by the same model with weights that training changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.encoders import pretrained
from retrieval.encoders.base import Encoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.errors import EncoderError


class TwoTowers(Encoder):
    """Document vectors of `documents`, query vectors of its model with other `weights`: name -> array.

    What JPQ does to an encoder: documents' codes stay, and only the query tower is trained. The document model is
    saved by reference, as always; the weights are saved by value, in float32 (90 MB of all-MiniLM-L6-v2), so that a
    collection needs no file outside its folder.
    Raises `EncoderError` for a `documents` that does not compute in float32, or weights that are not its model's.
    """

    kind = "two-towers"
    costly = True

    def __init__(self, documents: SentenceTransformerEncoder, weights: Mapping[str, np.ndarray]) -> None:
        if documents.dtype != "float32":
            raise EncoderError(f"dtype of the document model is {documents.dtype!r}; beside a trained one: 'float32'")
        self.documents, self.weights = documents, dict(weights)
        self._queries: SentenceTransformerEncoder | None = None
        self._turn = threading.RLock()

    @classmethod
    def of(cls, documents: SentenceTransformerEncoder, model: Any) -> TwoTowers:
        """With the weights of a sentence-transformers `model` that was trained, a copy of that of `documents`."""
        return cls(documents, {name: value.detach().cpu().numpy() for name, value in model.named_parameters()})

    @property
    def similarity(self) -> str:  # type: ignore[override]
        return self.documents.similarity

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, d), finite. Raises `TypeError` naming the position of what is not a string."""
        return self.documents.encode_documents(texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (nq, d), finite. Raises `TypeError` naming the position of what is not a string."""
        with self._turn:
            if self._queries is None:
                self._queries = tower(self.documents, self.weights)
            return self._queries.encode_queries(texts)

    def settings(self) -> dict[str, Any]:
        return self.documents.settings()

    def arrays(self) -> dict[str, np.ndarray]:
        weights = {f"queries.{name}": array for name, array in self.weights.items()}
        return {f"documents.{name}": array for name, array in self.documents.arrays().items()} | weights

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> TwoTowers:
        parts: dict[str, dict[str, np.ndarray]] = {"documents": {}, "queries": {}}
        for name, array in arrays.items():
            side, _, rest = name.partition(".")
            parts[side][rest] = array
        return cls(SentenceTransformerEncoder.restore(settings, parts["documents"]), parts["queries"])


def tower(encoder: SentenceTransformerEncoder, weights: Mapping[str, np.ndarray]) -> SentenceTransformerEncoder:
    """The encoder with a copy of its model that holds other weights. Raises `EncoderError` where they do not fit."""
    import torch

    model = trainable(encoder)
    own = {name: tuple(value.shape) for name, value in model.named_parameters()}
    if own != {name: array.shape for name, array in weights.items()}:
        raise EncoderError(f"the weights are not of model {encoder.model!r}: other names or shapes")
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(torch.from_numpy(np.array(weights[name])))
    model.to(encoder.device or model.device)
    made = copy.copy(encoder)
    made._model = model
    return made


def trainable(encoder: SentenceTransformerEncoder) -> Any:
    """A copy of the encoder's loaded model, in evaluation mode, on the CPU. Raises `EncoderError`."""
    if encoder.dtype != "float32":
        raise EncoderError(f"dtype is {encoder.dtype!r}; only a model in 'float32' can be trained")
    return copy.deepcopy(encoder._load()).to("cpu").eval()


def prompted(encoder: SentenceTransformerEncoder, texts: Sequence[str], side: str = "query") -> list[str]:
    """Queries, or documents, with the prompt before them that the encoder puts there."""
    own = getattr(encoder._load(), "prompts", {})
    names = ("query",) if side == "query" else ("document", "passage", "corpus")  # the first that the model has
    prompt = encoder.query_prompt if side == "query" else encoder.document_prompt
    if prompt is None:
        prompt = next((own[name] for name in names if name in own), "") or ""
    return [prompt + text for text in pretrained.check_texts(texts)]
