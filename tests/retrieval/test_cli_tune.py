"""Tuning an index of a collection, in Python and on the command line: what is chosen stays, and all or nothing."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import indexes
import retrieval
from indexes import FlatIndex, tuning
from indexes.errors import InvalidParameter
from retrieval import Collection, bm25, dense
from retrieval.cli.app import app
from retrieval.errors import CollectionError

CRANFIELD = Path(retrieval.__file__).parent / "cranfield"
K = 10


@pytest.fixture(autouse=True)
def no_race_for_long(monkeypatch):
    monkeypatch.setattr(tuning, "SECONDS", 0.0)


@pytest.fixture(scope="module")
def queries():
    with gzip.open(CRANFIELD / "queries.jsonl.gz", "rt", encoding="utf8") as lines:
        return [json.loads(line)["text"] for line in lines][:80]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """400 abstracts of Cranfield; no test changes it."""
    folder = tmp_path_factory.mktemp("built") / "c"
    kinds = {"bm25": bm25(), "dense": dense(ann="hnsw", M=8), "codes": dense(ann="ivfpq", bytes=16, nlist=20)}
    with Collection.create(folder, kinds) as collection:
        documents = retrieval.read_documents(CRANFIELD)
        collection.add([next(documents) for _ in range(400)])
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "c")


def settings(collection):
    return {name: part["index"] for name, part in collection.info()["indexes"].items()}


# -- in Python --------------------------------------------------------------------------------------------------------


def test_the_chosen_setting_is_the_default_from_then_on(folder, queries):
    with Collection.open(folder) as collection, Collection.open(folder) as other:
        before, generation = settings(collection), collection.store.generation
        tuned = collection.tune("dense", queries, K, target_recall=0.9)
        assert tuned.reached and tuned.chosen.knobs["ef_search"] != before["dense"]["ef_search"]
        assert collection.store.generation == generation + 1
        for one in (collection, other):  # the other one sees it, too
            after = settings(one)
            assert after.pop("dense") == before["dense"] | tuned.chosen.knobs
            assert after == {name: before[name] for name in ("bm25", "codes")}
    with Collection.open(folder) as collection:
        collection.verify()
        with collection.reading() as retrievers:
            dense = retrievers["dense"]
            assert dense.index.ef_search == tuned.chosen.knobs["ef_search"]
            knobs = dense.search(queries, K, **tuned.chosen.knobs)
            assert np.array_equal(dense.search(queries, K).ids, knobs.ids)
        collection.add([{"id": "new", "text": "supersonic wing"}])
        assert settings(collection)["dense"]["ef_search"] == tuned.chosen.knobs["ef_search"]
        collection.compact()
        assert settings(collection)["dense"]["ef_search"] == tuned.chosen.knobs["ef_search"]


@pytest.mark.parametrize("name", ["dense", "codes"])
def test_what_is_right_is_what_the_documents_vectors_say(folder, queries, name):
    with Collection.open(folder) as collection:
        with collection.reading() as retrievers:
            encoder, index = retrievers[name].encoder, retrievers[name].index
            vectors = encoder.encode_documents(list(collection.store.contents()))
            asked = encoder.encode_queries(queries)[::2]
        right = FlatIndex(metric="cosine").add(vectors, collection.store.keys()).search(asked, K).ids
        tuned = collection.tune(name, queries, K, target_recall=0.5)
        for setting in tuned.curve[:3]:
            found = index.search(asked, K, **setting.knobs).ids
            shares = [np.isin(one, other).mean() for one, other in zip(found, right, strict=True)]
            assert setting.recall == pytest.approx(np.mean(shares))


def test_an_exact_index_is_tuned_too(folder, queries):
    with Collection.open(folder) as collection:
        tuned = collection.tune("bm25", queries, K, target_recall=1.0)
        assert (tuned.chosen.knobs, tuned.chosen.recall, tuned.reached) == ({}, 1.0, True)


def test_queries_without_a_known_word_do_not_count(folder, queries):
    with Collection.open(folder) as collection:
        with pytest.raises(InvalidParameter, match="queries are 19, of which 19 have an answer"):
            collection.tune("dense", [*queries[:19], *["zyzzyva"] * 30])
        assert collection.tune("dense", [*queries[:40], *["zyzzyva"] * 30]).reached


def test_a_tuning_that_fails_changes_nothing(folder, queries, monkeypatch):
    def half_done(index, *arguments, **options):
        index.ef_search = 1
        raise OSError("out of memory")

    with Collection.open(folder) as collection:
        before, found = collection.info(), collection["dense"].search(queries[0])
        for arguments, options, words in (
            (("dense", queries[:10]), {}, "queries are 10"),
            (("codes", []), {}, "queries are 0"),
            (("dense", queries), {"target_recall": 0}, "target_recall is 0"),
            (("dense", queries, 0), {}, "k is 0"),
        ):
            with pytest.raises(InvalidParameter, match=words):
                collection.tune(*arguments, **options)
        with pytest.raises(CollectionError, match="no index 'bm26' to tune; the indexes are: bm25, dense, codes"):
            collection.tune("bm26", queries)
        with pytest.raises(TypeError, match="queries is one string"):
            collection.tune("dense", queries[0])
        monkeypatch.setattr(indexes, "tune", half_done)
        with pytest.raises(OSError, match="out of memory"):
            collection.tune("dense", queries)
        assert collection.info() == before and collection["dense"].search(queries[0]) == found
    with Collection.open(folder) as collection:
        assert collection.info() == before
        collection.verify()


# -- on the command line ----------------------------------------------------------------------------------------------


def tune(folder, path, *flags):
    return CliRunner().invoke(app, ["tune", str(folder), "--queries", str(path), *map(str, flags)])


@pytest.fixture(scope="module", params=["q.jsonl", "q.jsonl.gz", "q.tsv", "q.tsv.gz", "q.txt", "q.txt.gz", "q"])
def file(request, tmp_path_factory, queries):
    kind = request.param.removesuffix(".gz")
    if kind == "q.jsonl":
        lines = [json.dumps({"_id": str(i), "text": text}) for i, text in enumerate(queries)]
    elif kind == "q.tsv":
        lines = [f"q{i}\t{text}" for i, text in enumerate(queries)]
    else:
        lines = list(queries)
    path = tmp_path_factory.mktemp("queries") / request.param
    text = "\n".join([*lines[:7], "", *lines[7:]]) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_queries_in_every_format_and_the_answer_as_json(folder, file, queries):
    result = tune(folder, file, "--index", "dense", "--recall", 0.9, "-k", 5, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["index"], told["k"], told["target_recall"], told["reached"]) == ("dense", 5, 0.9, True)
    (chosen,) = [row for row in told["settings"] if row["chosen"]]
    assert chosen["ef_search"] == told["chosen"]["ef_search"] and chosen["recall"] == told["recall"] >= 0.9
    with Collection.open(folder) as collection:
        assert settings(collection)["dense"]["ef_search"] == told["chosen"]["ef_search"]
        again = collection.tune("dense", queries, 5, target_recall=0.9)
        held_out = [s["recall"] for s in told["settings"] if s["ef_search"] in (1024, 64, 16)]
        assert [s.recall for s in again.curve if s.knobs["ef_search"] in (1024, 64, 16)] == held_out


def test_a_table_and_one_sentence(folder, tmp_path, queries):
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(queries))
    result = tune(folder, path, "--index", "dense", "--recall", 0.9, "-q")
    assert (result.exit_code, result.stderr) == (0, "")
    table, sentence = result.stdout.splitlines()[:-1], result.stdout.splitlines()[-1]
    assert table[0].split() == ["ef_search", "recall", "microseconds", "chosen"]
    (chosen,) = [line for line in table if line.endswith("  yes")]
    with Collection.open(folder) as collection:
        setting = settings(collection)["dense"]["ef_search"]
    assert chosen.split()[0] == str(setting)
    assert sentence.startswith(f"dense (hnsw) now searches with ef_search={setting}: recall@10 {chosen.split()[1]}, ")


def test_a_recall_that_codes_do_not_reach_is_told(folder, tmp_path, queries):
    path = tmp_path / "queries.txt"
    path.write_text("\n".join(queries))
    result = tune(folder, path, "--index", "codes", "--recall", 1)
    assert result.exit_code == 0 and result.stdout.splitlines()[-1].endswith("; no setting reaches 1 on both")
    assert not json.loads(tune(folder, path, "--index", "codes", "--recall", 1, "--json").stdout)["reached"]
    plain = tune(folder, path, "--index", "bm25").stdout
    assert plain.splitlines()[0].split() == ["recall", "microseconds", "chosen"]
    assert "bm25 (eager) now searches with its only setting: recall@10 1.0000, " in plain


def test_a_line_without_a_tab_is_named(folder, tmp_path):
    path = tmp_path / "queries.tsv"
    path.write_text("q1\twing\n\nwing stall\n")
    result = tune(folder, path, "--index", "dense")
    assert result.exit_code == 1
    assert str(result.exception) == f"{path}:3: expected query id, tab, text, found 'wing stall'"
