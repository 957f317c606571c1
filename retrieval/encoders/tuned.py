"""A sentence-transformers model with weights that training changed, for queries and documents alike."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retrieval.encoders.base import Encoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.encoders.two_towers import tower
from retrieval.errors import EncoderError


class Tuned(Encoder):
    """Vectors of `base` with other `weights`: name -> array.

    The model that it started from is saved by reference, as always; the weights are saved by value, in float32 (90 MB
    of all-MiniLM-L6-v2), so that a collection needs no file outside its folder but those it had before.
    Raises `EncoderError` for a `base` that does not compute in float32, or weights that are not its model's.
    """

    kind = "tuned"
    costly = True

    def __init__(self, base: SentenceTransformerEncoder, weights: Mapping[str, np.ndarray]) -> None:
        if base.dtype != "float32":
            raise EncoderError(f"dtype of the model is {base.dtype!r}; trained weights are 'float32'")
        self.base, self.weights = base, dict(weights)
        self._encoder: SentenceTransformerEncoder | None = None
        self._turn = threading.RLock()

    @classmethod
    def of(cls, base: SentenceTransformerEncoder, model: Any) -> Tuned:
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
        weights = {f"weights.{name}": array for name, array in self.weights.items()}
        return {f"base.{name}": array for name, array in self.base.arrays().items()} | weights

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Tuned:
        parts: dict[str, dict[str, np.ndarray]] = {"base": {}, "weights": {}}
        for name, array in arrays.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = array
        return cls(SentenceTransformerEncoder.restore(settings, parts["base"]), parts["weights"])

    def _tower(self) -> SentenceTransformerEncoder:
        with self._turn:
            if self._encoder is None:
                self._encoder = tower(self.base, self.weights)
            return self._encoder
