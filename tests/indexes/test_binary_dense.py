"""Dense vectors kept as binary codes: two-stage search and recurrent codes, against their definitions in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexes import FlatIndex, HammingIndex, RecurrentBinaryIndex, TwoStageIndex
from indexes.base import Index
from indexes.binary.recurrent import SPREAD, recurrent_codes
from indexes.dense.base import normalize
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors
from indexes.kernels import asymmetric, exact, hamming

DIMENSIONS = (1, 3, 8, 63, 64, 65, 130)


def clustered(n, d, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(1, n // 20), d))
    return (centres[rng.integers(0, len(centres), n)] + 0.6 * rng.normal(size=(n, d))).astype(np.float32)


def best(scores, ids, k):
    """Ids of the k highest scores, ties by the smaller id."""
    return [[int(ids[i]) for i in sorted(range(len(ids)), key=lambda i: (-row[i], ids[i]))[:k]] for row in scores]


def recall(found, exact):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), exact.tolist(), strict=True)])


# -- two stages --------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.sampled_from(DIMENSIONS), st.integers(0, 200), st.integers(1, 30), st.integers(0, 2**32))
def test_products_with_signs(d, n, m, seed):
    rng = np.random.default_rng(seed)
    signs = np.where(rng.random((n, d)) < rng.choice([0, 0.5, 1]), 1, -1)
    words = hamming.interleave(np.packbits(signs > 0, axis=1, bitorder="little"))
    rows = rng.integers(-1, n, (3, m)) if n else np.full((3, m), -1)
    queries = np.zeros((3, words.shape[1] * 64), np.float32)
    queries[:, :d] = rng.normal(size=(3, d))
    scores = np.full((3, m), np.nan, np.float32)
    asymmetric.products(words, queries, rows, scores)
    for q, i in itertools.product(range(3), range(m)):
        if rows[q, i] >= 0:
            assert scores[q, i] == pytest.approx(signs[rows[q, i]] @ queries[q, :d].astype(float), abs=1e-4)


def test_products_with_float16():
    """Of every finite float16 there is, to the bit; and of vectors."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)]
    scores = np.empty((1, len(every)), np.float32)
    rows = np.arange(len(every))[None]
    exact.chosen(every.view(np.uint16)[:, None], np.ones((1, 1), np.float32), rows, False, scores)
    np.testing.assert_array_equal(scores[0], every.astype(np.float32))
    for d in DIMENSIONS:
        vectors, queries = clustered(50, d).astype(np.float16), clustered(3, d)
        rows = np.random.default_rng(d).integers(-1, 50, (3, 20))
        scores = np.full((3, 20), np.nan, np.float32)
        exact.chosen(vectors.view(np.uint16), queries, rows, False, scores)
        expected = np.einsum("qid,qd->qi", vectors[rows].astype(float), queries.astype(float))
        np.testing.assert_allclose(scores, np.where(rows >= 0, expected, np.nan), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(DIMENSIONS), st.integers(1, 250), st.sampled_from([1, 4, 30]), st.integers(0, 2**32))
