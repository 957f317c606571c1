"""Scans over codes: levels of codecs, candidates, exact scores, files, against their definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import indexes
from indexes import FlatIndex, ScanIndex
from indexes.codecs import LVQ, PCA, PQ, SQ, Chain, Float16, LeanVec, RaBitQ, RandomRotation, Residual, SignBits
from indexes.codecs.levels import levels_of
from indexes.dense import store
from indexes.errors import InvalidParameter, InvalidVectors, NotFitted
from indexes.kernels import exact

CODECS = {
    "sq2": SQ(bits=2), "lvq2": LVQ(bits=2),
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


# -- exact scores -----------------------------------------------------------------------------------------------------


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
    ("sq8", 20, 0.99), ("sq2", 60, 0.95), ("lvq2", 60, 0.95),
    ("sq4", 40, 0.99), ("lvq4", 40, 0.99), ("rotated-sq4", 40, 0.98), ("rabitq", 150, 0.9),
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


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("codec", [SQ(bits=2), PQ(M=3, bits=4)], ids=["sq2", "pq"])
def test_equals_rank_by_id_whatever_the_order_of_the_ids(codec, metric):
    vectors, queries = clustered(40, 12).repeat(3, axis=0), clustered(6, 12, seed=1)
    for ids in (np.arange(120), np.arange(120) * 3 + 7, np.random.default_rng(0).permutation(1000)[:120]):
        truth = FlatIndex(metric=metric).add(vectors, ids)
        index = ScanIndex(codec=codec, metric=metric, candidates=120).fit(vectors).add(vectors, ids)
        for allow in (None, np.arange(120) % 5 < 2):
            hits, right = index.search(queries, 9, allow=allow), truth.search(queries, 9, allow=allow)
            groups = np.argsort(ids)[np.searchsorted(np.sort(ids), hits.ids)] // 3
            expected = np.argsort(ids)[np.searchsorted(np.sort(ids), right.ids)] // 3
            np.testing.assert_array_equal(groups, expected)
            for q in range(6):
                for group in set(groups[q].tolist()):
                    found = hits.ids[q][groups[q] == group].tolist()
                    members = ids[3 * group : 3 * group + 3]
                    members = members if allow is None else members[allow[3 * group : 3 * group + 3]]
                    assert found == sorted(members.tolist())[: len(found)]
        index.remove(ids[::2])
        truth.remove(ids[::2])
        assert (index.search(queries, 1, candidates=60).ids >= 0).all()


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


def test_altered_headers_are_refused(tmp_path, refusing):
    index, *_ = fitted(SQ(bits=4), metric="l2")
    index.save(tmp_path)
    refused = refusing(tmp_path)
    refused(lambda h: h["parameters"].update(codec=LVQ().header()), "the codec is")
    refused(lambda h: h["state"].update(d=20), "d = 20")
    refused(lambda h: h["parameters"].update(rerank="float16"), "vectors are float32")
    refused(lambda h: h["parameters"]["codec"].update(kind="nonsense"), "nonsense")
    refused(lambda h: h["files"].pop("codes"), "codes")
    refused(lambda h: h["files"].pop("squares"), "squares")
    refused(lambda h: h["files"].update(codes=h["files"]["vectors"]), "codes are float32")
    refused(lambda h: h["files"].update(squares=h["files"]["ids"]), "squares are int64")
