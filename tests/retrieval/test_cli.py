"""The command line: every form that is promised, exit codes, what goes to which stream, and Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrieval import Collection
from retrieval.cli import main
from retrieval.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["demo", "index", "add", "delete", "add-index", "drop-index", "compact", "tune", "train", "search",
            "evaluate", "fuse", "info", "doctor"]  # fmt: skip
DOCUMENTS = [
    ("d1", "Wings", "the lift of a wing in flow", 1950, "en"),
    ("d2", "", "heat transfer in hypersonic flow", 1960, "en"),
    ("d3", "Plates", "flutter of a thin plate in flow", 1970, "de"),
    ("d4", "", "boundary layer with heat", 1980, "de"),
    ("d5", "", "why wings stall: flow separates from the wing", 1990, "en"),
]
QUERIES = {"q1": "wing stall", "q2": "heat flow"}
QRELS = {"q1": {"d5": 2, "d1": 1}, "q2": {"d2": 2, "d4": 1}}


@pytest.fixture
def retrieval(monkeypatch, capsys):
    """Run a command as the shell does: exit code, stdout, stderr."""

    def call(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["retrieval", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A BEIR folder and, beside it, one more document."""
    folder = tmp_path_factory.mktemp("data") / "beir"
    (folder / "qrels").mkdir(parents=True)
    records = [
        {"_id": id, "title": title, "text": text, "metadata": {"year": year, "lang": lang}}
        for id, title, text, year, lang in DOCUMENTS
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    queries = [json.dumps({"_id": id, "text": text}) + "\n" for id, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("".join(queries))
    rows = [f"{q}\t{d}\t{grade}\n" for q, judged in QRELS.items() for d, grade in judged.items()]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    (folder.parent / "more.jsonl").write_text('{"_id": "d6", "text": "supersonic jets", "year": 2001}\n')
    return folder


@pytest.fixture(scope="module")
def built(data, tmp_path_factory):
    """A collection that no test changes."""
    folder = tmp_path_factory.mktemp("built") / "my.idx"
    result = CliRunner().invoke(app, ["index", str(data / "corpus.jsonl"), "--to", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


def ids(out):
    return [result["id"] for result in json.loads(out)["results"]]


# -- index, add, delete, compact --------------------------------------------------------------------------------------


def test_index_makes_bm25_and_lsa_and_tells_what_it_made(retrieval, data, tmp_path):
    code, out, err = retrieval("index", data / "corpus.jsonl", "--to", tmp_path / "my.idx")
    assert (code, out) == (0, "")
    first, *others = err.splitlines()
    assert "5 documents" in first and [line.split(":")[0].strip() for line in others] == ["bm25", "dense"]
    assert "\x1b" not in err
    with Collection.open(tmp_path / "my.idx") as collection:
        assert collection.indexes == ["bm25", "dense"] and len(collection) == 5


@pytest.mark.parametrize(
    ("flags", "indexes"),
    [
        (["--bm25"], {"bm25": "eager"}),
        (["--dense", "lsa"], {"dense": "flat"}),
        (["--dense", "lsa", "--ann", "hnsw"], {"dense": "hnsw"}),
        (["--bm25", "--dense", "lsa", "--ann", "flat"], {"bm25": "eager", "dense": "flat"}),
        (["--analyzer", "de", "--method", "bm25l", "--k1", "1.2", "--b", "0.75", "--bm25", "-q"], {"bm25": "eager"}),
    ],
)
def test_index_flags(retrieval, data, tmp_path, flags, indexes):
    assert retrieval("index", data, "--to", tmp_path / "my.idx", *flags)[0] == 0
    _, out, _ = retrieval("info", tmp_path / "my.idx", "--json")
    assert {name: part["index"]["kind"] for name, part in json.loads(out)["indexes"].items()} == indexes


def test_the_analyzer_is_that_of_bm25_and_of_lsa(retrieval, data, tmp_path):
    assert retrieval("index", data, "--to", tmp_path / "de.idx", "--analyzer", "german")[0] == 0
    _, out, _ = retrieval("info", tmp_path / "de.idx", "--json")
    analyzers = [part["encoder"]["analyzer"] for part in json.loads(out)["indexes"].values()]
    assert analyzers == [{"kind": "unicode", "language": "german"}] * 2


def test_a_warning_is_one_line_without_our_code(retrieval, data, tmp_path):
    code, _, err = retrieval("index", data, "--to", tmp_path / "my.idx", "--bm25", "--analyzer", "klingon")
    assert code == 0 and err.splitlines()[0].startswith("warning: name='klingon': no stemmer for this language")
    assert ".py" not in err


def test_index_reads_any_field_and_skips_bad_records_on_request(retrieval, tmp_path):
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"key": "a", "body": "wings"}\n{"key": "b"}\nnonsense\n{"key": "c", "body": "heat"}\n')
    flags = ["--id-field", "key", "--text-field", "body", "--bm25"]
    code, out, err = retrieval("index", corpus, "--to", tmp_path / "c", *flags)
    assert code == 1 and out == "" and err.startswith(f"error: {corpus}:2: ") and err.count("\n") == 1
    code, out, err = retrieval("index", corpus, "--to", tmp_path / "c", *flags, "--on-error", "skip")
    assert code == 0 and "2 bad records skipped" in err and f"{corpus}:3: " in err
    assert ids(retrieval("search", tmp_path / "c", "heat", "--json")[1]) == ["c"]


def test_add_delete_compact(retrieval, data, tmp_path):
    folder, more = tmp_path / "my.idx", data.parent / "more.jsonl"
    retrieval("index", data, "--to", folder)
    assert retrieval("add", folder, more) == (0, "", "1 documents added; the collection holds 6\n")
    code, out, err = retrieval("add", folder, more)
    assert code == 1 and err.startswith("error: document id 'd6' is in the collection already") and err.count("\n") == 1
    updated = "1 documents added or replaced; the collection holds 6\n"
    assert retrieval("add", folder, more, "--update") == (0, "", updated)
    assert ids(retrieval("search", folder, "supersonic", "--index", "bm25", "--json")[1]) == ["d6"]
    assert retrieval("delete", folder, "d6", "d1", "nothing")[2] == "2 documents deleted; the collection holds 4\n"
    code, out, err = retrieval("compact", folder)
    assert (code, out) == (0, "") and "4 documents" in err
    assert retrieval("info", folder, "--verify")[0] == 0


@pytest.mark.parametrize(
    ("flags", "kinds"),
    [
        (["--bm25", "--method", "bm25l", "--k1", "1.2", "--analyzer", "unicode"], ("bag-of-words", "eager")),
        (["--dense", "lsa"], ("lsa", "flat")),
        (["--dense", "lsa", "--ann", "hnsw", "--analyzer", "unicode", "-q"], ("lsa", "hnsw")),
    ],
)
def test_an_index_is_added_and_dropped(retrieval, data, tmp_path, flags, kinds):
    folder = tmp_path / "my.idx"
    retrieval("index", data, "--to", folder, "--bm25")
    code, out, err = retrieval("add-index", folder, "other", *flags)
    assert (code, out) == (0, "") and "5 documents" in err and "  other: " in err
    told = json.loads(retrieval("info", folder, "--json")[1])["indexes"]
    assert list(told) == ["bm25", "other"]
    assert (told["other"]["encoder"]["kind"], told["other"]["index"]["kind"]) == kinds
    assert ("unicode" in flags) == (told["other"]["encoder"]["analyzer"] == {"kind": "unicode", "language": None})
    if kinds[1] == "eager":
        plain = told["bm25"]["index"]["weighting"]
        assert told["other"]["index"]["weighting"] == plain | {"method": "bm25l", "k1": 1.2}
    assert sorted(ids(retrieval("search", folder, "wing stall", "--index", "other", "--json")[1])[:2]) == ["d1", "d5"]
    dropped = "index bm25 dropped; the collection has: other\n"
    assert retrieval("drop-index", folder, "bm25") == (0, "", dropped)
    code, out, err = retrieval("drop-index", folder, "other")
    assert code == 1 and err == "error: cannot drop 'other'; the indexes are: other\n"
    assert retrieval("info", folder, "--verify")[0] == 0


# -- search -----------------------------------------------------------------------------------------------------------


def test_search_prints_ranks_titles_ids_scores_and_marked_words(retrieval, built):
    code, out, err = retrieval("search", built, "wing stall")
    assert (code, err) == (0, "") and "\x1b" not in out
    first, snippet = out.splitlines()[:2]
    assert first.split()[:3] == ["1.", "d5", "[d5]"] and float(first.split()[-1]) > 0
    assert "**wings** **stall**" in snippet and "**wing**" in snippet
    assert "  2. Wings  [d1]  " in out


def test_search_json(retrieval, built):
    code, out, err = retrieval("search", built, "heat flow", "-k", "2", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["query"] == "heat flow" and len(told["results"]) == 2
    assert told["results"][0] | {"score": 0} == {
        "id": "d2", "score": 0, "rank": 1, "text": "heat transfer in hypersonic flow", "title": "",
        "metadata": {"year": 1960, "lang": "en"}, "explanation": {},
    }  # fmt: skip


@pytest.mark.parametrize("index", ["bm25", "dense", "hybrid"])
def test_search_by_index_where_and_explain(retrieval, built, index):
    flags = ["--index", index, "--where", "year > 1955 and lang = 'en'", "--explain"]
    code, out, _ = retrieval("search", built, "wing flow", *flags, "--json")
    assert code == 0 and ids(out) == ["d5", "d2"]
    told = json.loads(out)["results"][0]["explanation"]
    assert set(told) == ({"bm25", "dense"} if index == "hybrid" else {index})
    _, out, _ = retrieval("search", built, "wing flow", *flags)
    assert ("wing " in out and "score " in out) if index != "dense" else "dense: score " in out


def test_questions_come_from_a_pipe_one_a_line(retrieval, built):
    code, out, err = retrieval("search", built, "--json", "-k", "1", stdin="wing stall\n\nheat transfer\nzeppelin\n")
    assert (code, err) == (0, "")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["query"] for answer in answers] == ["wing stall", "heat transfer", "zeppelin"]
    assert [answer["results"][0]["id"] for answer in answers[:2]] == ["d5", "d2"]
    assert retrieval("search", built, "--index", "bm25", stdin="zeppelin\n") == (0, "no document matches\n", "")


def test_questions_are_asked_for_on_a_terminal(retrieval, built, monkeypatch):
    questions = iter(["wing stall", "heat", ""])

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("builtins.input", lambda prompt: next(questions))
    monkeypatch.setattr(io, "StringIO", Terminal)
    code, out, err = retrieval("search", built, "-k", "1")
    assert code == 0 and out.count("  1. ") == 2 and "One question a line" in err


# -- evaluate, fuse ---------------------------------------------------------------------------------------------------


def test_evaluate_a_collection_on_a_dataset(retrieval, built, data, tmp_path):
    code, out, err = retrieval("evaluate", built, "--dataset", data)
    assert (code, err) == (0, "")
    for told in ("bm25", "dense", "hybrid", "nDCG@10", "R@100", "MRR@10"):
        assert told in out
    run, table = tmp_path / "run.trec", tmp_path / "table.json"
    code, out, err = retrieval(
        "evaluate", built, "--dataset", data, "--split", "test", "--index", "bm25", "--run-out", run, "--json", table,
        "--markdown", tmp_path / "table.md", "--per-query", tmp_path / "q.json", "-m", "nDCG@10", "-m", "P@1",
    )  # fmt: skip
    assert code == 0 and err == f"run written to {run}\n"
    assert run.read_text().split()[:4] == ["q1", "Q0", "d5", "1"]
    assert "dense" not in out and json.loads(table.read_text())
    assert json.loads((tmp_path / "q.json").read_text())["bm25"]["P@1"] == {"q1": 1, "q2": 1}
    assert "| bm25" in (tmp_path / "table.md").read_text()


def test_evaluate_runs_against_judgements_and_fuse_them(retrieval, built, data, tmp_path):
    a, b, c = (tmp_path / f"{name}.trec" for name in "ABC")
    for path, index in ((a, "bm25"), (b, "dense")):
        retrieval("evaluate", built, "--dataset", data, "--index", index, "--run-out", path)
    code, out, err = retrieval("fuse", a, b, "--method", "rrf", "--out", c)
    assert (code, out) == (0, "") and err == f"2 queries fused by rrf from 2 runs, written to {c}\n"
    qrels = data / "qrels" / "test.tsv"
    values = tmp_path / "values.json"
    code, out, err = retrieval(
        "evaluate", "--run", a, "--run", b, "--run", c, "--qrels", qrels, "--baseline", "A", "--per-query", values
    )
    assert (code, err) == (0, "")
    assert all(any(line.split()[:1] == [name] for line in out.splitlines()) for name in "ABC")
    assert json.loads(values.read_text())["C"]["MRR@10"] == {"q1": 1, "q2": 1}


def test_several_systems_write_a_run_each(retrieval, built, data, tmp_path):
    code, _, err = retrieval("evaluate", built, "--dataset", data, "--run-out", tmp_path / "r.trec")
    assert code == 0 and err.count("run written to") == 3
    assert sorted(path.name for path in tmp_path.glob("r.*")) == ["r.trec.bm25", "r.trec.dense", "r.trec.hybrid"]


def test_a_dataset_of_another_corpus_is_noticed(retrieval, built, data, tmp_path):
    other = tmp_path / "other"
    (other / "qrels").mkdir(parents=True)
    (other / "queries.jsonl").write_text((data / "queries.jsonl").read_text())
    (other / "qrels" / "test.tsv").write_text("q1\tunknown\t1\n")
    code, _, err = retrieval("evaluate", built, "--dataset", other, "--index", "bm25")
    assert code == 0
    assert err == f"warning: {built} holds none of the documents that other judges; is it of another corpus?\n"


def test_a_measure_asked_for_twice_is_one_column(retrieval, built, data):
    code, out, _ = retrieval("evaluate", built, "--dataset", data, "--index", "bm25", "-m", "P@1", "-m", "P@1")
    assert code == 0 and out.splitlines()[0].split() == ["system", "P@1"]


# -- info, doctor, demo -----------------------------------------------------------------------------------------------


def test_info(retrieval, built):
    code, out, err = retrieval("info", built, "--verify")
    assert (code, err) == (0, "")
    assert "5 documents" in out and "lang, year" in out and "lsa" in out and "eager" in out and "verified" in out
    told = json.loads(retrieval("info", built, "--json")[1])
    assert told["documents"] == 5 and told["fields"] == ["lang", "year"]


def test_doctor_names_what_is_missing_and_the_line_that_installs_it(retrieval, monkeypatch):
    from importlib import metadata

    version = metadata.version

    def without(*missing):
        def find(name):
            if name in missing:
                raise metadata.PackageNotFoundError(name)
            return "1.0" if name == "retrieval" else version(name)

        return find

    monkeypatch.setattr(metadata, "version", without("torch"))
    code, out, err = retrieval("doctor")
    assert (code, err) == (0, "")
    assert f"numpy {version('numpy')}" in out and "pip install 'retrieval[encoders]'" in out and "threads: " in out
    monkeypatch.setattr(metadata, "version", without("scipy"))
    code, out, _ = retrieval("doctor")
    assert code == 1 and "scipy MISSING" in out


def test_demo(retrieval, tmp_path):
    code, out, err = retrieval("demo", "--to", tmp_path / "kept")
    assert code == 0 and "1,400 abstracts" in err
    assert out.count("\n? ") == 2 and out.startswith("? ") and "**heat** **transfer**" in out
    for told in ("bm25", "dense", "hybrid", "nDCG@10", "R@100", "MRR@10", "index bytes", "queries/s"):
        assert told in out
    code, out, _ = retrieval("search", tmp_path / "kept", "boundary layer", "--explain", "-k", "3")
    assert code == 0 and "**boundary** **layer**" in out


# -- help, errors, streams --------------------------------------------------------------------------------------------


def test_help_lists_every_command(retrieval):
    code, out, _ = retrieval("--help")
    assert code == 0 and all(f" {command} " in out for command in COMMANDS)
    names = [command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert sorted(COMMANDS) == sorted(names)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(retrieval, command):
    code, out, _ = retrieval(command, "--help")
    assert code == 0 and "Example" in out and f"retrieval {command}" in out.partition("Example")[2]


@pytest.mark.parametrize(
    "arguments",
    [["serach"], ["index"], ["index", "x.jsonl"], ["search"], ["search", "d", "q", "-k", "many"], ["delete", "d"],
     ["fuse"], ["evaluate"], ["evaluate", "d"], ["evaluate", "--run", "a.trec"],
     ["evaluate", "d", "--dataset", "x", "--run", "a", "--qrels", "b"],
     ["evaluate", "--run", "a/r.trec", "--run", "b/r.trec", "--qrels", "q", "--run-out", "o"],
     ["evaluate", "--run", "a", "--qrels", "q", "--index", "bm25"],
     ["index", "x.jsonl", "--to", "y", "--bm25", "--ann", "hnsw"], ["add-index", "d"], ["add-index", "d", "name"],
     ["add-index", "d", "name", "--bm25", "--dense", "lsa"], ["add-index", "d", "name", "--bm25", "--ann", "hnsw"],
     ["drop-index", "d"], ["tune", "d", "--index", "dense"], ["info", "d", "--nonsense"]],
)  # fmt: skip
def test_wrong_usage_is_2_and_says_how(retrieval, arguments):
    code, out, err = retrieval(*arguments)
    assert (code, out) == (2, "") and "Usage: retrieval" in err


def test_expected_errors_are_one_line_and_1(retrieval, built, data, tmp_path):
    run = tmp_path / "bad.trec"
    run.write_text("q1 Q0 d1\n")
    expected = {
        ("search", tmp_path, "q"): "no collection here",
        ("search", built, "q", "--index", "bm26"): "no index 'bm26'; this collection has: bm25, dense, hybrid",
        ("search", built, "q", "-k", "0"): "k is 0",
        ("search", built, "q", "--where", "color = 'red'"): "no document has a field 'color'",
        ("index", data, "--to", built): "holds a collection already",
        ("index", tmp_path / "nothing.jsonl", "--to", tmp_path / "x"): "nothing.jsonl",
        ("index", run, "--to", tmp_path / "x"): "cannot read .trec",
        ("index", data, "--to", tmp_path / "x", "--dense", "lsa", "--ann", "lsh"): "ann is 'lsh'",
        ("index", data, "--to", tmp_path / "x", "--method", "bm26"): "bm26",
        ("index", data, "--to", tmp_path / "x", "--on-error", "ignore"): "on_error='ignore'",
        ("add", tmp_path, data): "no collection here",
        ("add-index", built, "bm25", "--bm25"): "index 'bm25' is there already",
        ("add-index", built, "a-b", "--bm25"): "index name 'a-b'",
        ("drop-index", built, "bm26"): "cannot drop 'bm26'; the indexes are: bm25, dense",
        ("tune", built, "--index", "bm26", "--queries", data / "queries.jsonl"): "no index 'bm26' to tune; the indexes",
        ("tune", built, "--index", "dense", "--queries", data / "queries.jsonl"): "queries are 2, of which 2 have",
        ("tune", built, "--index", "dense", "--queries", tmp_path / "none.txt"): "none.txt: no such file",
        ("tune", built, "--index", "dense", "--queries", data / "qrels"): "qrels: no such file",
        ("evaluate", built, "--dataset", tmp_path / "none"): "none",
        ("evaluate", built, "--dataset", data, "--split", "dev"): "qrels/dev.tsv",
        ("evaluate", built, "--dataset", data, "-m", "nGCD@10"): "nGCD@10",
        ("evaluate", built, "--dataset", data, "--test", "guess"): "test must be one of",
        ("evaluate", "--run", run, "--qrels", data / "qrels" / "test.tsv"): "bad.trec:1: ",
        ("evaluate", "--run", tmp_path / "no.trec", "--qrels", data / "qrels" / "test.tsv"): "no.trec: No such file",
        ("fuse", run, run, "--out", tmp_path / "o", "--method", "sum"): "bad.trec:1: ",
    }
    for arguments, message in expected.items():
        code, out, err = retrieval(*arguments)
        assert (code, out) == (1, ""), arguments
        assert err.startswith("error: ") and message in err and err.count("\n") == 1, arguments
    code, _, err = retrieval("search", built, "q", "--where", "year >")
    assert code == 1 and err.splitlines()[-1].strip() == "^"  # the one error of several lines: it points


def test_bugs_are_not_taken_for_expected_errors(monkeypatch, built):
    def broken(*arguments, **options):
        return {}["bug"]

    monkeypatch.setattr(Collection, "search", broken)
    monkeypatch.setattr(sys, "argv", ["retrieval", "search", str(built), "q"])
    with pytest.raises(KeyError, match="bug"):
        main()


# -- as processes -----------------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-c", "from retrieval.cli import main; main()"]


def test_pipes_stay_silent_and_may_close_early(built):
    lines = "wing flow\n" * 3
    done = subprocess.run(
        [*COMMAND, "search", built, "--json"], input=lines, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "" and done.stdout.count("\n") == 3
    with subprocess.Popen(
        [*COMMAND, "search", built, "--json"], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate("wing flow\n" * 20_000)
    assert process.returncode == 1 and err == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_ctrl_c_leaves_a_usable_state_and_the_same_command_goes_on(retrieval, data, tmp_path):
    corpus, folder = tmp_path / "corpus.jsonl", tmp_path / "my.idx"
    os.mkfifo(corpus)  # so that it waits in the middle of the corpus for as long as it takes
    arguments = ["index", str(corpus), "--to", str(folder)]
    process = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, text=True, stderr=subprocess.PIPE)
    killer = threading.Timer(120, process.kill)
    killer.start()
    with open(corpus, "w") as out:  # returns once the command reads
        record = (data / "corpus.jsonl").read_text()
        out.write(record)
        out.flush()
        while not (folder / "collection.sqlite").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    killer.cancel()
    assert process.returncode == 130
    assert err == "interrupted: what was committed stays; the same command again goes on from there\n"
    corpus.unlink()
    corpus.write_text(record)
    assert retrieval(*arguments)[0] == 0
    assert retrieval("info", folder, "--verify")[0] == 0
    assert ids(retrieval("search", folder, "wing stall", "--json")[1])[0] == "d5"
