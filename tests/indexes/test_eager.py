"""The eager matrix: how impacts are rounded, and what a query leaves behind in the sums that searches share."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import BM25, TFIDF, EagerIndex, load
from indexes.errors import CorruptIndex, InvalidParameter
from indexes.kernels import postings
from indexes.sparse.weighting import METHODS, weigh

WEIGHTINGS = [None, TFIDF(), *(BM25(method=method) for method in METHODS)]
TINY, HUGE = np.float32(6.103515625e-05), np.float32(65504)  # the least normal and the largest float16


def random_counts(n: int = 300, V: int = 50, seed: int = 0) -> sparse.csr_matrix:
    """Counts of terms of which some are in nearly all rows and some in none."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 9, (n, V)) * (rng.random((n, V)) < 0.95 / np.arange(1, V + 1))
    return sparse.csr_matrix(counts, dtype=np.float32)


def rounded(scores: np.ndarray, precision: str) -> np.ndarray:
    """The scores of one term as they are stored: float32."""
    if precision == "float16":
        with np.errstate(over="ignore"):
            return np.copysign(np.clip(np.abs(scores), TINY, HUGE), scores).astype(np.float16).astype(np.float32)
    if precision == "uint8" and len(scores):
        extreme = scores[np.argmax(np.abs(scores))]
        unit = np.clip(np.abs(extreme) / np.float32(255), np.float32(1.2e-38), np.float32(1.334e36))
        unit = np.copysign(unit, extreme)
        return unit * np.clip(np.rint(scores / unit), 1, 255).astype(np.float32)
    return scores


def slow_search(scores: sparse.csr_matrix, base: np.ndarray, query: dict[int, float], precision: str):
    """Row -> score, term by term in float32."""
    columns, sums = scores.tocsc(), {}
    for term in sorted(query):
        part = slice(columns.indptr[term], columns.indptr[term + 1])
        impacts = rounded(columns.data[part], precision)
        for row, impact in zip(columns.indices[part].tolist(), impacts, strict=True):
            sums[row] = sums.get(row, np.float32(-0.0)) + np.float32(query[term]) * impact
    everywhere = np.float32(sum(np.float32(weight) * base[term] for term, weight in query.items()))
    return {row: float(total + everywhere) for row, total in sums.items()}


def as_matrix(query: dict[int, float], V: int = 50) -> sparse.csr_matrix:
    return sparse.csr_matrix((list(query.values()), ([0] * len(query), list(query))), (1, V), dtype=np.float32)


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=str)
def test_scores_are_exact_for_the_stored_impacts(weighting, precision):
    counts = random_counts()
    index = EagerIndex(weighting=weighting, precision=precision).add(counts)
    scores, base = counts, np.zeros(50)
    if weighting is not None:
        data, base = weigh(weighting, counts)
        scores = sparse.csr_matrix((data, counts.indices, counts.indptr), counts.shape)
    for query in ({3: 1.0}, {0: 1.0, 7: 2.0, 30: 0.3}, {term: 1 + term / 7 for term in range(50)}, {48: 1e-3, 49: 2.0}):
        expected = slow_search(scores, base, query, precision)
        assert dict(next(iter(index.search(as_matrix(query), 300)))) == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 2.0**120, width=32), min_size=1, max_size=30), st.sampled_from(["float16", "uint8"]))
def test_no_weight_vanishes_or_overflows(weights, precision):
    given_weights = np.array(weights, np.float32)
    index = EagerIndex(precision=precision).add(sparse.csr_matrix(given_weights[:, None]))
    found = dict(next(iter(index.search(np.ones(1), len(weights)))))
    kept = np.flatnonzero(given_weights)
    expected = rounded(given_weights[kept], precision)
    assert found == dict(zip(kept.tolist(), expected.tolist(), strict=True))
    assert all(0 < score < np.inf for score in found.values())


def test_uint8_errs_by_half_a_unit_and_float16_by_half_its_last_bit():
    weights = np.random.default_rng(0).random((500, 1)).astype(np.float32) * 0.98 + 0.01
    for precision, most in (("uint8", weights.max() / 510 * 1.0001), ("float16", 2.0**-12)):
        found = dict(next(iter(EagerIndex(precision=precision).add(weights).search(np.ones(1), 500))))
        errors = np.abs([found[row] - weights[row, 0] for row in range(500)])
        assert most / 2 < errors.max() <= most


@pytest.mark.parametrize("precision", ["float16", "uint8"])
def test_rounding_does_not_add_up(precision):
    """A highest weight that grows at every step would round all others anew and anew."""
    weights = (1 + np.arange(40) / 7).astype(np.float32)
    grown = EagerIndex(precision=precision)
    for weight in weights:
        grown.add([[weight]]).search([1.0])
    at_once = EagerIndex(precision=precision).add(weights[:, None])
    np.testing.assert_array_equal(grown.search([1.0], 40).scores, at_once.search([1.0], 40).scores)
    assert grown.counts().toarray().ravel().tolist() == weights.tolist()


@pytest.mark.parametrize("precision, width", [("float32", 4), ("float16", 2), ("uint8", 1)])
def test_bytes_of_an_impact(precision, width, tmp_path):
    index = EagerIndex(weighting=BM25(), precision=precision).add(random_counts())
    index.save(tmp_path)
    parts = load(tmp_path).describe()["bytes_per_part"]
    entries = random_counts().nnz
    assert (parts["rows"], parts["counts"], parts["scores"]) == (4 * entries, entries, width * entries)
    assert parts.get("scales", 0) == (50 * 4 if precision == "uint8" else 0)


