"""Tuning: the rule of the choice on a clock of our own, what counts as right, each real index, each bad input."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import indexes
from indexes import (
    BinaryIVFIndex,
    BlockMaxIndex,
    EagerIndex,
    FlatIndex,
    GraphIndex,
    HammingIndex,
    Hits,
    HNSWIndex,
    Index,
    IVFPQIndex,
    MultiIndexHashing,
    ScanIndex,
    SeismicIndex,
    TwoStageIndex,
    UsearchIndex,
    tune,
    tuning,
)
from indexes.codecs import SQ
from indexes.errors import InvalidIds, InvalidParameter

SPLADE = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "splade-v3-nfcorpus"
TUNABLE = (BlockMaxIndex, SeismicIndex, HNSWIndex, IVFPQIndex)
K = 10


@pytest.fixture(autouse=True)
def no_race_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 0.0)


# -- the rule, on a clock that only searching moves --------------------------------------------------------------------


class Clocked(FlatIndex):
    """Searches exactly, then forgets `misses[step]` of each ranking's last places and takes `costs[step]` seconds.

    Queries whose first number is negative lose `held_out` places more, unless the step is among the `steady` ones.
    """

    search_knobs = {"step": lambda value: isinstance(value, int)}  # noqa: RUF012
    clock = 0.0

    def __init__(self, misses: list[int], costs: list[float], held_out: int = 0, steady: int = 0, step: int = 0):
        super().__init__()
        self.misses, self.costs, self.held_out, self.steady, self.step = misses, costs, held_out, steady, step
        self.search_ladders = {"step": range(len(misses))}  # type: ignore[misc]

    def _search(self, queries: np.ndarray, k: int, allow: Any, threads: int, **knobs: Any) -> Any:
        scores, ids = super()._search(queries, k, allow, threads)
        step = knobs["step"]
        lost = self.misses[step] + self.held_out * (queries[:, 0] < 0) * (step >= self.steady)
        gone = np.arange(k) >= k - lost[:, None]
        scores[gone], ids[gone] = -np.inf, -1
        Clocked.clock += self.costs[step] * len(queries) / 1e6
        return scores, ids


RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 4)).astype(np.float32)
QUERIES = np.abs(RNG.normal(size=(40, 4))).astype(np.float32)
QUERIES[1::2, 0] *= -1  # the held-out half
EXACT = FlatIndex().add(ROWS)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "perf_counter", lambda: Clocked.clock)


steps = st.lists(st.tuples(st.integers(0, 4), st.sampled_from([50, 97, 98, 99, 100, 101, 103, 140, 151, 200, 900])),
                 min_size=1, max_size=12)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.sampled_from([1.0, 0.9, 0.8, 0.7]))
def test_the_choice_is_fast_enough_and_no_riskier_than_that_needs(clocked, steps, target):
    steps = sorted(steps, key=lambda step: step[0])
    misses, costs = [lost for lost, _ in steps], [cost for _, cost in steps]
    index = Clocked(misses, costs).add(ROWS)
    tuned = tune(index, QUERIES, K, target_recall=target, exact=EXACT)
    recalls = [1 - lost / K for lost in misses]
    assert [setting.recall for setting in tuned.curve] == pytest.approx(recalls[: len(tuned.curve)])
    assert tuned.reached == (max(recalls) >= target)
    bar = min(target, max(recalls))
    own = tuned.chosen.knobs["step"]
    assert recalls[own] >= bar
    reaching = [step for step, recall in enumerate(recalls) if recall >= bar]
    assert all(costs[step] >= 0.97 * costs[own] for step in reaching)
    assert all(costs[step] > costs[own] for step in reaching if step < own)  # safer ones are slower
    assert tuned.chosen.microseconds == pytest.approx(costs[own])
    assert index.step == own


@pytest.mark.parametrize("cost, chosen", [(98, 0), (96, 1)])
def test_a_setting_that_is_hardly_faster_does_not_displace_a_safer_one(clocked, cost, chosen):
    index = Clocked([0, 1], [100, cost]).add(ROWS)
    assert tune(index, QUERIES, K, target_recall=0.9, exact=EXACT).chosen.knobs == {"step": chosen}


def test_settings_beyond_one_far_below_the_target_are_not_tried(clocked):
    index = Clocked([0, 1, 3, 4, 5], [50, 40, 30, 20, 10]).add(ROWS)
    tuned = tune(index, QUERIES, K, target_recall=0.9, exact=EXACT)
    assert [setting.knobs["step"] for setting in tuned.curve] == [0, 1, 2]
    assert tuned.chosen.knobs == {"step": 1}


def test_if_no_setting_reaches_the_target_the_most_accurate_is_chosen(clocked, caplog):
    index = Clocked([3, 3, 5], [50, 20, 10]).add(ROWS)
    with caplog.at_level(logging.WARNING, "indexes.tuning"):
        tuned = tune(index, QUERIES, K, target_recall=0.9, exact=EXACT)
    assert (tuned.chosen.knobs, tuned.chosen.recall, tuned.reached) == ({"step": 1}, 0.7, False)
    assert "no setting reaches recall@10 of 0.9" in caplog.text and "0.7000" in caplog.text


def test_a_safer_setting_is_taken_if_the_held_out_queries_find_less(clocked, caplog):
    index = Clocked([0, 0, 1, 1], [50, 40, 30, 20], held_out=2, steady=2).add(ROWS)
    tuned = tune(index, QUERIES, K, target_recall=0.9, exact=EXACT)
    assert (tuned.chosen.knobs, tuned.held_out_recall, tuned.reached) == ({"step": 1}, 1.0, True)
    assert not caplog.text


def test_if_held_out_queries_find_too_little_everywhere_the_safest_is_taken(clocked, caplog):
    index = Clocked([0, 0, 1, 1], [50, 40, 30, 20], held_out=2).add(ROWS)
    tuned = tune(index, QUERIES, K, target_recall=0.9, exact=EXACT)
    assert (tuned.chosen.knobs, tuned.chosen.recall, tuned.held_out_recall) == ({"step": 0}, 1.0, 0.8)
    assert not tuned.reached
    assert "0.8000 on held-out queries" in caplog.text


def test_the_setting_that_the_index_has_takes_part(clocked):
    index = Clocked([0, 0, 0, 2], [50, 40, 5, 1], step=2).add(ROWS)
    index.search_ladders = {"step": (0, 1, 3)}
    assert tune(index, QUERIES, K, target_recall=0.9, exact=EXACT).chosen.knobs == {"step": 2}


def test_the_fastest_of_several_indexes_within_the_budget(clocked):
    slow, fast, large = (Clocked([0, 0], [cost, cost]).add(ROWS) for cost in (50, 40, 10))
    large.describe = lambda: {"bytes": 10_000}
    for index, wins in ((large, None), (fast, 10**6)):
        tuned = tune([slow, fast, large], QUERIES, K, exact=EXACT, budget_bytes=9_999 if index is fast else wins)
        assert tuned.chosen.index is index
    assert {setting.index for setting in tuned.curve} == {slow, fast}


# -- what is right -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 12))
def test_whatever_scores_as_much_as_the_kth_is_right(seed, n, k):
    rng = np.random.default_rng(seed)
    vectors, queries = rng.integers(-1, 2, (n, 3)).astype(np.float32), rng.integers(-1, 2, (5, 3)).astype(np.float32)
    ids = rng.permutation(1000)[:n]
    scores = queries @ vectors.T
    bars = [np.sort(row)[::-1][min(k, n) - 1] for row in scores]
    expected = [sorted(ids[row >= bar].tolist()) for row, bar in zip(scores, bars, strict=True)]
    found = tuning._searched(FlatIndex().add(vectors, ids), queries, k)
    assert [sorted(right.tolist()) for right in found] == expected


def test_recall_counts_each_of_several_equals(clocked):
    class Last(Clocked):
        def _search(self, queries, k, allow, threads, **knobs):  # prefers larger ids, as our exact indexes never do
            scores, ids = super()._search(queries, len(self), allow, threads, **knobs)
            order = np.lexsort((-ids, -scores))[:, :k]
            return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)

    rows = np.repeat(np.eye(4, dtype=np.float32), 15, axis=0)
    index, exact = Last([0], [1]).add(rows), FlatIndex().add(rows)
    assert not np.isin(index.search(QUERIES, K).ids, exact.search(QUERIES, K).ids).all()
    assert tune(index, QUERIES, K, exact=exact).chosen.recall == 1


def test_exact_hits_do_as_well_as_the_exact_index(clocked):
    index = Clocked([0, 1, 2], [3, 2, 1]).add(ROWS)
    for exact in (EXACT, EXACT.search(QUERIES, K), EXACT.search(QUERIES, 3 * K)):
        assert [s.recall for s in tune(index, QUERIES, K, target_recall=0.8, exact=exact).curve] == [1, 0.9, 0.8]


def test_recall_where_fewer_than_k_answers_exist():
    vectors = sparse.csr_matrix(np.eye(30, dtype=np.float32))
    tuned = tune(BlockMaxIndex().add(vectors), vectors, K, target_recall=1.0)
    assert (tuned.chosen.recall, tuned.held_out_recall) == (1, 1)


# -- real indexes ------------------------------------------------------------------------------------------------------


def clustered(n: int, nq: int, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(40, d))
    points = centres[rng.integers(0, 40, n + nq)] + 0.7 * rng.normal(size=(n + nq, d))
    return points[:n].astype(np.float32), points[n:].astype(np.float32)


def splade_like(n: int, nq: int) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Clustered vectors as 128 terms of which a fifth is above zero."""
    rng = np.random.default_rng(2)
    points = np.concatenate(clustered(n, nq)) @ rng.normal(size=(16, 128))
    weights = sparse.csr_matrix(np.maximum(points - np.quantile(points, 0.8, axis=1)[:, None], 0).astype(np.float32))
    return weights[:n], weights[n:]


