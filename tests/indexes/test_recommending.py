"""`recommend` on vectors small enough to check every candidate by hand."""

from __future__ import annotations

import numpy as np
import pytest

from indexes import FlatIndex, recommend
from indexes.errors import InvalidParameter


def clustered(n: int, d: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((50, d))
    return (centres[rng.integers(0, 50, n)] + 0.6 * rng.standard_normal((n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    return recommend(clustered(2000), clustered(60, seed=1), n=50_000, recall=0.9, bytes_per_vector=60)


def test_the_choice_keeps_recall_and_bytes_when_it_is_built(small):
    vectors, queries = clustered(2000), clustered(60, seed=1)
    index = small.make()
    assert len(index) == 0
    if index.needs_fit:
        index.fit(vectors)
    index.add(vectors)
    assert index.describe()["bytes"] / len(vectors) <= 60
    exact = FlatIndex(metric="cosine").add(vectors).search(queries, 10).ids
    found = index.search(queries, 10).ids
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]) >= 0.88
    assert {name: getattr(index, name) for name in index.search_ladders} == small.chosen.knobs


def test_every_candidate_is_judged_and_explained(small):
    assert small.chosen.verdict == "recommended"
    assert small.chosen.recall >= 0.9 and small.chosen.bytes_per_vector <= 60
    told = small.explain()
    for one in small.candidates:
        assert one.name in told and one.verdict in told
        if one.bytes_per_vector > 60:
            assert one.verdict == "more than 60 bytes"
        elif "slow" in one.verdict:
            assert one.recall >= 0.9 and one.microseconds >= small.chosen.microseconds
    assert any("more than 60 bytes" in one.verdict for one in small.candidates)


def test_updates_leave_out_what_learns_from_a_sample():
    found = recommend(clustered(2000), clustered(40, seed=1), recall=0.9, bytes_per_vector=140, updates=True)
    assert found.n == 2000
    assert {one.name for one in found.candidates} == {"FlatIndex()", "FlatIndex(dtype='float16')", "HNSWIndex()"}


def test_bad_input_names_what_was_given():
    vectors, queries = clustered(2000), clustered(40, seed=1)
    with pytest.raises(InvalidParameter, match=r"vectors are \(100, 32\); give a sample of at least 2000"):
        recommend(vectors[:100], queries)
    with pytest.raises(InvalidParameter, match="queries are 5; give at least 20"):
        recommend(vectors, queries[:5])
    with pytest.raises(InvalidParameter, match="n is 0"):
        recommend(vectors, queries, n=0)
    with pytest.raises(InvalidParameter, match=r"recall 0.95 in 2 bytes is out of reach: FlatIndex\(\): more than 2"):
        recommend(vectors, queries, bytes_per_vector=2)
