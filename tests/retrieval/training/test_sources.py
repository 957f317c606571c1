"""Questions from files, and the vectors of documents on disk."""

import gzip
import json

import numpy as np
import pytest

from eval.errors import DatasetError, FormatError
from retrieval import bm25, dense
from retrieval.encoders.base import Encoder
from retrieval.errors import TrainingError
from retrieval.retriever import Retriever
from retrieval.training import sources
from retrieval.training.sources import Questions, document_vectors, query_vectors, read_questions, rows_of


def write(path, *lines):
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


QRELS = ["query-id\tcorpus-id\tscore", "1\ta\t2", "1\tb\t0", "2\tc\t1", "2\td\t1", "3\ta\t0"]
BEIR = [json.dumps({"_id": i, "text": text}) for i, text in [("1", "one"), ("2", "two"), ("3", "three"), ("4", "four")]]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_questions_without_labels(tmp_path, suffix):
    expected = Questions(["one", "two", "three", "four"])
    assert read_questions(write(tmp_path / f"q.jsonl{suffix}", *BEIR)) == expected
    assert read_questions(write(tmp_path / f"q.tsv{suffix}", "1\tone", "", "2\ttwo", "3\tthree", "4\tfour")) == expected
    assert read_questions(write(tmp_path / f"q.txt{suffix}", "one", "two", "", "three", "four")) == expected


def test_judged_questions_keep_those_with_a_relevant_document(tmp_path):
    expected = Questions(["one", "two"], [["a"], ["c", "d"]])
    qrels = write(tmp_path / "r.tsv", *QRELS)
    assert read_questions(write(tmp_path / "q.jsonl", *BEIR), qrels) == expected
    assert read_questions(write(tmp_path / "q.tsv", "1\tone", "2\ttwo", "3\tthree"), qrels) == expected
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    write(folder / "queries.jsonl", *BEIR)
    write(folder / "qrels" / "train.tsv", *QRELS)
    assert read_questions(folder) == expected
    with pytest.raises(DatasetError, match="dev"):
        read_questions(folder, split="dev")
    with pytest.raises(TrainingError, match="judgements of its own"):
        read_questions(folder, qrels)


def test_labelled_files(tmp_path):
    lines = [{"query": "one", "positives": ["a", 7], "negatives": "z"}, {"query": "two", "positives": "b"}]
    expected = Questions(["one", "two"], [["a", "7"], ["b"]], [["z"], []])
    assert read_questions(write(tmp_path / "q.jsonl", *map(json.dumps, lines))) == expected
    tsv = write(tmp_path / "q.tsv", "query\tpositives\tnegatives", "one\ta 7\tz", "two\tb")
    assert read_questions(tsv) == expected
    two = write(tmp_path / "two.tsv", "query\tpositives", "one\ta 7")
    assert read_questions(two) == Questions(["one"], [["a", "7"]], [[]])


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("q.jsonl", "{", "q.jsonl.*1.*no JSON"), ("q.jsonl", "[1]", "expected an object"),
        ("q.jsonl", '{"_id": 1}', "expected a string as query or text"),
        ("q.jsonl", '{"query": "a"}', "without positives"),
        ("q.jsonl", '{"query": "a", "positives": [true]}', "must be ids"),
        ("q.tsv", "one", "expected query id, tab, text"),
        ("q.tsv", "query\tpositives\n1\t2\t3", "2.*query, tab, positives"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(tmp_path, name, line, message):
    with pytest.raises(FormatError, match=message):
        read_questions(write(tmp_path / name, line))


def test_nothing_to_learn_from_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="no questions"):
        read_questions(write(tmp_path / "q.txt", ""))
    with pytest.raises(TrainingError, match="no such file"):
        read_questions(tmp_path / "nothing")
    qrels = write(tmp_path / "r.tsv", QRELS[0], "1\ta\t0")
    with pytest.raises(TrainingError, match="none is judged"):
        read_questions(write(tmp_path / "q.jsonl", *BEIR), qrels)


