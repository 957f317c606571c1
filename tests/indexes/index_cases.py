"""The indexes that the conformance suite runs over. A new kind of index joins by one line in `CASES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from scipy import sparse

from indexes import BM25, TFIDF, BlockMaxIndex, EagerIndex, FlatIndex, HNSWIndex, Index, IVFPQIndex, SeismicIndex
from indexes.binary.hamming import HammingIndex
from indexes.binary.ivf import BinaryIVFIndex
from indexes.binary.multi_index import MultiIndexHashing
from indexes.binary.recurrent import RecurrentBinaryIndex
from indexes.binary.two_stage import TwoStageIndex
from indexes.codecs import LVQ, PCA, SQ, Chain, Codec, Float32, RaBitQ
from indexes.dense.graph import GraphIndex
from indexes.dense.hnsw_libraries import HnswlibIndex, UsearchIndex
from indexes.dense.ivf import IVFIndex
from indexes.dense.scan import ScanIndex
from indexes.dense.svs import SVSIndex
from indexes.dense.tenants import TenantIndex
from indexes.sparse.weighting import METHODS

D, V, BYTES = 16, 60, 5  # width of the dense, sparse and binary vectors


@dataclass(frozen=True)
class Case:
    """A kind of index with its settings. `make`: a new one, empty and ready for `add`."""

    name: str
    make: Callable[[], Index]
    sparse: bool = False
    binary: bool = False
    exact: bool = True  # whether it returns the very best, also among equals
    needs: str | None = None  # a library that is not installed everywhere

    def vectors(self, n: int, seed: int = 0) -> Any:
        """n vectors whose scores are exact in float32: entries +-1 of D dense ones, small counts of V terms.

        Term 0 is in every sparse vector, so that each answers each query. Codes are random. Many scores are equal.
        """
        rng = np.random.default_rng(seed)
        if self.binary:
            return rng.integers(0, 256, (n, BYTES), np.uint8)
        if not self.sparse:
            return rng.choice([-1, 1], (n, D)).astype(np.float32)
        counts = rng.integers(1, 5, (n, V)) * (rng.random((n, V)) < 0.15)
        counts[:, 0] = 1
        return sparse.csr_matrix(counts, dtype=np.float32)

    def random(self, n: int, seed: int = 0) -> Any:
        """n vectors of random numbers: hardly any scores are equal. Distances of binary codes always are."""
        rng = np.random.default_rng(seed)
        if self.binary:
            return rng.integers(0, 256, (n, BYTES), np.uint8)
        if not self.sparse:
            return rng.normal(size=(n, D)).astype(np.float32)
        weights = rng.random((n, V)) * (rng.random((n, V)) < 0.15)
        weights[:, 0] = rng.random(n) + 0.1
        return sparse.csr_matrix(weights, dtype=np.float32)


def fitted_ivfpq(metric: str) -> Index:
    # few training vectors: codes of 6 bits, fitted in 0.03 s
    return IVFPQIndex(metric=metric, bytes=4, nlist=3).fit(np.random.default_rng(1).normal(size=(64, D)))


def fitted_two_stage() -> Index:
    return TwoStageIndex().fit(np.random.default_rng(1).normal(size=(20, D)))


def fitted_scan(codec: Codec, **parameters: Any) -> Index:
    return ScanIndex(codec=codec, **parameters).fit(np.random.default_rng(1).normal(size=(64, D)))


def fitted_tenants(**parameters: Any) -> Index:
    return TenantIndex(nlist=8, **parameters).fit(np.random.default_rng(1).normal(size=(64, D)))


def fitted_ivf(**parameters: Any) -> Index:
    return IVFIndex(nlist=3, **parameters).fit(np.random.default_rng(1).normal(size=(64, D)))


def fitted_binary_ivf(nlist: int) -> Index:
    # of so few lists, all are visited
    return BinaryIVFIndex(nlist=nlist).fit(np.random.default_rng(1).integers(0, 256, (64, BYTES), np.uint8))


def fitted_graph(codec: Codec, **parameters: Any) -> Index:
    return GraphIndex(codec=codec, **parameters).fit(np.random.default_rng(1).normal(size=(64, D)))


CASES = [
    *(Case(f"flat-{m}-{t}", lambda m=m, t=t: FlatIndex(metric=m, dtype=t)) for m in ("ip", "cosine", "l2")
      for t in ("float32", "float16")),
    *(Case(f"hnsw-{m}", lambda m=m: HNSWIndex(metric=m), exact=False) for m in ("ip", "cosine", "l2")),
    *(Case(f"ivfpq-{m}", lambda m=m: fitted_ivfpq(m), exact=False) for m in ("ip", "cosine", "l2")),
    *(Case(f"scan-{m}-{r}", lambda m=m, r=r: ScanIndex(codec=Float32(), metric=m, rerank=r))
      for m in ("ip", "cosine", "l2") for r in (None, "float16", "float32")),
    *(Case(f"scan-{c.kind}-{m}", lambda m=m, c=c, r=r: fitted_scan(c, metric=m, rerank=r), exact=False)
      for m in ("ip", "cosine", "l2") for c, r in ((SQ(bits=4), "float32"), (LVQ(), "lvq8"), (RaBitQ(), None))),
    Case("eager", EagerIndex, sparse=True),
    *(Case(f"eager-{m}", lambda m=m: EagerIndex(weighting=BM25(method=m)), sparse=True) for m in METHODS),
    Case("eager-tfidf", lambda: EagerIndex(weighting=TFIDF()), sparse=True),
    Case("eager-float16", lambda: EagerIndex(precision="float16"), sparse=True),
    Case("eager-uint8", lambda: EagerIndex(precision="uint8"), sparse=True),
    Case("eager-lucene-float16", lambda: EagerIndex(weighting=BM25(), precision="float16"), sparse=True),
    Case("eager-bm25+-uint8", lambda: EagerIndex(weighting=BM25(method="bm25+"), precision="uint8"), sparse=True),
    Case("blockmax", BlockMaxIndex, sparse=True),
    Case("blockmax-uint8", lambda: BlockMaxIndex(precision="uint8", order="insertion"), sparse=True),
    Case("blockmax-bm25+", lambda: BlockMaxIndex(weighting=BM25(method="bm25+")), sparse=True),
    Case("seismic", SeismicIndex, sparse=True, exact=False),
    Case("seismic-all", lambda: SeismicIndex(neighbors=2, query_cut=1000, heap_factor=0), sparse=True),
    Case("seismic-uint8", lambda: SeismicIndex(block=3, precision="uint8", query_cut=1000, heap_factor=0), sparse=True),
    Case("hamming", HammingIndex, binary=True),
    *(Case(f"multi-index-hashing-{b}", lambda b=b: MultiIndexHashing(substring_bits=b), binary=True)
      for b in (None, 3, 10)),
    *(Case(f"two-stage-{m}-{r}", lambda m=m, r=r: TwoStageIndex(metric=m, rescore=r)) for m in ("ip", "cosine")
      for r in ("code", "float16")),
    Case("two-stage-fitted", fitted_two_stage, exact=False),
    *(Case(f"recurrent-binary-{m}-{levels}", lambda m=m, levels=levels: RecurrentBinaryIndex(metric=m, levels=levels))
      for m in ("ip", "cosine") for levels in (2, 4)),
    *(Case(f"tenants-{m}-{t}", lambda m=m, t=t: fitted_tenants(metric=m, dtype=t)) for m in ("ip", "cosine", "l2")
      for t in ("float32", "float16")),
    *(Case(f"ivf-{m}", lambda m=m: fitted_ivf(metric=m), exact=False) for m in ("ip", "cosine", "l2")),
    *(Case(f"ivf-{c.kind}-{m}", lambda m=m, c=c, r=r: fitted_ivf(codec=c, metric=m, rerank=r, nprobe=3), exact=e)
      for m in ("ip", "cosine", "l2") for c, r, e in ((Float32(), None, True), (LVQ(bits=4), "lvq8", False))),
    *(Case(f"graph-{c.kind}-{m}", lambda m=m, c=c, r=r: fitted_graph(c, metric=m, rerank=r), exact=False)
      for m in ("ip", "cosine", "l2")
      for c, r in ((SQ(), "float16"), (LVQ(bits=4), "lvq8"), (Chain(PCA(dimensions=8), LVQ()), None))),
    *(Case(f"binary-ivf-{nlist}", lambda nlist=nlist: fitted_binary_ivf(nlist), binary=True) for nlist in (1, 6)),
    *(Case(f"{i.kind}-{m}-{t}", lambda i=i, m=m, t=t: i(metric=m, dtype=t), exact=False, needs=i.kind)
      for i in (HnswlibIndex, UsearchIndex) for m, t in (("ip", "float16"), ("cosine", "float32"), ("l2", "float16"))),
    *(Case(f"svs-{m}", lambda m=m: SVSIndex(metric=m), exact=False, needs="svs") for m in ("ip", "cosine", "l2")),
]  # fmt: skip
INSTALLED = [case for case in CASES if case.needs is None or find_spec(case.needs)]
