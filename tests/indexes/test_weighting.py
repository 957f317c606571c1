"""The scores of the eager matrix against each formula written out in plain Python."""

from __future__ import annotations

import math
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import BM25, TFIDF, EagerIndex, load
from indexes.errors import InvalidParameter
from indexes.sparse.weighting import METHODS, from_settings, relative_lengths

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


@weighting_cases
def test_explained_parts_sum_to_the_score(weighting):
    documents = random_documents(20, 6)
    index = EagerIndex(weighting=weighting).add(matrix(documents), ids=np.arange(20) * 3)
    query = matrix([{1: 1, 2: 2, 5: 1}])
    for id, score in next(iter(index.search(query, 20))):
        parts = index.explain(query, id)
        assert sum(part for _, part in parts) == pytest.approx(score, rel=1e-5, abs=1e-6)
        assert {term for term, _ in parts} - {-1} == {1, 2, 5} & set(documents[id // 3])
        assert any(term == -1 for term, _ in parts) == (getattr(weighting, "method", "") in ("bm25l", "bm25+"))


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
@given(st.sampled_from([None, *WEIGHTINGS]), steps, st.sampled_from([1, 0.37]))
def test_any_history_equals_a_rebuild(weighting, history, scale):
    """Scores to the bit, whatever was added, removed, saved and loaded before."""
    index, kept, following = EagerIndex(weighting=weighting), {}, 0
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
    fresh = EagerIndex(weighting=weighting)
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
    for weighting in (*WEIGHTINGS, BM25(method="bm25l", k1=1.5, b=0.1, delta=0.3)):
        assert from_settings(weighting.settings()) == weighting
    for wrong in ({}, {"name": "bm26"}, {"name": "tfidf", "k1": 1}):
        with pytest.raises(InvalidParameter):
            from_settings(wrong)


def test_relative_lengths():
    assert relative_lengths(np.array([1, 3], np.float32)).tolist() == [0.5, 1.5]
    assert relative_lengths(np.array([0, 0], np.float32)).tolist() == [1, 1]
    assert relative_lengths(np.empty(0, np.float32)).tolist() == []
    assert relative_lengths(np.array([1, 3], np.float32)).dtype == np.float64
