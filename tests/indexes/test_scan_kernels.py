"""Integer kernels of scans: products, layouts, the choice of the best, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from indexes.kernels import multiply_add, scan, topk
from indexes.kernels.multiply_add import LANES

WAYS = ["portable"] + [way for way in ("avx512vnni", "avxvnni", "avx2") if multiply_add._FEATURES.get(way)]


@pytest.mark.parametrize(("way", "bits", "count"), [(w, b, c) for w in WAYS for b in (1, 2, 4, 8) for c in (1, 2)])
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
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 90), st.integers(1, 30), st.integers(1, 19), st.integers(0, 2**32))
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


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 99))
def test_thinned_out_are_the_best(scores, k, seed):
    """Equal scores, which are many here, rank by id; the k-th stands in its place, and nothing is lost."""
    scores, ids = np.array(scores, np.float32), np.random.default_rng(seed).permutation(len(scores))
    left_scores, left_ids = scores.copy(), ids.copy()
    count = len(scores) - seed % 2
    scan.thin_out(left_scores, left_ids, count, k)
    ranked = sorted(zip(-scores[:count], ids[:count], strict=True))
    left = list(zip(-left_scores[:count], left_ids[:count], strict=True))
    assert sorted(left) == ranked and sorted(left[:k]) == ranked[:k]
    assert k > count or left[k - 1] == ranked[k - 1]
    assert (left_ids[count:] == ids[count:]).all()


@pytest.mark.parametrize("k", [1, 30, 400])
@pytest.mark.parametrize("order", ["rising", "falling", "equal", "random"])
def test_many_are_kept_and_thinned_out_again(order, k):
    """More than fit are offered, in orders that fill the room often, seldom or with equals; to filled heaps too."""
    n, rng = 3000, np.random.default_rng(k)
    numbers = {"rising": np.arange(n) * 255 // n, "equal": np.full(n, 7), "random": rng.integers(0, 256, n)}
    levels = (numbers["rising"][::-1] if order == "falling" else numbers[order]).astype(np.uint8)
    words, ids, nothing = scan.interleave(levels[:, None]), rng.permutation(n), np.empty(0, np.float32)
    asked, steps = scan.quantize_queries(np.repeat(np.float32([[127], [-127], [64]]), 100, 0), 8, 1)
    heaps = topk.empty_heaps(300, k)
    terms = (np.empty(0, np.bool_), nothing, nothing, nothing, asked, steps, np.zeros(300, np.float32))
    for blocks in np.array_split(np.arange(len(words)), 3):
        scan.search(words, 8, 1, blocks, ids, *terms, *heaps)
    topk.sort_heaps(*heaps)
    for q in range(0, 300, 33):
        sign = -1 if 100 <= q < 200 else 1
        best = np.lexsort((ids, -sign * levels.astype(int)))[:k]
        assert heaps[1][q].tolist() == ids[best].tolist()


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 5), st.integers(1, 70), st.integers(0, 999))
def test_queries_are_rounded_and_ordered_as_codes_are(bits, nq, d, seed):
    weights = np.random.default_rng(seed).normal(size=(nq, d)).astype(np.float32)
    weights[0] *= seed % 2  # a query of zeros
    parts = 8 // bits
    W = -(-d // (4 * parts)) + seed % 3
    asked, steps = scan.quantize_queries(weights, bits, W)
    assert asked.shape == (nq, W, parts) and asked.dtype == np.uint32
    np.testing.assert_array_equal(steps, np.abs(weights).max(axis=1) / np.float32(127))
    padded = np.zeros((nq, W * 4 * parts))
    padded[:, :d] = np.rint(weights / np.where(steps > 0, steps, 1)[:, None])
    given_numbers = asked.view(np.int8).reshape(nq, W, parts, 4).transpose(0, 1, 3, 2).reshape(nq, -1)
    np.testing.assert_array_equal(given_numbers, padded)
