"""TenantIndex: who sees what, how much is found, and what is refused. What every index does is in test_conformance."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import indexes
from indexes import FlatIndex
from indexes.dense.tenants import Seen, TenantIndex
from indexes.errors import CorruptIndex, InvalidIds, InvalidParameter, InvalidVectors, NotFitted
from indexes.kernels import tenants as kernels

D = 24


def clusters(n: int, seed: int = 0, centres: int = 40) -> np.ndarray:
    """n vectors around some centres."""
    middles = np.random.default_rng(99).normal(size=(centres, D))
    rng = np.random.default_rng(seed)
    return (middles[rng.integers(0, centres, n)] + 0.4 * rng.normal(size=(n, D))).astype(np.float32)


def fitted(**parameters) -> TenantIndex:
    return TenantIndex(**{"nlist": 16, **parameters}).fit(clusters(400, seed=7))


def assert_as_flat(index: TenantIndex, tenant, allowed: np.ndarray, vectors: np.ndarray, allow=None) -> None:
    """The tenant finds what a FlatIndex finds among the rows that it may see."""
    queries = clusters(5, seed=3)
    twin = FlatIndex(metric=index.metric).add(vectors, index.ids)
    expected = twin.search(queries, 8, allow=allowed if allow is None else allowed & allow)
    hits = index.search(queries, 8, tenant=tenant, allow=allow)
    np.testing.assert_array_equal(hits.ids, expected.ids)
    np.testing.assert_allclose(hits.scores, expected.scores, rtol=1e-4, atol=1e-4)


# -- who sees what -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_a_tenant_sees_its_own_and_nothing_else(metric):
    vectors, rng = clusters(300), np.random.default_rng(1)
    owners = rng.choice(["anna", "ben", "carl"], 300)
    index = fitted(metric=metric).add(vectors, np.arange(300) * 3 + 5, tenants=owners.tolist())
    for tenant in ("anna", "ben", "carl"):
        assert_as_flat(index, tenant, owners == tenant, vectors)
        assert_as_flat(index, tenant, owners == tenant, vectors, allow=rng.random(300) < 0.3)
        np.testing.assert_array_equal(index.ids_of(tenant), index.ids[owners == tenant])
    assert sorted(index.tenants) == ["anna", "ben", "carl"]


def test_no_tenant_means_everything():
    vectors = clusters(200)
    index = fitted().add(vectors[:100], tenants="anna").add(vectors[100:])
    assert_as_flat(index, None, np.ones(200, bool), vectors)
    assert_as_flat(index, None, np.ones(200, bool), vectors, allow=np.arange(200) % 7 == 0)


def test_who_was_never_granted_anything_sees_nothing():
    index = fitted().add(clusters(50), tenants=1)
    for stranger in ("1", 2, ""):
        hits = index.search(clusters(3), 4, tenant=stranger)
        assert hits.ids.shape == (3, 4) and (hits.ids == -1).all()
        assert index.ids_of(stranger).tolist() == []


def test_labels_of_each_vector_one_or_several():
    index = fitted().add(clusters(6), tenants=["a", ["a", "b"], [], {"c", 7}, ("b", "b"), np.int64(7)])
    assert {tenant: index.ids_of(tenant).tolist() for tenant in index.tenants} == {
        "a": [0, 1], "b": [1, 4], "c": [3], 7: [3, 5],
    }  # fmt: skip
    index.add(clusters(2, seed=1), tenants=np.array([7, 8]))
    assert index.ids_of(7).tolist() == [3, 5, 6] and index.ids_of(8).tolist() == [7]


def test_grant_and_revoke_count_what_changed():
    index = fitted().add(clusters(10), np.arange(10) + 100)
    assert index.grant([105, 101, 105], "a") == 2
    assert index.grant([101, 102], "a") == 1
    assert index.grant(107, 4) == 1
    assert index.ids_of("a").tolist() == [101, 102, 105]
    assert index.revoke([101, 107, 999], "a") == 1
    assert index.ids_of("a").tolist() == [102, 105]
    assert index.revoke([102, 105], "a") == 2
    assert index.revoke([102], "a") == index.revoke([102], "nobody") == 0
    assert index.tenants == [4]


def test_a_search_after_a_change_sees_it():
    """Lists of clusters are kept from one search to the next."""
    vectors = clusters(400)
    index = fitted(metric="l2", candidates=10).add(vectors, tenants="a")
    query = vectors[7:8]
    for tenant in ("a", None):
        assert index.search(query, 1, tenant=tenant).ids[0, 0] == 7
    index.revoke(7, "a")
    assert index.search(query, 1, tenant="a").ids[0, 0] != 7
    assert index.search(query, 1).ids[0, 0] == 7
    index.grant(7, "a")
    assert index.search(query, 1, tenant="a").ids[0, 0] == 7
    index.remove(7)
    index.add(query, [1000])
    assert index.search(query, 1, tenant="a").ids[0, 0] != 7
    assert index.search(query, 1).ids[0, 0] == 1000


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(
    st.sampled_from(["add", "grant", "revoke", "remove", "reload"]), st.integers(0, 2),
    st.lists(st.integers(0, 30), max_size=8)), max_size=12))  # fmt: skip
def test_any_history_equals_sets_of_ids(tmp_path_factory, steps):
    index, here, seen = fitted(), {}, {}
    for name, tenant, numbers in steps:
        known = sorted(set(numbers) & set(here))
        if name == "add":
            fresh = sorted(set(numbers) - set(here))
            vectors = clusters(len(fresh), seed=len(here))
            index.add(vectors, np.array(fresh, int), tenants=tenant)
            here |= dict(zip(fresh, vectors, strict=True))
            seen.setdefault(tenant, set()).update(fresh)
        elif name == "grant":
            index.grant(np.array(known, int), tenant)
            seen.setdefault(tenant, set()).update(known)
        elif name == "revoke":
            index.revoke(np.array(numbers, int), tenant)
            seen.setdefault(tenant, set()).difference_update(numbers)
        elif name == "remove":
            index.remove(np.array(numbers, int))
            here = {id: vector for id, vector in here.items() if id not in numbers}
            seen = {who: ids - set(numbers) for who, ids in seen.items()}
        else:
            folder = tmp_path_factory.mktemp("index")
            index.save(folder)
            index = indexes.load(folder)
    assert set(index.tenants) == {who for who, ids in seen.items() if ids}
    for who in range(3):
        assert sorted(index.ids_of(who)) == sorted(seen.get(who, ()))
        found = index.search(clusters(1, seed=5), 40, tenant=who).ids[0]
        assert set(found[found >= 0]) == seen.get(who, set())


# -- how much is found -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "dtype"), [("ip", "float32"), ("cosine", "float16"), ("l2", "float32")])
def test_recall_of_large_tenants(metric, dtype):
    vectors, queries = clusters(6000), clusters(50, seed=5)
    index = TenantIndex(metric=metric, dtype=dtype, nlist=100, candidates=400).fit(vectors).add(vectors)
    mine = np.random.default_rng(2).random(6000) < 0.4
    index.grant(np.flatnonzero(mine), "a")
    twin = FlatIndex(metric=metric).add(vectors)
    for tenant, allowed in (("a", mine), (None, np.ones(6000, bool))):
        right = twin.search(queries, 10, allow=allowed).ids
        recalls = []
        for candidates in (15, 400, 6000):
            hits = index.search(queries, 10, tenant=tenant, candidates=candidates)
            assert allowed[hits.ids].all()
            recalls.append(np.mean([np.isin(a, b).mean() for a, b in zip(hits.ids, right, strict=True)]))
        assert recalls[0] < recalls[1] <= recalls[2], "scoring more finds more"
        assert recalls[1] > 0.9
        assert recalls[2] > 0.99  # not 1: float16, and scores that are equal but for rounding


def test_k_beyond_candidates_and_clusters():
    index = fitted(candidates=1).add(clusters(1000), tenants="a")
    hits = index.search(clusters(3, seed=1), 300, tenant="a")
    assert (hits.ids >= 0).all()
    allow = np.arange(1000) % 3 == 0
    hits = index.search(clusters(3, seed=1), 500, tenant="a", allow=allow)
    assert ((hits.ids >= 0).sum(axis=1) == 334).all()


def test_few_candidates_are_those_of_the_nearest_clusters():
    """The slow definition: clusters by their centroid, until enough vectors are met."""
    vectors, queries = clusters(800), clusters(20, seed=1)
    index = fitted().add(vectors)
    rows = np.sort(np.random.default_rng(0).permutation(800)[:500])
    index.grant(rows, "a")
    centroids = index._state()[1]["centroids"]
    cell = ((vectors[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
    hits = index.search(queries, 10, tenant="a", candidates=60)
    for query, ids in zip(queries, hits.ids, strict=True):
        met: list[int] = []
        for one in np.argsort(-(centroids @ query)):
            if len(met) < 60:
                met += rows[cell[rows] == one].tolist()
        best = sorted(met, key=lambda row: -float(vectors[row] @ query))[:10]
        assert ids.tolist() == best


def test_lists_of_keys():
    keys = np.array([0 << 32 | 7, 3 << 32 | 1, 3 << 32 | 9, 5 << 32 | 2])
    cells, starts = Seen(keys).lists()
    assert (cells.tolist(), starts.tolist()) == ([0, 3, 5], [0, 1, 3, 4])
    cells, starts = Seen(keys[:0]).lists()
    assert (cells.tolist(), starts.tolist()) == ([], [0])


def test_the_nearest_centroid_first_of_equals():
    out = np.empty(3, np.int64)
    kernels.nearest(np.array([[0, 0], [5, 1], [2, 0]], np.float32), np.array([[4, 0], [0, 0], [0, 0]], np.float32), out)
    assert out.tolist() == [1, 0, 0]


def test_memory_of_a_grant():
    index = fitted().add(clusters(200))
    before = index.describe()["bytes"]
    index.grant(np.arange(100), "a")
    assert index.describe()["bytes"] - before == 8 * 100 + 8


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_fit_comes_first_and_once():
    with pytest.raises(NotFitted, match="fit"):
        TenantIndex().add(clusters(5), tenants="a")
    index = fitted().add(clusters(5))
    with pytest.raises(InvalidParameter, match="holds 5 vectors"):
        index.fit(clusters(100))
    assert fitted(nlist=None).describe()["nlist"] == 10  # 400 // 39


@pytest.mark.parametrize(("parameter", "values"), [
    ("metric", ["dot"]), ("dtype", ["int8"]), ("nlist", [0, 1.5, "9"]), ("candidates", [0, -3, 2.0]),
])  # fmt: skip
def test_wrong_parameters(parameter, values):
    for value in values:
        with pytest.raises(InvalidParameter, match=parameter):
            TenantIndex(**{parameter: value})


@pytest.mark.parametrize("wrong", [1.5, True, None, b"a", ["a"]])
def test_what_is_no_label(wrong):
    index = fitted().add(clusters(3))
    for use in (lambda: index.grant([0], wrong), lambda: index.revoke([0], wrong), lambda: index.ids_of(wrong),
                lambda: index.add(clusters(2), tenants=["a", [wrong]])):  # fmt: skip
        with pytest.raises(InvalidParameter, match="must be an int or a str"):
            use()
    if wrong is not None:
        with pytest.raises(InvalidParameter, match="must be an int or a str"):
            index.search(clusters(1), tenant=wrong)
    assert len(index) == 3 and index.tenants == []


def test_a_refused_add_changes_nothing():
    index = fitted().add(clusters(3), tenants="a")
    for error, vectors, ids, tenants in (
        (InvalidParameter, clusters(2), None, ["b", "b", "b"]), (InvalidIds, clusters(2), [0, 9], "b"),
        (InvalidVectors, clusters(2)[:, :5], None, "b"), (InvalidParameter, clusters(2), None, 1.5),
    ):  # fmt: skip
        with pytest.raises(error):
            index.add(vectors, ids, tenants=tenants)
        assert len(index) == 3 and index.tenants == ["a"] and index.ids_of("a").tolist() == [0, 1, 2]


def test_unknown_ids_are_not_granted():
    index = fitted().add(clusters(3), [4, 2, 9])
    with pytest.raises(InvalidIds, match="id 7 is not in the index"):
        index.grant([9, 7], "a")
    with pytest.raises(InvalidIds, match="must be integers"):
        index.grant([1.5], "a")
    with pytest.raises(InvalidIds, match="id 0 is not in the index"):
        fitted().grant([0], "a")
    assert index.tenants == []


# -- files -------------------------------------------------------------------------------------------------------------


def test_tenants_are_saved(tmp_path):
    vectors = clusters(100)
    index = fitted().add(vectors, tenants=[["a", 1] if i % 3 else "1" for i in range(100)])
    index.save(tmp_path)
    for mmap in (True, False):
        loaded = TenantIndex.load(tmp_path, mmap=mmap)
        assert loaded.tenants == index.tenants
        for tenant in ("a", 1, "1"):
            np.testing.assert_array_equal(loaded.ids_of(tenant), index.ids_of(tenant))
        loaded.add(vectors[:1], tenants="a")
        assert loaded.revoke([1], "a") == 1
        assert loaded.ids_of("a").tolist() == [*index.ids_of("a").tolist()[1:], 100]


def damaged(name):
    """Changes to the saved arrays, none of which a checksum would show once they are saved."""
    def change(index):
        state, arrays, foreign = index._state()
        for part in arrays:
            arrays[part] = arrays[part].copy()
        if name == "a foreign row":
            arrays["grants"][0] += 1 << 32
        elif name == "order":
            arrays["grants"][:2] = arrays["grants"][1::-1]
        elif name == "a cluster":
            arrays["keys"][3] += 16 << 32
        elif name == "starts":
            arrays["starts"][1] = 0
        elif name == "labels":
            state["tenants"] = state["tenants"][:1]
        elif name == "twice":
            state["tenants"] = ["a", "a"]
        elif name == "centroids":
            arrays["centroids"] = arrays["centroids"][:, :5]
        else:
            arrays["keys"] = arrays["keys"].astype(np.int32)
        return state, arrays, foreign

    return change


@pytest.mark.parametrize(
    "name", ["a foreign row", "order", "a cluster", "starts", "labels", "twice", "centroids", "dtype"])
def test_damaged_files_are_refused(name, tmp_path, monkeypatch):
    index = fitted().add(clusters(20), tenants=["a", "b"] * 10)
    content = damaged(name)(index)
    monkeypatch.setattr(index, "_state", lambda: content)
    index.save(tmp_path)
    assert json.loads((tmp_path / "index.json").read_text())["kind"] == "tenants"
    with pytest.raises(CorruptIndex):
        indexes.load(tmp_path)
