"""Scans over codes: integer kernels, levels of codecs, candidates, exact scores, files, against their definitions."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import indexes
from indexes import FlatIndex, ScanIndex
from indexes.codecs import LVQ, PCA, PQ, SQ, Chain, Float16, LeanVec, RaBitQ, RandomRotation, Residual, SignBits
from indexes.codecs.levels import levels_of
from indexes.dense import store
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted
from indexes.kernels import exact, multiply_add, scan, topk
from indexes.kernels.multiply_add import LANES

CODECS = {
    "sq4": SQ(bits=4), "sq8": SQ(), "sq4-global": SQ(bits=4, scope="global"), "lvq4": LVQ(bits=4), "lvq8": LVQ(),
    "signs": SignBits(), "rabitq": RaBitQ(), "rotated-sq4": Chain(RandomRotation(), SQ(bits=4)),
    "leanvec-lvq8": Chain(LeanVec(dimensions=9), LVQ()), "pca-rabitq": Chain(PCA(dimensions=10), RaBitQ()),
}  # fmt: skip
OTHERS = {"pq": PQ(M=3, bits=4), "residual": Residual(LVQ(bits=4), LVQ(bits=4)), "float16": Float16()}


def clustered(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 20), d))
    return (centres[rng.integers(0, len(centres), n)] + 0.6 * rng.normal(size=(n, d))).astype(np.float32)


def exact_scores(queries, vectors, metric):
    queries, vectors = queries.astype(np.float64), vectors.astype(np.float64)
    if metric == "cosine":
        queries, vectors = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, vectors))
    if metric == "l2":
        return -((queries[:, None] - vectors) ** 2).sum(axis=2)
    return queries @ vectors.T


def fitted(codec, **parameters):
    vectors, queries = clustered(300, 21), clustered(20, 21, seed=1)
    return ScanIndex(codec=codec, **parameters).fit(vectors, queries).add(vectors), vectors, queries


# -- kernels -----------------------------------------------------------------------------------------------------------

WAYS = ["portable"] + [way for way in ("avx512vnni", "avxvnni") if multiply_add._FEATURES.get(way)]


@pytest.mark.parametrize(("way", "bits", "count"), [(w, b, c) for w in WAYS for b in (1, 4, 8) for c in (1, 2)])
def test_products_of_integers(way, bits, count):
    """Of the largest numbers too, one block after another; every way of computing gives the same sums."""
    products = multiply_add.make_products(bits, count, way)

    @njit
    def call(words, at, width, queries, first, sums):
        products(words, at, width, queries, first, sums)

    rng, parts = np.random.default_rng(bits), 8 // bits
    for d, extreme in ((1, False), (37, False), (200, True)):
        levels = rng.integers(0, 2**bits, (3 * LANES, d), np.uint8)
        weights = rng.integers(-127, 128, (count + 1, d)).astype(np.float32)
        if extreme:
            levels[LANES:], weights[1:] = 2**bits - 1, rng.choice([-127, 127], (count, 1))
        weights[:, 0] = 127  # so that quantising changes nothing
        padded = np.zeros((len(levels), -(-d // parts) * parts), np.uint8)
        padded[:, :d] = levels
        codes = sum(padded[:, part::parts] << np.uint8(bits * part) for part in range(parts)).astype(np.uint8)
        words = scan.interleave(codes)
        asked, steps = scan.quantize_queries(weights, bits, words.shape[1])
        assert (steps == 1).all()
        for block in range(3):
            sums = np.full(count * LANES, -1, np.int32)
            W = words.shape[1]
            call(words.reshape(-1), block * W * LANES, W, asked.reshape(-1), W * parts, sums)
            expected = weights[1:].astype(int) @ levels[block * LANES : (block + 1) * LANES].T.astype(int)
            np.testing.assert_array_equal(sums.reshape(count, LANES), expected)


@settings(deadline=None)
@given(st.integers(0, 70), st.integers(1, 13), st.integers(0, 2**32))
def test_interleaved_codes_come_back(n, nbytes, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, nbytes), np.uint8)
    words = scan.interleave(codes)
    assert words.shape == (-(-n // LANES), -(-nbytes // 4), LANES) and words.dtype == np.uint32
    rows = rng.permutation(n)
    np.testing.assert_array_equal(scan.separate(words, rows, nbytes), codes[rows])


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([1, 4, 8]), st.integers(1, 90), st.integers(1, 30), st.integers(1, 19), st.integers(0, 2**32))
def test_search_is_its_definition(bits, n, d, nq, seed):
    """Scores by the formula, with all kinds of terms, some rows and some blocks only; queries in any number."""
    rng, parts = np.random.default_rng(seed), 8 // bits
    codes = rng.integers(0, 256, (n, -(-d // parts)), np.uint8)
    levels = np.stack([codes >> np.uint8(bits * part) & np.uint8(2**bits - 1) for part in range(parts)], 2)
    levels = levels.reshape(n, -1)[:, :d].astype(int)
    words = scan.interleave(codes)
    weights = rng.integers(-127, 128, (nq, d)).astype(np.float32)
    weights[:, 0] = -127
    asked, _ = scan.quantize_queries(weights, bits, words.shape[1])
    nothing, room = np.empty(0, np.float32), len(words) * LANES
    scales, offsets = rng.integers(-3, 4, (2, room)).astype(np.float32) if rng.random() < 0.5 else (nothing, nothing)
    squares = rng.integers(0, 99, room).astype(np.float32) if rng.random() < 0.5 else nothing
    slopes, tilts = rng.integers(1, 3, nq).astype(np.float32), rng.integers(-9, 9, nq).astype(np.float32)
    allowed = rng.random(n) < 0.4 if rng.random() < 0.5 else np.empty(0, np.bool_)
    blocks = np.sort(rng.permutation(len(words))[: rng.integers(1, len(words) + 1)])
    ids, k = rng.permutation(n) * 2, int(rng.integers(1, 9))
    heaps, W = topk.empty_heaps(nq, k), words.shape[1]
    scan.search(words, bits, W, blocks, ids, allowed, scales, offsets, squares, asked, slopes, tilts, *heaps)
    topk.sort_heaps(*heaps)
    whole = (weights @ levels.T) * slopes[:, None]
    if len(scales):
        whole = whole * scales[:n] + tilts[:, None] * offsets[:n]
    whole = whole - squares[:n] if len(squares) else whole
    rows = [i for i in range(n) if i // LANES in blocks and (not len(allowed) or allowed[i])]
    for q in range(nq):
        best = sorted(rows, key=lambda i: (-whole[q, i], ids[i]))[:k]
        assert heaps[1][q].tolist() == [*ids[best], *[-1] * (k - len(best))]
        np.testing.assert_allclose(heaps[0][q, : len(best)], whole[q, best], rtol=1e-6)


@pytest.mark.parametrize("d", [1, 7, 64, 130])
def test_exact_scores(d):
    vectors, queries = clustered(40, d), clustered(3, d, seed=1)
    rows = np.random.default_rng(d).integers(-1, 40, (3, 12))
    for kind, l2 in itertools.product((np.float32, np.float16), (False, True)):
        stored = vectors.astype(kind)
        whole = exact_scores(queries, stored, "l2" if l2 else "ip")
        numbers = stored if kind == np.float32 else stored.view(np.uint16)
        some, every = np.full(rows.shape, np.nan, np.float32), np.full((3, 40), np.nan, np.float32)
        exact.chosen(numbers, queries, rows, l2, some)
        exact.every(numbers, 5, 33, queries, l2, every)
        expected = np.where(rows >= 0, np.take_along_axis(whole, np.maximum(rows, 0), 1), np.nan)
        np.testing.assert_allclose(some, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(every[:, 5:33], whole[:, 5:33], rtol=1e-4, atol=1e-5)
        assert np.isnan(every[:, :5]).all() and np.isnan(every[:, 33:]).all()


def test_every_float16_there_is():
    every = np.arange(1 << 16, dtype=np.uint16)
    finite = every[np.isfinite(every.view(np.float16))]
    out = np.empty(len(finite), np.float32)
    exact.widened(finite, out)
    np.testing.assert_array_equal(out, finite.view(np.float16).astype(np.float32))


# -- codes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_levels_give_the_scores_of_the_codec(name):
    vectors, queries = clustered(300, 21), clustered(20, 21, seed=1)
    codec = CODECS[name].fit(vectors, queries)
    levels, codes = levels_of(codec), codec.encode(vectors)
    parts = 8 // levels.bits
    numbers = codes[:, : levels.nbytes, None] >> (levels.bits * np.arange(parts, dtype=np.uint8))
    weights, tilts = levels.query_terms(queries)
    whole = weights @ (numbers & np.uint8(2**levels.bits - 1)).reshape(300, -1)[:, : weights.shape[1]].T
    scales, offsets = levels.row_terms(codes)
    if len(scales):
        whole = whole * scales + tilts[:, None] * offsets
    difference = codec.scores(queries, codes) - whole
    np.testing.assert_allclose(difference, difference[:, :1].repeat(300, axis=1), atol=1e-3)


def test_other_codecs_have_no_levels():
    vectors = clustered(300, 21)
    assert levels_of(SQ()) is None  # not fitted
    for codec in OTHERS.values():
        assert levels_of(codec.fit(vectors)) is None


# -- the index ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize("name", [*CODECS, *OTHERS])
def test_codes_alone_rank_by_the_decoded_vectors(name, metric):
    """With as many candidates as rows, to rounding; whatever the codec."""
    index, vectors, queries = fitted({**CODECS, **OTHERS}[name], metric=metric, rerank=None, candidates=300)
    given = [x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x for x in (vectors, queries)]
    decoded = index.codec.decode(index.codec.encode(given[0]))
    whole = exact_scores(given[1], decoded, "ip" if metric == "cosine" else metric)
    hits = index.search(queries, 300)
    np.testing.assert_allclose(hits.scores, -np.sort(-whole, axis=1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(whole, hits.ids, 1), hits.scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("metric", ["ip", "cosine", "l2"])
@pytest.mark.parametrize(("name", "candidates", "least"), [
    ("sq8", 20, 0.99), ("sq4", 40, 0.99), ("lvq4", 40, 0.99), ("rotated-sq4", 40, 0.98), ("rabitq", 150, 0.9),
    ("pq", 250, 0.8), ("float16", 10, 0.99),
])  # fmt: skip
def test_few_candidates_hold_the_nearest(name, candidates, least, metric):
    index, vectors, queries = fitted({**CODECS, **OTHERS}[name], metric=metric)
    truth = FlatIndex(metric=metric).add(vectors).search(queries, 10)
    found = index.search(queries, 10, candidates=candidates)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.ids.tolist(), truth.ids.tolist(), strict=True)])
    assert recall >= least
    whole = exact_scores(queries, vectors, metric)
    np.testing.assert_allclose(found.scores, np.take_along_axis(whole, found.ids, 1), rtol=1e-4, atol=1e-4)


def test_candidates_are_a_knob_that_counts():
    index, vectors, queries = fitted(SignBits())
    truth = FlatIndex().add(vectors).search(queries, 10).ids

    def recall(candidates):
        pairs = zip(index.search(queries, 10, candidates=candidates).ids.tolist(), truth.tolist(), strict=True)
        return sum(len(set(a) & set(b)) for a, b in pairs)

    assert recall(1) == recall(10) < recall(60) < recall(300) == truth.size  # never fewer than k
    assert recall(None) == recall(100)


@pytest.mark.parametrize("codec", [SQ(bits=4), RaBitQ(), Float16()], ids=["sq4", "rabitq", "float16"])
def test_many_rows_on_several_threads(codec):
    """Enough rows for shares of them: the same answers to the bit, one query or a batch, filtered or not."""
    vectors, queries = clustered(40_000, 12), clustered(9, 12, seed=1)
    index = ScanIndex(codec=codec, candidates=40).fit(vectors[:500]).add(vectors)
    few = np.zeros(40_000, bool)
    few[[3, 17_000, 17_001, 39_999]] = True
    for asked, allow in itertools.product((queries, queries[:1]), (None, few, np.arange(40_000) % 3 == 0)):
        one = index.search(asked, 5, allow=allow, threads=1)
        for threads in (2, 5):
            other = index.search(asked, 5, allow=allow, threads=threads)
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.scores, other.scores)
        assert allow is None or allow[one.ids[one.ids >= 0]].all()
    assert (np.sort(index.search(queries, 4, allow=few).ids) == [3, 17_000, 17_001, 39_999]).all()


@pytest.mark.parametrize("codec", [SQ(bits=4), LVQ(bits=4), PQ(M=3, bits=4)], ids=["sq4", "lvq4", "pq"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_added_in_parts_and_removed_is_added_at_once(codec, metric):
    vectors, queries = clustered(150, 12), clustered(4, 12, seed=1)
    ids = np.random.default_rng(0).permutation(150)

    def empty():
        return ScanIndex(codec=codec, metric=metric, rerank=None, candidates=20).fit(vectors)

    parts = empty()
    for a, b in itertools.pairwise((0, 1, 16, 40, 41, 150)):
        parts.add(vectors[a:b], ids[a:b])
        parts.search(queries, 1)  # what was packed is packed again
    assert parts.remove(ids[10:70]) == 60
    kept = np.r_[0:10, 70:150]
    whole = empty().add(vectors[kept], ids[kept])
    a, b = parts.search(queries, 20), whole.search(queries, 20)
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)


def test_fitting():
    vectors, queries = clustered(60, 12), clustered(8, 12, seed=1)
    with pytest.raises(NotFitted, match=r"SQ\(bits=4.*call fit"):
        ScanIndex().add(vectors)
    learns_nothing = ScanIndex(codec=Float16(), rerank=None, metric="l2").add(vectors)
    assert learns_nothing.search(vectors[:3], 1).ids[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(InvalidParameter, match="queries is empty"):
        ScanIndex(codec=Chain(LeanVec(dimensions=4), SQ())).fit(vectors)
    index = ScanIndex(codec=Chain(LeanVec(dimensions=4), SQ())).fit(vectors, queries).add(vectors)
    with pytest.raises(InvalidParameter, match="holds 60"):
        index.fit(vectors)
    with pytest.raises(InvalidVectors):
        ScanIndex().fit(vectors[:0])


def test_the_codec_given_is_copied():
    """So that fitting one index does not change what another one's codes mean."""
    vectors, codec = clustered(60, 12), SQ()
    one = ScanIndex(codec=codec).fit(vectors).add(vectors)
    before = one.search(vectors[:5], 3)
    ScanIndex(codec=codec).fit(100 * vectors)
    codec.fit(7 * vectors)
    ready = ScanIndex(codec=codec).add(vectors)  # fitted already
    assert ready.codec.step.tolist() != one.codec.step.tolist()
    np.testing.assert_array_equal(one.search(vectors[:5], 3).scores, before.scores)