def made(kind: type[Index], rows: Any) -> Index:
    if kind is IVFPQIndex:
        return IVFPQIndex(metric="l2", bytes=16, nlist=40, opq=False).fit(rows).add(rows)
    return (kind(metric="l2") if kind in (HNSWIndex, FlatIndex) else kind()).add(rows)


def recall(index: Index, exact: Index, queries: Any, **knobs: Any) -> float:
    found, right = index.search(queries, K, **knobs).ids, exact.search(queries, K).ids
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(right, found, strict=True)]))


@pytest.mark.parametrize("kind, target", [(BlockMaxIndex, 0.9), (SeismicIndex, 0.9), (HNSWIndex, 0.95),
                                          (IVFPQIndex, 0.7), (FlatIndex, 1.0), (EagerIndex, 1.0)])  # fmt: skip
def test_each_kind_finds_what_it_promises_and_keeps_its_setting(kind, target, tmp_path):
    dense = kind in (HNSWIndex, IVFPQIndex, FlatIndex)
    rows, queries = (clustered if dense else splade_like)(3000, 120)
    index, exact = made(kind, rows), made(FlatIndex if dense else EagerIndex, rows)
    tuned = tune(index, queries, K, target_recall=target, exact=exact if kind is IVFPQIndex else None)
    chosen = tuned.chosen
    assert tuned.reached and min(chosen.recall, tuned.held_out_recall) >= target
    assert recall(index, exact, queries[::2]) == pytest.approx(chosen.recall)
    assert recall(index, exact, queries[1::2]) == pytest.approx(tuned.held_out_recall)
    index.save(tmp_path)
    again = indexes.load(tmp_path)
    for name, value in chosen.knobs.items():
        assert getattr(again, name) == value == again.describe()[name]
    default, named = again.search(queries, K), index.search(queries, K, **chosen.knobs)
    assert np.array_equal(default.ids, named.ids)


