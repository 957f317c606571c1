"""The contract of every encoder: text -> arrays, documents and queries apart."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from indexes import storage
from retrieval.errors import EncoderError

HEADER = "encoder.json"
# kind, as saved -> where its class lives; imported only when one is opened
KINDS = {
    "adapted": "retrieval.encoders.adapted:Adapted",
    "bag-of-words": "retrieval.encoders.bag_of_words:BagOfWords",
    "lsa": "retrieval.encoders.lsa:LSA",
    "sentence-transformer": "retrieval.encoders.sentence_transformer:SentenceTransformerEncoder",
    "tuned": "retrieval.encoders.tuned:Tuned",
    "two-towers": "retrieval.encoders.two_towers:TwoTowers",
}

Self = TypeVar("Self", bound="Encoder")


class Encoder(ABC):
    """Base of all encoders. `encode_documents` and `encode_queries` return float32 (n, d), or scipy CSR (n, V).

    `similarity`: the metric that its vectors are made for: "ip", "cosine" or "l2".
    `fusion_weight`: of its scores in a collection's hybrid search.
    `costly`: whether encoding takes so long that its results are kept on disk while a collection is built.
    """

    kind: ClassVar[str]
    costly: ClassVar[bool] = False
    fusion_weight: ClassVar[float] = 1.0
    similarity: str

    def fit(self: Self, texts: Callable[[], Iterable[str]]) -> Self:
        """Learn from a corpus what the encoder needs. `texts()` starts a new pass over it. Here nothing is learned."""
        return self

    def outgrown(self, n: int) -> bool:
        """Whether what was fitted no longer suits a corpus of `n` documents, so that it should be fitted anew."""
        return False

    @abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> Any: ...

    @abstractmethod
    def encode_queries(self, texts: Sequence[str]) -> Any: ...

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The constructor's parameters as JSON values: with `arrays`, what `load` makes the encoder again from."""

    def arrays(self) -> dict[str, np.ndarray]:
        """What was learned, as arrays."""
        return {}

    @classmethod
    def restore(cls: type[Self], settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        """The inverse of `settings` and `arrays`."""
        return cls(**settings)

    def save(self, folder: str | Path) -> None:
        """Save into `folder`. Models are saved by reference (name, revision, settings), not by value."""
        storage.save(folder, {"kind": self.kind, "settings": self.settings()}, self.arrays(), name=HEADER)


def load_encoder(folder: str | Path, *, verify: bool = True) -> Encoder:
    """Open a saved encoder of any kind; models are loaded at their first use.

    Raises `FileNotFoundError`, `EncoderError` (unknown kind or settings) and the errors of `indexes.storage`.
    """
    header = storage.load_header(folder, name=HEADER)
    kind = header.get("kind")
    try:
        cls = encoder_class(kind)
    except EncoderError as problem:
        raise EncoderError(f"{folder}: {problem}") from problem
    arrays, _ = storage.load_arrays(folder, header, mmap=True, verify=verify)
    try:
        return cls.restore(header["settings"], arrays)
    except EncoderError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise EncoderError(f"{folder}: no {kind} encoder can be made of what is saved here: {problem}") from problem


def encoder_class(kind: Any) -> type[Encoder]:
    """The class of a `kind`, imported now. Raises `EncoderError` for a kind that is not known."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise EncoderError(f"an encoder of kind {kind!r}; this release knows {', '.join(sorted(KINDS))}")
    module, _, name = KINDS[kind].partition(":")
    made: type[Encoder] = getattr(importlib.import_module(module), name)
    return made


def batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of up to `size` texts, read as they are asked for."""
    remaining = iter(texts)
    while batch := list(islice(remaining, size)):
        yield batch
