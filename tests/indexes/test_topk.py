"""The top-k kernels against sorting."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes.kernels import topk

INF = float("inf")
ids = st.one_of(st.integers(0, 12), st.integers(2**53, 2**63 - 1))
# few different scores, so that most are equal
numbers = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, -INF, INF]), st.floats(width=32, allow_nan=False))
entries = st.lists(st.tuples(numbers, ids), max_size=30, unique_by=lambda entry: entry[1])
k_strategy = st.integers(1, 12)


def slow(found, k):
    """The k best of (score, id) pairs by sorting; an id of -1 is no document."""
    ranked = sorted((pair for pair in found if pair[1] >= 0), key=lambda pair: (-pair[0], pair[1]))[:k]
    return ranked + [(-INF, -1)] * (k - len(ranked))


def pairs(scores, labels):
    return list(zip(scores.tolist(), labels.tolist(), strict=True))


def arrays(found):
    return np.array([score for score, _ in found], np.float32), np.array([id for _, id in found], np.int64)


def ranked(push, found, k):
    """The ranking after `push(scores, ids, heap_scores, heap_ids)` of one query's entries."""
    scores, labels = arrays(found)
    heaps = topk.empty_heaps(1, k)
    push(scores, labels, *heaps)
    topk.sort_heaps(*heaps)
    return pairs(heaps[0][0], heaps[1][0])


def rows(scores, labels, heap_scores, heap_ids):
    topk.push_rows(scores[None], labels, heap_scores, heap_ids)


def lists(scores, labels, heap_scores, heap_ids):
    topk.push_lists(scores[None], labels[None], heap_scores, heap_ids)


def one_by_one(scores, labels, heap_scores, heap_ids):
    for score, label in zip(scores, labels, strict=True):
        topk.push_one(score, label, heap_scores[0], heap_ids[0])


@given(entries, k_strategy)
def test_the_best_in_order(found, k):
    for push in (rows, lists, one_by_one):
        assert ranked(push, found, k) == slow(found, k)


@given(entries, k_strategy, st.data())
def test_excluded_entries_are_never_kept(found, k, data):
    excluded = [(score, id if data.draw(st.booleans()) else -1) for score, id in found]
    for push in (rows, lists):
        assert ranked(push, excluded, k) == slow(excluded, k)


@given(entries, k_strategy, st.lists(st.integers(0, 30), max_size=4))
def test_several_pushes_merge_to_one(found, k, cuts):
    def in_parts(scores, labels, heap_scores, heap_ids):
        bounds = [0, *sorted(min(cut, len(found)) for cut in cuts), len(found)]
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            (rows, lists)[i % 2](scores[start:stop], labels[start:stop], heap_scores, heap_ids)

    assert ranked(in_parts, found, k) == slow(found, k)


@given(entries, k_strategy, st.randoms(use_true_random=False))
def test_the_order_of_pushing_does_not_matter(found, k, rng):
    shuffled = rng.sample(found, len(found))
    assert ranked(rows, shuffled, k) == ranked(rows, found, k)


@given(st.lists(entries, min_size=2, max_size=4), k_strategy)
def test_rankings_merge_as_their_union(parts, k):
    """Pushing rankings of k that were made apart (padding and all) gives the ranking of everything."""
    seen: set[int] = set()
    apart = []
    for part in parts:
        apart.append([pair for pair in part if pair[1] not in seen])
        seen |= {id for _, id in part}
    rankings = [arrays(slow(part, k)) for part in apart]
    heaps = topk.empty_heaps(1, k)
    for scores, labels in rankings:
        lists(scores, labels, *heaps)
    topk.sort_heaps(*heaps)
    assert pairs(heaps[0][0], heaps[1][0]) == slow([pair for part in apart for pair in part], k)


@settings(max_examples=30)
@given(st.integers(1, 5), st.integers(0, 40), k_strategy, st.integers(0, 2**32 - 1))
def test_each_query_has_its_own_heap(nq, n, k, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (nq, n)).astype(np.float32)
    labels = np.where(rng.random(n) < 0.2, -1, rng.permutation(n))
    heap_scores, heap_ids = topk.empty_heaps(nq, k)
    topk.push_rows(scores, labels, heap_scores, heap_ids)
    topk.sort_heaps(heap_scores, heap_ids)
    for query in range(nq):
        assert pairs(heap_scores[query], heap_ids[query]) == slow(pairs(scores[query], labels), k)


def test_empty_heaps():
    scores, labels = topk.empty_heaps(2, 3)
    assert scores.dtype == np.float32
    assert labels.dtype == np.int64
    assert (scores == -np.inf).all()
    assert (labels == -1).all()
    topk.sort_heaps(scores, labels)
    assert (labels == -1).all()
