"""Arrays in, (scores, ids) out: dense, sparse and compressed indexes under one contract (`indexes.base.Index`).

numpy, scipy, numba and faiss only, each imported when something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexes.base import Hits, Index, load
    from indexes.dense.flat import FlatIndex
    from indexes.dense.hnsw import HNSWIndex
    from indexes.dense.ivfpq import IVFPQIndex
    from indexes.sparse.blockmax import BlockMaxIndex
    from indexes.sparse.eager import EagerIndex
    from indexes.sparse.seismic import SeismicIndex
    from indexes.sparse.weighting import BM25, TFIDF

_HOME = {
    "Hits": "indexes.base",
    "Index": "indexes.base",
    "load": "indexes.base",
    "FlatIndex": "indexes.dense.flat",
    "HNSWIndex": "indexes.dense.hnsw",
    "IVFPQIndex": "indexes.dense.ivfpq",
    "BlockMaxIndex": "indexes.sparse.blockmax",
    "EagerIndex": "indexes.sparse.eager",
    "SeismicIndex": "indexes.sparse.seismic",
    "BM25": "indexes.sparse.weighting",
    "TFIDF": "indexes.sparse.weighting",
}
__all__ = [
    "BM25", "TFIDF", "BlockMaxIndex", "EagerIndex", "FlatIndex", "HNSWIndex", "Hits", "IVFPQIndex", "Index",
    "SeismicIndex", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'indexes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
