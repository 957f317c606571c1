"""Seismic: recall against exhaustive search, exactness when nothing is cut, changes, kernels and their definitions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from indexes import EagerIndex, SeismicIndex
from indexes.errors import CorruptIndex, InvalidParameter
from indexes.kernels import seismic as kernels
from indexes.sparse.interchange import read_vectors

SPLADE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splade-v3-nfcorpus"
EVERYTHING = {"query_cut": 10_000, "heap_factor": 0.0}
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def splade_like(n: int, nq: int, V: int = 5000, seed: int = 0) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Documents of about 60 terms from one of n / 50 topics and from all others; queries of 20 terms of a document."""
    rng = np.random.default_rng(seed)
    popularity = 1 / (np.arange(V) + 10.0)
    popularity /= popularity.sum()
    topics = [rng.choice(V, 100, replace=False, p=popularity**0.7 / (popularity**0.7).sum()) for _ in range(n // 50)]
    rows = []
    for topic in rng.integers(0, len(topics), n):
        terms = np.unique(np.concatenate([rng.choice(topics[topic], 45), rng.choice(V, 25, p=popularity)]))
        rows.append((terms, np.log1p(rng.gamma(0.8, 1.0, len(terms))) * (0.5 + np.isin(terms, topics[topic]))))
    documents = stacked(rows, V)
    queries = []
    for row in rng.choice(n, nq, replace=False):
        terms, weights = documents[row].indices, documents[row].data
        kept = rng.choice(len(terms), min(20, len(terms)), replace=False, p=weights / weights.sum())
        queries.append((terms[kept], weights[kept] * rng.gamma(2.0, 0.5, len(kept))))
    return documents, stacked(queries, V)


def stacked(rows: list[tuple[np.ndarray, np.ndarray]], V: int) -> sparse.csr_matrix:
    starts = np.cumsum([0, *(len(terms) for terms, _ in rows)])
    terms, weights = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    matrix = sparse.csr_matrix((weights.astype(np.float32), terms, starts), shape=(len(rows), V))
    matrix.sort_indices()
    return matrix


def recall(index: SeismicIndex, exact: np.ndarray, queries: sparse.csr_matrix, **knobs: float) -> float:
    found = index.search(queries, exact.shape[1], **knobs).ids
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(exact, found, strict=True)]))


@pytest.fixture(scope="module")
def workload() -> tuple[sparse.csr_matrix, sparse.csr_matrix, np.ndarray]:
    documents, queries = splade_like(4000, 100)
    return documents, queries, EagerIndex().add(documents).search(queries, 10).ids


# -- recall ------------------------------------------------------------------------------------------------------------


def test_recall_by_default(workload):
    documents, queries, exact = workload
    assert recall(SeismicIndex().add(documents), exact, queries) >= 0.95


def test_scores_are_those_of_exhaustive_search(workload):
    documents, queries, _ = workload
    hits = SeismicIndex().add(documents).search(queries, 10)
    whole = EagerIndex().add(documents).search(queries, len(documents.indptr) - 1)
    for row, ranking in zip(hits, whole, strict=True):
        scores = dict(ranking)
        assert [score for _, score in row] == pytest.approx([scores[id] for id, _ in row], rel=1e-6)


def test_each_knob_trades_work_for_recall(workload):
    """Little of everything finds less than the defaults, and those less than all; so do the settings of the build."""
    documents, queries, exact = workload
    index = SeismicIndex(postings=60).add(documents)
    for knob, values in (("query_cut", (1, 3, 20)), ("heap_factor", (1.5, 1.1, 0.5))):
        found = [recall(index, exact, queries, **{knob: value}) for value in values]
        assert found == sorted(found) and found[0] < found[-1], knob
    built = [recall(SeismicIndex(postings=postings).add(documents), exact, queries) for postings in (5, 20, 60)]
    assert built == sorted(built) and built[0] < built[-1]


def test_neighbors_find_what_the_lists_lack(workload):
    documents, queries, exact = workload
    knobs = {"query_cut": 3, "heap_factor": 1.0}
    without = recall(SeismicIndex(postings=30).add(documents), exact, queries, **knobs)
    assert recall(SeismicIndex(postings=30, neighbors=10).add(documents), exact, queries, **knobs) > without + 0.02


def test_the_graph_holds_the_nearest_rows(workload):
    documents, _, _ = workload
    index = SeismicIndex(neighbors=5).add(documents)
    index.describe()
    graph = index._lists.neighbors
    assert graph.shape == (4000, 5) and not (graph == np.arange(4000)[:, None]).any()
    nearest = EagerIndex().add(documents).search(documents[:200], 7).ids
    found = [np.isin(graph[row], nearest[row][nearest[row] != row][:5]).mean() for row in range(200)]
    assert np.mean(found) > 0.9


