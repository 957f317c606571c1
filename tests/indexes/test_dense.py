"""Dense indexes: exact search against the definition in float64, and each approximate one against the exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import FlatIndex, HNSWIndex, IVFPQIndex, load
from indexes.dense.base import LONGEST, METRICS, normalize
from indexes.dense.faiss_base import faiss_threads
from indexes.errors import InvalidParameter, InvalidVectors, NotFitted

metrics = pytest.mark.parametrize("metric", METRICS)


def slow_scores(queries, vectors, metric):
    """Scores float64 (nq, n) by definition."""
    scores = np.empty((len(queries), len(vectors)))
    for i, q in enumerate(queries.astype(np.float64)):
        for j, x in enumerate(vectors.astype(np.float64)):
            if metric == "ip":
                scores[i, j] = q @ x
            elif metric == "l2":
                scores[i, j] = -((q - x) @ (q - x))
            else:
                lengths = np.linalg.norm(q) * np.linalg.norm(x)
                scores[i, j] = q @ x / lengths if lengths else 0.0
    return scores


def by_row(index, queries, n):
    """Scores (nq, n) by row, from the ranking of everything."""
    hits = index.search(queries, n)
    out = np.empty((len(queries), n))
    np.put_along_axis(out, hits.ids, hits.scores, axis=1)
    return out


def clustered(n, d=32, seed=0):
    """Vectors around 50 centers, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(50, d))
    return (centers[rng.integers(0, 50, n)] + 0.4 * rng.normal(size=(n, d))).astype(np.float32)


def recall(hits, truth):
    """Share of the true answers that were found, over all queries."""
    found = [len({id for id, _ in a} & {id for id, _ in b}) for a, b in zip(hits, truth, strict=True)]
    return sum(found) / (truth.ids >= 0).sum()


def digests(folder):
    return {k: v["sha256"] for k, v in json.loads((folder / "index.json").read_text())["files"].items()}


# -- flat --------------------------------------------------------------------------------------------------------------


@metrics
@pytest.mark.parametrize("dtype, precision", [("float32", 1e-5), ("float16", 1e-2)])
def test_flat_agrees_with_the_definition(metric, dtype, precision):
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(60, 7)), rng.normal(size=(5, 7))
    vectors[[3, 9]] = 0
    queries[1] = 0
    index = FlatIndex(metric=metric, dtype=dtype).add(vectors)
    expected = slow_scores(queries, vectors, metric)
    np.testing.assert_allclose(by_row(index, queries, 60), expected, rtol=precision, atol=precision * 10)
    if metric == "cosine":
        assert (by_row(index, queries, 60)[:, [3, 9]] == 0).all()
        assert (by_row(index, queries, 60)[1] == 0).all()


@metrics
def test_float16_scores_are_those_of_the_stored_numbers(metric):
    rng = np.random.default_rng(1)
    vectors, queries = rng.normal(size=(60, 7)).astype(np.float16), rng.normal(size=(5, 7))
    index = FlatIndex(metric=metric, dtype="float16").add(vectors)
    stored = index.vectors
    assert stored.dtype == np.float16
    asked = normalize(queries.astype(np.float32)) if metric == "cosine" else queries
    expected = slow_scores(asked, stored, "ip" if metric == "cosine" else metric)
    np.testing.assert_allclose(by_row(index, queries, 60), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.sampled_from(METRICS), st.integers(0, 2**32 - 1))
def test_flat_ranks_by_the_definition(n, d, nq, metric, seed):
    """With small whole numbers inner products and distances are exact, so ties are too."""
    rng = np.random.default_rng(seed)
    vectors, queries = rng.integers(-2, 3, (n, d)), rng.integers(-2, 3, (nq, d))
    ids = rng.permutation(3 * n)[:n]
    hits = FlatIndex(metric=metric).add(vectors, ids).search(queries, n)
    expected = slow_scores(queries, vectors, metric)
    if metric == "cosine":
        np.testing.assert_allclose(hits.scores, -np.sort(-expected), atol=1e-6)
    else:
        order = np.stack([np.lexsort((ids, -scores)) for scores in expected])
        np.testing.assert_array_equal(hits.ids, ids[order])
        np.testing.assert_array_equal(hits.scores, np.take_along_axis(expected, order, axis=1))


