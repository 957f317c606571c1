"""The block-max index against exhaustive scoring, on data made to break bounds, ties and bookkeeping."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import BM25, TFIDF, BlockMaxIndex, EagerIndex, load
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors
from indexes.kernels.blockmax_bounds import GROUP, SUPER
from indexes.kernels.blockmax_build import block_at
from indexes.kernels.blockmax_score import BLOCK
from indexes.sparse.ordering import bisection
from indexes.sparse.weighting import METHODS

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

# weights: few small ones (many equal scores), any, one that dwarfs the others, ones whose products leave float32
WEIGHTS = st.one_of(
    st.sampled_from([1.0, 2.0]),
    st.floats(0.0625, 10, width=32),
    st.sampled_from([1e30, 1e-30, 1e-44]),
    st.just(0.0),
)


@st.composite
def matrices(draw, least=0, most=70, width=12):
    """CSR with empty rows, duplicates of rows, and a term that is everywhere or nowhere."""
    some = draw(st.lists(st.lists(WEIGHTS, min_size=width, max_size=width), min_size=1, max_size=8))
    picks = draw(st.lists(st.integers(0, len(some) - 1), min_size=(n := draw(st.integers(least, most))), max_size=n))
    dense = np.array([some[i] for i in picks], np.float32).reshape(n, width)
    dense[:, 0] = draw(st.sampled_from([0.0, 1.0]))
    return sparse.csr_matrix(dense)


def exhaustive(vectors, queries, k, allow=None):
    """The definition: float32 sums in the order of the terms, of rows that share one; ties to the smaller row."""
    ids, scores = np.full((queries.shape[0], k), -1), np.full((queries.shape[0], k), -np.inf, np.float32)
    documents = vectors.toarray()
    for q, query in enumerate(queries.toarray()):
        found = []
        for row, document in enumerate(documents):
            shared = np.flatnonzero((query > 0) & (document > 0))
            if len(shared) and (allow is None or allow[row]):
                total = np.float32(0)
                for term in shared:
                    with np.errstate(over="ignore", under="ignore"):
                        total += query[term] * document[term]
                found.append((-total, row))
        for place, (score, row) in enumerate(sorted(found)[:k]):
            ids[q, place], scores[q, place] = row, -score
    return scores, ids


def rounded(vectors):
    """What precision="uint8" stores: bytes of at least 1, in 255ths of each row's highest weight."""
    out = sparse.csr_matrix(vectors, dtype=np.float32, copy=True)
    out.eliminate_zeros()
    for start, stop in zip(out.indptr[:-1], out.indptr[1:], strict=True):
        if start < stop:
            scale = max(np.float32(out.data[start:stop].max() / np.float32(255)), np.float32(1.2e-38))
            out.data[start:stop] = np.clip(np.rint(out.data[start:stop] / scale), 1, 255) * scale
    return out


def clustered(n, V=400, seed=0, clusters=40):
    """Rows that resemble one of some centres: blocks of similar ones have tight bounds."""
    rng = np.random.default_rng(seed)
    centres = rng.gamma(0.5, 1, (clusters, V)) * (rng.random((clusters, V)) < 0.06)
    dense = centres[rng.integers(0, clusters, n)] * rng.lognormal(0, 0.3, (n, V)) * (rng.random((n, V)) < 0.9)
    return sparse.csr_matrix(dense + (rng.random((n, V)) < 0.002), dtype=np.float32)


def assert_same(hits, scores, ids):
    np.testing.assert_array_equal(hits.ids, ids)
    np.testing.assert_array_equal(hits.scores, scores)


def assert_twins(index, exact, queries, k, **kwargs):
    ours, theirs = index.search(queries, k, **kwargs), exact.search(queries, k, **kwargs)
    assert_same(ours, theirs.scores, theirs.ids)


