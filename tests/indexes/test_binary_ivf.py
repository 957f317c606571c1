"""Inverted lists of packed codes: beside an exact scan, and k-majority clustering beside its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import indexes
from indexes import BinaryIVFIndex, HammingIndex, tune, tuning
from indexes.binary import clustering
from indexes.binary.clustering import k_majority, majorities, nearest_centroids
from indexes.errors import CorruptIndex, InvalidParameter, InvalidVectors, NotFitted
from indexes.kernels import binary_ivf
from indexes.kernels.binary_ivf import BATCH, LANES, near
from indexes.kernels.hamming import as_words

WIDTHS = (1, 2, 7, 8, 9, 32, 33, 41, 64)


def distances(queries, codes):
    """The definition: int64 (nq, n)."""
    return np.unpackbits(queries[:, None] ^ codes[None], axis=2).sum(axis=2, dtype=np.int64)


def clustered(n: int, nbytes: int, flips: float = 0.1, seed: int = 0, centres: int = 40):
    """Codes near one of some centres."""
    rng = np.random.default_rng(seed)
    chosen = np.random.default_rng(99).integers(0, 256, (centres, nbytes), np.uint8)
    noise = np.packbits(rng.random((n, nbytes * 8)) < flips, axis=1)
    return chosen[rng.integers(0, centres, n)] ^ noise


CODES, QUERIES = clustered(3000, 16), clustered(40, 16, seed=1)


def built(nlist: int = 40, codes=CODES, **parameters) -> BinaryIVFIndex:
    return BinaryIVFIndex(nlist=nlist, **parameters).fit(codes).add(codes)


@njit
def block_near(words, width, query, limit, found):
    return near(words, 0, width, query, 0, limit, found)


def assert_same(one, other) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores, other.scores)


def assert_same_within(one, other) -> None:
    for name in ("starts", "distances", "ids"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


# -- answers -----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(WIDTHS), st.integers(1, 300), st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**32),
    st.sampled_from([None, 0.0, 0.02, 0.5]), st.data(),
)  # fmt: skip
def test_all_lists_give_the_answers_of_a_scan(nbytes, n, nlist, k, seed, share, data):
    """Duplicates, filters, removals, ids in any order, a batch or one query."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 256, (data.draw(st.integers(1, 8)), nbytes), np.uint8)
    codes = few[rng.integers(0, len(few), n)]
    codes[rng.random(n) < 0.3, -1] ^= 16
    ids = rng.permutation(n) * 7
    index = BinaryIVFIndex(nlist=min(n, nlist), nprobe=nlist, seed=seed % 5).fit(codes)
    scan = HammingIndex()
    for one in (index, scan):
        one.add(codes[: n // 2], ids[: n // 2]).add(codes[n // 2 :], ids[n // 2 :])
        one.remove(ids[rng.integers(0, n, 3)] if n > 9 and one is index else [])
    scan.remove(np.setdiff1d(scan.ids, index.ids))
    queries = np.concatenate([few, rng.integers(0, 256, (data.draw(st.integers(0, 60)), nbytes), np.uint8)])
    allow = None if share is None else rng.random(len(index)) < share
    assert_same(index.search(queries, k, allow=allow), scan.search(queries, k, allow=allow))
    for radius in (0, 3, nbytes * 4):
        assert_same_within(
            index.search_radius(queries, radius, allow=allow), scan.search_radius(queries, radius, allow=allow)
        )
    np.testing.assert_array_equal(index.codes, scan.codes)


@pytest.mark.parametrize("k", [1, 10, 300, 2900])
def test_more_lists_find_more_until_all_is_found(k):
    index, exact = built(), HammingIndex().add(CODES).search(QUERIES, k)
    shares = []
    for nprobe in (1, 2, 5, 40, 1000):
        hits = index.search(QUERIES, k, nprobe=nprobe)
        assert (hits.ids >= 0).all()  # also where the lists asked for hold fewer
        np.testing.assert_array_equal(
            -hits.scores, np.take_along_axis(distances(QUERIES, CODES), hits.ids, axis=1)
        )
        shares.append(float((hits.scores >= exact.scores[:, -1:]).mean()))
    if k <= 10:  # any list holds so many
        assert shares == sorted(shares) and shares[0] >= 0.3
    assert_same(hits, exact)


def test_few_lists_are_the_nearest_ones():
    index = built()
    lists = nearest_centroids(CODES, index._centroids)[1]
    np.testing.assert_array_equal(index._lists, lists)
    away = distances(QUERIES, index._centroids)
    for q, hits in enumerate(index.search(QUERIES, 5, nprobe=3)):
        visited = np.argsort(away[q], kind="stable")[:3]
        members = np.flatnonzero(np.isin(lists, visited))
        ranked = sorted(zip(distances(QUERIES[q : q + 1], CODES[members])[0], members.tolist(), strict=True))
        assert hits == [(i, -float(d)) for d, i in ranked[:5]]


def test_lists_are_shared_without_a_trace():
    """A batch that visits each list often, parts of it, and its queries alone; on any number of threads."""
    index, queries = built(), clustered(700, 16, seed=3)
    whole = index.search(queries, 12, nprobe=6)
    assert_same(index.search(queries, 12, nprobe=6, threads=1), whole)
    for some in (slice(0, 9), slice(300, 420), slice(699, 700)):
        part = index.search(queries[some], 12, nprobe=6, threads=2)
        np.testing.assert_array_equal(part.ids, whole.ids[some])


def test_the_order_of_visits():
    lists = np.array([[3, 1], [3, 2], [0, 3], [2, 3]])
    assert binary_ivf.visits(lists, 5).tolist() == list(range(8))  # few: query by query
    many = binary_ivf.visits(lists, 4)
    assert many.tolist() == [4, 6, 0, 2, 1, 3, 5, 7]  # nearest lists 0, 2, 3, 3, then the others 1, 2, 3, 3


def test_lists_that_can_hold_nothing_nearer_are_not_looked_at():
    """Proven by spoiling them: a code in a list too far away cannot be found, whatever it has become."""
    index, exact = built(nprobe=40), HammingIndex().add(CODES)
    index.search(QUERIES[:1], 1)
    kth = -exact.search(QUERIES[:1], 5).scores[0, -1]
    away = distances(QUERIES[:1], index._centroids)[0]
    beyond = np.flatnonzero(away - index._radii > kth)
    within = np.flatnonzero(away - index._radii <= kth)
    assert len(beyond) > 20 and len(within) >= 1
    places = np.flatnonzero(np.isin(index._lists, beyond))
    positions = index._positions[places]
    index._words[positions // LANES, :, positions % LANES] = as_words(QUERIES[:1])
    assert_same(index.search(QUERIES[:1], 5), exact.search(QUERIES[:1], 5))
    assert_same_within(index.search_radius(QUERIES[:1], int(kth)), exact.search_radius(QUERIES[:1], int(kth)))


def test_radii_are_those_of_the_farthest_members():
    index = built()
    index.search(QUERIES[:1], 1)
    apart = np.unpackbits(CODES ^ index._centroids[index._lists], axis=1).sum(axis=1)
    expected = np.zeros(40, np.int64)
    np.maximum.at(expected, index._lists, apart)
    np.testing.assert_array_equal(index._radii, expected)


@pytest.mark.parametrize("count", [1, 7, 60, 1500])
def test_filters_find_all_that_is_allowed(count):
    """Few allowed rows are compared one by one, of many those in the lists visited, or more lists."""
    index, exact = built(), HammingIndex().add(CODES)
    allow = np.zeros(3000, bool)
    allow[np.random.default_rng(count).permutation(3000)[:count]] = True
    assert_same(index.search(QUERIES, 20, allow=allow, nprobe=40), exact.search(QUERIES, 20, allow=allow))
    hits = index.search(QUERIES, 20, allow=allow, nprobe=1)
    assert ((hits.ids >= 0).sum(axis=1) == min(20, count)).all() and allow[hits.ids[hits.ids >= 0]].all()
    assert (index.search(QUERIES, 3, allow=np.zeros(3000, bool)).ids == -1).all()


def test_many_equal_codes():
    """Ties flood the lists of answers; the smaller ids are kept."""
    codes = np.repeat(CODES[:2], 2000, axis=0)
    ids = np.random.default_rng(0).permutation(4000)
    index = BinaryIVFIndex(nlist=3).fit(codes).add(codes, ids)
    for k in (1, 10, 1000, 2500):
        assert_same(index.search(CODES[:3], k), HammingIndex().add(codes, ids).search(CODES[:3], k))


def test_one_code_and_all_codes_equal():
    one = BinaryIVFIndex().fit(CODES[:1]).add(CODES[:1], [5])
    assert list(one.search(CODES[:2], 3)) == [[(5, -float(d))] for d in distances(CODES[:2], CODES[:1])[:, 0]]
    same = np.repeat(CODES[:1], 50, axis=0)
    index = BinaryIVFIndex(nlist=50).fit(same).add(same)
    np.testing.assert_array_equal(index.search(CODES[:1], 50).ids, [np.arange(50)])


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(0, 2**32), st.integers(0, 70))
def test_a_block_at_a_time(nbytes, seed, limit):
    codes = np.random.default_rng(seed).integers(0, 256, (LANES + 1, nbytes), np.uint8)
    rows = as_words(codes)
    found = np.full(LANES, 9999, np.uint64)
    bits = block_near(np.ascontiguousarray(rows[:LANES].T).reshape(-1), rows.shape[1], rows[LANES], limit, found)
    expected = distances(codes[LANES:], codes[:LANES])[0]
    np.testing.assert_array_equal(found, expected if (expected <= limit).any() else np.full(LANES, 9999))
    assert [bits >> lane & 1 for lane in range(LANES)] == (expected <= limit).astype(int).tolist()


def test_queries_alone_as_in_batches():
    index = BinaryIVFIndex(nlist=12, nprobe=3).fit(CODES).add(CODES)
    queries = np.resize(CODES[::3], (BATCH + 30, CODES.shape[1])) ^ np.uint8(9)
    found, alone = index.search(queries, 7, threads=1), [index.search(query, 7) for query in queries]
    np.testing.assert_array_equal(found.scores, np.concatenate([hits.scores for hits in alone]))
    np.testing.assert_array_equal(found.ids, np.concatenate([hits.ids for hits in alone]))


# -- clustering --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(WIDTHS), st.integers(1, 60), st.integers(1, 9), st.integers(0, 2**32))
def test_majorities_are_counted_bit_by_bit(nbytes, n, count, seed):
    rng = np.random.default_rng(seed)
    codes, centroids = (rng.integers(0, 256, (m, nbytes), np.uint8) for m in (n, count))
    clusters = rng.integers(0, count, n)
    leanings = majorities(codes, clusters, centroids)
    bits, before = (np.unpackbits(part, axis=1, bitorder="little") for part in (codes, centroids))
    for cluster in range(count):
        members = bits[clusters == cluster]
        for bit in range(nbytes * 8):
            ones, half = int(members[:, bit].sum()), len(members) / 2
            expected = bool(before[cluster, bit]) if ones == half else ones > half
            assert (leanings[cluster, bit] > 0) == expected
            if ones != half:
                assert leanings[cluster, bit] == pytest.approx(ones / len(members) - 0.5)


def slow_k_majority(codes, centroids, rounds):
    """The definition, without noise: assign, vote, until nothing changes."""
    for _ in range(rounds):
        clusters = distances(codes, centroids).argmin(axis=1)
        before = centroids.copy()
        for cluster in range(len(centroids)):
            members = np.unpackbits(codes[clusters == cluster], axis=1)
            ones, half = members.sum(axis=0), len(members) / 2
            old = np.unpackbits(before[cluster])
            centroids[cluster] = np.packbits(np.where(ones == half, old, ones > half))
        if (centroids == before).all():
            break
    return centroids


@pytest.mark.parametrize("nbytes", [2, 9, 32])
def test_k_majority_without_noise_is_its_definition(nbytes):
    codes = clustered(200, nbytes, 0.2)
    start = codes[np.random.default_rng(4).choice(200, 6, replace=False)]
    clusters = distances(codes, start).argmin(axis=1)
    assert len(np.unique(clusters)) == 6  # otherwise one would be moved to where the definition does not say
    for rounds in (1, clustering.QUIET):
        np.testing.assert_array_equal(
            k_majority(codes, 6, seed=4, iterations=rounds), slow_k_majority(codes, start.copy(), rounds)
        )


def test_k_majority_finds_the_clusters_there_are():
    codes = clustered(2000, 16, 0.05, centres=12)
    centres = np.random.default_rng(99).integers(0, 256, (12, 16), np.uint8)
    learned = k_majority(codes, 30, seed=2)
    assert (distances(centres, learned).min(axis=1) <= 3).all()


def test_noise_makes_lists_that_say_more(monkeypatch):
    codes = clustered(4000, 8, 0.25, centres=60)
    apart = {}
    for noise in (0.0, clustering.NOISE):
        monkeypatch.setattr(clustering, "NOISE", noise)
        apart[noise] = nearest_centroids(codes, k_majority(codes, 60))[0].mean()
    assert apart[clustering.NOISE] < apart[0.0]


def test_the_same_seed_gives_the_same_centroids(monkeypatch):
    first = k_majority(CODES, 25, seed=3)
    monkeypatch.setattr(clustering, "available_threads", lambda: 1)
    np.testing.assert_array_equal(k_majority(CODES, 25, seed=3), first)
    np.testing.assert_array_equal(k_majority(np.asfortranarray(CODES), 25, seed=3), first)
    assert (k_majority(CODES, 25, seed=4) != first).any()


def test_empty_clusters_move_to_codes_far_from_centroids():
    """Nearly all codes are the same, and so are nearly all centroids to begin with."""
    codes = np.concatenate([np.repeat(CODES[:1], 500, axis=0), clustered(60, 16, 0.02, centres=6)])
    learned = k_majority(codes, 20)
    assert nearest_centroids(codes, learned)[0].max() <= 24
    counts = np.bincount(nearest_centroids(codes, learned)[1], minlength=20)
    assert (counts > 0).sum() >= 7


def test_many_codes_are_sampled_and_too_few_refused(monkeypatch):
    monkeypatch.setattr(clustering, "PER_CENTROID", 50)
    seen = []
    nearest = clustering.nearest_centroids
    monkeypatch.setattr(clustering, "nearest_centroids", lambda a, b: (seen.append(len(a)), nearest(a, b))[1])
    k_majority(CODES, 10)
    assert set(seen) == {500}
    for count in (0, 3001, -1):
        with pytest.raises(InvalidParameter, match=f"count is {count}.*3000"):
            k_majority(CODES, count)


# -- bad input, files --------------------------------------------------------------------------------------------------


def test_wrong_parameters():
    for name in ("nlist", "nprobe"):
        for wrong in (0, -1, 2.0, "3"):
            with pytest.raises(InvalidParameter, match=f"{name} is {wrong!r}"):
                BinaryIVFIndex(**{name: wrong})
    for wrong in (0, -3, 1.5, "all"):
        with pytest.raises(InvalidParameter, match=f"nprobe is {wrong!r}"):
            built().search(QUERIES, 1, nprobe=wrong)


def test_wrong_use():
    with pytest.raises(NotFitted, match="call fit"):
        BinaryIVFIndex().add(CODES)
    with pytest.raises(InvalidParameter, match="fit got 5 codes; nlist = 6"):
        BinaryIVFIndex(nlist=6).fit(CODES[:5])
    with pytest.raises(InvalidParameter, match="fit got 0 codes"):
        BinaryIVFIndex().fit(CODES[:0])
    with pytest.raises(InvalidParameter, match="this one holds 3000"):
        built().fit(CODES)
    index = BinaryIVFIndex(nlist=3).fit(CODES[:, :5])
    for width in (4, 16):
        with pytest.raises(InvalidVectors, match=f"codes have {width} bytes; those of this index have 5"):
            index.add(CODES[:, :width])
    assert len(index) == 0
    with pytest.raises(InvalidVectors, match="float64"):
        index.fit(CODES.astype(float))
    with pytest.raises(NotFitted):  # codes of any width would be compared with centroids of five bytes
        index.add(CODES)
    index.fit(CODES).add(CODES[:9])  # empty, it may be fitted anew
    assert (len(index), index.nbytes) == (9, 16)


def test_tuning_finds_how_many_lists_it_takes(monkeypatch):
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    index, exact = built(), HammingIndex().add(CODES)
    tuned = tune(index, clustered(60, 16, seed=5), 10, target_recall=0.9, exact=exact)
    assert tuned.reached and index.describe()["nprobe"] < 40
    assert [row["nprobe"] for row in tuned.rows()][:3] == [None, 48, 32]  # its own, one that means all, then fewer


def test_numbers_are_chosen_from_the_sample():
    described = BinaryIVFIndex().fit(CODES).describe()
    assert (described["nlist"], described["nprobe"]) == (125, 15)  # 3,000 / 24; an eighth
    assert built(nlist=30).describe()["nprobe"] == 8
    assert built(nlist=4).describe()["nprobe"] == 4


def test_removing_and_adding_again():
    index, kept = built(), np.arange(3000) % 3 != 0
    index.search(QUERIES, 1)
    index.remove(np.arange(0, 3000, 3))
    index.add(CODES[::3], np.arange(0, 3000, 3))
    assert_same(index.search(QUERIES, 9), built().search(QUERIES, 9))
    np.testing.assert_array_equal(index.codes, np.concatenate([CODES[kept], CODES[::3]]))


def test_files(tmp_path, refusing):
    ids = np.random.default_rng(0).permutation(3000)
    index = BinaryIVFIndex(nlist=20, nprobe=3).fit(CODES).add(CODES, ids)
    index.save(tmp_path)
    loaded = indexes.load(tmp_path)
    assert isinstance(loaded, BinaryIVFIndex) and loaded.parameters() == index.parameters()
    assert_same(loaded.search(QUERIES, 9), index.search(QUERIES, 9))
    np.testing.assert_array_equal(loaded.add(CODES[:4]).codes, np.concatenate([CODES, CODES[:4]]))
    refused = refusing(tmp_path)
    for wrong in (15, 17, 0, "16"):
        refused(lambda header, wrong=wrong: header["state"].update(nbytes=wrong), r"centroids are|nbytes is")
    refused(lambda header: header["state"].update(nbytes=None), "nbytes is")
    refused(lambda header: header["files"].pop("radii"), "lacks something")
    refused(lambda header: header["files"].update(lists=header["files"]["ids"]), "lists are int64")
    refused(lambda header: header["files"].update(radii=header["files"]["lists"]), "radii are int32")
    refused(lambda header: header["files"].update(words=header["files"]["ids"]), "words are int64")
    index._radii[:2] = -1, 129
    index.save(tmp_path / "radii")
    with pytest.raises(CorruptIndex, match="radii are -1 to 129, of 128 bits"):
        indexes.load(tmp_path / "radii")

