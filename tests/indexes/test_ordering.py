"""Orders of documents: permutations, the same on any number of threads, and better than the order of insertion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import BlockMaxIndex, EagerIndex, build_on_disk
from indexes.errors import InvalidParameter
from indexes.sparse.ordering import ORDERS, arrange


def mixed(n: int, topics: int = 20, seed: int = 0) -> sparse.csr_matrix:
    """Rows of topics that have terms of their own, in a random order."""
    rng = np.random.default_rng(seed)
    terms = rng.integers(0, 10, (n, 6)) + 10 * rng.integers(0, topics, n)[:, None]
    made = sparse.csr_matrix((np.ones(6 * n), terms.ravel(), np.arange(0, 6 * n + 1, 6)), (n, 10 * topics))
    made.sum_duplicates()
    return made


def gap_bits(vectors: sparse.csr_matrix, rows: np.ndarray) -> float:
    """What the lists of all terms take when their gaps are stored in as many bits as their logarithms."""
    columns = vectors[rows].tocsc()
    lists = np.split(columns.indices, columns.indptr[1:-1])
    return sum(float(np.log2(1 + np.diff(some, prepend=-1)).sum()) for some in lists)


@pytest.mark.parametrize("order", ORDERS)
def test_a_permutation_whatever_the_threads(order):
    vectors = mixed(1000)
    rows = arrange(vectors, order)
    np.testing.assert_array_equal(np.sort(rows), np.arange(1000))
    for threads in (2, 5):
        np.testing.assert_array_equal(arrange(vectors, order, threads), rows)


def test_gaps_shrink_from_insertion_to_bisection_to_graph():
    vectors = mixed(2000)
    bits = [gap_bits(vectors, arrange(vectors, order)) for order in ("insertion", "bisection", "graph")]
    assert bits[2] < 0.97 * bits[1] < 0.9 * bits[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 70), st.integers(0, 1000), st.sampled_from(ORDERS))
def test_any_order_answers_exactly(n, seed, order):
    vectors = sparse.random(n, 30, 0.2, "csr", np.float32, np.random.default_rng(seed))
    queries = sparse.random(3, 30, 0.3, "csr", np.float32, np.random.default_rng(seed + 1))
    ours, exact = (index.add(vectors).search(queries, 5) for index in (BlockMaxIndex(order=order), EagerIndex()))
    np.testing.assert_array_equal(ours.ids, exact.ids)
    np.testing.assert_array_equal(ours.scores, exact.scores)


def test_an_order_that_does_not_exist_and_one_that_needs_memory(tmp_path):
    with pytest.raises(InvalidParameter, match="order is 'url'; it must be one of bisection, graph, insertion"):
        BlockMaxIndex(order="url")
    with pytest.raises(InvalidParameter, match="needs all postings in memory"):
        build_on_disk(BlockMaxIndex(order="graph"), [mixed(10)], tmp_path / "i")