@settings(max_examples=60, deadline=None)
@given(matrices(), matrices(1, 3), st.integers(1, 12), st.booleans(), st.data())
def test_exact_on_adversarial_data(vectors, queries, k, narrow, data):
    allow = None
    if data.draw(st.booleans()):
        allow = np.array(data.draw(st.lists(st.booleans(), min_size=(n := vectors.shape[0]), max_size=n)), bool)
    precision, stored = ("uint8", rounded(vectors)) if narrow else ("float32", vectors)
    index = BlockMaxIndex(precision=precision).add(vectors)
    assert_same(index.search(queries, k, allow=allow), *exhaustive(stored, queries, k, allow))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0, 1)), min_size=1, max_size=5), st.sampled_from([None, BM25()])
)
def test_any_sequence_of_changes_equals_a_rebuild(steps, weighting):
    rng = np.random.default_rng(len(steps))
    index, kept = BlockMaxIndex(weighting=weighting), []
    queries = sparse.csr_matrix(rng.integers(0, 3, (3, 30)))
    for step, (count, removed) in enumerate(steps):
        rows = sparse.csr_matrix(rng.integers(0, 3, (count, 20 + 2 * step)))
        ids = np.arange(count) + 100 * step
        index.add(rows, ids)
        kept += list(zip(ids, rows, strict=True))
        if step % 2:
            index.search(queries)
        gone = {id for id, _ in kept if rng.random() < removed}
        assert index.remove(list(gone)) == len(gone)
        kept = [(id, row) for id, row in kept if id not in gone]
    rebuilt = EagerIndex(weighting=weighting)
    for id, row in kept:
        rebuilt.add(row, [id])
    assert_twins(index, rebuilt, queries, 10)
    assert_twins(index, rebuilt, queries, 10, allow=rng.random(len(index)) < 0.5)


@pytest.mark.parametrize("weighting", [None, TFIDF(), *(BM25(method=method) for method in METHODS)], ids=str)
def test_twin_of_the_eager_index(weighting):
    counts = clustered(3000)
    counts.data = np.ceil(counts.data)
    queries = clustered(20, seed=1)
    index, exact = BlockMaxIndex(weighting=weighting).add(counts), EagerIndex(weighting=weighting).add(counts)
    for k in (1, 10, 1000, 3000):
        assert_twins(index, exact, queries, k)
    for share in (0.001, 0.1, 0.9):
        assert_twins(index, exact, queries, 10, allow=np.random.default_rng(2).random(3000) < share)


def test_most_blocks_are_never_looked_at():
    index, queries = BlockMaxIndex().add(clustered(20000, clusters=400)), clustered(20, seed=1, clusters=400)
    index.search(queries, threads=1)
    (segment,) = index._segments
    opened, scored = segment.take_workspace().work[1:3] / 20
    assert scored < 0.2 * 20000 / BLOCK
    assert opened < 0.5 * 20000 / (BLOCK * SUPER)