@metrics
def test_flat_over_several_blocks_and_batches(metric):
    rng = np.random.default_rng(2)
    vectors, queries = rng.integers(-3, 4, (9000, 4)).astype(np.float32), rng.integers(-3, 4, (300, 4))
    index = FlatIndex(metric=metric).add(vectors)
    hits, allow = index.search(queries, 15), np.arange(9000) % 5 > 0
    filtered = index.search(queries, 15, allow=allow)
    for q in (0, 255, 256, 299):
        exact = vectors.astype(np.float64)
        scores = exact @ queries[q] if metric == "ip" else -((exact - queries[q]) ** 2).sum(axis=1)
        if metric == "cosine":
            lengths = np.linalg.norm(exact, axis=1) * np.linalg.norm(queries[q])
            scores = np.divide(exact @ queries[q], lengths, out=np.zeros(9000), where=lengths > 0)
            np.testing.assert_allclose(hits.scores[q], -np.sort(-scores)[:15], atol=1e-6)
            np.testing.assert_allclose(filtered.scores[q], -np.sort(-scores[allow])[:15], atol=1e-6)
        else:
            order = np.lexsort((np.arange(9000), -scores))
            np.testing.assert_array_equal(hits.ids[q], order[:15])
            np.testing.assert_array_equal(filtered.ids[q], order[allow[order]][:15])


@pytest.mark.parametrize("index", [FlatIndex, HNSWIndex])
@pytest.mark.parametrize("size", [1e-30, 1e-38, 1e-42, 1e30, 3e38])
def test_cosine_of_tiny_and_huge_vectors(index, size):
    vectors = np.array([[1, 0, 0], [1, 1, 0], [-1, 0, 0], [0, 0, 0]]) * np.float32(size)
    for factor in (1, size):
        hits = index(metric="cosine").add(vectors).search(np.array([[1, 0, 0]]) * np.float32(factor), 4)
        assert hits.ids.tolist() == [[0, 1, 3, 2]]
        # numbers below 1e-38 are kept with fewer digits
        np.testing.assert_allclose(hits.scores, [[1, np.sqrt(0.5), 0, -1]], rtol=1e-6 if size > 1e-40 else 1e-3)


def test_normalize():
    vectors = np.random.default_rng(3).normal(size=(50, 9)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(normalize(vectors), axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(normalize(vectors * 1e-30), normalize(vectors), rtol=1e-5)
    assert (normalize(np.zeros((2, 3), np.float32)) == 0).all()
    assert normalize(np.empty((0, 3), np.float32)).shape == (0, 3)


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("index", [FlatIndex, HNSWIndex])
def test_vectors_too_long_for_float32_scores(index, metric):
    """Those would score infinity minus infinity. The longest that are allowed have finite scores."""
    edge = np.array([[1, 0], [-1, 0], [0, 1]]) * LONGEST * 0.999
    built = index(metric=metric).add(edge)
    assert np.isfinite(built.search(edge, 3).scores).all()
    assert built.search(edge, 1).ids[:, 0].tolist() == [0, 1, 2]
    for factor in (1.01, 1e5, 1e19):
        with pytest.raises(InvalidVectors, match=r"vector 0 .*longer than"):
            built.add(edge * factor)
        with pytest.raises(InvalidVectors, match=r"vector 0 .*longer than"):
            built.search(edge * factor, 1)


def test_float16_refuses_what_it_cannot_hold():
    index = FlatIndex(dtype="float16").add([[1.0, 65_504.0]])
    with pytest.raises(InvalidVectors, match="65,504"):
        index.add([[1, 2], [70_000, 0]])
    assert len(index) == 1
    assert index.search([1, 0], 2).ids.tolist() == [[0, -1]]
    FlatIndex(dtype="float16", metric="cosine").add([[70_000, 0]])  # normalised first


def test_float16_takes_half_the_bytes():
    vectors = np.ones((100, 8))
    for dtype, expected in (("float16", 1600), ("float32", 3200)):
        assert FlatIndex(dtype=dtype).add(vectors).describe()["bytes_per_part"]["vectors"] == expected


# -- HNSW --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collection():
    return clustered(4000), clustered(50, seed=1)


@pytest.fixture(scope="module", params=METRICS)
def pair(request, collection):
    """An HNSW index and its exact twin, not to be changed."""
    vectors, _ = collection
    return HNSWIndex(metric=request.param).add(vectors), FlatIndex(metric=request.param).add(vectors)


def test_hnsw_recall(pair, collection):
    hnsw, flat = pair
    truth = flat.search(collection[1], 10)
    assert recall(hnsw.search(collection[1], 10), truth) >= 0.95
    assert recall(hnsw.search(collection[1], 10, ef_search=500), truth) >= 0.99
    assert recall(hnsw.search(collection[1], 10, ef_search=1), truth) < recall(hnsw.search(collection[1], 10), truth)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.09])
def test_hnsw_is_exact_under_narrow_filters(pair, collection, share):
    hnsw, flat = pair
    allow = np.random.default_rng(4).random(4000) < share
    allow[7] = True
    assert recall(hnsw.search(collection[1], 10, allow=allow), flat.search(collection[1], 10, allow=allow)) == 1


