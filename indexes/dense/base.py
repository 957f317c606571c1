"""What dense indexes share: the checks of their vectors and the metric."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.base import Index
from indexes.errors import InvalidParameter, InvalidVectors

METRICS = ("ip", "cosine", "l2")


class DenseIndex(Index):
    """Base of the indexes over vectors (n, d).

    `metric`: "ip" (inner product), "cosine" (vectors are normalised when added; a zero vector scores 0 with
    everything) or "l2" (the score is minus the squared distance).
    """

    def __init__(self, *, metric: str) -> None:
        super().__init__()
        if metric not in METRICS:
            raise InvalidParameter(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}")
        self.metric = metric
        self.d: int | None = None

    def _check_vectors(self, vectors: Any) -> np.ndarray:
        """float32 (n, d), C-contiguous and writeable, normalised for cosine."""
        array = np.asarray(vectors)
        if array.ndim == 1:
            array = array[None, :]
        if array.ndim != 2 or array.shape[1] == 0:
            raise InvalidVectors(f"vectors have shape {array.shape}; they must be (n, d) with d >= 1")
        if array.dtype.kind not in "fiu":
            raise InvalidVectors(f"vectors are {array.dtype}; they must be real numbers")
        if self.d is not None and array.shape[1] != self.d:
            raise InvalidVectors(f"vectors have {array.shape[1]} dimensions; this index has {self.d}")
        with np.errstate(over="ignore"):
            checked = np.require(array, np.float32, ["C", "W", "A"])
        # one pass: the sum of a row is finite exactly when its entries are, up to overflow
        bad = ~np.isfinite(checked).all(axis=1)
        if bad.any():
            raise InvalidVectors(f"vector {int(np.argmax(bad))} holds NaN, infinity or a number beyond float32")
        return normalize(checked) if self.metric == "cosine" else checked

    def _shape(self) -> dict[str, Any]:
        return {"d": self.d}


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) divided by their Euclidean length; zero vectors stay zero."""
    # scaled first, so that squares of very small or very large numbers neither vanish nor overflow
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    scaled = vectors / np.where(largest > 0, largest, 1)
    lengths = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return (scaled / np.where(lengths > 0, lengths, 1)).astype(np.float32)
