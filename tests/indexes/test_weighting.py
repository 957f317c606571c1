"""The scores of the eager matrix against each formula written out in plain Python."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import BM25, TFIDF, EagerIndex, load
from indexes.errors import InvalidParameter
from indexes.sparse.eager import PRECISIONS
from indexes.sparse.weighting import METHODS, Statistics, from_settings, relative_lengths

WEIGHTINGS = [*(BM25(method=m) for m in METHODS), TFIDF()]
weighting_cases = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: getattr(w, "method", "tfidf"))

Documents = list[dict[int, float]]  # term -> count


def slow_scores(documents: Documents, query: dict[int, float], weighting) -> list[float]:
    """The score of every document, also of those without any of the terms."""
    n = len(documents)
    mean = sum(sum(document.values()) for document in documents) / n
    scores = [0.0] * n
    for term, weight in query.items():
        df = sum(term in document for document in documents)
        if not df:
            continue
        for i, document in enumerate(documents):
            tf, length = document.get(term, 0), sum(document.values())
            if isinstance(weighting, TFIDF):
                scores[i] += weight * tf * math.log(n / df)
                continue
            k1, b = weighting.k1, weighting.b
            B = 1 - b + b * length / mean
            saturated = tf / (k1 * B + tf) if tf else 0.0  # its limit, where k1 or B is 0
            match weighting.method:
                case "robertson":
                    score = math.log((n - df + 0.5) / (df + 0.5)) * saturated
                case "lucene":
                    score = math.log(1 + (n - df + 0.5) / (df + 0.5)) * saturated
                case "atire":
                    score = math.log(n / df) * (k1 + 1) * saturated
                case "bm25l":
                    shifted = (tf / B if tf else 0.0) + (0.5 if weighting.delta is None else weighting.delta)
                    part = shifted / (k1 + shifted) if shifted else 0.0
                    score = math.log((n + 1) / (df + 0.5)) * (k1 + 1) * part
                case "bm25+":
                    delta = 1.0 if weighting.delta is None else weighting.delta
                    score = math.log((n + 1) / df) * ((k1 + 1) * saturated + delta)
            scores[i] += weight * score
    return scores


def matrix(documents: Documents, V: int = 12) -> sparse.csr_matrix:
    out = np.zeros((len(documents), V), np.float32)
    for row, document in enumerate(documents):
        for term, count in document.items():
            out[row, term] = count
    return sparse.csr_matrix(out)


def check(documents: Documents, query: dict[int, float], weighting) -> dict[int, float]:
    """Search agrees with the formula for each document that shares a term; returns what was found."""
    index = EagerIndex(weighting=weighting).add(matrix(documents))
    hits = index.search(matrix([query]), len(documents) + 1)
    found = dict(next(iter(hits)))
    expected = slow_scores(documents, query, weighting)
    sharing = {i for i, document in enumerate(documents) if set(document) & set(query)}
    assert set(found) == sharing
    assert found == pytest.approx({i: expected[i] for i in sharing}, rel=1e-5, abs=1e-5)
    assert list(hits.scores[0]) == sorted(hits.scores[0], reverse=True)
    return found


def random_documents(n: int, seed: int) -> Documents:
    rng = np.random.default_rng(seed)
    draws = [rng.zipf(1.5, rng.integers(0, 30)) % 12 for _ in range(n)]
    return [{int(t): int(c) for t, c in zip(*np.unique(draw, return_counts=True), strict=True)} for draw in draws]


@weighting_cases
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_formula(weighting, seed):
    documents = random_documents(40, seed)
    for query in ({1: 1}, {1: 1, 2: 1, 7: 1}, {term: 1 for term in range(12)}):
        check(documents, query, weighting)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k1, b, delta", [(0, 0.5, 0.7), (1.2, 0, 0.0), (2.5, 1, 3.0), (0.9, 0.4, None), (0, 1, 0.0)])
def test_agrees_with_the_formula_at_other_parameters(method, k1, b, delta):
    check(random_documents(25, 9), {1: 1, 3: 1, 4: 2}, BM25(method=method, k1=k1, b=b, delta=delta))


@weighting_cases
def test_a_term_in_every_document(weighting):
    documents = [{0: 1, 1: 2}, {0: 3}, {0: 1, 2: 5}, {0: 2}]
    found = check(documents, {0: 1}, weighting)
    assert len(found) == 4
    if getattr(weighting, "method", "") == "robertson":
        assert max(found.values()) < 0
    check(documents, {0: 1, 1: 1}, weighting)


@weighting_cases
def test_one_document(weighting):
    check([{3: 2}], {3: 1}, weighting)


@weighting_cases
def test_empty_documents_count_but_are_never_found(weighting):
    documents = [{}, {1: 1, 2: 1}, {}, {1: 4}, {}]
    assert set(check(documents, {1: 1}, weighting)) == {1, 3}
    index = EagerIndex(weighting=weighting).add(matrix([{}, {}, {}]))
    assert list(index.search(matrix([{1: 1}]), 3)) == [[]]


@weighting_cases
def test_unknown_terms_of_the_query_change_nothing(weighting):
    index = EagerIndex(weighting=weighting).add(matrix([{0: 1, 2: 1}, {0: 2}, {2: 3}], V=4))  # nobody has 1 or 3
    known = index.search(matrix([{0: 1}], V=4), 3)
    for query in (matrix([{0: 1, 1: 1, 3: 2}], V=4), matrix([{0: 1, 3: 1, 9: 1}], V=10), matrix([{0: 1}], V=1)):
        hits = index.search(query, 3)
        np.testing.assert_array_equal(hits.ids, known.ids)
        np.testing.assert_array_equal(hits.scores, known.scores)
    assert list(index.search(matrix([{1: 1, 9: 1}], V=10), 3)) == [[]]


@weighting_cases
def test_weights_and_repeated_terms_of_the_query(weighting):
    documents = random_documents(20, 3)
    check(documents, {1: 2, 2: 1}, weighting)
    check(documents, {1: 0.25, 2: 1.75}, weighting)
    index = EagerIndex(weighting=weighting).add(matrix(documents))
    twice = sparse.csr_matrix((np.ones(3), [1, 2, 1], [0, 3]), (1, 12))  # not summed up by the caller
    one, other = index.search(twice, 20), index.search(matrix([{1: 2, 2: 1}]), 20)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


@weighting_cases
def test_counts_that_are_not_whole(weighting):
    rng = np.random.default_rng(4)
    documents = [{int(t): float(np.float32(rng.random() * 5)) for t in rng.permutation(12)[:4]} for _ in range(20)]
    check(documents, {1: 1, 2: 0.5}, weighting)


@weighting_cases
@pytest.mark.parametrize("largest", [255, 256, 65_535, 65_536, 10**6])
def test_large_counts_survive_saving(weighting, largest, tmp_path):
    documents = [{1: largest, 2: 1}, {1: 3}, {2: 5, 3: 1}]
    check(documents, {1: 1, 2: 1}, weighting)
    index = EagerIndex(weighting=weighting).add(matrix(documents))
    index.save(tmp_path)
    width = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    assert load(tmp_path).describe()["bytes_per_part"]["counts"] == 5 * width
    counts = load(tmp_path).counts()
    assert counts.dtype == np.float32
    assert abs(counts - matrix(documents)).max() == 0
    assert abs(index.counts() - matrix(documents)).max() == 0


def test_without_weighting_scores_are_inner_products():
    rng = np.random.default_rng(5)
    vectors, queries = (sparse.random(n, 40, 0.2, rng=rng, format="csr") for n in (50, 6))
    hits = EagerIndex().add(vectors).search(queries, 50)
    expected = (queries @ vectors.T).toarray()
    for row, truth in zip(hits, expected, strict=True):
        assert dict(row) == pytest.approx({i: s for i, s in enumerate(truth) if s > 0}, rel=1e-5)


documents_strategy = st.lists(st.dictionaries(st.integers(0, 7), st.integers(1, 300), max_size=5), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), documents_strategy),
        st.tuples(st.just("remove"), st.lists(st.integers(0, 12), max_size=4)),
        st.tuples(st.just("save"), st.booleans()),
        st.tuples(st.just("search"), st.none()),
    ),
    min_size=1, max_size=7,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([None, *WEIGHTINGS]), st.sampled_from(list(PRECISIONS)), steps, st.sampled_from([1, 0.37]))
def test_any_history_equals_a_rebuild(weighting, precision, history, scale):
    """Scores to the bit, whatever was added, removed, saved and loaded before."""
    index, kept, following = EagerIndex(weighting=weighting, precision=precision), {}, 0
    query = matrix([{0: 1, 1: 0.3, 2: 2}, {term: 1 for term in range(8)}, {5: 1, 7: 1}], V=9)
    for step, value in history:
        if step == "add":
            scaled = [{term: count * scale for term, count in document.items()} for document in value]
            ids = np.arange(following, following + len(scaled))
            # as wide as needed, so that V grows on the way
            index.add(matrix(scaled, V=1 + max((t for d in scaled for t in d), default=0)), ids)
            kept |= dict(zip(ids.tolist(), scaled, strict=True))
            following += len(scaled)
        elif step == "remove":
            assert index.remove(value) == len(set(value) & set(kept))
            kept = {id: document for id, document in kept.items() if id not in value}
        elif step == "save":
            with tempfile.TemporaryDirectory() as folder:
                index.save(folder)
                index = load(folder, mmap=value)
        else:
            index.search(query, 3)
    assert index.ids.tolist() == list(kept)
    fresh = EagerIndex(weighting=weighting, precision=precision)
    if kept:
        fresh.add(matrix(list(kept.values()), V=8), list(kept))
    one, other = index.search(query, 20), fresh.search(query, 20)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize(
    "wrong",
    [{"method": "bm26"}, {"k1": -1}, {"k1": math.nan}, {"b": 1.1}, {"b": -0.1}, {"b": math.nan}, {"delta": -1},
     {"delta": math.inf}],
    ids=str,
)  # fmt: skip
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidParameter, match=f"{next(iter(wrong))} is"):
        BM25(**wrong)


def test_settings_make_the_same_weighting():
    total = Statistics(9, np.array([0, 9, 3]), 40.5)
    for weighting in (*WEIGHTINGS, BM25(method="bm25l", k1=1.5, b=0.1, delta=0.3), BM25(statistics=total),
                      TFIDF(statistics=total)):  # fmt: skip
        assert from_settings(json.loads(json.dumps(weighting.settings()))) == weighting
    assert BM25(statistics=total) != BM25()
    for wrong in ({}, {"name": "bm26"}, {"name": "tfidf", "k1": 1}):
        with pytest.raises(InvalidParameter):
            from_settings(wrong)


def test_relative_lengths():
    def relative(*lengths):
        of = Statistics(len(lengths), np.empty(0), sum(lengths))
        return relative_lengths(np.array(lengths, np.float32), of)

    assert relative(1, 3).tolist() == [0.5, 1.5]
    assert relative(0, 0).tolist() == [1, 1]
    assert relative().tolist() == []
    assert relative(1, 3).dtype == np.float64
    assert relative_lengths(np.array([3], np.float32), Statistics(2, [1], 12)).tolist() == [0.5]


# -- statistics over shards --------------------------------------------------------------------------------------------


def shards(seed: int) -> tuple[sparse.csr_matrix, list[sparse.csr_matrix]]:
    """All counts, and the same cut in three, each only as wide as its own terms."""
    counts = matrix(random_documents(60, seed), V=12)
    parts = [counts[:25], counts[25:26], counts[26:]]
    return counts, [part[:, : part.indices.max(initial=-1) + 1] for part in parts]


@weighting_cases
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_shards_with_shared_statistics_score_as_one_index(weighting, precision, tmp_path):
    counts, parts = shards(1)
    statistics = Statistics.of(parts[0]) + Statistics.of(parts[1]) + Statistics.of(parts[2])
    assert statistics == Statistics.of(counts)
    whole = EagerIndex(weighting=weighting, precision=precision).add(counts)
    found: list[dict[int, float]] = [{} for _ in range(13)]
    queries = sparse.csr_matrix(np.vstack([np.eye(12), np.random.default_rng(0).random(12)]), dtype=np.float32)
    first = 0
    for number, part in enumerate(parts):
        shard = EagerIndex(weighting=replace(weighting, statistics=statistics), precision=precision)
        shard.add(part, np.arange(first, first + part.shape[0])).save(tmp_path / str(number))
        for index in (shard, load(tmp_path / str(number))):
            for query, hits in enumerate(index.search(queries, 60)):
                found[query] |= dict(hits)
        first += part.shape[0]
    assert found == [dict(hits) for hits in whole.search(queries, 60)]
    assert any(found)


def test_statistics_share_an_order_that_own_ones_would_not_give():
    counts, (one, _, _) = shards(2)
    own, shared = (EagerIndex(weighting=BM25(statistics=s)).add(one) for s in (None, Statistics.of(counts)))
    query = matrix([{term: 1 for term in range(12)}])
    assert (own.search(query, 25).scores != shared.search(query, 25).scores).any()


def test_documents_that_the_statistics_do_not_know_count():
    old, new = matrix([{0: 1}, {1: 2}], V=2), matrix([{2: 1}] * 9)
    query = matrix([{0: 1, 2: 1}])
    for method in METHODS:
        stale = EagerIndex(weighting=BM25(method=method, statistics=Statistics.of(old))).add(old).add(new)
        fresh = EagerIndex(weighting=BM25(method=method)).add(old).add(new)
        np.testing.assert_array_equal(stale.search(query, 11).scores, fresh.search(query, 11).scores)


@pytest.mark.parametrize(
    "n, df, total_length, named",
    [(-1, [], 0, "n is -1"), (2.5, [], 0, "n is 2.5"), (3, [1, 4], 9, "df reaches from 1 to 4"),
     (3, [-1], 9, "df reaches from -1"), (3, [1.5], 9, "df is float64"), (3, [[1]], 9, r"df is int64 \(1, 1\)"),
     (3, [1], -1, "total_length is -1"), (3, [1], math.nan, "total_length is nan")],
)  # fmt: skip
def test_statistics_of_no_collection_are_refused(n, df, total_length, named):
    with pytest.raises(InvalidParameter, match=named):
        Statistics(n, np.array(df), total_length)