@pytest.mark.parametrize("make", [
    *(lambda m=m, r=r: ScanIndex(codec=SQ(bits=2), metric=m, rerank=r) for m, r in (
        ("ip", "float32"), ("cosine", "float32"), ("l2", "float16"))),
    *(lambda m=m: TwoStageIndex(metric=m, rescore="float16") for m in ("ip", "cosine")),
    *(lambda m=m: HNSWIndex(metric=m) for m in ("ip", "cosine")),
])  # fmt: skip
def test_what_is_right_comes_from_the_vectors_that_an_index_keeps(make):
    rows, queries = clustered(1000, 60)
    rows *= np.random.default_rng(0).uniform(0.5, 2, (1000, 1)).astype(np.float32)
    index, ids = make(), np.random.default_rng(1).permutation(5000)[:1000]
    index.fit(rows).add(rows, ids)
    halves = "float16" in (getattr(index, "rerank", None), getattr(index, "rescore", None))
    exact = FlatIndex(metric=index.metric, dtype="float16" if halves else "float32").add(rows, ids)
    twin = tuning._twin([index])
    assert isinstance(twin, FlatIndex) and np.array_equal(twin.search(queries, 3).ids, exact.search(queries, 3).ids)
    tuned = tune(index, queries, K, target_recall=0.9)
    assert tuned.reached and tuned.chosen.recall == pytest.approx(recall(index, exact, queries[::2]), abs=0.005)


