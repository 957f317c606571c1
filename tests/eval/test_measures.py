"""Measures against slow definitions, trec_eval, and published values."""

from __future__ import annotations

import copy
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from eval import evaluate, read_qrels, read_run
from eval.measures import DEFAULT_MEASURES, parse
from eval.trec import Qrels, Run, ranking

ROOT = Path(__file__).resolve().parents[2]
DL = ROOT.parent / "shared" / "data" / "msmarco-dl"

documents = st.sampled_from([f"d{i}" for i in range(12)] + ["é", "z", "\U0001d518", "\uffff"])
queries = st.sampled_from(["q1", "q2", "q3"])
# few different scores, exact in 32 bits: full of ties, and the same ties in trec_eval
runs = st.dictionaries(queries, st.dictionaries(documents, st.integers(-2, 2).map(float)))
judgements = st.dictionaries(queries, st.dictionaries(documents, st.integers(-2, 3), min_size=1), min_size=1)


def slow(name: str, ranked: list[str], grades: dict[str, int]) -> float:
    """Each measure as its definition says; `name` is one of SLOW."""
    measure, _, cutoff = name.partition("@")
    k = int(cutoff) if cutoff else len(ranked)
    rel = 2 if "rel=2" in measure else 1
    relevant = {document for document, grade in grades.items() if grade >= rel}
    hits = [document in relevant for document in ranked]
    if not ranked:
        return 0.0
    if measure == "nDCG":
        gains = [max(grades.get(document, 0), 0) for document in ranked[:k]]
        ideal = sorted((max(grade, 0) for grade in grades.values()), reverse=True)[: k if cutoff else len(grades)]
        best = sum(gain / math.log2(i + 2) for i, gain in enumerate(ideal))
        return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains)) / best if best else 0.0
    if measure.startswith("R("):
        return sum(hits[:k]) / len(relevant) if relevant else 0.0
    if measure.startswith(("MRR", "RR")):
        return next((1 / (i + 1) for i, hit in enumerate(hits[:k]) if hit), 0.0)
    if measure == "MAP":
        found = [sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits[:k]) if hit]
        return sum(found) / len(relevant) if relevant else 0.0
    if measure == "P":
        return sum(hits[:k]) / k
    if measure == "Success":
        return float(any(hits[:k]))
    assert measure == "Judged"
    return sum(document in grades for document in ranked[:k]) / min(k, len(ranked))


SLOW = ("nDCG", "nDCG@3", "R(rel=1)@2", "R(rel=2)@5", "MRR", "MRR@2", "RR(rel=2)", "RR(rel=2)@3", "MAP", "MAP@4", "P@5")
SLOW = (*SLOW, "Success@1", "Success@3", "Judged@4")


@settings(deadline=None)
@given(run=runs, qrels=judgements, exclude=st.booleans())
def test_measures_equal_their_definitions(run: Run, qrels: Qrels, exclude: bool) -> None:
    for query in run:
        run[query][query] = 0.0
    before = copy.deepcopy((run, qrels))
    evaluation = evaluate(run, qrels, SLOW, exclude_self=exclude)
    assert (run, qrels) == before
    assert evaluation.queries == tuple(sorted(qrels))
    for name in SLOW:
        for query, grades in qrels.items():
            ranked = [d for d in ranking(run.get(query, {})) if not (exclude and d == query)]
            assert evaluation.per_query[name][query] == pytest.approx(slow(name, ranked, grades)), (name, query)
        assert set(evaluation.per_query[name]) == set(qrels)
        assert evaluation.mean[name] == pytest.approx(sum(evaluation.values(name)) / len(qrels))


TREC = {"nDCG@5": "ndcg_cut_5", "R@5": "recall_5", "MRR": "recip_rank", "MAP": "map", "P@5": "P_5", "Bpref": "bpref"}


@settings(deadline=None)
@given(run=runs, qrels=judgements)
def test_measures_and_ties_equal_trec_eval(run: Run, qrels: Qrels) -> None:
    for grades in qrels.values():
        if max(grades.values()) < 0:  # where trec_eval itself would crash
            grades["d0"] = 0
    evaluation = evaluate(run, qrels, tuple(TREC))
    reference = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values())).evaluate(run)
    for query in qrels:
        for name, trec_name in TREC.items():
            expected = reference.get(query, {}).get(trec_name, 0.0)
            assert evaluation.per_query[name][query] == pytest.approx(expected), (name, query)


