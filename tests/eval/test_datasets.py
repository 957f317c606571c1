"""Datasets from BEIR folders, MS MARCO folders and ir_datasets."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ir_datasets
import pytest
from ir_datasets.formats import BaseQrels, BaseQueries, GenericQuery, TrecQrel

from eval import Dataset, load
from eval.errors import DatasetError, FormatError, MissingExtra

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def beir(folder: Path, queries: dict[str, str], **splits: str) -> Path:
    (folder / "qrels").mkdir(parents=True)
    lines = (json.dumps({"_id": query, "text": text, "metadata": {"x": 1}}) for query, text in queries.items())
    (folder / "queries.jsonl").write_text("\n".join(lines))
    for split, rows in splits.items():
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return folder


def test_beir_folder_keeps_judged_queries(tmp_path: Path) -> None:
    folder = beir(tmp_path / "tiny", {"2": "two", "1": "one", "3": "three"}, test="1\ta\t2\n2\tb\t0\n", dev="3\ta\t1\n")
    assert load(folder) == Dataset("tiny", "test", {"2": "two", "1": "one"}, {"1": {"a": 2}, "2": {"b": 0}}, False)
    assert load(str(folder), "dev").queries == {"3": "three"}
    assert load(folder).rules() == ["Dataset tiny, split test: 2 judged queries, 2 judgements."]


def test_compressed_beir_folder_and_integer_ids(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl.gz").write_bytes(gzip.compress(b'{"_id": 7, "text": "seven"}\n'))
    (tmp_path / "qrels" / "test.tsv.gz").write_bytes(gzip.compress(b"query-id\tcorpus-id\tscore\n7\ta\t1\n"))
    assert load(tmp_path).queries == {"7": "seven"}


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("ArguAna", None, True),
        ("quora", None, True),
        ("quora", False, False),
        ("tiny", None, False),
        ("tiny", True, True),
        ("not-quora", None, False),
    ],
)
def test_exclude_self_is_part_of_the_dataset(
    tmp_path: Path, name: str, argument: bool | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = beir(tmp_path / name, {"1": "one"}, test="1\ta\t1\n")
    dataset = load(folder, exclude_self=argument)
    assert dataset.exclude_self is expected
    assert any("dropped" in rule for rule in dataset.rules()) is expected
    monkeypatch.chdir(folder)
    assert load(".", exclude_self=argument) == dataset


def test_msmarco_folder(tmp_path: Path) -> None:
    (tmp_path / "queries.dev.tsv").write_text("1\tall the others\n")
    (tmp_path / "queries.dev.small.tsv").write_text("1\tone\n2\ttwo words\twith a tab\n")
    (tmp_path / "qrels.dev.small.tsv").write_text("1\t0\ta\t1\n2\t0\tb\t1\n")
    (tmp_path / "queries.test2019.tsv").write_text("3\tthree\n")
    (tmp_path / "qrels.test2019.txt").write_text("3 Q0 c 2\n")
    dataset = load(tmp_path, "dev")
    assert (dataset.split, dataset.queries) == ("dev.small", {"1": "one", "2": "two words\twith a tab"})
    assert load(tmp_path, "dev.small") == dataset
    assert load(tmp_path, "test2019").qrels == {"3": {"c": 2}}
    with pytest.raises(DatasetError, match=r"no queries\.test\.tsv with .*; splits there: dev\.small, test2019$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("queries", "qrels", "error", "problem"),
    [
        ('{"_id": "1", "text": "one"}\n{"_id": ', "", FormatError, r"queries\.jsonl:2: "),
        ("[1]", "", FormatError, ":1: expected a JSON object"),
        ('{"id": "1", "text": "one"}', "", FormatError, r":1: _id must be .* got None \(fields: id, text\)"),
        ('{"_id": true, "text": "one"}', "", FormatError, ":1: _id must be .* got True"),
        ('{"_id": "1", "title": "one"}', "", FormatError, ":1: text must be a string, got None"),
        ('{"_id": "1", "text": "a"}\n{"_id": 1, "text": "b"}', "", FormatError, ":2: query id '1' is repeated"),
        ("[" * 100_000, "", FormatError, ":1: "),
        ("", "1\ta\t1", DatasetError, "has no queries"),
        ('{"_id": "1", "text": "one"}', "", DatasetError, "has no relevance judgements"),
        ('{"_id": "1", "text": " "}', "1\ta\t1\n2\ta\t1", DatasetError, "2 of 2 judged queries have no text: 1, 2"),
        ('{"_id": "1", "text": "one"}', "1\ta", FormatError, r"test\.tsv:2: expected 3"),
    ],
)
def test_bad_folders_are_refused(
    tmp_path: Path, queries: str, qrels: str, error: type[Exception], problem: str
) -> None:
    folder = beir(tmp_path / "bad", {}, test=qrels)
    (folder / "queries.jsonl").write_text(queries)
    with pytest.raises(error, match=problem):
        load(folder)


def test_missing_things_are_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "tiny", {"1": "one"}, train="1\ta\t1", dev="1\ta\t1")
    with pytest.raises(DatasetError, match=r"no qrels/test\.tsv \(nor \.gz, \.zst\); splits there: dev, train"):
        load(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "corpus.jsonl").touch()
    with pytest.raises(DatasetError, match=r"neither queries\.jsonl .*; there is corpus\.jsonl"):
        load(tmp_path / "other")
    with pytest.raises(DatasetError, match=r"queries\.jsonl is no folder"):
        load(folder / "queries.jsonl")
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    (folder / "queries.jsonl").unlink()
    (folder / "queries.test.tsv").write_text("no tab\n")
    (folder / "qrels.test.tsv").write_text("1 0 a 1\n")
    with pytest.raises(FormatError, match=r"queries\.test\.tsv:1: expected query id, tab, text"):
        load(folder)


class LongQuery(NamedTuple):
    query_id: str
    title: str
    story: str

    def default_text(self) -> str:
        return self.title


class Queries(BaseQueries):
    def __init__(self, *queries: object) -> None:
        self._queries = queries

    def queries_iter(self) -> Iterator[object]:
        return iter(self._queries)

    def queries_cls(self) -> type:
        return GenericQuery


class Judgements(BaseQrels):
    def __init__(self, *judgements: tuple[str, str, int]) -> None:
        self._judgements = judgements

    def qrels_iter(self) -> Iterator[TrecQrel]:
        return (TrecQrel(query, document, grade, "0") for query, document, grade in self._judgements)


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    one = Queries(LongQuery("1", "one", "a long story"), GenericQuery("2", "two"))
    graded = Judgements(("1", "a", 3), ("1", "b", -1), ("1", "a", 3))
    for name, parts in {
        "tinytest": (one,),
        "tinytest/test": (one, graded),
        "tinytest/dev": (one, Judgements(("2", "a", 1))),
        "tinytest/hollow": (one, Judgements()),
        "tinytest/twice": (one, Judgements(("1", "a", 1), ("1", "a", 2))),
        "tinytest/quora": (one, graded),
    }.items():
        ir_datasets.registry.register(name, ir_datasets.Dataset(*parts))


def test_ir_datasets_ids() -> None:
    test = Dataset("tinytest/test", "test", {"1": "one"}, {"1": {"a": 3, "b": -1}}, False)
    assert load("tinytest") == load("ir_datasets:tinytest") == test
    assert load("tinytest/test") == Dataset("tinytest/test", "", test.queries, test.qrels, False)
    assert (
        load("tinytest", "dev").name == load("tinytest/dev").name == load("tinytest/dev", "dev").name == "tinytest/dev"
    )
    assert load("tinytest/quora").exclude_self
    assert load("tinytest/dev").rules() == ["Dataset tinytest/dev: 1 judged queries, 1 judgements."]


def test_an_existing_folder_goes_before_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beir(tmp_path / "tinytest", {"9": "nine"}, test="9\ta\t1\n")
    monkeypatch.chdir(tmp_path)
    assert load("tinytest").queries == {"9": "nine"}
    assert load("ir_datasets:tinytest").queries == {"1": "one"}


@pytest.mark.parametrize(
    ("name", "split", "problem"),
    [
        ("tinytes", "test", "neither an existing folder nor an id of ir_datasets; close ids: tinytest"),
        ("tinytest", "train", "no queries with judgements in tinytest/train; parts of tinytest: tinytest/dev"),
        ("tinytest/test", "dev", "no queries with judgements in tinytest/test/dev; parts of tinytest/test: none"),
        ("tinytest/hollow", "test", "has no relevance judgements"),
        ("tinytest/twice", "test", "grades document 'a' twice"),
    ],
)
def test_ir_datasets_that_cannot_be_used(name: str, split: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        load(name, split)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingExtra, match=r"'scifact', which is no folder.*pip install 'retrieval\[datasets\]'"):
        load("scifact")


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("name", "split", "queries", "judgements"),
    [("scifact", "test", 300, 339), ("nfcorpus", "test", 323, 12334), ("msmarco-dl", "dl19", 43, 5698)],
)
def test_real_folders(name: str, split: str, queries: int, judgements: int) -> None:
    dataset = load(SHARED / name, split)
    assert (len(dataset.queries), sum(map(len, dataset.qrels.values()))) == (queries, judgements)
    assert dataset.queries.keys() == dataset.qrels.keys()