@pytest.mark.parametrize("make", [
    lambda: ScanIndex(rerank="float16"), lambda: GraphIndex(rerank="float32"), lambda: TwoStageIndex(rescore="float16"),
    HNSWIndex, UsearchIndex,
])  # fmt: skip
def test_what_is_right_is_among_the_rows_that_are_left(make):
    """Graphs keep the vectors of rows that were removed."""
    if make is UsearchIndex:
        pytest.importorskip("usearch")
    rows, index = clustered(300, 1)[0], make()
    index.fit(rows).add(rows).remove(np.arange(0, 300, 3))
    twin = tuning._twin([index])
    np.testing.assert_array_equal(twin.ids, index.ids)
    np.testing.assert_allclose(twin.vectors, rows[index.ids], rtol=1e-3)


def test_codes_in_lists_are_compared_with_a_scan_of_them():
    codes, ids = np.random.default_rng(0).integers(0, 256, (400, 4), np.uint8), np.arange(400, 0, -1)
    index, scan = BinaryIVFIndex(nlist=20).fit(codes).add(codes, ids), HammingIndex().add(codes, ids)
    twin = tuning._twin([index])
    assert isinstance(twin, HammingIndex) and np.array_equal(twin.search(codes[:9]).ids, scan.search(codes[:9]).ids)
    few, all_lists = (tune(index, codes[:60], target_recall=target) for target in (0.3, 1))
    assert few.reached and few.chosen.knobs["nprobe"] < 20 and few.chosen.recall < 1
    assert all_lists.reached and all_lists.chosen.recall == 1


@pytest.mark.parametrize("kind", [HammingIndex, MultiIndexHashing])
def test_exact_search_of_codes_is_right_itself(kind):
    codes = np.random.default_rng(0).integers(0, 256, (300, 4), np.uint8)
    index = kind().add(codes)
    assert tuning._twin([index]) is index
    assert tune(index, codes[:40]).held_out_recall == 1


@pytest.mark.parametrize("make, name, expected", [
    (lambda rows: IVFPQIndex(metric="l2", bytes=8, nlist=40, opq=False), "nprobe", [64, 32, 16, 8, 4, 2, 1]),
    (lambda rows: IVFPQIndex(metric="l2", bytes=8, nlist=32, opq=False), "nprobe", [32, 16, 8, 4, 2, 1]),
    (lambda rows: ScanIndex(), "candidates", [2000, 1000, 500, 200, 100, 50, 30, 20, 15, 10]),
    (lambda rows: HNSWIndex(), "ef_search", list(HNSWIndex.search_ladders["ef_search"])),
])  # fmt: skip
def test_more_than_an_index_has_is_tried_once(make, name, expected):
    rows, queries = clustered(1100, 40)
    index = make(rows)
    index.fit(rows).add(rows)
    assert tuning._ladders(index) == {name: expected}
    tuned = tune(index, queries, K, exact=FlatIndex(metric=index.metric).add(rows), target_recall=0.2)
    own = [setting.knobs[name] for setting in tuned.curve]
    assert own[own.index(expected[0]):] == expected[: len(own) - own.index(expected[0])]


def test_the_settings_tried_and_their_recall_are_the_same_every_time():
    rows, queries = splade_like(2000, 80)
    index = SeismicIndex().add(rows)
    first, second = (tune(index, queries, K, target_recall=0.9).curve for _ in range(2))
    assert [(s.knobs, s.recall, s.bytes) for s in first] == [(s.knobs, s.recall, s.bytes) for s in second]


def test_rows_of_the_curve_are_json_and_mark_the_choice():
    rows, queries = clustered(2000, 60)
    tuned = tune(made(HNSWIndex, rows), queries, K)
    told = json.loads(json.dumps(tuned.rows()))
    assert [row["ef_search"] for row in told if row["chosen"]] == [tuned.chosen.knobs["ef_search"]]
    assert all(row["kind"] == "hnsw" and 0 <= row["recall"] <= 1 and row["microseconds"] > 0 for row in told)


@pytest.mark.parametrize("kind", TUNABLE)
def test_ladders_hold_allowed_values_from_the_safest_on(kind):
    assert set(kind.search_ladders) == set(kind.search_knobs)
    for name, ladder in kind.search_ladders.items():
        assert all(kind.search_knobs[name](value) for value in ladder)
        assert len(set(ladder)) == len(ladder)
    dense = kind in (HNSWIndex, IVFPQIndex)
    rows, queries = (clustered if dense else splade_like)(3000, 60)
    index, exact = made(kind, rows), made(FlatIndex if dense else EagerIndex, rows)
    safest = {name: ladder[0] for name, ladder in kind.search_ladders.items()}
    for name, ladder in kind.search_ladders.items():
        found = [recall(index, exact, queries, **{**safest, name: value}) for value in ladder]
        assert found[0] >= max(found) - 0.01 and found[0] >= found[-1]
        assert found[0] > found[-1] or name == "budget"  # these rows fill fewer than 40 blocks' worth of answers
    if kind in tuning.EXACT:
        assert recall(index, exact, queries, **safest) == 1