@pytest.mark.parametrize("share", [0.12, 0.3, 0.7])
def test_hnsw_recall_under_wide_filters(pair, collection, share):
    hnsw, flat = pair
    allow = np.random.default_rng(5).random(4000) < share
    assert recall(hnsw.search(collection[1], 10, allow=allow), flat.search(collection[1], 10, allow=allow)) >= 0.95


@metrics
def test_hnsw_after_removing_most_and_adding_again(metric, collection):
    vectors, queries = collection
    vectors = vectors[:1500]
    hnsw, flat = HNSWIndex(metric=metric).add(vectors), FlatIndex(metric=metric).add(vectors)
    gone = np.random.default_rng(6).permutation(1500)[:900]
    full = hnsw.describe()["bytes"]
    for index in (hnsw, flat):
        assert index.remove(gone[:600]) == 600
    assert hnsw.describe()["bytes_per_part"]["index.faiss"] > 0.9 * full - 1500 * 16  # few enough to stay in the graph
    assert recall(hnsw.search(queries, 10), flat.search(queries, 10)) >= 0.95
    for index in (hnsw, flat):
        assert index.remove(gone[600:]) == 300
    assert hnsw.describe()["bytes"] < 0.5 * full  # built anew
    assert recall(hnsw.search(queries, 10), flat.search(queries, 10)) >= 0.95
    for index in (hnsw, flat):
        index.add(vectors[gone[:500]], ids=gone[:500])
    np.testing.assert_array_equal(hnsw.ids, flat.ids)
    assert recall(hnsw.search(queries, 10), flat.search(queries, 10)) >= 0.95


@pytest.mark.parametrize("mmap", [True, False])
def test_mapped_hnsw_can_grow_and_be_rebuilt(mmap, collection, tmp_path):
    vectors, queries = collection
    HNSWIndex().add(vectors[:500]).save(tmp_path)
    loaded = load(tmp_path, mmap=mmap).add(vectors[500:900])
    flat = FlatIndex().add(vectors[:900])
    assert recall(loaded.search(queries, 10), flat.search(queries, 10)) >= 0.95
    shrunk = load(tmp_path, mmap=mmap)
    shrunk.remove(range(400))
    rest = FlatIndex().add(vectors[400:500], np.arange(400, 500))
    assert recall(shrunk.search(queries, 10), rest.search(queries, 10)) == 1
    shrunk.add(vectors[500:900])
    rest.add(vectors[500:900])
    assert recall(shrunk.search(queries, 10), rest.search(queries, 10)) >= 0.95


def test_hnsw_finds_k_where_the_graph_falls_apart():
    rng = np.random.default_rng(8)
    far_apart = np.repeat(rng.normal(size=(20, 8)) * 100, 15, axis=0) + rng.normal(size=(300, 8)) * 1e-3
    hnsw = HNSWIndex(metric="l2", M=2, ef_construction=5).add(far_apart)
    allow = np.arange(300) % 2 == 0
    assert (np.sort(hnsw.search(far_apart[:5], 300).ids) == np.arange(300)).all()
    assert (np.sort(hnsw.search(far_apart[:5], 150, allow=allow).ids) == np.flatnonzero(allow)).all()


def test_hnsw_graph_does_not_depend_on_threads(collection, tmp_path):
    for name, threads in (("one", 1), ("four", 4)):
        with faiss_threads(threads):
            HNSWIndex().add(collection[0][:1500]).save(tmp_path / name)
    assert digests(tmp_path / "one") == digests(tmp_path / "four")


def test_hnsw_saves_its_parameters(tmp_path):
    HNSWIndex(metric="l2", M=8, ef_construction=40, ef_search=70).add(clustered(50)).save(tmp_path)
    loaded = load(tmp_path)
    assert loaded.parameters() == {"metric": "l2", "M": 8, "ef_construction": 40, "ef_search": 70}
    assert loaded._faiss.hnsw.efConstruction == 40
    few, many = (HNSWIndex(M=M).add(clustered(200)).describe()["bytes"] for M in (4, 64))
    assert few < many


# -- IVF-PQ ------------------------------------------------------------------------------------------------------------


def test_ivfpq_must_be_fitted():
    index = IVFPQIndex()
    with pytest.raises(NotFitted, match="fit"):
        index.add(clustered(10))
    assert len(index) == 0
    assert (index.search(clustered(2), 3).ids == -1).all()
    assert index.describe()["n"] == 0


@metrics
@pytest.mark.parametrize("opq", [True, False])
@pytest.mark.parametrize(
    "n, d, bytes",
    [(300, 16, 4), (300, 16, 5), (300, 7, 32), (17, 16, 4), (16, 16, 16), (15, 16, 4), (2, 8, 3), (40, 1, 1)],
)  # a sample smaller than 256, or than d; bytes that do not divide d, or exceed it
def test_ivfpq_of_odd_sizes(metric, opq, n, d, bytes, capfd):
    vectors = np.random.default_rng(0).normal(size=(n, d))
    index = IVFPQIndex(metric=metric, bytes=bytes, opq=opq).fit(vectors).add(vectors)
    hits = index.search(vectors, n)
    assert (np.sort(hits.ids, axis=1) == np.arange(n)).all()
    assert np.isfinite(hits.scores).all()
    assert index.describe()["code_bytes"] <= bytes
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")  # faiss's warnings included


