"""Rankings, TREC runs, TREC and BEIR judgements."""

from __future__ import annotations

import gzip
from functools import cmp_to_key
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import read_qrels, read_run, write_run
from eval.errors import FormatError
from eval.trec import ranking

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(lambda w: w.split() == [w])
finite = st.floats(allow_nan=False, allow_infinity=False)


def slow_ranking(scores: dict[str, float]) -> list[str]:
    def before(a: str, b: str) -> int:
        if scores[a] != scores[b]:
            return -1 if scores[a] > scores[b] else 1
        return -1 if a.encode() > b.encode() else 1  # trec_eval compares the bytes

    return sorted(scores, key=cmp_to_key(before))


@given(st.dictionaries(words, st.sampled_from([-1.0, -0.0, 0.0, 1e-300, 2.5]) | finite))
def test_ranking_is_by_score_then_by_id_descending(scores: dict[str, float]) -> None:
    before = dict(scores)
    assert ranking(scores) == slow_ranking(scores)
    assert scores == before


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), np.float32("nan")])
def test_ranking_refuses_scores_that_are_not_finite(score: float) -> None:
    with pytest.raises(ValueError, match=r"finite.*document 'b'"):
        ranking({"a": 1.0, "b": score})


def test_ranking_refuses_ids_that_are_not_strings() -> None:
    with pytest.raises(TypeError, match="strings, got 7"):
        ranking({7: 1.0})  # type: ignore[dict-item]


@given(run=st.dictionaries(words, st.dictionaries(words, finite, min_size=1)))
def test_runs_round_trip_exactly(tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]]) -> None:
    folder = tmp_path_factory.mktemp("run")
    for name in ("a.trec", "a.trec.gz"):
        write_run(run, folder / name)
        # a byte order mark at the very start of a file is not part of an id
        expected = {query.removeprefix("\ufeff") if i == 0 else query: s for i, (query, s) in enumerate(run.items())}
        if "" not in expected and len(expected) == len(run):
            assert read_run(folder / name) == expected


def test_written_runs_are_ranked(tmp_path: Path) -> None:
    write_run({"q": {"b": 1.0, "c": 1.0, "a": np.float32(0.1)}}, tmp_path / "a.trec", tag="mine")
    expected = "q Q0 c 1 1.0 mine\nq Q0 b 2 1.0 mine\nq Q0 a 3 0.10000000149011612 mine\n"
    assert (tmp_path / "a.trec").read_text() == expected


@pytest.mark.parametrize(
    ("run", "tag", "problem"),
    [
        ({"q": {"a b": 1.0}}, "t", "document id must be one word, got 'a b'"),
        ({"q\t1": {"a": 1.0}}, "t", "query id must be one word"),
        ({"q": {"": 1.0}}, "t", "document id must be one word, got ''"),
        ({"q": {"a": 1.0}}, "my run", "tag must be one word"),
        ({"q": {"a": float("inf")}}, "t", "finite"),
    ],
)
def test_runs_that_could_not_be_read_back_are_not_written(tmp_path: Path, run: dict, tag: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        write_run(run, tmp_path / "a.trec", tag)
    assert not list(tmp_path.iterdir())


def test_runs_ignore_ranks_blank_lines_and_line_order(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("q1 Q0 a 9 1 t\nq2\tQ0\tb\t1\t2e0\tt\n\nq1 Q0 c x 3 t\n")
    assert read_run(tmp_path / "a") == {"q1": {"a": 1.0, "c": 3.0}, "q2": {"b": 2.0}}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("q Q0 b 1 1.0", "expected 6 columns .* got 5"),
        ("q Q0 b c 1 1.0 t", "expected 6 columns .* got 7"),
        ("q Q0 b 1 high t", "finite number, got 'high'"),
        ("q Q0 b 1 nan t", "finite number, got 'nan'"),
        ("q Q0 b 1 -inf t", "finite number, got '-inf'"),
        ("q Q0 a 2 0.5 t", "document 'a' is repeated for query 'q'"),
    ],
)
def test_bad_runs_name_the_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(f"q Q0 a 1 1.0 t\n{line}\n".encode()))
    with pytest.raises(FormatError, match=rf"a\.gz:2: .*{problem}"):
        read_run(path)


@pytest.mark.parametrize(
    "content",
    [
        "q1 0 a 1\nq1 0 b -1\nq2 0 a 3\n",
        "q1\t0\ta\t1\r\nq1\t0\tb\t-1\r\n\r\nq2\t0\ta\t3\r\n",
        "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t-1\nq2\ta\t3\n",
        "q1\ta\t1\nq1\tb\t-1\nq2\ta\t3",  # without a header, no line may be lost
    ],
)
def test_qrels_of_both_kinds(tmp_path: Path, content: str) -> None:
    (tmp_path / "a").write_bytes(content.encode())
    assert read_qrels(tmp_path / "a") == {"q1": {"a": 1, "b": -1}, "q2": {"a": 3}}


def test_beir_ids_may_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("query-id\tcorpus-id\tscore\nq 1\tdoc 1\t1\n")
    assert read_qrels(tmp_path / "a") == {"q 1": {"doc 1": 1}}


@pytest.mark.parametrize(
    ("first", "line", "problem"),
    [
        ("q 0 a 1", "q 0 b", "expected 4 columns"),
        ("q 0 a 1", "q\tb\t1", "expected 4 columns"),
        ("q 0 a 1", "q 0 b 1.0", "integer, got '1.0'"),
        ("q 0 a 1", "q 0 a 1", "judged twice"),
        ("query-id\tcorpus-id\tscore", "q\tb", "expected 3 tab-separated columns"),
        ("query-id\tcorpus-id\tscore", "q\t\t1", "expected 3 tab-separated columns"),
        ("q\ta\t1", "q 0 b 1", "expected 3 tab-separated columns"),
        ("q\ta\t1", "q\tb\thigh", "integer, got 'high'"),
    ],
)
def test_bad_qrels_name_the_line(tmp_path: Path, first: str, line: str, problem: str) -> None:
    (tmp_path / "a.tsv").write_text(f"{first}\n{line}\n")
    with pytest.raises(FormatError, match=rf"a\.tsv:2: .*{problem}"):
        read_qrels(tmp_path / "a.tsv")


def test_a_first_grade_that_is_no_integer_is_not_taken_for_a_header(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("q\ta\t1.0\nq\tb\t2\n")
    with pytest.raises(FormatError, match=r":1: .*integer, got '1\.0'"):
        read_qrels(tmp_path / "a")


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
def test_real_files(tmp_path: Path) -> None:
    qrels = read_qrels(SHARED / "msmarco-dl" / "qrels" / "dl19.tsv")
    assert (len(qrels), sum(map(len, qrels.values()))) == (43, 5698)
    run = read_run(SHARED / "msmarco-dl" / "runs" / "dl19.BM25.top100.trec.gz")
    assert run["19335"]["8412684"] == 10.60669994354248
    write_run(run, tmp_path / "copy.trec.gz")
    assert read_run(tmp_path / "copy.trec.gz") == run
