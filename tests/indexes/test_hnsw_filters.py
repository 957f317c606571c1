"""HNSWIndex under filters: through the graph, or by a scan of the allowed rows, whichever takes less time."""

from __future__ import annotations

import numpy as np
import pytest

from indexes import FlatIndex, HNSWIndex
from indexes.dense import hnsw

N, D = 3000, 16


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)


@pytest.fixture(scope="module", params=["ip", "cosine", "l2"])
def index(request) -> HNSWIndex:
    return HNSWIndex(metric=request.param, M=8, ef_construction=60).add(vectors(N), np.arange(N)[::-1] * 2)


def allowed(share: float, kind: str) -> np.ndarray:
    """Rows at random, or those on one side."""
    order = np.random.default_rng(1).permutation(N) if kind == "random" else np.argsort(vectors(N)[:, 0])
    allow = np.zeros(N, bool)
    allow[order[: int(share * N)]] = True
    return allow


@pytest.mark.parametrize("kind", ["random", "side"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_the_graph_finds_what_is_allowed(index, share, kind, monkeypatch):
    monkeypatch.setattr(hnsw, "EFFORT", 0)
    allow, queries = allowed(share, kind), vectors(30, seed=2)
    right = FlatIndex(metric=index.metric).add(vectors(N), index.ids).search(queries, 10, allow=allow).ids
    found = index.search(queries, 10, allow=allow).ids
    assert np.isin(found, index.ids[allow]).all()
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, right, strict=True)]) > 0.95


@pytest.mark.parametrize("nq", [1, 4, 5, 300])
def test_the_scan_is_exact(index, nq, monkeypatch):
    monkeypatch.setattr(hnsw, "EFFORT", 10**9)
    monkeypatch.setattr(hnsw, "SCANNED", 100)
    queries = vectors(nq, seed=2)
    for allow in (allowed(0.5, "random"), allowed(0.001, "side"), np.ones(N, bool)):
        expected = FlatIndex(metric=index.metric).add(vectors(N), index.ids).search(queries, 10, allow=allow)
        hits = index.search(queries, 10, allow=allow)
        np.testing.assert_array_equal(hits.ids, expected.ids)
        np.testing.assert_allclose(hits.scores, expected.scores, rtol=1e-4, atol=1e-4)


def test_few_rows_are_scanned_and_many_are_not(index, monkeypatch):
    walks = []
    walk = index._search_slots
    monkeypatch.setattr(index, "_search_slots", lambda *given, **named: walks.append(1) or walk(*given, **named))
    for share, ef_search, walked in ((0.2, 10, False), (0.5, 10, True), (0.5, 100, False), (0.99, 100, False),
                                     (0.99, 10, True), (0.05, 1, False)):  # fmt: skip
        walks.clear()
        index.search(vectors(1, seed=2), 10, allow=allowed(share, "random"), ef_search=ef_search)
        assert bool(walks) == walked, (share, ef_search)
    index.search(vectors(1), 10)
    assert walks
