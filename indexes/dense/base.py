"""What dense indexes share: the checks of their vectors and the metric."""

from __future__ import annotations

from typing import Any

import numpy as np

from indexes.base import Index
from indexes.errors import InvalidParameter, InvalidVectors

METRICS = ("ip", "cosine", "l2")
LONGEST = 3e18  # of a vector; its square, and sums of a few such squares, still fit float32 (3.4e38)


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
        with np.errstate(over="ignore", invalid="ignore"):
            if len(array) == 1 and array.dtype == np.float32 and array.flags.carray and self.metric != "cosine":
                query = array[0]  # for one query, the rest takes longer than many a search
                if query.dot(query) <= LONGEST**2:
                    return array
            checked = np.require(array, np.float32, ["C", "W", "A"])
            if self.metric == "cosine":  # of any length
                good = np.isfinite(checked).all(axis=1)
            else:  # longer ones would score infinity minus infinity, which has no rank
                good = np.einsum("ij,ij->i", checked, checked) <= LONGEST**2
        if not good.all():
            raise InvalidVectors(
                f"vector {int(np.argmin(good))} holds NaN, infinity or a number beyond float32, "
                f"or is longer than {LONGEST}"
            )
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
