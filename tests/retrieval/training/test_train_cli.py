"""Training into a collection: from Python and the command line, without labels and with them, resumed, and after it."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

import eval as evaluation  # noqa: E402
import retrieval  # noqa: E402
from retrieval import Collection, bm25, dense, training  # noqa: E402
from retrieval.cli.app import app  # noqa: E402
from retrieval.encoders.lsa import LSA  # noqa: E402
from retrieval.errors import CollectionError, TrainingError  # noqa: E402
from retrieval.training import pipeline, unlabelled  # noqa: E402
from retrieval.training.sources import Questions, read_questions  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
CRANFIELD = Path(retrieval.__file__).parent / "cranfield"
DOCUMENTS = 500
QUICK = {"bytes": 8, "epochs": 2, "count": 200, "threads": 1}


@pytest.fixture(scope="module")
def documents():
    source = retrieval.read_documents(CRANFIELD)
    return [next(source) for _ in range(DOCUMENTS + 40)]


@pytest.fixture(scope="module")
def built(tmp_path_factory, documents):
    """500 abstracts; no test changes it."""
    folder = tmp_path_factory.mktemp("built") / "c"
    with Collection.create(folder, {"bm25": bm25(), "dense": dense(LSA(d=32))}) as collection:
        collection.add(documents[:DOCUMENTS])
    return folder


@pytest.fixture
def folder(built, tmp_path):
    return shutil.copytree(built, tmp_path / "c")


@pytest.fixture
def trained(folder):
    with Collection.open(folder) as collection:
        collection.train("distill-vq", "small", **QUICK)
    return folder


def ids(results):
    return [result.id for result in results]


def codes(collection, name):
    """Id -> code."""
    with collection.reading() as retrievers:
        index = retrievers[name].index
        names = collection.store.ids(index.ids.tolist())
        found = index._coded().at(np.arange(len(index)))
        return {names[key]: bytes(code) for key, code in zip(index.ids.tolist(), found, strict=True)}


def test_a_trained_index_is_an_index_of_the_collection(trained):
    assert not (trained / "training").exists()
    with Collection.open(trained) as collection:
        assert collection.indexes == ["bm25", "dense", "small"]
        collection.verify()
        described = collection.info()["indexes"]["small"]
        assert described["encoder"]["kind"] == "lsa" and described["index"]["bytes_per_part"]["codes"] == 8 * DOCUMENTS
        question = "heat transfer in hypersonic flow"
        near = ids(collection.search(question, k=100, index="dense"))
        assert len(set(ids(collection.search(question, k=10, index="small"))) & set(near)) >= 8


def test_the_comparison_is_at_equal_bytes_and_of_the_index_that_was_added(folder):
    dataset = evaluation.load(CRANFIELD)
    with Collection.open(folder) as collection:
        result = collection.train("distill-vq", "small", test=dataset, **QUICK | {"bytes": 4})
        rows = {row["vectors"]: row for row in result.rows}
        sizes = {name: row["bytes"] for name, row in rows.items()}
        assert sizes.pop("full precision") == 128
        assert sizes == dict.fromkeys(("opq", "binary autoencoder", "sign bits", "distill-vq"), 4)
        assert rows["full precision"]["dev"] == 1 and not result.labelled
        assert rows["distill-vq"]["dev"] == max(row["dev"] for row in result.trained.history)
        assert result.trained.best > 0  # an adapter was learned; it counts once, in the codec
        for name, index in (("full precision", "dense"), ("distill-vq", "small")):
            run = collection[index].run(dataset.queries, 100)
            found = evaluation.evaluate(run, dataset.qrels, pipeline.MEASURES).mean
            for measure, value in found.items():
                assert rows[name][measure] == pytest.approx(value, abs=2e-3)


def test_no_label_is_looked_at_without_questions(folder, monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("a label was read")

    for name in ("read_qrels", "load"):
        monkeypatch.setattr(evaluation, name, refuse, raising=False)
    monkeypatch.setattr(pipeline, "rows_of", refuse)
    with Collection.open(folder) as collection:
        assert collection.train("distill-vq", "small", **QUICK).labelled is False


def test_one_byte_is_compared_with_what_one_byte_can_hold(folder):
    """Which is no bits and a length."""
    with Collection.open(folder) as collection:
        result = collection.train("lsh", "tiny", bytes=1, count=80, threads=1)
        assert {row["vectors"] for row in result.rows} == {"full precision", "opq", "sign bits", "lsh"}


@pytest.mark.parametrize("method", training.METHODS)
def test_every_method_trains_without_labels_and_its_index_opens(folder, method):
    with Collection.open(folder) as collection:
        epochs = min(1, training.by_name(method).epochs)
        collection.train(method, "small", bytes=4, epochs=epochs, count=80, threads=1)
    with Collection.open(folder) as collection:
        collection.verify()
        assert len(collection.search("wing flutter", k=5, index="small")) == 5


def test_methods_that_need_labels_take_the_source_of_a_made_query_for_relevant(folder, monkeypatch):
    seen = {}

    def train(method, data, dev, **more):
        seen.update(data=data, dev=dev)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train", train)
    with Collection.open(folder) as collection:
        titles = [collection.store.documents([key])[key].title for key in collection.store.keys().tolist()]
        with pytest.raises(KeyboardInterrupt):
            collection.train("jpq", "small", generate=["title"], **QUICK)
        assert len(seen["data"].queries) == 180 and len(seen["dev"].queries) == 20
        for text, rows in zip(seen["data"].texts, seen["data"].positives, strict=True):
            assert len(rows) == 1 and titles[rows[0]].startswith(text)
        with pytest.raises(KeyboardInterrupt):
            collection.train("distill-vq", "small", generate=["title"], **QUICK)
        assert seen["data"].positives is None  # learns the order of the float vectors, and needs none


def test_labels_of_a_file_with_negatives_and_a_dev_set_of_its_own(folder, documents, tmp_path):
    lines = [{"query": d.title, "positives": d.id, "negatives": [documents[0].id, "gone"]} for d in documents[:60]]
    lines += [{"query": "nobody has it", "positives": "gone"}]
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf8")
    with Collection.open(folder) as collection:
        questions = read_questions(path)
        dev = Questions(questions.texts[:5], questions.positives[:5])
        result = collection.train("jpq", "small", queries=questions, dev=dev, **QUICK)
        assert result.labelled and (result.queries, result.dev_queries) == (60, 5)
        with pytest.raises(TrainingError, match="none has a relevant document"):
            collection.train("jpq", "other", queries=Questions(["flow"], [["gone"]]))
        with pytest.raises(TrainingError, match="learns from relevant documents"):
            collection.train("jpq", "other", queries=["heat flow", "wing"])


# -- interrupted ------------------------------------------------------------------------------------------------------


def test_an_interrupted_training_goes_on_and_ends_as_if_it_had_not_been(folder, trained_codes):
    def stop(what, done, total):
        if what.startswith("epoch 2"):
            raise KeyboardInterrupt

    with Collection.open(folder) as collection:
        with pytest.raises(KeyboardInterrupt):
            collection.train("distill-vq", "small", progress=stop, **QUICK)
        assert collection.indexes == ["bm25", "dense"]
        assert (folder / "training" / "small" / "checkpoint").is_dir()
        seen = []
        collection.train("distill-vq", "small", progress=lambda what, *_: seen.append(what), **QUICK)
        assert any(what.startswith("epoch 2") for what in seen) and not any(w.startswith("epoch 1") for w in seen)
        assert codes(collection, "small") == trained_codes
        assert not (folder / "training").exists()


KILLED = """
import os, signal, sys
import retrieval