@pytest.mark.skipif(not SPLADE.is_dir(), reason="the shared SPLADE vectors are not here")
def test_recall_on_real_vectors():
    vocabulary: dict[str, int] = {}
    _, documents = read_vectors(SPLADE / "nfcorpus.splade-v3.docs.jsonl.gz", vocabulary)
    path = SPLADE / "nfcorpus.test.splade_distil_cocodenser_medium.queries.jsonl.gz"
    _, queries = read_vectors(path, vocabulary)
    exact = EagerIndex().add(documents).search(queries, 10).ids
    assert recall(SeismicIndex().add(documents), exact, queries) >= 0.95


# -- exact, when nothing is cut ----------------------------------------------------------------------------------------

WEIGHTS = st.one_of(st.just(0), st.just(0), st.sampled_from([1.0, 2.0, 0.5]), st.floats(2.0**-10, 2.0**20, width=32))


@quick
@given(
    arrays(np.float32, st.tuples(st.integers(1, 40), st.just(6)), elements=WEIGHTS),
    arrays(np.float32, (3, 6), elements=WEIGHTS),
    st.integers(1, 5),
    st.sampled_from([1, 3, 50]),
)
def test_everything_is_exhaustive_search(documents, queries, block, k):
    exact = EagerIndex().add(documents).search(queries, k)
    for postings in (10_000, 1) if k == 50 else (10_000,):  # lists of one row each leave the rest to the scan
        hits = SeismicIndex(block=block, postings=postings, neighbors=2).add(documents).search(queries, k, **EVERYTHING)
        np.testing.assert_array_equal(hits.ids, exact.ids)
        np.testing.assert_array_equal(hits.scores, exact.scores)


def test_as_many_rows_as_there_are(workload):
    """Where the lists hold too few, all rows are scored: of a filter, of a large k."""
    documents, queries, _ = workload
    index, exact = SeismicIndex(postings=5).add(documents), EagerIndex().add(documents)
    allow = np.zeros(4000, bool)
    allow[::400] = True
    for k, bitmap in ((4000, None), (10, allow), (3, allow)):
        one, other = index.search(queries, k, allow=bitmap), exact.search(queries, k, allow=bitmap)
        assert ((one.ids >= 0) == (other.ids >= 0)).all()
        if k >= 10:
            np.testing.assert_array_equal(one.ids, other.ids)


def test_more_terms_than_16_bits_can_name():
    rng = np.random.default_rng(0)
    terms = np.sort(rng.choice(200_000, 90_000, replace=False)).reshape(3000, 30)
    documents = stacked([(row, rng.random(30) + 0.1) for row in rng.permuted(terms, axis=0)], 200_000)
    index = SeismicIndex(postings=7, block=2).add(documents)
    hits = index.search(documents[:50], 1)
    assert index._documents.terms.dtype == np.int32
    np.testing.assert_array_equal(hits.ids[:, 0], np.arange(50))


def test_bytes_score_as_the_weights_they_stand_for():
    documents, queries = splade_like(500, 20)
    index = SeismicIndex(precision="uint8").add(documents)
    hits = index.search(queries, 10, **EVERYTHING)
    rounded = documents.copy()
    for row in range(500):
        part = slice(rounded.indptr[row], rounded.indptr[row + 1])
        unit = np.float32(documents.data[part].max() / np.float32(255))
        rounded.data[part] = np.clip(np.rint(documents.data[part] / unit), 1, 255) * unit
    exact = EagerIndex().add(rounded).search(queries, 10)
    np.testing.assert_allclose(hits.scores, exact.scores, rtol=1e-5)
    parts = index.describe()["bytes_per_part"]
    assert parts["documents-weights"] == documents.nnz