def test_blocks_behind_the_last_row_are_not_looked_at():
    vectors, queries = clustered(70), clustered(20, seed=1)
    queries.data[::3] *= 50  # the other terms are light: they are bounded by group, and lift all of its blocks
    index = BlockMaxIndex().add(vectors)
    hits = index.search(queries, 70, threads=1)
    assert_same(hits, *exhaustive(vectors, queries, 70))
    assert index._segments[0].take_workspace().work[2] <= 20 * -(-70 // BLOCK)


@pytest.mark.parametrize("V", [1, 300, 200_000])
def test_long_queries_and_one_term_queries(V):
    rng = np.random.default_rng(0)
    vectors = sparse.random(600, V, min(1.0, 200 / V), "csr", np.float32, rng)
    index, exact = BlockMaxIndex().add(vectors), EagerIndex().add(vectors)
    everything = sparse.csr_matrix(rng.random((2, V)), dtype=np.float32)
    assert_twins(index, exact, everything, 10)
    assert_twins(index, exact, sparse.csr_matrix(np.eye(5, V), dtype=np.float32), 10)


def test_more_terms_than_two_bytes_number():
    index = BlockMaxIndex().add(vectors := sparse.random(500, 90_000, 0.005, "csr", np.float32, 1))
    assert len(np.unique(vectors.indices)) > 1 << 16
    assert_twins(index, EagerIndex().add(vectors), vectors[:5], 10)


def test_gaps_longer_than_two_bytes_hold():
    n = BLOCK * (1 << 17) + 100
    rows, terms = np.r_[0, np.arange(n), n - 1], np.r_[1, np.zeros(n, int), 1]
    index = BlockMaxIndex(order="insertion").add(sparse.csr_matrix((np.ones(n + 2), (rows, terms)), (n, 2)))
    hits = index.search(sparse.csr_matrix([[0.0, 1.0]]), 3)
    np.testing.assert_array_equal(hits.ids, [[0, n - 1, -1]])


def test_approximation_returns_true_scores_of_fewer_blocks():
    vectors, queries = clustered(5000), clustered(10, seed=1)
    index, full = BlockMaxIndex().add(vectors), (vectors @ queries.T).toarray()

    def blocks(**knobs):
        (segment,) = index._segments or [None]
        if segment:
            segment._free.clear()
        hits = index.search(queries, 10, threads=1, **knobs)
        for q, row in enumerate(hits):
            assert all(score == pytest.approx(full[id, q], rel=1e-5) for id, score in row)
        return index._segments[0].take_workspace().work[2], hits

    exact, best = blocks()
    for knobs in ({"alpha": 0.5}, {"budget": 3}, {"query_cut": 2, "alpha": 0.9}):
        assert blocks(**knobs)[0] < exact
    assert blocks(budget=3)[0] <= 3 * 10
    for knobs in ({"alpha": 1.0}, {"budget": 5000}, {"query_cut": 400}):
        assert_same(blocks(**knobs)[1], best.scores, best.ids)


def test_maxima_bound_every_weight():
    vectors = clustered(700)
    index = BlockMaxIndex().add(vectors)
    index.search(vectors[:1])
    (segment,) = index._segments
    arrays, dense = segment.arrays, vectors.toarray()[segment.rows]
    for term in np.flatnonzero(arrays.ranks >= 0):
        rank, rows = arrays.ranks[term], len(arrays.block_rows)
        maxima = np.zeros(arrays.block_rows.shape[1])
        if rank < rows:
            maxima[:] = arrays.block_rows[rank]
            np.testing.assert_array_equal(arrays.super_rows[rank], maxima.reshape(-1, SUPER).max(1))
        else:
            part = slice(*arrays.list_starts[rank - rows : rank - rows + 2])
            places = np.cumsum(arrays.list_gaps[part].astype(int))
            maxima[[block_at(place) for place in places]] = arrays.list_maxima[part]
        if rank < len(arrays.group_rows):
            np.testing.assert_array_equal(arrays.group_rows[rank], maxima.reshape(-1, SUPER * GROUP).max(1))
        column = np.zeros(BLOCK * len(maxima), np.float32)
        column[:700] = dense[:, term]
        highest = column.reshape(-1, BLOCK).max(1)
        bound = maxima * np.float64(arrays.scales[rank])
        assert (bound >= highest).all()
        assert (bound <= highest + 1.01 * arrays.scales[rank]).all()
        np.testing.assert_array_equal(maxima > 0, highest > 0)


def test_threads_and_batches_do_not_matter():
    index, queries = BlockMaxIndex().add(clustered(3000)), clustered(30, seed=1)
    expected = index.search(queries, 10, threads=1)
    for threads in (2, 5):
        hits = index.search(queries, 10, threads=threads)
        assert_same(hits, expected.scores, expected.ids)
    for q in range(30):
        assert_same(index.search(queries[q], 10), expected.scores[q : q + 1], expected.ids[q : q + 1])


@pytest.mark.parametrize("mmap", [True, False])
def test_save_and_load_with_removed_rows_and_segments(tmp_path, mmap):
    index, queries = BlockMaxIndex(precision="uint8", alpha=0.95).add(clustered(2000)), clustered(10, seed=1)
    index.search(queries)
    index.add(clustered(100, seed=3))
    index.remove(np.arange(0, 900, 2))
    expected = index.search(queries)
    assert len(index._segments) == 2
    index.save(tmp_path / "index")
    again = load(tmp_path / "index", mmap)
    assert_same(again.search(queries), expected.scores, expected.ids)
    assert again.describe() == index.describe()
    again.add(clustered(5, seed=4)).remove([1999])
    assert len(again.search(queries, 5).ids) == 10


def test_segments_stay_few():
    index = BlockMaxIndex()
    for step in range(40):
        index.add(clustered(10, seed=step)).search(clustered(1))
    sizes = sorted(index.describe()["segments"], reverse=True)
    assert sum(sizes) == 400
    assert all(a >= 2 * b for a, b in pairwise(sizes))


def test_bisection_is_a_permutation_that_keeps_clusters_together():
    vectors = clustered(1000, clusters=4)
    order = bisection(vectors)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    np.testing.assert_array_equal(order, bisection(vectors, threads=2))
    unit = sparse.diags(1 / np.sqrt(vectors.multiply(vectors).sum(1).A1)) @ vectors
    likeness = (unit @ unit.T).toarray()
    assert likeness[order[:-1], order[1:]].mean() > 2 * likeness.mean()


@pytest.mark.parametrize("name, value", [("precision", "float16"), ("order", "random"), ("alpha", 0), ("alpha", 1.5),
                                         ("query_cut", -1), ("budget", 0.5)])  # fmt: skip
def test_bad_parameters_are_named(name, value):
    with pytest.raises(InvalidParameter, match=name):
        BlockMaxIndex(**{name: value})


def test_negative_weights_are_refused():
    with pytest.raises(InvalidVectors, match="negative"):
        BlockMaxIndex().add(sparse.csr_matrix([[1.0, -2.0]]))


@pytest.mark.skipif(not SHARED.exists(), reason="the shared SPLADE vectors are not here")
def test_splade_vectors_of_nfcorpus():
    vocabulary: dict[str, int] = {}

    def read(name):
        with gzip.open(SHARED / "splade-v3-nfcorpus" / name, "rt", encoding="utf8") as lines:
            vectors = [json.loads(line)["vector"] for line in lines]
        terms = [[vocabulary.setdefault(term, len(vocabulary)) for term in vector] for vector in vectors]
        starts = np.cumsum([0, *map(len, terms)])
        return sparse.csr_matrix((np.array([w for v in vectors for w in v.values()]), np.concatenate(terms), starts))

    vectors = read("nfcorpus.splade-v3.docs.jsonl.gz")
    queries = read("nfcorpus.test.splade_distil_cocodenser_medium.queries.jsonl.gz")
    index, exact = BlockMaxIndex().add(vectors), EagerIndex().add(vectors)
    for k in (10, 100, 1000):
        assert_twins(index, exact, queries, k)


def test_a_segment_of_another_layout_is_refused(tmp_path):
    index = BlockMaxIndex().add(clustered(500))
    index.search(clustered(1))
    (segment,) = index._segments
    segment.arrays = segment.arrays._replace(super_rows=np.repeat(segment.arrays.super_rows, 2, axis=1))
    index.save(tmp_path / "odd")
    with pytest.raises(CorruptIndex, match="earlier release"):
        load(tmp_path / "odd")


def test_rare_terms_leave_nothing_behind():
    vectors = sparse.vstack([clustered(20_000), clustered(64, seed=2)], "csr")
    ours, exact = BlockMaxIndex().add(vectors), EagerIndex().add(vectors)
    df = np.bincount(vectors.indices, minlength=vectors.shape[1])
    rare = np.argsort(np.where(df, df, len(df)))[:40]
    queries = sparse.vstack([sparse.eye(vectors.shape[1], format="csr")[rare], clustered(5, seed=3)], "csr")
    for order in (slice(None), slice(None, None, -1)):
        assert_twins(ours, exact, queries[order], 10)


@pytest.mark.parametrize("terms", [300, 40_000])
def test_sums_that_leave_sixteen_bits_stay_bounds(terms):
    rng = np.random.default_rng(0)
    vectors = sparse.vstack([sparse.random(300, terms, 0.02, "csr", np.float32, rng), np.ones((2, terms))], "csr")
    queries = sparse.csr_matrix(np.stack([np.ones(terms), 10.0 ** rng.uniform(-20, 20, terms)]), dtype=np.float32)
    assert_twins(BlockMaxIndex().add(vectors), EagerIndex().add(vectors), queries, 20)