def stop(what, done, total):
    if what.startswith("epoch 2"):
        os.kill(os.getpid(), signal.SIGKILL)

retrieval.train(sys.argv[1], "distill-vq", "small", bytes=8, epochs=2, count=200, threads=1, progress=stop)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_training_goes_on_and_the_collection_is_whole_in_between(folder, trained_codes, monkeypatch):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Collection.open(folder) as collection:
        collection.verify()
        assert collection.indexes == ["bm25", "dense"]
        monkeypatch.setattr(unlabelled, "mixed", None)  # the queries were kept
        collection.train("distill-vq", "small", **QUICK)
        assert codes(collection, "small") == trained_codes


def test_another_run_under_the_same_name_does_not_take_the_checkpoint(folder):
    def stop(what, done, total):
        if what.startswith("epoch 2"):
            raise KeyboardInterrupt

    with Collection.open(folder) as collection:
        with pytest.raises(KeyboardInterrupt):
            collection.train("distill-vq", "small", progress=stop, **QUICK)
        with pytest.raises(TrainingError, match=r"checkpoint: a checkpoint of another run"):
            collection.train("distill-vq", "small", lr=0.5, **QUICK)


@pytest.fixture(scope="module")
def trained_codes(built, tmp_path_factory):
    folder = shutil.copytree(built, tmp_path_factory.mktemp("whole") / "c")
    with Collection.open(folder) as collection:
        collection.train("distill-vq", "small", **QUICK)
        return codes(collection, "small")


