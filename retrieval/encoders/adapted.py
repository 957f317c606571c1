"""An encoder whose queries are turned by a matrix that training found, and whose documents stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval.encoders.base import Encoder, encoder_class
from retrieval.errors import EncoderError


class Adapted(Encoder):
    """Document vectors of `encoder`; query vectors q of it as `matrix` q, float32 (d, d).

    Adapted Dense Retrieval ("Augmented Embeddings for Custom Retrievals", 2023), folded into one matrix. The encoder is
    saved within this one. Raises `EncoderError` for a matrix that is not square, or not finite.
    """

    kind = "adapted"

    def __init__(self, encoder: Encoder, matrix: np.ndarray) -> None:
        checked = np.ascontiguousarray(matrix, np.float32)
        if checked.ndim != 2 or checked.shape[0] != checked.shape[1] or not np.isfinite(checked).all():
            raise EncoderError(f"matrix is {checked.shape}; it must be (d, d) of finite numbers")
        self.encoder, self.matrix = encoder, checked
        self.costly, self.fusion_weight = encoder.costly, encoder.fusion_weight  # type: ignore[misc]

    @property
    def similarity(self) -> str:  # type: ignore[override]
        return self.encoder.similarity

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, d), as of the encoder."""
        return self.encoder.encode_documents(texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (nq, d). Raises `EncoderError` where the matrix is for another number of dimensions."""
        vectors = self.encoder.encode_queries(texts)
        if vectors.shape[1] != len(self.matrix):
            raise EncoderError(f"matrix is {self.matrix.shape}; the encoder gives {vectors.shape[1]} dimensions")
        return vectors @ self.matrix.T

    def settings(self) -> dict[str, Any]:
        return {"encoder": self.encoder.kind, "settings": self.encoder.settings()}

    def arrays(self) -> dict[str, np.ndarray]:
        return {f"encoder.{name}": array for name, array in self.encoder.arrays().items()} | {"matrix": self.matrix}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Adapted:
        inner = {name.removeprefix("encoder."): array for name, array in arrays.items() if name != "matrix"}
        return cls(encoder_class(settings["encoder"]).restore(settings["settings"], inner), arrays["matrix"])