@pytest.mark.skipif(not SPLADE.is_dir(), reason="the shared SPLADE vectors are not here")
def test_splade_vectors_of_nfcorpus():
    vocabulary: dict[str, int] = {}

    def read(name):
        with gzip.open(SPLADE / name, "rt", encoding="utf8") as lines:
            vectors = [json.loads(line)["vector"] for line in lines]
        terms = [[vocabulary.setdefault(term, len(vocabulary)) for term in vector] for vector in vectors]
        starts = np.cumsum([0, *map(len, terms)])
        return sparse.csr_matrix((np.array([w for v in vectors for w in v.values()]), np.concatenate(terms), starts))

    vectors = read("nfcorpus.splade-v3.docs.jsonl.gz")
    queries = read("nfcorpus.test.splade_distil_cocodenser_medium.queries.jsonl.gz")
    index, exact = BlockMaxIndex().add(vectors), EagerIndex().add(vectors)
    tuned = tune(index, queries, K, target_recall=0.97)
    assert tuned.reached and tuned.curve[0].recall == 1
    assert recall(index, exact, queries) >= 0.96  # of ties it counts the smaller id only


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given, words", [
    ({"target_recall": 0}, "target_recall is 0"),
    ({"target_recall": 1.5}, "target_recall is 1.5"),
    ({"queries": QUERIES[:19]}, "queries are 19, of which 19 have an answer; at least 20"),
    ({"index": []}, "empty list"),
    ({"budget_bytes": 1439}, "budget_bytes is 1439; the smallest index has 1440 bytes"),
    ({"exact": EXACT.search(QUERIES, K - 1)}, r"exact holds hits \(40, 9\); they must be \(40, 10\) or wider"),
    ({"exact": EXACT.search(QUERIES[1:], K)}, r"exact holds hits \(39, 10\)"),
    ({"exact": FlatIndex().add(ROWS[1:])}, "does not hold the ids"),
    ({"k": 0}, "k is 0"),
])  # fmt: skip
def test_bad_input_is_named(given, words):
    arguments: dict[str, Any] = {"index": FlatIndex().add(ROWS), "queries": QUERIES, "k": K, **given}
    with pytest.raises((InvalidParameter, InvalidIds), match=words):
        tune(arguments.pop("index"), arguments.pop("queries"), **arguments)


def test_queries_without_an_answer_do_not_count():
    queries = sparse.csr_matrix(np.eye(40, 30, dtype=np.float32))
    vectors = sparse.csr_matrix(np.eye(30, dtype=np.float32))
    assert tune(EagerIndex().add(vectors), queries).chosen.recall == 1
    with pytest.raises(InvalidParameter, match="queries are 40, of which 19 have an answer"):
        tune(EagerIndex().add(vectors[:19]), queries)


def test_codes_alone_are_nothing_to_compare_with():
    with pytest.raises(InvalidParameter, match="exact is None, and ivfpq holds no vectors"):
        tune(made(IVFPQIndex, clustered(500, 0)[0]), clustered(500, 40)[1])
    rows = clustered(500, 0)[0]
    for index in (ScanIndex(rerank=None).fit(rows), TwoStageIndex(rescore="code")):
        with pytest.raises(InvalidParameter, match=f"{index.kind} holds no vectors"):
            tune(index.add(rows), rows[:40])


def test_indexes_over_other_ids_are_refused():
    with pytest.raises(InvalidIds, match=r"flat \(60 rows\) does not hold the ids of flat"):
        tune([FlatIndex().add(ROWS), FlatIndex().add(ROWS, np.arange(60) + 1)], QUERIES)


def test_nothing_is_changed_when_tuning_fails(clocked):
    index = Clocked([0, 0], [2, 1]).add(ROWS)
    with pytest.raises(InvalidParameter):
        tune(index, QUERIES[:10], K, exact=Hits(*(np.zeros((10, K), t) for t in (np.float32, np.int64))))
    assert index.step == 0
