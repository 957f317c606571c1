"""Inverted lists: which are visited, what they hold, exactness, filters, growth and files."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import indexes
from indexes import FlatIndex, IVFIndex
from indexes.codecs import LVQ, PQ, SQ, Chain, Float16, Float32, LeanVec, Learned, RaBitQ
from indexes.dense.centroids import Centroids
from indexes.dense.codes import PlainCodes
from indexes.errors import InvalidParameter, InvalidVectors, NotFitted

CENTRES = np.random.default_rng(77).normal(size=(25, 24))


def clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (4 * CENTRES[rng.integers(0, 25, n)] + rng.normal(size=(n, 24))).astype(np.float32)


VECTORS, QUERIES = clustered(2000), clustered(16, seed=1)


def built(metric: str = "ip", codec=None, rerank: str | None = "float32", **parameters) -> IVFIndex:
    index = IVFIndex(nlist=30, metric=metric, codec=codec, rerank=rerank, **parameters)
    return index.fit(VECTORS).add(VECTORS)


def recall(hits, exact) -> float:
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(hits.ids, exact.ids, strict=True)]))


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("codec", [None, LVQ(bits=8), RaBitQ(), PQ(M=6), Float32()], ids=lambda c: c and c.kind)
def test_all_lists_find_what_an_exact_scan_finds(metric, codec):
    """And few lists most of it; scores are exact."""
    index, flat = built(metric, codec, candidates=400), FlatIndex(metric=metric).add(VECTORS)
    exact = flat.search(QUERIES, 10)
    hits = index.search(QUERIES, 10, nprobe=30)
    assert recall(hits, exact) >= (0.99 if codec is None or codec.kind in ("lvq", "float32") else 0.8)
    same = hits.ids == exact.ids
    np.testing.assert_allclose(hits.scores[same], exact.scores[same], rtol=1e-4, atol=1e-3)
    found = [recall(index.search(QUERIES, 10, nprobe=nprobe), exact) for nprobe in (1, 3, 10, 30)]
    assert found == sorted(found) and found[2] >= 0.7 and found[0] < found[3]


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
def test_lists_that_can_hold_nothing_better_are_passed_by(metric, monkeypatch):
    """With Float32 and nothing else, all lists give the exact answers, and most of them are not looked at."""
    index, flat = built(metric, Float32(), None, nprobe=30), FlatIndex(metric=metric).add(VECTORS)
    scored = []
    as_metric = PlainCodes._as_metric

    def spy(self, products, queries, rows):
        scored.append(products.size)
        return as_metric(self, products, queries, rows)

    monkeypatch.setattr(PlainCodes, "_as_metric", spy)
    for k in (1, 10, 300):
        scored.clear()
        hits, exact = index.search(QUERIES, k), flat.search(QUERIES, k)
        np.testing.assert_array_equal(hits.ids, exact.ids)
        np.testing.assert_allclose(hits.scores, exact.scores, rtol=1e-4, atol=1e-3)
        assert 0 < sum(scored) / (len(QUERIES) * len(VECTORS)) < (0.95 if k == 300 else 0.4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 60), st.integers(1, 9), st.integers(1, 70), st.sampled_from(["ip", "cosine", "l2"]),
    st.integers(0, 99),
)  # fmt: skip
def test_exact_for_any_vectors(n, nlist, k, metric, seed):
    rng = np.random.default_rng(seed)
    vectors = (rng.integers(-2, 3, (n, 3)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
    index = IVFIndex(nlist=min(n, nlist), codec=Float32(), rerank=None, metric=metric, nprobe=nlist).fit(vectors)
    index.add(vectors)
    queries = np.concatenate([vectors[:3], rng.normal(size=(2, 3)).astype(np.float32)])
    allow = rng.random(n) < 0.6
    for mask in (None, allow):
        hits, exact = index.search(queries, k, allow=mask), FlatIndex(metric=metric).add(vectors).search(
            queries, k, allow=mask)  # fmt: skip
        size = np.abs(vectors).max() * max(np.abs(vectors).max(), np.abs(queries).max())
        np.testing.assert_allclose(hits.scores, exact.scores, rtol=1e-4, atol=1e-4 * float(size))
        assert ((hits.ids >= 0) == (exact.ids >= 0)).all()


def test_epsilon_visits_fewer_lists_for_easy_queries():
    index = built("l2")
    centroids = index._fitted()
    every = centroids.nearest(QUERIES, 30, None, 1)
    away = np.sqrt(np.square(QUERIES[:, None] - centroids.vectors).sum(axis=2))
    rounded = np.take_along_axis(away, every, axis=1)
    assert (np.sort(every) == np.arange(30)).all()
    assert (np.diff(rounded, axis=1) > -0.05 * rounded[:, 1:]).all()  # near enough in order: 8 bits
    for epsilon in (0, 0.1, 0.5, 3):
        chosen = centroids.nearest(QUERIES, 30, epsilon, 1)
        visited = [set(row[row >= 0].tolist()) for row in chosen]
        assert visited == [set(np.flatnonzero(row <= (1 + epsilon) * row.min() + 1e-5).tolist()) for row in away]
    exact = FlatIndex(metric="l2").add(VECTORS).search(QUERIES, 10)
    found = [recall(index.search(QUERIES, 10, nprobe=30, epsilon=e), exact) for e in (0, 0.3, None)]
    assert found[0] < found[2] and found == sorted(found)


def test_lists_are_visited_by_distance_also_for_inner_products():
    """Centroids of lists of many directions are short: inner products alone find less at the same number of lists."""
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    noisy = unit[:200] + 0.15 * np.random.default_rng(4).normal(size=(200, 24)).astype(np.float32)
    ip, cosine = (IVFIndex(nlist=60, metric=metric).fit(unit).add(unit) for metric in ("ip", "cosine"))
    lists = [index._fitted().nearest(unit[:50], 5, None, 1) for index in (ip, cosine)]
    assert (lists[0] == lists[1]).mean() > 0.9
    exact = FlatIndex().add(unit).search(noisy, 10)
    plain = IVFIndex(nlist=60).fit(unit).add(unit)
    plain._fitted().shifts[:] = 0
    assert recall(ip.search(noisy, 10, nprobe=4), exact) >= recall(plain.search(noisy, 10, nprobe=4), exact)


# -- lists -------------------------------------------------------------------------------------------------------------


def test_balance_bounds_the_longest_list():
    crowd = np.concatenate([VECTORS, clustered(1)[0] + 0.01 * clustered(3000, seed=5)])
    lengths = {}
    for balance in (None, 3, 1.0):
        index = IVFIndex(nlist=30, balance=balance, metric="l2", candidates=5000).fit(VECTORS).add(crowd)
        hits = index.search(QUERIES, 10, nprobe=30)
        assert recall(hits, FlatIndex(metric="l2").add(crowd).search(QUERIES, 10)) > 0.95
        lengths[balance] = np.bincount(index._lists, minlength=30).max()
    assert lengths[None] > 3000 and lengths[3] == 500 and lengths[1.0] == 167


def test_duplicates_fill_lists_evenly():
    index = IVFIndex(nlist=10, metric="l2", balance=2).fit(VECTORS).add(np.repeat(VECTORS[:1], 1000, axis=0))
    hits = index.search(VECTORS[:1], 1000)
    assert sorted(hits.ids[0].tolist()) == list(range(1000)) and np.bincount(index._lists).max() == 200
    np.testing.assert_array_equal(index.search(VECTORS[:1], 5, nprobe=10, candidates=5).ids, [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize("codec", [SQ(bits=4), PQ(M=6), Float16()], ids=lambda c: c.kind)
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_added_in_parts_and_removed_is_added_at_once(codec, metric):
    ids = np.random.default_rng(0).permutation(2000)

    def empty():
        return IVFIndex(nlist=30, codec=codec, metric=metric, rerank=None, candidates=50).fit(VECTORS)

    parts = empty()
    for a, b in itertools.pairwise((0, 1, 16, 40, 41, 700, 2000)):
        parts.add(VECTORS[a:b], ids[a:b])
        if a != 16:
            parts.search(QUERIES, 1)  # what was put into lists is put there again
    assert parts.remove(ids[10:300]) == 290
    assert parts.remove(ids[10:310]) == 10
    kept = np.r_[0:10, 310:2000]
    whole = empty().add(VECTORS[kept], ids[kept])
    a, b = parts.search(QUERIES, 20), whole.search(QUERIES, 20)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
    assert parts.remove(parts.ids) == 1700 and len(parts) == 0 and (parts.search(QUERIES, 3).ids == -1).all()
    parts.add(VECTORS[:5])
    assert (parts.search(QUERIES, 5).ids >= 0).all()


# -- filters, threads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [SQ(bits=4), Float32()], ids=lambda c: c.kind)
def test_filters_find_k_allowed_rows_however_far(codec):
    index = built("l2", codec, None if codec.kind == "float32" else "float32", nprobe=1)
    exact = FlatIndex(metric="l2").add(VECTORS)
    far = np.argsort(-np.square(VECTORS - QUERIES[0]).sum(axis=1))
    for count in (1, 9, 30, 300, 1500):
        allow = np.zeros(2000, bool)
        allow[far[:count]] = True
        for nprobe in (1, 30):
            hits = index.search(QUERIES[:1], 10, allow=allow, nprobe=nprobe, epsilon=0)
            assert (hits.ids >= 0).sum() == min(10, count) and allow[hits.ids[hits.ids >= 0]].all()
        if count <= 10:
            np.testing.assert_array_equal(hits.ids, exact.search(QUERIES[:1], 10, allow=allow).ids)
    everything = index.search(QUERIES, 3000, nprobe=1)
    assert (np.sort(everything.ids[:, :2000]) == np.arange(2000)).all() and (everything.ids[:, 2000:] == -1).all()


@pytest.mark.parametrize("together", [1, 300, 1 << 22])
def test_few_allowed_rows_are_scored_exactly(together, monkeypatch):
    monkeypatch.setattr("indexes.dense.ivf.TOGETHER", together)
    index, exact = built("ip", nprobe=30, candidates=10), FlatIndex().add(VECTORS)
    allow = np.random.default_rng(3).random(2000) < 0.05
    np.testing.assert_array_equal(
        index.search(QUERIES, 10, allow=allow).ids, exact.search(QUERIES, 10, allow=allow).ids
    )
    allow[400:] = False  # some 20 rows: one list would hold none of them, and k are in half of the lists
    np.testing.assert_array_equal(
        index.search(QUERIES, 10, allow=allow, nprobe=1).ids, exact.search(QUERIES, 10, allow=allow).ids
    )


@pytest.mark.parametrize("codec", [None, PQ(M=6)], ids=["sq", "pq"])
def test_threads_and_batches_change_nothing(codec):
    index = built("l2", codec, epsilon=0.5)
    one = index.search(QUERIES, 7, threads=1)
    for threads in (2, 5):
        other = index.search(QUERIES, 7, threads=threads)
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.scores, other.scores)
    alone = [index.search(query, 7) for query in QUERIES]
    np.testing.assert_array_equal(np.concatenate([hits.scores for hits in alone]), one.scores)
    again = built("l2", codec, epsilon=0.5)
    for mine, other in zip(index._state()[1].items(), again._state()[1].items(), strict=True):
        assert mine[0] == other[0]
        np.testing.assert_array_equal(mine[1], other[1])


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_fitting():
    with pytest.raises(NotFitted, match="call fit"):
        IVFIndex(codec=Float32()).add(VECTORS)
    with pytest.raises(InvalidParameter, match="fit got 20 vectors; nlist = 30 needs as many"):
        IVFIndex(nlist=30).fit(VECTORS[:20])
    with pytest.raises(InvalidParameter, match="fit got 0 vectors"):
        IVFIndex().fit(VECTORS[:0])
    with pytest.raises(InvalidParameter, match="holds 2000"):
        built().fit(VECTORS)
    with pytest.raises(InvalidVectors, match="NaN"):
        IVFIndex().fit(np.full((5, 3), np.nan))
    with pytest.raises(InvalidVectors, match="NaN"):
        built().search(np.full(24, np.nan))
    with pytest.raises(InvalidParameter, match="queries is empty"):
        IVFIndex(codec=Chain(LeanVec(dimensions=4), SQ())).fit(VECTORS)
    one = IVFIndex().fit(VECTORS[:1]).add(VECTORS[:1])
    assert one.search(QUERIES, 3).ids.tolist() == [[0, -1, -1]] * 16
    assert one.describe()["nlist"] == 1
    assert IVFIndex().fit(VECTORS).describe()["nlist"] == 83  # 24 for each


def test_bad_parameters():
    for name, value in (
        ("codec", "sq"), ("rerank", "int8"), ("candidates", 0), ("metric", "dot"), ("nlist", 0), ("nprobe", 0),
        ("nprobe", 1.5), ("epsilon", -0.1), ("epsilon", float("nan")), ("balance", 0.5),
    ):  # fmt: skip
        with pytest.raises(InvalidParameter, match=f"{name} is {value!r}"):
            IVFIndex(**{name: value})
    for knobs in ({"nprobe": 0}, {"epsilon": -1}, {"candidates": 0}):
        with pytest.raises(InvalidParameter, match="outside its allowed values"):
            built().search(QUERIES, 3, **knobs)
    halves = built(rerank="float16")
    with pytest.raises(InvalidVectors, match="65,504"):
        halves.add(np.full((1, 24), 7e4))
    assert len(halves) == 2000 and (halves.search(QUERIES, 5).ids >= 0).all()


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("codec, rerank", [(SQ(bits=4), "float32"), (RaBitQ(), "float16"), (PQ(M=6), None)])
def test_saved_and_loaded(tmp_path, codec, rerank, mmap):
    index = built("l2", codec, rerank, candidates=60)
    index.save(tmp_path)
    loaded = indexes.load(tmp_path, mmap=mmap)
    assert loaded.parameters() == index.parameters()
    for step in ("loaded", "grown"):
        a, b = loaded.search(QUERIES, 9), index.search(QUERIES, 9)
        np.testing.assert_array_equal(a.ids, b.ids, step)
        np.testing.assert_array_equal(a.scores, b.scores, step)
        for grown in (loaded, index):
            grown.add(clustered(30, seed=3))
            grown.remove([0, 7, 301])
    loaded.save(tmp_path)
    np.testing.assert_array_equal(indexes.load(tmp_path).search(QUERIES, 9).ids, loaded.search(QUERIES, 9).ids)
    IVFIndex().save(tmp_path)
    assert len(indexes.load(tmp_path)) == 0


def test_altered_headers_are_refused(tmp_path, refusing):
    built("l2").save(tmp_path)
    refused = refusing(tmp_path)
    refused(lambda h: h["parameters"].update(codec=LVQ().header()), "the codec is")
    refused(lambda h: h["state"].update(d=20), "d = 20")
    refused(lambda h: h["files"].update(centroids=h["files"]["ids"]), "centroids are int64")
    refused(lambda h: h["files"].update(lists=h["files"]["ids"]), "lists are int64")
    refused(lambda h: h["files"].update(shifts=h["files"]["centroids"]), r"shifts are float32 \(30, 24\)")
    refused(lambda h: h["files"].pop("shifts"), "shifts")
    refused(lambda h: h["files"].update(codes=h["files"]["vectors"]), "codes are float32")


def test_lists_are_learned_for_a_codec_that_training_made_and_the_codec_stays(tmp_path):
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(24, 24)))[0].astype(np.float32)
    codec = Chain.of(Learned.of(rotation, 2 * rotation), PQ(M=8, bits=4).fit(VECTORS @ rotation.T))
    index = built(codec=codec, rerank=None)
    assert index.trained
    exact = VECTORS @ codec.decode(codec.encode(VECTORS)).T
    np.testing.assert_array_equal(index.codec.encode(VECTORS), codec.encode(VECTORS))
    np.testing.assert_allclose(index.search(VECTORS[:9], 1, nprobe=30).scores[:, 0], exact[:9].max(axis=1), rtol=1e-4)
    index.save(tmp_path / "i")
    empty = indexes.load(tmp_path / "i").emptied()
    assert empty.trained and len(empty) == 0
    with pytest.raises(NotFitted, match="fit"):
        empty.add(VECTORS)
    with pytest.raises(InvalidVectors, match=r"23 dimensions; .* is for 24"):
        empty.fit(VECTORS[:, :23])
    again = empty.fit(VECTORS).add(VECTORS).search(QUERIES, 10)
    np.testing.assert_array_equal(again.ids, index.search(QUERIES, 10).ids)
    assert not built().trained and built().emptied().codec.d is None


def test_lists_that_training_made_stay(tmp_path):
    rng = np.random.default_rng(5)
    vectors, shifts = VECTORS[rng.permutation(2000)[:40]], rng.random(40).astype(np.float32)
    made = Centroids(vectors, shifts, "ip")
    index = IVFIndex(codec=Float32(), rerank=None).fit(vectors[:1], centroids=made).add(VECTORS)
    assert index.trained and index.describe()["nlist"] == 40
    near = QUERIES @ vectors.T - np.linalg.norm(QUERIES, axis=1, keepdims=True) * shifts
    first, lists = near.argmax(axis=1), np.square(VECTORS[:, None] - vectors).sum(axis=2).argmin(axis=1)
    hits = index.search(QUERIES, 3, nprobe=1)
    for query, ids in enumerate(hits.ids):
        own = np.flatnonzero(lists == first[query])
        if len(own) >= 3:
            assert set(ids) == set(own[np.argsort(-(VECTORS[own] @ QUERIES[query]))[:3]])
    index.save(tmp_path / "i")
    loaded = indexes.load(tmp_path / "i")
    loaded.emptied().save(tmp_path / "empty")
    for empty in (loaded.emptied(), indexes.load(tmp_path / "empty"), indexes.load(tmp_path / "empty").fit(VECTORS)):
        assert empty.trained and len(empty) == 0
        again = empty.add(VECTORS).search(QUERIES, 10, nprobe=2)
        np.testing.assert_array_equal(again.ids, index.search(QUERIES, 10, nprobe=2).ids)
    for wrong, message in (
        (IVFIndex(metric="l2"), "40 by 'ip'; the index has metric='l2'"), (IVFIndex(nlist=41), "nlist=41"),
    ):  # fmt: skip
        with pytest.raises(InvalidParameter, match=message):
            wrong.fit(VECTORS, centroids=made)
    with pytest.raises(InvalidVectors, match="centroids have 24 dimensions; the vectors have 23"):
        IVFIndex().fit(VECTORS[:, :23], centroids=made)
    sq = IVFIndex().fit(VECTORS, centroids=made).add(VECTORS)  # a codec that fit learns is learned all the same
    exact = FlatIndex().add(VECTORS).search(QUERIES, 10)
    assert recall(sq.search(QUERIES, 10, nprobe=40), exact) >= 0.99