def test_bad_parameters():
    for name, value in (("codec", "sq"), ("rerank", "int8"), ("candidates", 0), ("metric", "dot")):
        with pytest.raises(InvalidParameter, match=f"{name} is {value!r}"):
            ScanIndex(**{name: value})
    with pytest.raises(InvalidVectors, match="65,504"):
        ScanIndex(codec=Float16(), rerank="float16").add(np.full((1, 3), 7e4))
    halves = ScanIndex(rerank="float16").fit(clustered(30, 3))
    with pytest.raises(InvalidVectors, match="65,504"):
        halves.add(np.full((1, 3), 7e4))
    assert len(halves) == 0 and (halves.add(clustered(5, 3)).search(clustered(1, 3), 5).ids >= 0).all()


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("name", ["sq4", "leanvec-lvq8", "rabitq", "pq"])
def test_saved_and_loaded(tmp_path, name, mmap):
    index, _, queries = fitted({**CODECS, **OTHERS}[name], metric="l2", rerank="float16", candidates=30)
    index.save(tmp_path)
    loaded = indexes.load(tmp_path, mmap=mmap)
    assert loaded.parameters() == index.parameters() == ScanIndex._rebuild(index.parameters()).parameters()
    np.testing.assert_array_equal(loaded.search(queries, 9).scores, index.search(queries, 9).scores)
    more = clustered(30, 21, seed=3)
    for grown in (loaded, index):
        grown.add(more)
        grown.remove([0, 7, 301])
    np.testing.assert_array_equal(loaded.search(queries, 9).ids, index.search(queries, 9).ids)