# -- changes -----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "search"]), st.integers(0, 9)), max_size=8))
def test_any_sequence_of_changes_equals_a_rebuild(steps):
    rng = np.random.default_rng(len(steps))
    index, kept, added = SeismicIndex(block=2, neighbors=1), {}, 0
    query = np.ones((1, 8), np.float32)
    for step, number in steps:
        if step == "add":
            vectors = rng.integers(0, 3, (number, 8)).astype(np.float32)
            index.add(vectors, np.arange(added, added + number))
            kept.update(zip(range(added, added + number), vectors, strict=True))
            added += number
        elif step == "remove":
            gone = [id for id in kept if id % 10 == number or id % 3 == number]
            assert index.remove(gone) == len(gone)
            kept = {id: vector for id, vector in kept.items() if id not in gone}
        else:
            index.search(query, 5)
    assert index.ids.tolist() == list(kept)
    expected = EagerIndex()
    if kept:
        expected.add(np.array(list(kept.values())), np.array(list(kept)))
    one, other = index.search(query, 20, **EVERYTHING), expected.search(query, 20)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_removed_rows_are_not_rebuilt_until_most_are_gone():
    documents, queries = splade_like(400, 5)
    index = SeismicIndex().add(documents)
    index.search(queries, 5)
    lists = index._lists
    index.remove(np.arange(0, 200))
    assert (index.search(queries, 300).ids[:, 0] >= 200).all() and index._lists is lists
    index.remove([200])
    index.search(queries, 5)
    assert len(index._rows) == 199 and index._lists is not lists


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("postings", 0), ("postings", 1.5), ("block", 0), ("energy", 0), ("energy", 1.1), ("neighbors", -1),
        ("precision", "float16"), ("query_cut", 0), ("query_cut", 2.5), ("heap_factor", -1), ("heap_factor", np.nan),
    ],
)  # fmt: skip
def test_invalid_parameters_are_named(name, value):
    with pytest.raises(InvalidParameter, match=f"{name} is"):
        SeismicIndex(**{name: value})


@pytest.mark.parametrize("part", ["places", "documents-terms", "summaries-row_scales", "block_starts", "rows", "ranks"])
def test_arrays_that_do_not_fit_together(tmp_path, part):
    """A header may be right about each file and the files still not belong to each other."""
    for folder, n in (("one", 30), ("two", 31)):
        SeismicIndex().add(splade_like(300, 1, V=500 + n)[0][:n]).save(tmp_path / folder)
    header, other = (json.loads((tmp_path / folder / "index.json").read_text()) for folder in ("one", "two"))
    header["files"][part] = entry = other["files"][part]
    (tmp_path / "one" / entry["file"]).write_bytes((tmp_path / "two" / entry["file"]).read_bytes())
    (tmp_path / "one" / "index.json").write_text(json.dumps(header))
    with pytest.raises(CorruptIndex):
        SeismicIndex.load(tmp_path / "one")


# -- kernels -----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), max_size=9), max_size=4), st.integers(1, 5))
def test_prune_keeps_the_heaviest_of_each_list(lists, postings):
    starts = np.cumsum([0, *map(len, lists)])
    weights = np.array([weight for one in lists for weight in one], np.float32)
    keep = np.empty(len(weights), np.bool_)
    kernels.prune(starts, weights, postings, keep, 0, len(lists))
    for one, a in zip(lists, starts, strict=False):
        best = sorted(range(len(one)), key=lambda i: (-one[i], i))[:postings]
        assert np.flatnonzero(keep[a : a + len(one)]).tolist() == sorted(best)


@quick
@given(
    arrays(np.float32, st.tuples(st.integers(1, 6), st.just(7)), elements=WEIGHTS),
    st.lists(st.integers(0, 5), min_size=1, max_size=4),
    st.sampled_from([0.2, 0.4, 0.9, 1.0]),
)
def test_summaries_hold_the_highest_weights(vectors, places, energy):
    csr = sparse.csr_matrix(vectors)
    rows = kernels.Rows(csr.indptr.astype(np.int64), csr.indices.astype(np.uint16), csr.data, np.empty(0, np.float32))
    block = np.array([place % len(vectors) for place in places], np.int32)
    sizes, scales = np.zeros(1, np.int64), np.zeros(1, np.float32)
    terms, weights = np.zeros(100, np.uint16), np.zeros(100, np.uint8)
    starts = np.array([0, len(block)])
    size = kernels.summarize(rows, starts, block, energy, np.empty(7, np.uint8), 0, 1, sizes, terms, weights, scales)
    highest = vectors[block].max(axis=0)
    kept = terms[:size].tolist()
    assert sizes[0] == size == len(set(kept))
    np.testing.assert_allclose(weights[:size] * scales[0], highest[kept], rtol=0.01, atol=highest.max() / 255)
    assert highest[kept].sum() >= energy * highest.sum() * (1 - 1e-6)
    left_out = np.setdiff1d(np.flatnonzero(highest), kept)
    if len(left_out):  # the lowest are, and no more than needed
        codes = np.rint(highest / scales[0]).clip(1)
        assert codes[left_out].max() < codes[kept].min()
        above = highest[codes > codes[kept].min()].sum()
        assert above < energy * highest.sum()