def test_the_same_seed_gives_the_same_codes_and_another_does_not(folder, trained_codes):
    with Collection.open(folder) as collection:
        collection.train("distill-vq", "small", seed=0, **QUICK)
        collection.train("distill-vq", "other", index="dense", seed=1, **QUICK)
        assert codes(collection, "small") == trained_codes
        assert codes(collection, "other") != trained_codes


def test_others_may_change_the_collection_meanwhile(folder, documents, trained_codes):
    new = documents[DOCUMENTS:]

    def change(what, done, total):
        if what.startswith("epoch 2") and done == 1:
            with Collection.open(folder) as other:
                other.add(new[:7])
                other.delete([documents[0].id, new[6].id])
                other.add([{"id": documents[1].id, "text": "entirely new words of wing flutter"}], update=True)

    with Collection.open(folder) as collection:
        collection.train("distill-vq", "small", progress=change, **QUICK)
        collection.verify()
        found = codes(collection, "small")
        assert documents[0].id not in found and new[0].id in found and len(found) == DOCUMENTS + 5
        same = set(found) & set(trained_codes) - {documents[1].id}
        assert all(found[id] == trained_codes[id] for id in same)
        assert found[documents[1].id] != trained_codes[documents[1].id]


# -- later changes ----------------------------------------------------------------------------------------------------


def test_add_delete_update_and_compact_keep_what_was_learned(trained, documents, trained_codes):
    new = documents[DOCUMENTS:]
    with Collection.open(trained) as collection:
        collection.add(new)
        collection.delete([documents[3].id, new[1].id])
        collection.add([documents[4]], update=True)
        before = codes(collection, "small")
        collection.compact()
        assert codes(collection, "small") == before
    with Collection.open(trained) as collection:
        collection.verify()
        after = codes(collection, "small")
        assert all(after[id] == code for id, code in trained_codes.items() if id != documents[3].id)
        assert len(after) == DOCUMENTS + len(new) - 2
        assert ids(collection.search(new[0].contents, k=3, index="small"))[0] in {d.id for d in documents}


