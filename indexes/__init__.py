"""Arrays in, (scores, ids) out: dense, sparse and compressed indexes under one contract (`indexes.base.Index`).

numpy, scipy, numba and faiss only, each imported when something needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexes.base import Hits, Index, load
    from indexes.binary.hamming import HammingIndex
    from indexes.binary.ivf import BinaryIVFIndex
    from indexes.binary.multi_index import MultiIndexHashing
    from indexes.binary.recurrent import RecurrentBinaryIndex
    from indexes.binary.two_stage import TwoStageIndex
    from indexes.dense.flat import FlatIndex
    from indexes.dense.graph import GraphIndex
    from indexes.dense.hnsw import HNSWIndex
    from indexes.dense.hnsw_libraries import HnswlibIndex, UsearchIndex
    from indexes.dense.ivf import IVFIndex
    from indexes.dense.ivfpq import IVFPQIndex
    from indexes.dense.scan import ScanIndex
    from indexes.dense.svs import SVSIndex
    from indexes.dense.tenants import TenantIndex
    from indexes.groups import search_groups
    from indexes.recommending import recommend
    from indexes.sparse.blockmax import BlockMaxIndex
    from indexes.sparse.eager import EagerIndex
    from indexes.sparse.seismic import SeismicIndex
    from indexes.sparse.streaming import build_on_disk
    from indexes.sparse.weighting import BM25, TFIDF, Statistics
    from indexes.tuning import Tuned, tune

_HOME = {
    "Hits": "indexes.base",
    "build_on_disk": "indexes.sparse.streaming",
    "Index": "indexes.base",
    "load": "indexes.base",
    "HammingIndex": "indexes.binary.hamming",
    "BinaryIVFIndex": "indexes.binary.ivf",
    "MultiIndexHashing": "indexes.binary.multi_index",
    "RecurrentBinaryIndex": "indexes.binary.recurrent",
    "TwoStageIndex": "indexes.binary.two_stage",
    "FlatIndex": "indexes.dense.flat",
    "HNSWIndex": "indexes.dense.hnsw",
    "HnswlibIndex": "indexes.dense.hnsw_libraries",
    "UsearchIndex": "indexes.dense.hnsw_libraries",
    "SVSIndex": "indexes.dense.svs",
    "IVFPQIndex": "indexes.dense.ivfpq",
    "IVFIndex": "indexes.dense.ivf",
    "GraphIndex": "indexes.dense.graph",
    "ScanIndex": "indexes.dense.scan",
    "TenantIndex": "indexes.dense.tenants",
    "BlockMaxIndex": "indexes.sparse.blockmax",
    "EagerIndex": "indexes.sparse.eager",
    "SeismicIndex": "indexes.sparse.seismic",
    "BM25": "indexes.sparse.weighting",
    "TFIDF": "indexes.sparse.weighting",
    "Statistics": "indexes.sparse.weighting",
    "recommend": "indexes.recommending",
    "search_groups": "indexes.groups",
    "Tuned": "indexes.tuning",
    "tune": "indexes.tuning",
}
__all__ = [
    "BM25", "TFIDF", "BinaryIVFIndex", "BlockMaxIndex", "EagerIndex", "FlatIndex", "GraphIndex", "HNSWIndex",
    "HammingIndex", "Hits", "HnswlibIndex", "IVFIndex", "IVFPQIndex", "Index", "MultiIndexHashing",
    "RecurrentBinaryIndex", "SVSIndex", "ScanIndex", "SeismicIndex", "Statistics", "TenantIndex", "Tuned",
    "TwoStageIndex", "UsearchIndex", "build_on_disk", "load", "recommend", "search_groups", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'indexes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
