"""Indexes over packed codes against counting bits with numpy, on codes that tie, are odd in width, or all alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from indexes import HammingIndex, MultiIndexHashing
from indexes.binary.base import BinaryIndex, Within
from indexes.errors import CorruptIndex, InvalidAllow, InvalidParameter, InvalidVectors
from indexes.kernels import hamming, multi_index

KINDS = {
    "scan": HammingIndex,
    "tables": MultiIndexHashing,
    "narrow tables": lambda: MultiIndexHashing(substring_bits=3),
    "wide tables": lambda: MultiIndexHashing(substring_bits=13),
}
WIDTHS = (1, 2, 7, 8, 9, 32, 33, 41)


@njit
def half_block_near(words, at, width, query, limit, found):
    return hamming.near(words, at, width, query, 0, limit, found)


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def make(request):
    return request.param


def distances(queries, codes):
    """The definition: int64 (nq, n)."""
    return np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(axis=2, dtype=np.int64)


def ranked(row, ids, allow=None):
    """(id, distance) pairs, nearest first, ties by the smaller id."""
    rows = range(len(ids)) if allow is None else np.flatnonzero(allow).tolist()
    return sorted(((int(ids[i]), int(row[i])) for i in rows), key=lambda pair: (pair[1], pair[0]))


def assert_exact(index: BinaryIndex, codes, ids, queries, ks, radii, allow=None) -> None:
    expected = [ranked(row, ids, allow) for row in distances(queries, codes)]
    for k in ks:
        found = index.search(queries, k, allow=allow)
        assert list(found) == [[(id, -float(near)) for id, near in pairs[:k]] for pairs in expected]
    for radius in radii:
        within = index.search_radius(queries, radius, allow=allow)
        assert list(within) == [[pair for pair in pairs if pair[1] <= radius] for pairs in expected]


def clustered(n, nbytes, flips=0.04, seed=0):
    """Codes near one of n / 10 centres."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 256, (max(1, n // 10), nbytes), np.uint8)
    return centres[rng.integers(0, len(centres), n)] ^ np.packbits(rng.random((n, nbytes * 8)) < flips, axis=1)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.sampled_from(WIDTHS), st.integers(1, 300), st.integers(0, 2**32), st.data())