def test_candidates_by_signs_then_products(d, n, candidates, seed):
    """The definition of the search, on whole numbers, whose sums are exact."""
    rng = np.random.default_rng(seed)
    vectors, queries = (rng.integers(-3, 4, (count, d)).astype(np.float32) for count in (n, 3))
    ids, k = rng.permutation(n) * 3, int(rng.integers(1, 5))
    index = TwoStageIndex(candidates=candidates)
    index.add(vectors[: n // 2], ids[: n // 2]).add(vectors[n // 2 :], ids[n // 2 :])
    signs = np.where(vectors >= 0, 1, -1)
    for query, found in zip(queries, index.search(queries, k), strict=True):
        differing = (signs != np.where(query >= 0, 1, -1)).sum(axis=1)
        nearest = sorted(range(n), key=lambda i: (differing[i], ids[i]))[: max(k, candidates)]
        expected = sorted((-float(signs[i] @ query), int(ids[i])) for i in nearest)[:k]
        assert found == [(id, -score) for score, id in expected]


@pytest.mark.parametrize("metric", ["ip", "cosine"])
def test_float16_scores_are_exact(metric):
    vectors, queries = clustered(500, 48), clustered(10, 48, seed=1)
    ids = np.random.default_rng(2).permutation(500)
    exact = FlatIndex(metric=metric, dtype="float16").add(vectors, ids)
    for fitted in (False, True):
        index = TwoStageIndex(metric=metric, rescore="float16")
        (index.fit(vectors) if fitted else index).add(vectors, ids)
        ours, theirs = index.search(queries, 20), exact.search(queries, 20)  # all are candidates
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-5)
        assert recall(ours.ids, theirs.ids) == 1


def test_more_candidates_find_more():
    vectors, queries = clustered(6000, 64), clustered(60, 64)
    exact = FlatIndex(metric="cosine").add(vectors).search(queries, 10)
    index = TwoStageIndex(metric="cosine", rescore="float16").fit(vectors[:1000]).add(vectors)
    recalls = [recall(index.search(queries, 10, candidates=count).ids, exact.ids) for count in (10, 100, 1000, 6000)]
    assert recalls == sorted(recalls)
    assert recalls[0] < 0.7 and recalls[1] > 0.8 and recalls[2] > 0.99 and recalls[3] == 1
    assert recall(index.search(queries, 10).ids, exact.ids) == recalls[2]  # the default
    by_code = TwoStageIndex(metric="cosine").fit(vectors[:1000]).add(vectors)
    by_distance = index.search(queries, 10, candidates=1)
    assert recall(by_code.search(queries, 10).ids, exact.ids) > recall(by_distance.ids, exact.ids) + 0.05


def test_fitting_helps_vectors_that_lie_to_one_side():
    vectors = clustered(4000, 64) + np.linspace(-8, 8, 64, dtype=np.float32)
    queries, exact = vectors[:50], FlatIndex().add(vectors).search(vectors[:50], 10)
    plain, fitted = TwoStageIndex().add(vectors), TwoStageIndex().fit(vectors).add(vectors)
    found = [recall(index.search(queries, 10).ids, exact.ids) for index in (plain, fitted)]
    assert found[1] > found[0] + 0.1
    assert not plain.describe()["rotated"] and fitted.describe()["rotated"]


def test_a_saved_rotation(tmp_path):
    vectors = clustered(300, 20)
    index = TwoStageIndex(rescore="float16", seed=3).fit(vectors[:50]).add(vectors, np.arange(300)[::-1])
    index.save(tmp_path)
    loaded = Index.load(tmp_path)
    for one in (index, loaded):
        one.remove([4, 5]) and one.add(vectors[:2], [4, 1000])
    ours, theirs = index.search(vectors[:9], 40), loaded.search(vectors[:9], 40)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    other = TwoStageIndex(seed=4).fit(vectors[:50])
    assert not np.array_equal(other._rotation.projection, index._rotation.projection)


def test_parameters_of_two_stages():
    for wrong, message in (
        ({"metric": "l2"}, "metric is 'l2'"), ({"rescore": "int8"}, "rescore is 'int8'"),
        ({"candidates": 0}, "candidates is 0"), ({"seed": -1}, "seed"),
    ):  # fmt: skip
        with pytest.raises(InvalidParameter, match=message):
            TwoStageIndex(**wrong)
    with pytest.raises(InvalidParameter, match="it holds 2"):
        TwoStageIndex().add(np.ones((2, 3))).fit(np.ones((2, 3)))
    with pytest.raises(InvalidParameter, match="got 0"):
        TwoStageIndex().fit(np.ones((0, 3)))
    with pytest.raises(InvalidVectors, match="4 dimensions; this index has 3"):
        TwoStageIndex().fit(np.ones((2, 3))).add(np.ones((2, 4)))
    index = TwoStageIndex(rescore="float16")
    with pytest.raises(InvalidVectors, match="65,504"):
        index.add(np.full((2, 3), 1e5))
    assert len(index) == 0 and len(index.add(np.ones((2, 3)))) == 2


# -- recurrent codes ---------------------------------------------------------------------------------------------------


def decoded(vectors, levels):
    """Codes as vectors, by the recursion of the paper."""
    size = SPREAD[levels] * np.sqrt((vectors.astype(float) ** 2).mean(axis=1, keepdims=True))
    rest = np.divide(vectors, size, out=np.zeros(vectors.shape), where=size > 0)
    total = np.zeros(vectors.shape)
    for level in range(levels):
        sign = np.where(rest >= 0, 1, -1) * 2.0**-level
        rest, total = rest - sign, total + sign
    return size * total


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(DIMENSIONS), st.integers(1, 300), st.sampled_from([2, 4]), st.sampled_from(["ip", "cosine"]),
       st.integers(0, 2**32))  # fmt: skip
