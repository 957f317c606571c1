"""Tables in their three forms, and the report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval import Comparison, Evaluation, Table, compare, comparison_table, evaluate, report
from eval.tables import Marked
from eval.trec import TIE_RULE

TABLE = Table(
    ["index", "nDCG@10", "bytes", "QPS", "exact", "p"],
    [
        ["flat", Marked(0.52104, "b"), 1_228_800, np.float32(812.25), True, 3e-7],
        ["ivf|pq <8>", 0.5, np.int64(4096), 12345.678, False, None],
        ["nothing\nat all", 0.0, 0, float("nan"), None, 1],
    ],
    caption="Indexes",
    notes=["One thread."],
)


def test_text_is_aligned() -> None:
    assert TABLE.to_text() == (
        "Indexes\n"
        "\n"
        "index            nDCG@10      bytes       QPS  exact        p\n"
        "--------------  --------  ---------  --------  -----  -------\n"
        "flat            0.5210 b  1,228,800     812.2  yes    3.0e-07\n"
        "ivf|pq <8>      0.5000        4,096  12,345.7  no           -\n"
        "nothing at all  0.0000            0       nan  -            1\n"
        "\n"
        "One thread.\n"
    )


def test_markdown_is_escaped() -> None:
    assert TABLE.to_markdown() == (
        "**Indexes**\n"
        "\n"
        "| index | nDCG@10 | bytes | QPS | exact | p |\n"
        "| --- | ---: | ---: | ---: | --- | ---: |\n"
        "| flat | 0.5210<sup>b</sup> | 1,228,800 | 812.2 | yes | 3.0e-07 |\n"
        "| ivf\\|pq &lt;8> | 0.5000 | 4,096 | 12,345.7 | no | - |\n"
        "| nothing at all | 0.0000 | 0 | nan | - | 1 |\n"
        "\n"
        "- One thread.\n"
    )


def test_json_has_plain_unrounded_numbers() -> None:
    content = json.loads(TABLE.to_json())
    assert content["rows"][0] == {
        "index": "flat", "nDCG@10": 0.52104, "bytes": 1228800, "QPS": 812.25, "exact": True, "p": 3e-7
    }  # fmt: skip
    assert content["rows"][2]["QPS"] is None
    assert (content["caption"], content["notes"]) == ("Indexes", ["One thread."])
    assert content["columns"] == TABLE.columns


def test_an_empty_table_keeps_its_heading() -> None:
    assert Table(["a", "b"], []).to_text() == "a  b\n-  -\n"
    assert json.loads(Table(["a"], []).to_json())["rows"] == []


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table(["a", "b"], [[1, 2], [1]])
    with pytest.raises(ValueError, match="all different, got a, a"):
        Table(["a", "a"], [])
    with pytest.raises(ValueError, match="got none"):
        Table([], [])


def systems(n: int = 20) -> dict[str, Evaluation]:
    qrels = {f"q{i}": {"a": 1} for i in range(n)}
    good = {query: {"a": 2.0, "b": 1.0} for query in qrels}
    bad = {query: {"a": 1.0, "b": 2.0 if i % 7 else 0.0} for i, query in enumerate(qrels)}
    runs = {"good": good, "bad": bad, "equal": good}
    return {name: evaluate(run, qrels, ["MRR@10", "R@100"]) for name, run in runs.items()}


def test_report_of_one_system() -> None:
    table = report({"good": systems()["good"]}, measures=["MRR@10"], rules=["Dataset tiny."], caption="Tiny")
    assert table.columns == ["system", "MRR@10"]
    assert json.loads(table.to_json())["rows"] == [{"system": "good", "MRR@10": 1.0}]
    assert "20 judged queries" in table.notes[0]
    assert list(table.notes[1:]) == [TIE_RULE, "Dataset tiny."]
    assert table.to_text().startswith("Tiny\n\nsystem  MRR@10\n------  ------\ngood    1.0000\n")


@pytest.mark.parametrize("baseline", [None, "bad"])
def test_letters_mark_who_is_beaten(baseline: str | None) -> None:
    evaluations = systems()
    comparisons = compare(evaluations, "MRR@10", baseline=baseline)
    table = report(evaluations, comparisons=comparisons)
    text = table.to_text()
    assert [line.split() for line in text.splitlines()[2:5]] == [
        ["good", "a", "1.0000", "b", "1.0000"],
        ["bad", "b", "0.5750", "1.0000"],
        ["equal", "c", "1.0000", "b", "1.0000"],
    ]
    assert json.loads(table.to_json())["rows"][0] == {"system": "good", "MRR@10": 1.0, "R@100": 1.0}
    assert "two-sided paired t-test, corrected by Holm's method" in text
    assert f"Comparisons made: {len(comparisons)} on MRR@10." in text
    assert "(corrected p < 0.05)" in text
    assert "b" not in "".join(row[1].marks for row in report(evaluations, comparisons=comparisons, level=0.0).rows)


def test_a_baseline_that_wins_is_marked() -> None:
    evaluations = systems()
    table = report(evaluations, comparisons=compare(evaluations, "MRR@10", baseline="good", test="randomization"))
    assert [row[1].marks for row in table.rows] == ["b", "", ""]
    assert any("randomization test" in note for note in table.notes)


def test_more_systems_than_letters() -> None:
    good, bad = systems()["good"], systems()["bad"]
    evaluations = {f"s{i}": bad if i == 28 else good for i in range(30)}
    table = report(evaluations, comparisons=compare(evaluations, "MRR@10", baseline="s28"))
    assert table.rows[28][0] == Marked("s28", "(29)")
    assert table.rows[0][1].marks == "(29)"


def test_the_self_rule_is_noted_once() -> None:
    evaluation = evaluate({"q": {"q": 1.0}}, {"q": {"a": 1}}, exclude_self=True)
    rule = next(note for note in report({"x": evaluation}).notes if "dropped" in note)
    assert report({"x": evaluation}, rules=[rule]).notes.count(rule) == 1
    assert not any("dropped" in note for note in report({"x": systems()["good"]}).notes)


def test_comparison_table() -> None:
    row = Comparison("MAP", "x", "y", 0.25, 0.01, 0.02, 3, 1, 0, "randomization", "bonferroni")
    table = comparison_table([row])
    assert list(table.rows[0]) == ["MAP", "x", "y", 0.25, 0.01, 0.02, 3, 1, 0]
    assert "Bonferroni" in table.notes[0]


def test_reports_that_would_mislead_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        report({})
    with pytest.raises(ValueError, match="different queries"):
        report({"x": systems(20)["good"], "y": systems(19)["good"]})
    with pytest.raises(ValueError, match="'MAP' was not computed"):
        report(systems(), measures=["MAP"])