def test_rows_of_ids_leave_out_what_is_not_there():
    assert [rows.tolist() for rows in rows_of([["c", "x", "a", "a"], []], {"a": 0, "b": 1, "c": 2})] == [[0, 2], []]


# -- vectors ----------------------------------------------------------------------------------------------------------


class Letters(Encoder):
    """Counts of a, b and c; remembers how many texts it was given."""

    kind, costly, similarity = "letters", True, "ip"

    def __init__(self):
        self.seen = 0

    def encode_documents(self, texts):
        self.seen += len(texts)
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32).reshape(-1, 3)

    encode_queries = encode_documents

    def settings(self):
        return {}


TEXTS = [f"{'a' * (i % 5)} {'b' * (i % 3)} c" for i in range(2500)]
KEYS = np.arange(2500) * 2 + 1


def asked(ann="ivfpq", cosine=False):
    encoder = Letters()
    if cosine:
        encoder.similarity = "cosine"
    return Retriever(encoder, dense(Letters(), ann=ann).index)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("limit", [0, sources.IN_MEMORY])
def test_vectors_are_streamed_to_disk(tmp_path, monkeypatch, cosine, limit):
    monkeypatch.setattr(sources, "IN_MEMORY", limit)
    retriever = asked(cosine=cosine)
    retriever.index.metric = retriever.encoder.similarity
    vectors = document_vectors(retriever, KEYS, iter(TEXTS), tmp_path / "t")
    expected = Letters().encode_documents(TEXTS)
    if cosine:
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, rtol=1e-6)
    assert isinstance(vectors, np.memmap) == (limit == 0) and vectors.dtype == np.float32
    asked_again = document_vectors(retriever, KEYS, iter(TEXTS), tmp_path / "t")
    assert np.array_equal(asked_again, vectors) and retriever.encoder.seen == len(TEXTS)  # chunks were kept


def test_an_interrupted_run_encodes_only_what_is_left(tmp_path):
    def breaking():
        yield from TEXTS[:1500]
        raise KeyboardInterrupt

    retriever = asked()
    with pytest.raises(KeyboardInterrupt):
        document_vectors(retriever, KEYS, breaking(), tmp_path)
    before = retriever.encoder.seen
    assert before == 1024
    document_vectors(retriever, KEYS, iter(TEXTS), tmp_path)
    assert retriever.encoder.seen == len(TEXTS)


def test_vectors_that_an_index_keeps_are_not_made_again(tmp_path):
    retriever = asked("flat")
    retriever.build(KEYS, lambda: TEXTS)
    seen = retriever.encoder.seen
    vectors = document_vectors(retriever, KEYS, iter(()), tmp_path / "t")
    assert np.array_equal(vectors, Letters().encode_documents(TEXTS)) and retriever.encoder.seen == seen
    assert not (tmp_path / "t").exists()
    fewer = document_vectors(retriever, KEYS[:9], iter(TEXTS[:9]), tmp_path / "t")  # it holds others than these
    assert np.array_equal(fewer, vectors[:9]) and retriever.encoder.seen == seen + 9


def test_what_cannot_be_compressed_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="only dense vectors"):
        document_vectors(bm25(), KEYS, iter(TEXTS), tmp_path)
    retriever = asked()
    retriever.encoder.similarity = "l2"
    with pytest.raises(TrainingError, match="'l2'"):
        document_vectors(retriever, KEYS, iter(TEXTS), tmp_path)
    with pytest.raises(TrainingError, match="no documents"):
        document_vectors(asked(), KEYS[:0], iter(()), tmp_path)


def test_queries_are_as_long_as_the_metric_wants():
    retriever = dense("lsa")
    retriever.build(np.arange(4), lambda: ["wing flow", "flow heat", "wing heat", "heat shock heat"])
    vectors = query_vectors(retriever.encoder, ["wing", "unheard"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0], atol=1e-6)
