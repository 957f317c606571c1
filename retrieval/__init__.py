"""Text to ranked documents: collections on disk, encoders, hybrid search.

    import retrieval
    collection = retrieval.index("corpus.jsonl", "my.idx")
    results = collection.search("some question")

and later `retrieval.open("my.idx")`. Importing is quick: each part is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.building import index, open, train
    from retrieval.collection import Collection
    from retrieval.documents import Document, read_documents
    from retrieval.retriever import Retriever, bm25, dense
    from retrieval.search import Fusion, Rerank, Result

_HOME = {
    "Collection": "retrieval.collection",
    "Document": "retrieval.documents",
    "Fusion": "retrieval.search",
    "Rerank": "retrieval.search",
    "Result": "retrieval.search",
    "Retriever": "retrieval.retriever",
    "bm25": "retrieval.retriever",
    "dense": "retrieval.retriever",
    "index": "retrieval.building",
    "open": "retrieval.building",
    "read_documents": "retrieval.documents",
    "train": "retrieval.building",
}
__all__ = [
    "Collection", "Document", "Fusion", "Rerank", "Result", "Retriever",
    "bm25", "dense", "index", "open", "read_documents", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'retrieval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