def test_sums_are_clear_after_every_search():
    """Whether a query touches few rows or most, with filters and without, and whatever sums come to 0."""
    index = EagerIndex(weighting=BM25(method="robertson")).add(random_counts(2000))
    rng = np.random.default_rng(1)
    for query in ({0: 1.0}, {49: 1.0}, {0: 1e-45}, {term: 1.0 for term in range(50)}, {}):
        for allow in (None, rng.random(2000) < 0.01, np.zeros(2000, bool)):
            index.search(as_matrix(query), 5, allow=allow)
    (sums,) = index._free
    assert len(sums) == 2000
    assert (sums.view(np.int32) == postings.UNTOUCHED).all()


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8"])
def test_few_and_many_rows_are_taken_alike(precision):
    """The same 40 rows, once as most of an index and once as few of many."""
    counts = random_counts(40)
    many = sparse.vstack([counts, sparse.csr_matrix((5000, 50))], format="csr")
    small, large = (EagerIndex(precision=precision).add(c) for c in (counts, many))
    queries = sparse.vstack([as_matrix({t: 1.0, (t * 7) % 50: 0.5}) for t in range(1, 50)], format="csr")
    for k in (1, 3, 40):
        one, other = small.search(queries, k), large.search(queries, k)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_sums_that_come_to_zero_or_underflow_are_answers():
    n = 4000  # rows 0 to 9 are few of them
    counts = sparse.csr_matrix((np.ones(10 + n), (np.r_[np.arange(10), np.arange(n)], [1] * 10 + [0] * n)), (n, 2))
    everywhere = EagerIndex(weighting=TFIDF()).add(counts)  # term 0 weighs ln(1) = 0
    assert dict(next(iter(everywhere.search([[1.0, 0.0]], n)))) == dict.fromkeys(range(n), 0.0)
    negative = EagerIndex(weighting=BM25(method="robertson")).add(counts)
    for k in (3, n):
        hits = negative.search([[1e-45, 0.0]], k)  # a product too small for float32
        assert (hits.ids[0] == np.arange(k)).all()
    underflow = EagerIndex().add(sparse.csr_matrix(([1e-30] * 10, (range(10), [1] * 10)), (n, 2)))
    assert dict(next(iter(underflow.search([[0.0, 1e-30]], n)))) == dict.fromkeys(range(10), 0.0)


def test_searches_at_the_same_time_do_not_mix():
    index, queries = EagerIndex(weighting=BM25()).add(random_counts(3000)), random_counts(64, seed=5)
    expected = index.search(queries, 10, threads=1)
    with ThreadPoolExecutor(8) as pool:
        for hits in pool.map(lambda _: index.search(queries, 10, threads=3), range(24)):
            np.testing.assert_array_equal(hits.ids, expected.ids)
            np.testing.assert_array_equal(hits.scores, expected.scores)


def test_the_number_of_threads_does_not_change_a_build(monkeypatch, tmp_path):
    digests = []
    for threads in (1, 2, 5):
        monkeypatch.setattr("indexes.sparse.eager.available_threads", lambda threads=threads: threads)
        index = EagerIndex(weighting=BM25(method="bm25+"), precision="uint8")
        for seed in range(4):
            index.add(random_counts(200, V=20 + 30 * (seed % 2), seed=seed))
            if seed == 1:
                index.search([1.0])
        index.save(tmp_path / str(threads))
        files = json.loads((tmp_path / str(threads) / "index.json").read_text())["files"]
        digests.append({name: entry["sha256"] for name, entry in files.items()})
    assert digests[0] == digests[1] == digests[2]


def test_a_build_that_fails_is_not_searched():
    """A second search must not find the new postings with the impacts of the old ones."""
    index = EagerIndex(weighting=BM25()).add([[1.0, 2.0]])
    index.search([1.0, 0.0])
    index.add(np.full((50, 2), 3e38))  # their lengths are beyond float32
    for _ in range(2):
        with np.errstate(over="ignore"), pytest.raises(InvalidParameter, match="total_length is inf"):
            index.search([1.0, 0.0])
    index.remove(np.arange(1, 51))
    assert dict(next(iter(index.search([1.0, 0.0])))).keys() == {0}


def test_indexes_saved_before_there_were_precisions_open(tmp_path):
    for weighting in (None, BM25()):
        index = EagerIndex(weighting=weighting).add(random_counts())
        index.save(tmp_path)
        header = json.loads((tmp_path / "index.json").read_text())
        assert header["parameters"].pop("precision") == "float32"
        (tmp_path / "index.json").write_text(json.dumps(header))
        one, other = load(tmp_path).search(random_counts(5)), index.search(random_counts(5))
        np.testing.assert_array_equal(one.scores, other.scores)


def test_impacts_of_another_precision_are_refused(tmp_path):
    EagerIndex(weighting=BM25(), precision="float16").add(random_counts()).save(tmp_path)
    header = json.loads((tmp_path / "index.json").read_text())
    header["parameters"]["precision"] = "float32"
    (tmp_path / "index.json").write_text(json.dumps(header))
    with pytest.raises(CorruptIndex, match=r"scores are float16.*not float32"):
        load(tmp_path)


def test_unknown_precision_is_refused():
    with pytest.raises(InvalidParameter, match="precision is 'int4'; it must be one of float32, float16, uint8"):
        EagerIndex(precision="int4")
