"""The calls that most users need: make a collection from a source, open one, and train a smaller index for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retrieval.collection import Collection
from retrieval.documents import Document, read_documents
from retrieval.retriever import Progress, Retriever, bm25, dense

if TYPE_CHECKING:
    from retrieval.training.pipeline import TrainedIndex


def index(
    data: str | Path | Iterable[Document | Mapping[str, Any]],
    to: str | Path,
    retrievers: Mapping[str, Retriever] | None = None,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    progress: Progress | None = None,
    **reading: Any,
) -> Collection:
    """Make a collection in the folder `to` from a file, a folder, an ir_datasets id, or documents in memory.

    `retrievers`: index name -> retriever; by default BM25 and latent semantic analysis, which need no download and
    together make a hybrid search. `on_error` and `reading`: see `retrieval.read_documents`.
    Interrupted, it is repeated with the same call and goes on from the vectors that it had computed.
    """
    documents = read_documents(data, on_error=on_error, **reading) if isinstance(data, str | Path) else data
    collection = Collection.create(to, retrievers or {"bm25": bm25(), "dense": dense("lsa")})
    collection.add(documents, progress=progress)
    return collection


def open(folder: str | Path, *, verify: bool = True) -> Collection:
    """Open the collection in `folder`. See `Collection.open`."""
    return Collection.open(folder, verify=verify)


def train(folder: str | Path, method: str, to: str, **options: Any) -> TrainedIndex:
    """Train a compressed index for the collection in `folder`: `train("my.idx", "distill-vq", "small", bytes=24)`.

    `options`: see `Collection.train`.
    """
    with Collection.open(folder) as collection:
        return collection.train(method, to, **options)
