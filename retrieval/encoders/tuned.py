"""A sentence-transformers model with weights that training changed, for queries and documents alike."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from retrieval.encoders import pretrained
from retrieval.encoders.base import Encoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.errors import EncoderError

Self = TypeVar("Self", bound="Tuned")


class Tuned(Encoder):
    """Vectors of `base` with other `weights`: name -> array.

    The model that it started from is saved by reference, as always; the weights are saved by value, in float32 (90 MB
    of all-MiniLM-L6-v2), so that a collection needs no file outside its folder but those it had before.
    Raises `EncoderError` for a `base` that does not compute in float32, or weights that are not its model's.
    """

    kind = "tuned"
    costly = True
    parts: ClassVar[tuple[str, str]] = ("base", "weights")
    """What the arrays of the one and the other are called when they are saved."""

    def __init__(self, base: SentenceTransformerEncoder, weights: Mapping[str, np.ndarray]) -> None:
        if base.dtype != "float32":
            raise EncoderError(f"dtype of the model is {base.dtype!r}; trained weights are 'float32'")
        self.base, self.weights = base, dict(weights)
        self._encoder: SentenceTransformerEncoder | None = None
        self._turn = threading.RLock()

    @classmethod
    def of(cls: type[Self], base: SentenceTransformerEncoder, model: Any) -> Self:
        """With the weights of a sentence-transformers `model` that was trained, a copy of that of `base`."""
        return cls(base, {name: value.detach().cpu().numpy().copy() for name, value in model.named_parameters()})

    @property
    def similarity(self) -> str:  # type: ignore[override]
        return self.base.similarity

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, d), finite. Raises `TypeError` naming the position of what is not a string."""
        return self._tower().encode_documents(texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (nq, d), finite. Raises `TypeError` naming the position of what is not a string."""
        return self._tower().encode_queries(texts)

    def settings(self) -> dict[str, Any]:
        return self.base.settings()

    def arrays(self) -> dict[str, np.ndarray]:
        both = zip(self.parts, (self.base.arrays(), self.weights), strict=True)
        return {f"{part}.{name}": array for part, arrays in both for name, array in arrays.items()}

    @classmethod
    def restore(cls: type[Self], settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in cls.parts}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        base, weights = parts.values()
        return cls(SentenceTransformerEncoder.restore(settings, base), weights)

    def _tower(self) -> SentenceTransformerEncoder:
        with self._turn:
            if self._encoder is None:
                self._encoder = tower(self.base, self.weights)
            return self._encoder


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
