"""GraphIndex: row products, the walk, the rule of pruning, filters, removals and files, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import indexes
from indexes import FlatIndex, ScanIndex
from indexes.base import Hits
from indexes.codecs import LVQ, PCA, PQ, SQ, Chain, Float16, LeanVec, RaBitQ, RandomRotation, SignBits
from indexes.dense import graph_building
from indexes.dense.graph import GraphIndex
from indexes.dense.graph_codes import RowCodes
from indexes.dense.store import GrowingRows
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted
from indexes.kernels import graph_build, graph_rows, graph_search, multiply_add

CODECS = {
    "sq8": SQ(), "sq4": SQ(bits=4), "lvq8": LVQ(), "lvq4": LVQ(bits=4), "pca-lvq8": Chain(PCA(dimensions=8), LVQ()),
    "leanvec-lvq8": Chain(LeanVec(dimensions=9), LVQ()), "rabitq": RaBitQ(), "signs": SignBits(),
    "rotated-sq4": Chain(RandomRotation(), SQ(bits=4)),
}  # fmt: skip
METRICS = ("ip", "cosine", "l2")
WAYS = ["portable"] + [way for way in ("avx512vnni", "avxvnni") if multiply_add._FEATURES.get(way)]


def clustered(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(25, d))
    return (centres[rng.integers(0, 25, n)] + 0.7 * rng.normal(size=(n, d))).astype(np.float32)


VECTORS, QUERIES = clustered(3000), clustered(60, seed=1)


def built(vectors=VECTORS, **parameters):
    return GraphIndex(**{"R": 16, "window": 60, **parameters}).fit(vectors, QUERIES).add(vectors)


def recall(found: Hits, truth: Hits) -> float:
    """The share of answers that score as much as the last right one."""
    kth = truth.scores[:, -1:]
    return float((found.scores >= kth - 1e-3 * np.abs(kth)).mean())


@njit
def entry(score, row):
    return graph_search.entry_of(np.float32(score), row)


@njit
def row(entry):
    return graph_search.row_of(entry)


@njit
def score_of(entry):
    return graph_search.score_of(entry)


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("way", "bits"), itertools.product(WAYS, (1, 2, 4, 8)))
def test_row_products_are_products(way, bits):
    """Of the largest numbers too, for rows anywhere, in whole lines; the query is quantised by its own definition."""
    product = graph_rows.make_product(bits, way)

    @njit
    def call(rows, start, lines, asked, first):
        return product(rows, start, lines, asked, first)

    rng, parts = np.random.default_rng(bits), 8 // bits
    for d, extreme in ((1, False), (70, False), (600, True)):
        lines = -(-d // (64 * parts))
        levels = np.zeros((5, lines * 64 * parts), np.int64)
        levels[:, :d] = 2**bits - 1 if extreme else rng.integers(0, 2**bits, (5, d))
        rows = sum(levels[:, part::parts] << (bits * part) for part in range(parts)).astype(np.uint8)
        weights = rng.integers(-127, 128, (3, d)).astype(np.float32)
        weights[0] = 127 if extreme else weights[0]
        weights[:, 0] = 127  # so that quantising changes nothing
        asked, slopes = np.full((3, lines * 64 * parts), 99, np.int8), np.empty(3, np.float32)
        graph_rows.quantize(weights, bits, asked, slopes)
        assert (slopes == 1).all()
        for q, i in itertools.product(range(3), range(5)):
            total = call(rows.reshape(-1), i * lines * 64, lines, asked.reshape(-1), q * asked.shape[1])
            assert total == int(weights[q].astype(int) @ levels[i, :d])


def test_quantizing_extreme_queries():
    weights = np.array([[0, 0, 0], [1e-42, -1e-45, 0], [3e38, -3e38, 1], [1, -0.5, 0.25]], np.float32)
    asked, slopes = np.empty((4, 64), np.int8), np.empty(4, np.float32)
    graph_rows.quantize(weights, 8, asked, slopes)
    assert asked[0].tolist() == [0] * 64 and asked[2, :3].tolist() == [127, -127, 0]
    assert asked[3, :4].tolist() == [127, -64, 32, 0]
    assert np.isfinite(slopes).all()


@settings(deadline=None)
@given(st.lists(
    st.tuples(st.floats(-(2.0**99), 2.0**99, width=32), st.integers(0, 2**31 - 1)), unique_by=lambda pair: pair[1]
))  # fmt: skip
def test_entries_rank_by_score_then_row(pairs):
    made = [entry(score, number) for score, number in pairs]
    assert [(score_of(e), row(e)) for e in made] == pairs
    ranked = [(score_of(e), row(e)) for e in sorted(made, reverse=True)]
    by_sign = sorted(pairs, key=lambda pair: (-pair[0], -np.copysign(1, pair[0]), pair[1]))  # -0.0 ranks below 0.0
    assert ranked == by_sign


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CODECS)
def test_scores_of_rows_are_those_of_the_codec(name, metric):
    """Up to the rounding of the query, and a number that only depends on the query."""
    codec = CODECS[name].fit(VECTORS, QUERIES)
    codes = RowCodes(codec, metric == "l2")
    codes.add(codec.encode(VECTORS[:150]))
    codes.add(codec.encode(VECTORS[150:300]))
    assert codes.rows().ctypes.data % 64 == 0 and codes.rows().shape[1] % 64 == 0
    weights, tilts = codes.levels.query_terms(QUERIES)
    found, scores = np.empty((60, 300), np.int64), np.empty((60, 300), np.float32)
    none = np.empty(0, np.int64)
    graph_search.scan(codes.graph(np.empty((0, 4), np.int32), none), weights, tilts, np.arange(300), found, scores)
    assert (np.diff(scores, axis=1) <= 0).all() and (np.sort(found) == np.arange(300)).all()
    decoded = codec.decode(codec.encode(VECTORS[:300])).astype(np.float64)
    whole = QUERIES @ decoded.T - ((decoded**2).sum(axis=1) / 2 if metric == "l2" else 0)
    difference = np.take_along_axis(whole, found, 1) - scores
    difference -= difference.mean(axis=1, keepdims=True)
    assert np.abs(difference).max() < 0.02 * np.abs(whole - whole.mean(axis=1, keepdims=True)).max()
    exactly = codes.scores(QUERIES[:3], found[:3])
    expected = 2 * whole[:3] - (QUERIES[:3] ** 2).sum(axis=1)[:, None] if metric == "l2" else whole[:3]
    np.testing.assert_allclose(exactly, np.take_along_axis(expected, found[:3], 1), rtol=1e-3, atol=1e-3)


# -- the graph ---------------------------------------------------------------------------------------------------------


def slowly_pruned(i, candidates, distance, alpha, most):
    """The rule, from its definition: nearest first, unless one before is nearer to it; then, unless alpha times."""
    taken, place = [], {c: at for at, c in enumerate(candidates)}
    for factor in (1, alpha):
        for c in candidates:
            before = [t for t in taken if place[t] < place[c]]
            equal = sum(distance[i, t] <= 0 for t in taken)
            if c in taken or len(taken) == most or (distance[i, c] <= 0 and 2 * equal >= most):
                continue
            if all(factor * distance[t, c] >= distance[i, c] for t in before):
                taken.append(c)
    return taken


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("alpha", [1.0, 1.3])
def test_pruning_is_its_definition(metric, alpha):
    """Distances as the kernels see them are near the true ones, and what is taken follows from them."""
    vectors = np.concatenate([VECTORS[:200], np.repeat(VECTORS[:1], 30, axis=0)])  # many equal ones
    codec = SQ().fit(vectors)
    codes = RowCodes(codec, metric == "l2")
    codes.add(codec.encode(vectors))
    known, n = graph_building.distances(codes, 1), len(vectors)
    graph = codes.graph(np.full((n, 8), -1, np.int32), np.arange(1))

    @njit
    def seen_by(graph, asked, slopes, tilts, selves, out):
        for i in range(out.shape[0]):
            for j in range(out.shape[0]):
                total = graph_build.rate(
                    graph.rows, graph.terms, graph.lines, graph.bits, graph.at, graph.scaled, graph.l2, j,
                    asked, slopes, tilts, i,
                )  # fmt: skip
                out[i, j] = selves[i] - total

    half = np.empty((n, n), np.float32)
    seen_by(graph, *known, half)
    decoded = codec.decode(codec.encode(vectors)).astype(np.float64)
    products = decoded @ decoded.T
    true = np.diag(products)[:, None] - products
    if metric == "l2":
        true = (true + true.T) / 2
    assert np.abs(half - true).max() < 0.02 * true.max()

    for i in range(0, n, 3):
        candidates = sorted((j for j in range(n) if j != i), key=lambda j: (half[i, j], j))
        scores = known.selves[i] - half[i]
        entries = np.array([int(entry(float(scores[j]), j)) for j in candidates])
        entries = -np.sort(-entries)
        candidates = [int(row(e)) for e in entries]
        apart = half.copy()
        apart[i] = known.selves[i] - scores
        out = np.empty(8, np.int32)
        count = graph_build.prune(graph, *known, i, entries, len(entries), np.float32(alpha), out, 8)
        assert out[:count].tolist() == slowly_pruned(i, candidates, apart, np.float32(alpha), 8)


@pytest.mark.parametrize("metric", METRICS)
def test_the_walk_is_its_definition(metric):
    """Best first, until all of the window were gone through: the same rows as a slow walk over the same links finds."""
    index = built(metric=metric)
    codes, links, starts = index._coded(), index._neighbors, index._starts
    n, window = len(index), 20
    asked = index._check_queries(QUERIES[:15])
    weights, tilts = codes.levels.query_terms(asked)
    every, scores = np.empty((15, n), np.int64), np.empty((15, n), np.float32)
    graph, none = codes.graph(links, starts), np.empty(0, np.bool_)
    graph_search.scan(graph, weights, tilts, np.arange(n), every, scores)
    found, rough = np.empty((15, window), np.int64), np.empty((15, window), np.float32)
    graph_search.search(graph, weights, tilts, window, 0, none, np.zeros(n + 1, np.uint8), found, rough)
    for q in range(15):
        rank = np.argsort(every[q])  # the smaller, the better
        seen, done = set(starts[: graph_search.STARTS * window].tolist()), set()
        while todo := [i for i in sorted(seen, key=lambda i: rank[i])[:window] if i not in done]:
            done.add(todo[0])
            seen.update(j for j in links[todo[0]].tolist() if j >= 0)
        assert found[q].tolist() == sorted(seen, key=lambda i: rank[i])[:window]
        np.testing.assert_array_equal(rough[q], scores[q, rank[found[q]]])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", CODECS)
def test_recall(name, metric):
    """What a scan of the same codes finds with as many candidates, up to a little."""
    index = built(codec=CODECS[name], metric=metric)
    assert index._neighbors.shape == (3000, 16)
    truth = FlatIndex(metric=metric, dtype="float16").add(VECTORS).search(QUERIES, 10)
    scan = ScanIndex(codec=CODECS[name], metric=metric, candidates=60).fit(VECTORS, QUERIES).add(VECTORS)
    found = index.search(QUERIES, 10, search_window=60)
    assert recall(found, truth) >= recall(scan.search(QUERIES, 10), truth) - 0.03
    assert recall(found, truth) >= 0.97 or name not in ("sq8", "lvq8", "sq4", "lvq4")
    exact = FlatIndex(metric=metric, dtype="float16").add(VECTORS).search(QUERIES, 3000)
    for q in range(60):  # scores are exact
        known = dict(zip(exact.ids[q].tolist(), exact.scores[q].tolist(), strict=True))
        expected = [known[i] for i in found.ids[q].tolist()]
        np.testing.assert_allclose(found.scores[q], expected, rtol=1e-3, atol=1e-3)


def test_inner_products_of_vectors_of_very_unequal_length():
    vectors = VECTORS * np.random.default_rng(0).lognormal(0, 0.7, (3000, 1)).astype(np.float32)
    found = built(vectors).search(QUERIES, 10, search_window=60)
    assert recall(found, FlatIndex().add(vectors).search(QUERIES, 10)) >= 0.95


@pytest.mark.parametrize(("metric", "least"), [("l2", 0.995), ("cosine", 0.98), ("ip", 0.9)])
def test_links_are_what_they_should_be(metric, least):
    """Nearly all rows are reached; of inner products, short vectors need not be: they are hardly ever answers."""
    index = built(metric=metric)
    for i, links in enumerate(index._neighbors):
        real = links[links >= 0]
        assert len(real) >= 1 and (links[len(real) :] == -1).all() and len(set(real.tolist())) == len(real)
        assert i not in real and real.max() < 3000
    reached = np.zeros(3000, bool)
    front = index._starts
    while len(front):
        reached[front] = True
        nearby = np.unique(index._neighbors[front])
        front = nearby[(nearby >= 0) & ~reached[nearby]]
    assert reached.mean() > least


def test_the_graph_does_not_depend_on_threads(monkeypatch):
    graphs = []
    for threads in (1, 2, 5):
        monkeypatch.setattr("indexes.dense.graph.available_threads", lambda threads=threads: threads)
        index = built(codec=LVQ(bits=4), metric="l2").add(clustered(1500, seed=5))
        graphs.append((index._neighbors.tobytes(), index._starts.tobytes()))
    assert len(index._neighbors) == 4500 and len(set(graphs)) == 1
    assert built(seed=1)._neighbors.tobytes() != built(seed=2)._neighbors.tobytes()


@pytest.mark.parametrize("order", ["sorted", "clusters"])
def test_the_order_of_rows_does_no_harm(order):
    key = VECTORS[:, 0] if order == "sorted" else np.linalg.norm(VECTORS - VECTORS[:1], axis=1)
    ids = np.argsort(key)
    index = GraphIndex(R=16, window=60).fit(VECTORS).add(VECTORS[ids], ids)
    truth = FlatIndex().add(VECTORS).search(QUERIES, 10)
    assert recall(index.search(QUERIES, 10, search_window=60), truth) >= 0.97


def test_rows_added_later_are_found_before_and_after_they_are_linked():
    index, more = built(), clustered(1600, seed=3)
    for stop, linked in ((900, 3000), (1600, 4600)):
        index.add(more[len(index) - 3000 : stop])
        assert len(index._neighbors) == linked
        truth = FlatIndex().add(np.concatenate([VECTORS, more[:stop]])).search(QUERIES, 10)
        assert recall(index.search(QUERIES, 10, search_window=60), truth) >= 0.97
        own = index.search(more[:stop], 1, search_window=60)
        exact = FlatIndex().add(np.concatenate([VECTORS, more[:stop]])).search(more[:stop], 1)
        assert recall(own, exact) >= 0.97


@pytest.mark.parametrize("metric", METRICS)
def test_equal_vectors_everywhere(metric):
    rng = np.random.default_rng(0)
    for vectors in (np.ones((1500, 4)), np.zeros((1500, 4)), clustered(60, 4)[rng.integers(0, 60, 2500)]):
        vectors = vectors.astype(np.float32)
        index = GraphIndex(metric=metric, R=8, window=40).fit(vectors).add(vectors)
        assert len(index._neighbors) == len(vectors)
        asked = clustered(30, 4, seed=2)
        truth = FlatIndex(metric=metric).add(vectors).search(asked, 10)
        found = index.search(asked, 10, search_window=40)
        assert (found.ids >= 0).all() and recall(found, truth) >= 0.9


# -- filters and removals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.01, 0.001])
def test_filters_find_the_nearest_allowed(metric, share, monkeypatch):
    index = built(metric=metric)
    allow = np.random.default_rng(0).random(3000) < share
    truth = FlatIndex(metric=metric, dtype="float16").add(VECTORS).search(QUERIES, 10, allow=allow)
    real = truth.ids >= 0
    for scanned in (24, 0):  # by the rule, and walking always
        monkeypatch.setattr("indexes.dense.graph.SCANNED", scanned)
        found = index.search(QUERIES, 10, allow=allow, search_window=40)
        assert ((found.ids >= 0) == real).all() and allow[found.ids[real]].all()
        last = np.where(real, truth.scores, np.inf).min(axis=1)[:, None]
        assert ((found.scores >= last - 1e-3) & real).sum() >= 0.95 * real.sum()


def test_a_filter_far_from_the_query():
    """What is allowed lies in a corner that the walk does not visit."""
    index = built(metric="l2")
    query = VECTORS[0]
    allow = np.zeros(3000, bool)
    allow[np.argsort(((VECTORS - query) ** 2).sum(axis=1))[-1600:]] = True
    found = index.search(query, 10, allow=allow, search_window=10)
    assert (found.ids >= 0).all() and allow[found.ids].all()


def test_removed_rows_are_gone_and_the_rest_is_found():
    index, ids = built(), np.random.default_rng(0).permutation(3000)
    for stop, linked in ((300, 3000), (890, 3000), (1200, 1800), (2500, 0), (3000, 0)):
        index.remove(ids[:stop])
        assert len(index) == 3000 - stop and len(index._neighbors) == linked
        left = np.sort(ids[stop:])
        if len(left):
            truth = FlatIndex().add(VECTORS[left], left).search(QUERIES, 10)
            found = index.search(QUERIES, 10, search_window=60)
            assert recall(found, truth) >= 0.97 and np.isin(found.ids, left).all()
            allow = np.arange(len(left)) % 3 == 0
            assert np.isin(index.search(QUERIES, 10, allow=allow).ids, left[allow]).all()


def test_many_searches_in_one_place():
    """More than there are marks for."""
    index = built()
    first = index.search(QUERIES, 5, threads=1)
    for _ in range(6):
        np.testing.assert_array_equal(index.search(QUERIES, 5, threads=1).ids, first.ids)
    for q in range(60):
        np.testing.assert_array_equal(index.search(QUERIES[q], 5).ids[0], first.ids[q])


def test_growing_rows():
    """What they hold is what was appended; what was handed out before does not change."""
    rows, parts = GrowingRows(), np.split(np.arange(300.0).reshape(100, 3), [0, 7, 8, 30, 31, 90])
    before = []
    for stop, part in enumerate(parts, 1):
        rows.append(part)
        before.append(rows.all())
        for i, seen in enumerate(before[:stop], 1):
            np.testing.assert_array_equal(seen, np.concatenate(parts[:i]))
    assert len(rows) == 100


def test_links_back_by_target():
    chosen = np.array([[5, 2, -1], [2, -1, -1]], np.int32)
    targets, sources, firsts = graph_building._by_target(chosen, np.array([7, 9]))
    assert (targets.tolist(), sources.tolist(), firsts.tolist()) == ([2, 2, 5], [7, 9, 7], [0, 2, 3])
    assert graph_building._by_target(np.full((1, 4), -1, np.int32), np.array([3]))[2].tolist() == [0]


@pytest.mark.parametrize("metric", METRICS)
def test_one_query_is_checked_as_many_are(metric):
    index = built(metric=metric)
    for bad in (np.nan, np.inf, *([] if metric == "cosine" else [3e38])):
        query = QUERIES[0].copy()
        query[3] = bad
        for asked in (query, np.stack([query, query])):
            with pytest.raises(InvalidVectors, match="vector 0 holds NaN"), np.errstate(all="raise", under="ignore"):
                index.search(asked, 3)
    for asked in (QUERIES[0].tolist(), QUERIES[0].astype(np.float64), QUERIES[:40:2][0]):
        np.testing.assert_array_equal(index.search(asked, 5).ids, index.search(QUERIES[:1], 5).ids)


# -- parameters and files ----------------------------------------------------------------------------------------------


def test_fitting_and_bad_parameters():
    with pytest.raises(NotFitted, match=r"SQ\(bits=8.*call fit"):
        GraphIndex().add(VECTORS)
    for codec in (Float16(), PQ(M=2, bits=4)):
        with pytest.raises(InvalidParameter, match="must be SQ, LVQ"):
            GraphIndex(codec=codec).fit(VECTORS)
    with pytest.raises(InvalidParameter, match="holds 3000"):
        built().fit(VECTORS)
    bad = {
        "R": (1, 2.5, True), "window": (0, "8"), "alpha": (0.9, np.nan, np.inf, "1"), "seed": (-1,), "codec": ("sq",),
        "rerank": ("int8",), "search_window": (0, 1.5), "metric": ("dot",),
    }  # fmt: skip
    for name, values in bad.items():
        for value in values:
            with pytest.raises(InvalidParameter, match=f"{name} is {value!r}"):
                GraphIndex(**{name: value})
    index = built()
    for wrong in (np.full((1, 16), np.nan), np.ones((1, 15)), np.full((1, 16), 1e5)):
        with pytest.raises(InvalidVectors):
            index.add(wrong)
    assert len(index) == 3000 and (index.search(QUERIES, 5).ids >= 0).all()


def test_the_window_is_a_knob_that_counts():
    index, truth = built(codec=RaBitQ()), FlatIndex().add(VECTORS).search(QUERIES, 10)
    shares = [recall(index.search(QUERIES, 10, search_window=window), truth) for window in (10, 40, 300)]
    assert shares == sorted(shares) and shares[0] < shares[2]
    for one, other in ((1, 10), (64, None)):  # never less than k; what None is
        found = index.search(QUERIES, 10, search_window=one)
        np.testing.assert_array_equal(found.ids, index.search(QUERIES, 10, search_window=other).ids)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize(("name", "rerank"), [("sq8", "float16"), ("lvq4", None), ("leanvec-lvq8", "float32")])
def test_saved_and_loaded(tmp_path, name, rerank, mmap):
    index = built(codec=CODECS[name], rerank=rerank, metric="l2", search_window=30)
    index.remove(range(0, 3000, 7))
    index.save(tmp_path)
    loaded = indexes.load(tmp_path, mmap=mmap)
    assert loaded.parameters() == index.parameters() and loaded._coded().rows().ctypes.data % 64 == 0
    more = clustered(1300, seed=4)
    for _ in range(2):
        one, other = index.search(QUERIES, 9), loaded.search(QUERIES, 9)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.scores, other.scores)
        for grown in (index, loaded):
            grown.add(more, np.arange(1300) + 5000 + 2000 * _)
    assert index._neighbors.tobytes() == loaded._neighbors.tobytes() and len(loaded._neighbors) == 5600


def test_altered_files_are_refused(tmp_path, refusing):
    index = built(metric="l2")
    index.save(tmp_path)
    refused = refusing(tmp_path)
    refused(lambda h: h["parameters"].update(codec=LVQ().header()), "the codec is")
    refused(lambda h: h["state"].update(d=20), "d = 20")
    refused(lambda h: h["parameters"].update(R=8), "neighbors are int32")
    refused(lambda h: h["files"].pop("codes"), "codes")
    refused(lambda h: h["files"].update(codes=h["files"]["vectors"]), "codes are float16")
    refused(lambda h: h["files"].update(removed=h["files"]["ids"]), "removed is int64")
    refused(lambda h: h["files"].update(neighbors=h["files"]["vectors"]), "neighbors are float16")
    refused(lambda h: h["files"].update(starts=h["files"]["removed"]), "starts are bool")
    index._starts = np.array([3000])
    index.save(tmp_path)
    with pytest.raises(CorruptIndex, match="name a row that is not one of the 3000"):
        indexes.load(tmp_path)
