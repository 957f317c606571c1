"""The indexes that the conformance suite runs over. A new kind of index joins by one line in `CASES`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from indexes import BM25, TFIDF, EagerIndex, FlatIndex, HNSWIndex, Index, IVFPQIndex, SeismicIndex
from indexes.sparse.weighting import METHODS

# read when faiss is first imported: on a busy machine its threads would spend the time waiting for each other
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

D, V = 16, 60  # width of the dense and of the sparse vectors


@dataclass(frozen=True)
class Case:
    """A kind of index with its settings. `make`: a new one, empty and ready for `add`."""

    name: str
    make: Callable[[], Index]
    sparse: bool = False
    exact: bool = True  # whether it returns the very best, also among equals

    def vectors(self, n: int, seed: int = 0) -> Any:
        """n vectors whose scores are exact in float32: entries +-1 of D dense ones, small counts of V terms.

        Term 0 is in every sparse vector, so that each answers each query. Many scores are equal.
        """
        rng = np.random.default_rng(seed)
        if not self.sparse:
            return rng.choice([-1, 1], (n, D)).astype(np.float32)
        counts = rng.integers(1, 5, (n, V)) * (rng.random((n, V)) < 0.15)
        counts[:, 0] = 1
        return sparse.csr_matrix(counts, dtype=np.float32)

    def random(self, n: int, seed: int = 0) -> Any:
        """n vectors of random numbers: hardly any scores are equal."""
        rng = np.random.default_rng(seed)
        if not self.sparse:
            return rng.normal(size=(n, D)).astype(np.float32)
        weights = rng.random((n, V)) * (rng.random((n, V)) < 0.15)
        weights[:, 0] = rng.random(n) + 0.1
        return sparse.csr_matrix(weights, dtype=np.float32)


def fitted_ivfpq(metric: str) -> Index:
    # few training vectors: codes of 6 bits, fitted in 0.03 s
    return IVFPQIndex(metric=metric, bytes=4, nlist=3).fit(np.random.default_rng(1).normal(size=(64, D)))


CASES = [
    *(Case(f"flat-{m}-{t}", lambda m=m, t=t: FlatIndex(metric=m, dtype=t)) for m in ("ip", "cosine", "l2")
      for t in ("float32", "float16")),
    *(Case(f"hnsw-{m}", lambda m=m: HNSWIndex(metric=m), exact=False) for m in ("ip", "cosine", "l2")),
    *(Case(f"ivfpq-{m}", lambda m=m: fitted_ivfpq(m), exact=False) for m in ("ip", "cosine", "l2")),
    Case("eager", EagerIndex, sparse=True),
    *(Case(f"eager-{m}", lambda m=m: EagerIndex(weighting=BM25(method=m)), sparse=True) for m in METHODS),
    Case("eager-tfidf", lambda: EagerIndex(weighting=TFIDF()), sparse=True),
    Case("seismic", SeismicIndex, sparse=True, exact=False),
    Case("seismic-all", lambda: SeismicIndex(neighbors=2, query_cut=1000, heap_factor=0), sparse=True),
    Case("seismic-uint8", lambda: SeismicIndex(block=3, precision="uint8", query_cut=1000, heap_factor=0), sparse=True),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pulls the plug, so none needs fsync, which takes most of the time of a small save."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