def test_exact_on_adversarial_codes(name, nbytes, n, seed, data):
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (data.draw(st.integers(1, 6)), nbytes), np.uint8)
    few[0] = data.draw(st.sampled_from([0, 255, 1, 128]))
    codes = few[rng.integers(0, len(few), n)]
    codes[rng.random(n) < 0.3, -1] ^= 16
    queries = np.concatenate([few[:2], rng.integers(0, 256, (2, nbytes), np.uint8)])
    ids = rng.permutation(n) * 7
    allow = data.draw(st.sampled_from([None, np.zeros(n, bool), rng.random(n) < 0.1, rng.random(n) < 0.7]))
    index = KINDS[name]().add(codes[: n // 2], ids[: n // 2]).add(codes[n // 2 :], ids[n // 2 :])
    assert_exact(index, codes, ids, queries, (1, data.draw(st.integers(1, 40)), n + 3), (0, 3, nbytes * 4), allow)
    np.testing.assert_array_equal(index.codes, codes)


def test_exact_among_neighbours(make):
    """Codes on which tables find their answers without a scan."""
    codes, ids = clustered(3000, 16), np.random.default_rng(1).permutation(3000)
    index = make().add(codes, ids)
    queries = codes[:40] ^ clustered(40, 16, 0.01)[0] ^ clustered(40, 16, 0.01)[1]
    assert_exact(index, codes, ids, queries, (1, 5, 30), (0, 1, 5, 12, 13))
    few = np.arange(3000) % 50 == 7
    assert_exact(index, codes, ids, queries, (1, 5, 100), (0, 1, 5, 12, 13), few)


def test_all_zeros_and_all_ones(make):
    codes = np.repeat(np.array([[0], [255]], np.uint8), 300, axis=0).repeat(33, axis=1)
    index = make().add(codes)
    for queries in (codes[:1], codes[-1:]):
        assert_exact(index, codes, np.arange(600), queries, (1, 299, 301, 600), (0, 263, 264))


def test_lists_longer_than_their_room_are_ranked_on_the_way(make):
    """Every document is nearer than those before it, so that each is appended."""
    bits = np.tri(2000, 2000, dtype=np.uint8)[::-1]
    codes = np.packbits(bits, axis=1)
    index = make().add(codes)
    assert_exact(index, codes, np.arange(2000), np.zeros((2, 250), np.uint8), (1, 10, 700), (0, 700))


def test_the_longest_codes():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (3, 8191), np.uint8)
    queries = np.stack([codes[0], 255 - codes[0]])
    assert_exact(HammingIndex().add(codes), codes, np.arange(3), queries, (1, 3), (0, 8191 * 8))
    for width in (8192, 0):
        with pytest.raises(InvalidVectors, match=rf"shape \(2, {width}\).*1 <= nbytes <= 8191"):
            HammingIndex().add(np.zeros((2, width), np.uint8))


def test_wrong_codes(make):
    index = make().add(clustered(20, 5))
    for wrong in (np.zeros((2, 5)), np.zeros((2, 5), np.int8), np.zeros((2, 5), bool), [[1, 2, 3, 4, 5]], None):
        for call in (index.add, index.search, lambda codes: index.search_radius(codes, 1)):
            with pytest.raises(InvalidVectors, match="they must be uint8"):
                call(wrong)
    for width in (4, 6):
        for call in (index.add, index.search, lambda codes: index.search_radius(codes, 1)):
            with pytest.raises(InvalidVectors, match=f"codes have {width} bytes; those of this index have 5"):
                call(np.zeros((2, width), np.uint8))
    with pytest.raises(InvalidVectors, match="shape"):
        index.search(np.zeros((1, 2, 5), np.uint8))
    assert len(index) == 20


def test_wrong_radius_threads_and_allow(make):
    index = make().add(clustered(20, 5))
    for radius in (-1, 1.5, "1", None):
        with pytest.raises(InvalidParameter, match=f"radius is {radius!r}"):
            index.search_radius(index.codes[:1], radius)
    with pytest.raises(InvalidParameter, match="threads is 0"):
        index.search_radius(index.codes[:1], 1, threads=0)
    with pytest.raises(InvalidAllow, match=r"it must be bool \(20,\)"):
        index.search_radius(index.codes[:1], 1, allow=np.ones(19, bool))


def test_radius_of_nothing(make):
    for index in (make(), make().add(clustered(20, 5))):
        within = index.search_radius(np.zeros((0, 5), np.uint8), 3)
        assert isinstance(within, Within) and len(within) == 0 and list(within) == []
    empty = make().search_radius(np.zeros((2, 5), np.uint8), 3)
    assert list(empty) == [[], []]
    assert (empty.starts.dtype, empty.distances.dtype, empty.ids.dtype) == (np.int64, np.int32, np.int64)
    assert list(index.search_radius(index.codes[0], 10**9, allow=np.zeros(20, bool))) == [[]]
    everything = index.search_radius(index.codes[0], 10**9)
    assert sorted(everything.ids.tolist()) == list(range(20))


def test_threads_do_not_change_a_radius_search(make):
    codes = clustered(2000, 12)
    index = make().add(codes)
    one, two = (index.search_radius(codes[:90], 20, threads=threads) for threads in (1, 2))
    for field in ("starts", "distances", "ids"):
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_codes_are_kept_by_row(make, tmp_path):
    codes, ids = clustered(300, 9), np.random.default_rng(0).permutation(300)
    index = make().add(codes[:100], ids[:100])
    assert make().codes.shape == (0, 1)
    np.testing.assert_array_equal(index.codes, codes[:100])
    index.search(codes[:1])
    index.add(codes[100:], ids[100:])
    np.testing.assert_array_equal(index.codes, codes)
    index.save(tmp_path)
    loaded = BinaryIndex.load(tmp_path)
    loaded.remove(ids[::3])
    keep = np.arange(300) % 3 != 0
    np.testing.assert_array_equal(loaded.codes, codes[keep])
    assert_exact(loaded, codes[keep], ids[keep], codes[:3], (1, 20), (9,))


def test_damaged_files(make, tmp_path):
    make().add(clustered(300, 9)).save(tmp_path)
    header = (tmp_path / "index.json").read_text()
    for wrong in ("17", "0", '"9"', "9999999"):
        (tmp_path / "index.json").write_text(header.replace('"nbytes": 9', f'"nbytes": {wrong}'))
        with pytest.raises(CorruptIndex, match=r"words are|nbytes is"):
            BinaryIndex.load(tmp_path)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_substring_bits():
    for wrong in (0, 25, -1, 2.0, True, "8"):
        with pytest.raises(InvalidParameter, match=f"substring_bits is {wrong!r}"):
            MultiIndexHashing(substring_bits=wrong)
    described = MultiIndexHashing().add(clustered(1000, 8)).describe()
    assert (described["substring_bits"], described["substrings"]) == (10, 7)  # log2 of 1,000; 64 bits in 7 parts
    assert MultiIndexHashing(substring_bits=24).add(clustered(5, 2)).describe()["substrings"] == 1


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 24), st.integers(0, 2**32))
def test_substrings_are_bits_in_order(bits, width, seed):
    rng = np.random.default_rng(seed)
    ones = rng.random(bits) < 0.5
    words = hamming.as_words(np.packbits(ones, bitorder="little")[None])[0]
    first = int(rng.integers(0, bits))
    last = min(bits, first + width)
    assert multi_index.substring(words, first, last) == sum(int(bit) << i for i, bit in enumerate(ones[first:last]))