def test_scores_are_products_of_the_codes(d, n, levels, metric, seed):
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(8, d)) * rng.choice([1e-12, 1, 1e12], (8, 1))
    few[0] = 0
    vectors, queries = few[rng.integers(0, 8, n)].astype(np.float32), few[:4].astype(np.float32)
    index = RecurrentBinaryIndex(metric=metric, levels=levels).add(vectors)
    prepared = [normalize(part) if metric == "cosine" else part for part in (queries, vectors)]
    left, right = (decoded(part, levels) for part in prepared)
    if metric == "cosine":
        left, right = normalize(left), normalize(right)
    expected = left.astype(float) @ right.T
    lengths = np.outer(*(np.linalg.norm(part.astype(float), axis=1) for part in (left, right)))
    hits = index.search(queries, n)
    for row, length, ids, scores in zip(expected, lengths, hits.ids, hits.scores, strict=True):
        assert (np.abs(scores - row[ids]) <= 1e-6 * length[ids]).all()
        assert sorted(ids.tolist()) == list(range(n))


def test_filters_and_ties_of_recurrent_codes():
    vectors, ids = clustered(700, 40), np.random.default_rng(0).permutation(700)
    vectors[::2] = vectors[1::2]
    index = RecurrentBinaryIndex(levels=2).add(vectors[:300], ids[:300])
    index.search(vectors[:1])
    index.add(vectors[300:], ids[300:])
    everything = index.search(vectors[:5], 700)
    scores = np.empty((5, 700), np.float32)
    np.put_along_axis(scores, everything.ids, everything.scores, axis=1)
    for k in range(1, 12):
        assert index.search(vectors[:5], k).ids.tolist() == best(scores, range(700), k)
    for allow in (np.arange(700) % 7 == 0, np.arange(700) == 13):
        hits = index.search(vectors[:5], 50, allow=allow)
        expected = best(scores[:, ids[allow]], ids[allow], 50)
        assert [[id for id, _ in row] for row in hits] == expected


@pytest.mark.parametrize(("levels", "least"), [(2, 0.75), (4, 0.93)])
def test_codes_find_what_vectors_find(levels, least):
    vectors, queries = clustered(3000, 128), clustered(60, 128)
    exact = FlatIndex(metric="cosine").add(vectors).search(queries, 10)
    index = RecurrentBinaryIndex(levels=levels).add(vectors)
    assert recall(index.search(queries, 10).ids, exact.ids) > least
    assert index.describe()["bytes_per_part"]["words"] == -(-3000 // 128) * 128 * 128 * levels / 8


def test_sizes_have_the_least_error():
    numbers = np.random.default_rng(0).normal(size=(4, 20_000)).astype(np.float32)
    for levels in SPREAD:
        codes, sizes, _ = recurrent_codes(numbers, levels)
        planes = np.unpackbits(codes.reshape(4, levels, -1), axis=2, count=20_000, bitorder="little")
        values = ((2.0 * planes - 1) * 2.0 ** -np.arange(levels)[:, None]).sum(axis=1)
        errors = [((numbers - factor * sizes[:, None] * values) ** 2).mean() for factor in (0.97, 1, 1.03)]
        assert errors[1] == min(errors)
        assert errors[1] == pytest.approx({2: 0.1188, 4: 0.01154}[levels], rel=0.05)  # Max (1960), table II


def test_parameters_of_recurrent_codes():
    for wrong, message in (({"metric": "l2"}, "metric is 'l2'"), ({"levels": 3}, "levels is 3.*2, 4")):
        with pytest.raises(InvalidParameter, match=message):
            RecurrentBinaryIndex(**wrong)


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TwoStageIndex, lambda: TwoStageIndex(rescore="float16"), RecurrentBinaryIndex])
def test_damaged_files(make, tmp_path):
    make().add(clustered(300, 70)).save(tmp_path)
    header = (tmp_path / "index.json").read_text()
    for wrong in ("700", "null", '"70"'):
        (tmp_path / "index.json").write_text(header.replace('"d": 70', f'"d": {wrong}'))
        with pytest.raises(CorruptIndex):
            Index.load(tmp_path)


def test_signs_alone_are_a_hamming_index():
    vectors = clustered(400, 50)
    codes = np.packbits(vectors >= 0, axis=1, bitorder="little")
    index, signs = TwoStageIndex().add(vectors), HammingIndex().add(codes)
    one = signs.search(codes[:5], 1)  # a single candidate is the nearest of all
    np.testing.assert_array_equal(index.search(vectors[:5], 1, candidates=1).ids, one.ids)