def test_a_constant_scorer_gets_what_the_tie_rule_gives() -> None:
    run = {"q": {f"d{i}": 1.0 for i in range(5)}}  # ranked d4, d3, d2, d1, d0
    evaluation = evaluate(run, {"q": {"d1": 1}}, ("MRR", "MRR@10", "MRR@3", "P@4", "Success@3", "nDCG@10"))
    assert evaluation.mean["MRR"] == evaluation.mean["MRR@10"] == 0.25
    assert evaluation.mean["MRR@3"] == evaluation.mean["Success@3"] == 0.0
    assert evaluation.mean["P@4"] == 0.25
    assert evaluation.mean["nDCG@10"] == pytest.approx(1 / math.log2(5))


def test_compat_takes_a_found_document_before_one_that_was_not_found() -> None:
    run, qrels = {"q": {"a": 3.0, "x": 2.0}}, {"q": {"c": 1, "a": 1}}
    expected = ir_measures.calc_aggregate([ir_measures.Compat], qrels, run)[ir_measures.Compat]
    assert evaluate(run, qrels, ["Compat"]).mean["Compat"] == expected


def test_scores_that_differ_beyond_32_bits_are_no_tie() -> None:
    assert evaluate({"q": {"a": 1.0 + 1e-12, "b": 1.0}}, {"q": {"a": 1}}, ["MRR"]).mean["MRR"] == 1.0


def test_means_are_over_all_judged_queries(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "eval"):
        evaluation = evaluate(
            {"q1": {"a": 1.0}, "other": {"a": 1.0}, "q3": {}}, {q: {"a": 1} for q in ("q3", "q2", "q1")}
        )
    assert evaluation.queries == ("q1", "q2", "q3")
    assert evaluation.values("nDCG@10") == [1.0, 0.0, 0.0]
    assert evaluation.mean == dict.fromkeys(DEFAULT_MEASURES, pytest.approx(1 / 3))
    assert "1 queries of the run have no judgements" in caplog.text
    assert "2 of 3 judged queries have no results" in caplog.text


def test_grades_that_crash_trec_eval_are_harmless() -> None:
    qrels = {"q0": {"a": 3}, "q1": {"a": -2}, "q2": {"a": -(10**30)}}
    run = {query: {"a": 1.0, "b": 0.5} for query in qrels}
    for _ in range(2000):  # enough for the overwritten memory to be noticed
        assert evaluate(run, qrels, ["MRR"]).values("MRR") == [1.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="query 'q1': grades must be at most 100000, got 100001"):
        evaluate(run, {"q0": {"a": 1}, "q1": {"a": 100_001}}, ["MRR"])


def test_an_empty_run_scores_zero() -> None:
    names = (*DEFAULT_MEASURES, "Judged@10", "Success@1", "Accuracy", "Compat")
    assert evaluate({}, {"q": {"a": 1}}, names).mean == dict.fromkeys(names, 0.0)


def test_exclude_self_frees_the_rank_and_is_recorded() -> None:
    run, qrels = {"q": {"q": 2.0, "a": 1.0}, "only": {"only": 1.0}}, {"q": {"a": 1}, "only": {"only": 1}}
    assert evaluate(run, qrels, ["MRR@10"]).values("MRR@10") == [1.0, 0.5]
    evaluation = evaluate(run, qrels, ["MRR@10"], exclude_self=True)
    assert evaluation.values("MRR@10") == [0.0, 1.0]
    assert evaluation.exclude_self


def test_numpy_values_are_numbers() -> None:
    run, qrels = {"q": {"a": np.float32(1), "b": np.int64(2)}}, {"q": {"a": np.int64(1)}}
    assert evaluate(run, qrels, ["MRR"]).mean == {"MRR": 0.5}


def test_keys_are_the_names_asked_for_and_aliases_agree() -> None:
    evaluation = evaluate(
        {"q": {"b": 1.0, "a": 0.5}}, {"q": {"a": 1}}, ["MRR@10", "RR@10", "NDCG@10", "nDCG@10", "MRR@10"]
    )
    assert list(evaluation.mean) == ["MRR@10", "RR@10", "NDCG@10", "nDCG@10"]
    assert evaluation.mean["MRR@10"] == evaluation.mean["RR@10"] == 0.5
    assert evaluation.mean["NDCG@10"] == evaluation.mean["nDCG@10"] > 0