def test_the_disk_is_asked_for_the_candidates_only(tmp_path, monkeypatch):
    asked = []

    class Spy(store.mmap.mmap):
        def madvise(self, *arguments):
            asked.append(arguments)
            return super().madvise(*arguments)

    monkeypatch.setattr(store.mmap, "mmap", Spy)
    vectors = clustered(3000, 256)
    index = ScanIndex(codec=SQ(bits=4)).fit(vectors).add(vectors)
    index.search(vectors[:1], 5, candidates=10)
    assert not asked  # nothing is on disk
    index.save(tmp_path)
    loaded = ScanIndex.load(tmp_path)
    assert loaded.search(vectors[7:8], 5, candidates=10).ids[0, 0] == 7
    assert len(asked) == 10
    page = store.mmap.PAGESIZE
    assert all(start % page == 0 and 1024 <= length <= 1024 + page for _, start, length in asked)


def test_altered_headers_are_refused(tmp_path):
    index, *_ = fitted(SQ(bits=4), metric="l2")
    index.save(tmp_path)
    path = tmp_path / "index.json"
    good = json.loads(path.read_text())

    def refused(change, match):
        header = json.loads(json.dumps(good))
        change(header)
        path.write_text(json.dumps(header))
        with pytest.raises(CorruptIndex, match=match):
            indexes.load(tmp_path)

    refused(lambda h: h["parameters"].update(codec=LVQ().header()), "the codec is")
    refused(lambda h: h["state"].update(d=20), "d = 20")
    refused(lambda h: h["parameters"].update(rerank="float16"), "vectors are float32")
    refused(lambda h: h["parameters"]["codec"].update(kind="nonsense"), "nonsense")
    refused(lambda h: h["files"].pop("codes"), "codes")
    refused(lambda h: h["files"].pop("squares"), "squares")
    refused(lambda h: h["files"].update(codes=h["files"]["vectors"]), "codes are float32")
    refused(lambda h: h["files"].update(squares=h["files"]["ids"]), "squares are int64")