@pytest.mark.parametrize("n", [0, 1])
def test_ivfpq_sample_too_small(n):
    index = IVFPQIndex()
    with pytest.raises(InvalidParameter, match="sample of 2 vectors or more"):
        index.fit(np.ones((n, 4)))
    with pytest.raises(NotFitted):
        index.add(np.ones((3, 4)))


def test_ivfpq_is_fitted_only_while_empty():
    index = IVFPQIndex(bytes=4).fit(clustered(100)).add(clustered(5))
    with pytest.raises(InvalidParameter, match="empty index"):
        index.fit(clustered(100))
    index.remove(range(5))
    index.fit(clustered(100, seed=2)).add(clustered(40))
    assert (np.sort(index.search(clustered(1), 40).ids) == np.arange(40)).all()


def test_ivfpq_of_equal_vectors():
    vectors = np.ones((300, 8))
    index = IVFPQIndex(metric="l2", bytes=4).fit(vectors).add(vectors)
    np.testing.assert_allclose(index.search(vectors[:2], 300).scores, 0, atol=1e-4)


@pytest.mark.parametrize("opq", [True, False])
def test_ivfpq_seed(opq, tmp_path):
    vectors = clustered(400)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        IVFPQIndex(bytes=4, seed=seed, opq=opq).fit(vectors).add(vectors).save(tmp_path / name)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a")["index.faiss"] != digests(tmp_path / "c")["index.faiss"]


@metrics
def test_ivfpq_recall_grows_with_bytes_and_lists(metric, tmp_path):
    rng = np.random.default_rng(7)
    vectors, queries = rng.normal(size=(1500, 16)), rng.normal(size=(30, 16))
    truth = FlatIndex(metric=metric).add(vectors).search(queries, 10)
    fine = IVFPQIndex(metric=metric, bytes=16, nlist=16).fit(vectors[:500]).add(vectors)
    coarse = IVFPQIndex(metric=metric, bytes=2, nlist=16).fit(vectors[:500]).add(vectors)
    full = recall(fine.search(queries, 10, nprobe=16), truth)
    assert full >= 0.9
    assert full > 0.2 + recall(coarse.search(queries, 10, nprobe=16), truth)
    assert full > 0.2 + recall(fine.search(queries, 10, nprobe=1), truth)
    fine.save(tmp_path)
    np.testing.assert_array_equal(load(tmp_path).search(queries, 10).ids, fine.search(queries, 10).ids)


@pytest.mark.parametrize("mmap", [True, False])
def test_mapped_ivfpq_can_grow(mmap, tmp_path):
    vectors = clustered(600)
    index = IVFPQIndex(bytes=8, nlist=4).fit(vectors).add(vectors[:300])
    index.save(tmp_path)
    loaded = load(tmp_path, mmap=mmap).add(vectors[300:])
    index.add(vectors[300:])
    one, other = loaded.search(vectors[:5], 20), index.search(vectors[:5], 20)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_ivfpq_finds_k_allowed_rows_wherever_they_lie():
    vectors = clustered(1000)
    index = IVFPQIndex(bytes=4, nlist=50, nprobe=1).fit(vectors).add(vectors)
    allow = np.arange(1000) % 100 == 0
    hits = index.search(clustered(20, seed=1), 10, allow=allow)
    assert (np.sort(hits.ids, axis=1) == np.flatnonzero(allow)).all()


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, wrong",
    [
        (FlatIndex, {"metric": "manhattan"}),
        (FlatIndex, {"dtype": "int8"}),
        (HNSWIndex, {"metric": "dot"}),
        (HNSWIndex, {"M": 1}),
        (HNSWIndex, {"ef_construction": 0}),
        (HNSWIndex, {"ef_search": 0}),
        (IVFPQIndex, {"metric": "dot"}),
        (IVFPQIndex, {"bytes": 0}),
        (IVFPQIndex, {"nlist": 0}),
        (IVFPQIndex, {"nprobe": 0}),
    ],
    ids=str,
)
def test_parameters_out_of_range_are_refused(make, wrong):
    with pytest.raises(InvalidParameter, match=next(iter(wrong))):
        make(**wrong)


def test_faiss_threads_are_put_back():
    import faiss

    before = faiss.omp_get_max_threads()
    HNSWIndex().add(clustered(50)).search(clustered(3), 2, threads=before + 1)
    IVFPQIndex(bytes=4).fit(clustered(50)).add(clustered(5))
    assert faiss.omp_get_max_threads() == before