def test_an_outgrown_or_emptied_collection_keeps_what_was_learned(trained, documents, trained_codes):
    with Collection.open(trained) as collection:
        many = [{"id": f"copy{i}", "text": documents[i % DOCUMENTS].contents} for i in range(DOCUMENTS + 10)]
        collection.add(many)  # more than twice what LSA was fitted on
        found = codes(collection, "small")
        assert all(found[id] == code for id, code in trained_codes.items())
        collection.delete(list(found))
        assert len(collection) == 0 and collection.search("wing", index="small") == []
        collection.add(documents[:DOCUMENTS])
        assert codes(collection, "small") == trained_codes
        collection.train("distill-vq", "again", **QUICK)  # of the index that is not trained itself


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_input_is_named_and_nothing_is_changed(folder):
    with Collection.open(folder) as collection:
        generation = collection.store.generation
        for error, message, given in [
            (TrainingError, "method is 'pq'.*jpq, distill-vq", {"method": "pq"}),
            (TrainingError, "bites: no parameter of jpq; it has: bytes", {"method": "jpq", "bites": 3}),
            (CollectionError, "'dense' is there already", {"to": "dense"}),
            (CollectionError, "hybrid", {"to": "hybrid"}),
            (CollectionError, "no index 'sparse'; the indexes are: bm25, dense", {"index": "sparse"}),
            (TrainingError, "only dense vectors", {"index": "bm25"}),
            (TrainingError, "kind of queries 'x'", {"generate": ["x"]}),
            (TrainingError, "keep_top is 0", {"keep_top": 0}),
            (TrainingError, "tune='encoder' needs", {"tune": "encoder"}),
            (TrainingError, "knows no word", {"queries": ["xyzzy", "plugh"]}),
            (TrainingError, "itq takes no steps", {"method": "itq"}),
        ]:
            arguments = {"method": "distill-vq", "to": "small"} | given
            with pytest.raises(error, match=message):
                collection.train(arguments.pop("method"), arguments.pop("to"), **QUICK, **arguments)
        assert collection.store.generation == generation


def test_several_dense_indexes_need_a_name(folder):
    with Collection.open(folder) as collection:
        collection.add_index("second", dense(LSA(d=16)))
        with pytest.raises(CollectionError, match="the dense ones are: dense, second"):
            collection.train("distill-vq", "small", **QUICK)


def test_queries_that_do_not_lead_back_are_left_out(folder):
    with Collection.open(folder) as collection:
        few = collection.train("distill-vq", "small", keep_top=1, **QUICK)
        assert 20 < few.queries + few.dev_queries < 200


# -- the command line -------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


def test_a_command_trains_tells_and_the_index_is_searched(folder):
    done = run("distill-vq", folder, "--to", "small", "--bytes", 8, "--epochs", 1, "--count", 100, "--threads", 1)
    assert done.exit_code == 0, done.output
    for told in ("full precision", "opq", "distill-vq", "dev", "index small added"):
        assert told in done.output
    found = CliRunner().invoke(app, ["search", str(folder), "wing flutter", "--index", "small"])
    assert found.exit_code == 0 and found.output.strip()


def test_bidr_makes_an_index_of_codes_and_vectors_and_tells_what_is_compared(folder):
    done = run("bidr", folder, "--to", "two", "--bytes", 4, "--epochs", 2, "--set", "first=1", "--count", 100,
               "--threads", 1, "--dataset", CRANFIELD)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "vectors on disk rank" in done.output and "index two added" in done.output
    found = CliRunner().invoke(app, ["search", str(folder), "wing flutter", "--index", "two"])
    assert found.exit_code == 0 and found.output.strip()


def test_labels_of_files_a_dataset_to_test_on_and_json(folder, tmp_path):
    with gzip.open(CRANFIELD / "queries.jsonl.gz", "rt", encoding="utf8") as lines:
        (tmp_path / "q.jsonl").write_text("".join(lines), encoding="utf8")
    done = run(
        "jpq", folder, "--to", "small", "--bytes", 8, "--epochs", 1, "--queries", tmp_path / "q.jsonl", "--qrels",
        CRANFIELD / "qrels" / "test.tsv", "--dataset", CRANFIELD, "--tune", "code", "--set",
        "lr=0.001", "--json", "--threads", 1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["labelled"] and told["rows"][-1]["vectors"] == "jpq" and 0 < told["rows"][-1]["nDCG@10"] < 1
    assert told["history"][0]["loss"] is None and len(told["history"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--set", "lr"], "NAME=VALUE"), (["--qrels", "r.tsv"], "--queries")],
)
def test_wrong_usage_is_told(folder, arguments, message):
    done = run("distill-vq", folder, "--to", "small", *arguments)
    assert done.exit_code == 2 and message in done.output


def test_python_in_one_line(folder):
    result = retrieval.train(folder, "itq", "small", bytes=4, count=50)
    assert result.name == "small" and result.rows[-1]["bytes"] == 4