def test_tables_list_every_row_by_its_substrings():
    words, firsts = hamming.as_words(clustered(500, 9)), np.array([0, 11, 22, 35, 48, 60, 72])
    starts, rows = multi_index.tables(words, firsts)
    for j in range(6):
        for value in range(2 ** (firsts[j + 1] - firsts[j])):
            listed = rows[j, starts[j, value] : starts[j, value + 1]]
            assert (np.diff(listed) > 0).all()
            assert all(multi_index.substring(words[i], firsts[j], firsts[j + 1]) == value for i in listed)
        assert sorted(rows[j]) == list(range(500))


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_shells_go_through_all_masks_once(n):
    for k in range(n + 2):
        ways = int(multi_index.choose(n, k))
        assert ways == math.comb(n, k)
        if ways and ways < 2000:
            mask, seen = np.uint64(2**k - 1), []
            for _ in range(ways):
                seen.append(int(mask))
                mask = multi_index.following(mask)
            assert len(set(seen)) == ways and all(m.bit_count() == k and m < 2**n for m in seen)


def test_neighbours_come_from_tables_and_strangers_from_a_scan(monkeypatch):
    """Otherwise the tables would be tested by the scan that stands in for them."""
    codes, scanned = clustered(60_000, 8, 0.01), []
    tables, scan, original = MultiIndexHashing().add(codes), HammingIndex().add(codes), HammingIndex._nearest
    queries, strangers = codes[:100], np.random.default_rng(5).integers(0, 256, (30, 8), np.uint8)
    filters = {"all": None, "half": np.arange(60_000) % 2 == 0}
    expected = {(k, name): scan.search(queries, k, allow=filters[name]) for k in (1, 3) for name in filters}
    mixed = scan.search(np.concatenate([queries, strangers, queries]), 4)

    def counting(self, queries, *rest):
        scanned.append(len(queries))
        return original(self, queries, *rest)

    monkeypatch.setattr(HammingIndex, "_nearest", counting)
    for (k, name), hits in expected.items():
        found = tables.search(queries, k, allow=filters[name], threads=1)
        np.testing.assert_array_equal(found.ids, hits.ids)
        np.testing.assert_array_equal(found.scores, hits.scores)
    assert sum(scanned) < 40  # of 400: a few have no neighbours of their own
    scanned.clear()
    found = tables.search(np.concatenate([queries, strangers, queries]), 4, threads=1)
    np.testing.assert_array_equal(found.ids, mixed.ids)
    assert sum(scanned) >= 30


def test_a_radius_partly_from_tables_and_partly_from_a_scan():
    """Queries in one batch, some of which meet too many documents for look-ups."""
    codes = clustered(20_000, 8, 0.01)
    codes[:12_000] = codes[0]
    tables, scan = MultiIndexHashing().add(codes), HammingIndex().add(codes)
    queries = codes[[0, 15_000, 1, 16_000, 17_000, 2]]
    found, expected = tables.search_radius(queries, 4, threads=1), scan.search_radius(queries, 4, threads=1)
    for field in ("starts", "distances", "ids"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    _, complete, _, _ = tables._probe(hamming.as_words(queries), 20_000, 4, np.empty(0, bool), 1)
    assert complete.tolist() == [False, True, False, True, True, False]


# -- layout ------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(0, 2**32), st.integers(-1, 200))
def test_half_a_block_at_a_time(nbytes, seed, limit):
    codes = np.random.default_rng(seed).integers(0, 256, (hamming.LANES + 1, nbytes), np.uint8)
    words, query, expected = hamming.interleave(codes[:-1]), hamming.as_words(codes)[-1], distances(codes[-1:], codes)
    for start in (0, hamming.GROUP):
        found, right = np.full(hamming.GROUP, 9999, np.uint64), expected[0, start : start + hamming.GROUP]
        bits = half_block_near(words.reshape(-1), start, len(query), query, limit, found)
        np.testing.assert_array_equal(found, right if (right <= limit).any() else 9999)
        assert [bits >> lane & 1 for lane in range(hamming.GROUP)] == (right <= limit).astype(int).tolist()


def test_queries_alone_as_in_batches(make):
    codes, queries = clustered(1000, 9), clustered(hamming.BATCH + 88, 9, seed=1)
    index = make().add(codes)
    found = index.search(queries, 7, threads=1)
    alone = [index.search(query, 7) for query in queries]
    np.testing.assert_array_equal(found.scores, np.concatenate([hits.scores for hits in alone]))
    np.testing.assert_array_equal(found.ids, np.concatenate([hits.ids for hits in alone]))
    np.testing.assert_array_equal(-found.scores, np.sort(distances(queries, codes), axis=1)[:, :7])


@settings(deadline=None)
@given(st.integers(0, 300), st.sampled_from(WIDTHS), st.integers(0, 2**32))
def test_interleaving_there_and_back(n, nbytes, seed):
    codes = np.random.default_rng(seed).integers(0, 256, (n, nbytes), np.uint8)
    words = hamming.interleave(codes)
    assert words.shape == (-(-n // hamming.LANES), -(-nbytes // 8), hamming.LANES)
    np.testing.assert_array_equal(hamming.separate(words, n, nbytes), codes)
    for row in range(0, n, 37):
        block, lane = divmod(row, hamming.LANES)
        np.testing.assert_array_equal(words[block, :, lane], hamming.as_words(codes)[row])
