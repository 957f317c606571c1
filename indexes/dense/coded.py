"""What indexes share that hold codes of a codec, and perhaps the vectors to rank candidates again by."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from indexes.codecs import Codec
from indexes.dense.base import DenseIndex
from indexes.dense.store import DTYPES, KEPT, VectorStore
from indexes.errors import CorruptIndex, InvalidParameter

Self = TypeVar("Self", bound="CodedIndex")


class CodedIndex(DenseIndex):
    """Base of the indexes with a `codec`, which they copy, and `rerank`: what `VectorStore` keeps, or None."""

    def __init__(self, *, metric: str, codec: Codec | None, default: Codec, rerank: str | None) -> None:
        super().__init__(metric=metric)
        if codec is not None and not isinstance(codec, Codec):
            raise InvalidParameter(f"codec is {codec!r}; it must be a codec of indexes.codecs, or None")
        if rerank is not None and rerank not in KEPT:
            raise InvalidParameter(f"rerank is {rerank!r}; it must be one of {', '.join(KEPT)}, or None")
        given = default if codec is None else codec
        self.codec = Codec.restore(given.header(), given.arrays())
        self.trained = self.codec.trained
        self.rerank = rerank
        self._store = None if rerank is None else VectorStore(rerank, "rerank='float32'")

    @classmethod
    def _rebuild(cls: type[Self], parameters: dict[str, Any]) -> Self:
        return cls(**parameters | {"codec": Codec.restore(parameters["codec"], {})})

    def emptied(self: Self) -> Self:
        return type(self)(**self.parameters() | {"codec": self.codec}) if self.trained else super().emptied()

    @property
    def vectors(self) -> np.ndarray | None:
        """The vectors (n, d) by row in the dtype of `rerank`; None where that is None or "lvq8", which rounds them."""
        return self._store.stored(self.d or 0) if self._store is not None and self.rerank in DTYPES else None

    def _coded_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Of `_state`: d and the codec, what it learned, and the stored vectors."""
        arrays = {f"codec.{name}": array for name, array in self.codec.arrays().items()}
        if self._store is not None:
            arrays["vectors"] = self._store.stored(self.d or 0)
        return {"d": self.d, "codec": self.codec.header()}, arrays

    def _restore_codec(self, state: dict[str, Any], arrays: dict[str, np.ndarray], *, first: bool = False) -> None:
        """The codec and d of a saved index, or `CorruptIndex`; takes the codec's arrays out of `arrays`.

        `first`: the codec may be fitted before the index is, which has no d then.
        """
        learned = {name[6:]: arrays.pop(name) for name in list(arrays) if name.startswith("codec.")}
        declared, self.codec, self.d = repr(self.codec), Codec.restore(state["codec"], learned), state["d"]
        if repr(self.codec) != declared or (self.codec.d != self.d and not (first and self.d is None)):
            seen = f"{self.codec!r} for d = {self.codec.d}"
            raise CorruptIndex(f"the codec is {seen}; the header says {declared} for d = {self.d}")
        if self.d is None and len(self):
            raise CorruptIndex(f"n is {len(self)}, and d is missing")