def test_measures_asked_for_together_equal_those_asked_for_alone() -> None:
    """ir_measures lets custom gains (and judged_only) leak into the other measures of a call, by hash seed."""
    names = [
        "nDCG@10",
        "nDCG(gains={1:0,2:5})@10",
        "nDCG(judged_only=True)@10",
        "P(judged_only=True)@1",
        "P@1",
        "RR(rel=2)",
    ]
    code = (
        "import sys; from eval import evaluate\n"
        "run = {'q': {'x': 4.0, 'a': 3.0, 'b': 2.0, 'y': 1.0}}; qrels = {'q': {'a': 1, 'b': 2}}\n"
        "names = sys.argv[1:]\n"
        "alone = {name: evaluate(run, qrels, [name]).mean[name] for name in names}\n"
        "assert evaluate(run, qrels, names).mean == alone\n"
        "assert len(set(alone.values())) == len(alone), alone\n"
    )
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, *names], cwd=ROOT, env=environment, check=True)


def test_parse_returns_measures_that_round_trip() -> None:
    names = ("nDCG@10", "R@100", "RR@10", "AP", "P@5", "Success@1", "Judged@10", "R(rel=2)@100", "IPrec@0.5")
    assert tuple(map(str, parse(names))) == names


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nDGC@10", "unknown measure 'nDGC@10'; examples: nDCG@10"),
        ("ndcg_cut_10", "unknown measure"),
        ("", "cannot read the measure ''"),
        ("nDCG@", "cannot read"),
        ("nDCG@10@5", "cannot read"),
        ("nDCG(3)@10", "cannot read"),
        ("nDCG@x", "cannot read the measure 'nDCG@x': not of the form Name(parameter=value)@cutoff; examples: nDCG@10"),
        ("nDCG(**a)@1", "cannot read"),
        ("__import__('os').getcwd()", "cannot read"),
        ("nDCG@0", "cutoff=0 is not allowed"),
        ("nDCG@-1", "cutoff=-1 is not allowed"),
        ("nDCG@1.5", "cutoff=1.5 is not allowed"),
        ("nDCG@True", "cutoff=True is not allowed"),
        ("nDCG@'ten'", "cutoff='ten' is not allowed"),
        ("P", "needs cutoff, as in P@10"),
        ("P(relevance=2)@10", "unknown parameter 'relevance'; it takes cutoff, rel"),
        ("P(rel='2')@10", "rel='2' is not allowed"),
        ("nDCG(gains={1:-2})@10", "gains must be integers from 0"),
        ("NumRet", "is a count"),
        ("RBP(rel=1)", "no installed package computes"),
    ],
)
def test_bad_measures_are_named(name: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse([name])
    assert problem in str(caught.value)


def test_bad_arguments_are_named() -> None:
    qrels = {"q": {"a": 1}}
    with pytest.raises(ValueError, match="sequence of names"):
        evaluate({}, qrels, "nDCG@10")
    with pytest.raises(ValueError, match="qrels are empty"):
        evaluate({"q": {"a": 1.0}}, {})
    with pytest.raises(ValueError, match="run, query 'q': scores must be finite, got nan"):
        evaluate({"q": {"a": float("nan")}}, qrels)
    with pytest.raises(TypeError, match="run, query 'q': document ids must be strings, got 1"):
        evaluate({"q": {1: 1.0}}, qrels)  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="grades must be integers"):
        evaluate({}, {"q": {"a": 0.5}})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="ids must be strings, got 1"):
        evaluate({}, {1: {"a": 1}})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'P@1' was not computed; there are nDCG@10"):
        evaluate({}, qrels).values("P@1")


@pytest.mark.skipif(not DL.exists(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("system", "published"),
    [("BM25", 0.5058), ("D_BERT_KD_TASB", 0.7210), ("SPLADE_P_P_ENSEMBLE_DISTIL", 0.7308)],
)
def test_published_values(system: str, published: float) -> None:
    """Of DL 2019 only: the shared file of DL 2020 lacks judgements of the official one, so its values are higher."""
    run = read_run(DL / "runs" / f"dl19.{system}.top100.trec.gz")
    evaluation = evaluate(run, read_qrels(DL / "qrels" / "dl19.tsv"))
    assert round(evaluation.mean["nDCG@10"], 4) == published


@pytest.mark.skipif(not DL.exists(), reason="needs the shared data")
@pytest.mark.parametrize("path", sorted((DL / "runs").glob("*.trec.gz")), ids=lambda path: path.name)
def test_real_runs_equal_trec_eval(path: Path) -> None:
    run, qrels = read_run(path), read_qrels(DL / "qrels" / f"{path.name[:4]}.tsv")
    evaluation = evaluate(run, qrels, tuple(TREC))
    reference = pytrec_eval.RelevanceEvaluator(qrels, set(TREC.values())).evaluate(run)
    for name, trec_name in TREC.items():
        assert evaluation.values(name) == pytest.approx([reference[query][trec_name] for query in evaluation.queries])
