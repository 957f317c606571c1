"""Reading documents: every accepted source, every way in which one can be bad."""

import csv
import gzip
import json
import sys
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.errors import DatasetError, FormatError
from retrieval.documents import Document, EmptyCorpus, read_documents
from retrieval.errors import MissingExtra

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def write(path, content):
    """Text or bytes into a file, packed as its suffix says."""
    data = content if isinstance(content, bytes) else content.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


PACKED = ["", ".gz", ".zst"]


# JSON lines


@pytest.mark.parametrize("packed", PACKED)
def test_beir(tmp_path, packed):
    path = write(
        tmp_path / f"corpus.jsonl{packed}",
        jsonl(
            {"_id": "d1", "title": "A title", "text": "a text", "metadata": {"url": "u", "year": 1}, "year": 2015},
            {"_id": 7, "text": "", "tags": ["a", {"b": None}], "open": True},
            {"_id": "d3", "title": None, "text": "été \u2028 \U0001f600 \x85 two"},
        ),
    )
    assert list(read_documents(path)) == [
        Document("d1", "a text", "A title", {"url": "u", "year": 2015}),
        Document("7", "", "", {"tags": ["a", {"b": None}], "open": True}),
        Document("d3", "été \u2028 \U0001f600 \x85 two", "", {}),
    ]


def test_anserini_keeps_the_title_out_of_the_contents(tmp_path):
    path = write(tmp_path / "docs.ndjson", jsonl({"id": "1", "contents": "title and text", "title": "title"}))
    assert list(read_documents(str(path))) == [Document("1", "title and text", "", {"title": "title"})]


def test_fields_by_argument(tmp_path):
    record = {"doi": 5, "title": "T", "abstract": "A", "body": "B", "id": "x", "text": "y"}
    path = write(tmp_path / "papers.jsonl", jsonl(record))
    [document] = read_documents(path, id_field="doi", text_fields=["title", "abstract", "body"])
    assert document == Document("5", "A B", "T", {"id": "x", "text": "y"})
    [document] = read_documents(path, text_fields=["title"])
    assert document == Document("x", "T", "", {"doi": 5, "abstract": "A", "body": "B", "text": "y"})


def test_contents():
    assert Document("1", "text", "title").contents == "title text"
    assert Document("1", "text").contents == "text"
    assert Document("1", "", "title").contents == "title"


def test_metadata_that_is_no_object_is_a_field(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl({"id": 1, "text": "", "metadata": "m"}))
    assert next(read_documents(path)).metadata == {"metadata": "m"}


def test_blank_lines_and_a_missing_last_newline(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"id":1,"text":"a"}\r\n\r\n  \n{"id":2,"text":"b"}')
    assert [(d.id, d.text) for d in read_documents(path)] == [("1", "a"), ("2", "b")]


BAD_LINES = [
    (b'{"id": "1", "text": "a"', "malformed JSON: .* at column"),
    (b"[1, 2]", r"expected an object, found \[1, 2\]"),
    (b'{"text": "a", "x": 1}', r"no field 'id' for an id \('_id' or 'id'\); fields seen: text, x"),
    (b'{"text": "a", "%s": 1}' % (b"x" * 1000), "fields seen: text, " + "x" * 40 + "$"),
    (b'{"id": "1", "body": "a"}', r"no field 'text' for a text \('text' or 'contents'\); fields seen: id, body"),
    (b'{"id": 1.5, "text": "a"}', "the id in 'id' is 1.5: expected a string or an integer"),
    (b'{"id": true, "text": "a"}', "the id in 'id' is True"),
    (b'{"id": null, "text": "a"}', "the id in 'id' is None"),
    (b'{"id": "", "text": "a"}', "the id in 'id' is ''"),
    (b'{"id": "1", "text": null}', "the text in 'text' is None: expected a string"),
    (b'{"id": "1", "text": "a", "title": 3}', "the text in 'title' is 3"),
    (b'{"id": "1", "contents": ["a"]}', r"the text in 'contents' is \['a'\]"),
    (b'{"id": "1", "text": "\xff"}', "not UTF-8: .* at byte 21"),
    (b'{"id": "1", "text": "\\ud800"}', "half a surrogate pair"),
    (b'{"id": "1", "text": "a", "x": [NaN]}', "NaN is no finite"),
    (b'{"id": "1", "text": "a", "x": 1e999}', "1e999 is no finite"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"id": "1", "text": "a", "x": ' + b"9" * 10_000 + b"}", "digits"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_are_named_or_skipped(tmp_path, bad, problem):
    if problem == "digits" and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads integers of any length")
    good = [b'{"id": "a", "text": "first"}', b'{"id": "b", "text": "last"}']
    path = write(tmp_path / "c.jsonl.gz", b"\n".join([good[0], bad, good[1]]))

    documents = read_documents(path)
    assert next(documents).id == "a"
    with pytest.raises(FormatError, match=problem) as caught:
        next(documents)
    assert (caught.value.path, caught.value.line) == (path, 2)
    assert str(caught.value).startswith(f"{path}:2: ")

    documents = read_documents(path, on_error="skip")
    assert [(d.id, d.text) for d in documents] == [("a", "first"), ("b", "last")]
    assert (documents.read, documents.skipped) == (2, 1)
    assert documents.reasons == [str(caught.value)]


def test_reasons_are_kept_for_the_first_ten(tmp_path):
    path = write(tmp_path / "c.jsonl", "{}\n" * 15 + jsonl({"id": 1, "text": ""}))
    documents = read_documents(path, on_error="skip")
    assert len(list(documents)) == 1
    assert (documents.read, documents.skipped, len(documents.reasons)) == (1, 15, 10)
    assert documents.reasons[9].startswith(f"{path}:10: ")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path, on_error):
    path = write(tmp_path / "c.jsonl.gz", "".join(jsonl({"id": i, "text": str(hash((i,)))}) for i in range(1000)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match="truncated or damaged"):
        list(read_documents(path, on_error=on_error))


def test_ten_megabytes_and_streaming(tmp_path):
    long = "word " * 2_000_000
    assert next(read_documents(write(tmp_path / "c.jsonl", jsonl({"id": 1, "text": long})))).text == long
    # What follows is not read before it is asked for.
    documents = read_documents(write(tmp_path / "d.jsonl", jsonl({"id": 1, "text": ""}) + "broken\n"))
    assert next(documents).id == "1" and documents.read == 1


@given(st.lists(st.tuples(st.text("ab\n\r\",\t'é", max_size=5), st.text("ab\n\",\t'é", min_size=1, max_size=5))))
def test_csv_reads_what_the_csv_module_wrote(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "c.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(["id", "text", "note"])
        writer.writerows([i, text, note] for i, (text, note) in enumerate(rows))
    expected = [
        Document(str(i), text.replace("\r\n", "\n"), "", {"note": note}) for i, (text, note) in enumerate(rows)
    ]
    try:
        assert list(read_documents(path)) == expected
    except EmptyCorpus:
        assert not rows


# Tables


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_tables(tmp_path, packed, suffix, separator):
    lines = [
        ["id", "title", "text", "year", "score", "code", "note"],
        ["1", "T", '"two\nlines with ""quotes"""', "2015", "-1.5e3", "007", ""],
        ["02", "", "3", "99999999999999999999", "1e999", "+1", "nan"],
    ]
    path = write(tmp_path / f"c.{suffix}{packed}", "\r\n".join(separator.join(line) for line in lines))
    assert list(read_documents(path)) == [
        Document("1", 'two\nlines with "quotes"', "T", {"year": 2015, "score": -1500.0, "code": "007"}),
        Document("02", "3", "", {"year": "99999999999999999999", "score": "1e999", "code": "+1", "note": "nan"}),
    ]


def test_table_errors_name_the_line_where_the_record_starts(tmp_path):
    text = 'id,text\n1,"a\nb\n"\n\n2,"c\nd",extra\n3,"bad \xff\ntail"\n4,e\n5,"a"b\n,f\n6,"open\n'
    path = write(tmp_path / "c.csv", text.encode("latin-1"))
    documents = read_documents(path, on_error="skip")
    assert [(d.id, d.text) for d in documents] == [("1", "a\nb\n"), ("4", "e")]
    assert documents.skipped == 5
    for reason, (line, problem) in zip(
        documents.reasons,
        [(6, "expected 2 values"), (8, "not UTF-8"), (11, "malformed record"), (12, "the id in 'id' is ''"), (13, "")],
        strict=True,
    ):
        assert reason.startswith(f"{path}:{line}: {problem}")
    with pytest.raises(FormatError, match=r"c\.csv:6: expected 2 values, as in the header, found 3"):
        list(read_documents(path))


def test_table_headers(tmp_path):
    with pytest.raises(FormatError, match=r"c\.csv:2: a name occurs twice in the header: id, text, id"):
        list(read_documents(write(tmp_path / "c.csv", "\nid,text,id\n1,a,2\n"), on_error="skip"))
    with pytest.raises(FormatError, match=r"no field 'id' for an id .* fields seen: pid, text"):
        list(read_documents(write(tmp_path / "d.csv", "pid,text\n1,a\n")))
    path = write(tmp_path / "e.tsv", "pid\tpassage\tyear\n1\ta\t5\n")
    assert list(read_documents(path, id_field="pid", text_fields=["passage"])) == [Document("1", "a", "", {"year": 5})]


def test_long_values_leave_the_csv_module_as_it_was(tmp_path):
    long = "word " * 2_000_000
    before = csv.field_size_limit(1000)
    try:
        assert next(read_documents(write(tmp_path / "c.csv", f"id,text\n1,{long}\n"))).text == long
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("name", ["collection.tsv", "collection.tsv.gz", "passages.tsv", "passages.tsv.zst"])
def test_msmarco(tmp_path, name):
    path = write(tmp_path / name, '0\ta "quoted passage\n1\tthe second\n')
    assert list(read_documents(path)) == [Document("0", 'a "quoted passage'), Document("1", "the second")]


def test_msmarco_by_name_and_its_errors(tmp_path):
    path = write(tmp_path / "collection.tsv", b"D1\ta\n\nD2\n\tb\nD3\tc\td\nD4\t\xff\nD5\te\n")
    documents = read_documents(path, on_error="skip")
    assert [d.id for d in documents] == ["D1", "D5"]
    assert [reason.removeprefix(f"{path}:")[:2] for reason in documents.reasons] == ["3:", "4:", "5:", "6:"]
    with pytest.raises(FormatError, match=r"expected 2 columns .* found 1"):
        list(read_documents(path))


# Parquet


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    columns = {
        "id": [1, 2],
        "text": ["a", "b"],
        "tags": [["x"], []],
        "day": [date(2020, 1, 2), None],
        "price": [Decimal("1.50"), None],
        "score": [0.5, float("nan")],
        "image": [b"\x00", b"\x01"],
        "metadata": [{"n": 1}, {"n": None}],
    }
    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    assert list(read_documents(path)) == [
        Document("1", "a", "", {"tags": ["x"], "day": "2020-01-02", "price": 1.5, "score": 0.5, "n": 1}),
        Document("2", "b", "", {"tags": [], "day": None, "price": None, "score": None, "n": None}),
    ]
    pyarrow.parquet.write_table(pa.table({"id": list(range(600)), "text": [None] + ["t"] * 599}), path)
    documents = read_documents(path, on_error="skip")
    assert [d.id for d in documents] == [str(i) for i in range(1, 600)]
    assert documents.reasons == [f"{path}:1: the text in 'text' is None: expected a string"]
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(FormatError, match="damaged or not parquet"):
        list(read_documents(path))


@pytest.mark.parametrize(
    ("source", "module", "extra"),
    [("c.parquet", "pyarrow", "parquet"), ("ir_datasets:vaswani", "ir_datasets", "datasets")],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, source, module, extra):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.parquet", b"")
    for name in (module, f"{module}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"{module}.*retrieval\[{extra}\]"):
        list(read_documents(source))
    with pytest.raises(DatasetError, match="no such file or folder"):
        monkeypatch.setitem(sys.modules, "ir_datasets", None)
        read_documents("vaswani")


# Folders


def test_folders(tmp_path):
    beir, msmarco, anserini, texts = (tmp_path / name for name in ("beir", "msmarco", "anserini", "texts"))
    write(beir / "corpus.jsonl.gz", jsonl({"_id": "1", "text": "a"}))
    write(beir / "queries.jsonl", jsonl({"_id": "q", "text": "q"}))
    assert [d.id for d in read_documents(beir)] == ["1"]

    write(msmarco / "collection.tsv.gz", "5\ta\n")
    assert [d.id for d in read_documents(msmarco)] == ["5"]

    write(anserini / "10.jsonl", jsonl({"id": "b", "contents": ""}))
    write(anserini / "02.jsonl.zst", jsonl({"id": "a", "contents": ""}))
    write(anserini / "README.md", "not a document")
    assert [d.id for d in read_documents(anserini)] == ["a", "b"]

    write(texts / "b.md", "# B\nline\n")
    write(texts / "a" / "z.txt.gz", "zet")
    write(texts / ".git" / "hidden.txt", "hidden")
    write(texts / "broken.txt", b"one\n\xff")
    documents = read_documents(texts, on_error="skip")
    assert list(documents) == [Document("a/z.txt.gz", "zet"), Document("b.md", "# B\nline")]
    assert documents.reasons[0].startswith(f"{texts / 'broken.txt'}:2: not UTF-8")
    with pytest.raises(FormatError, match=r"broken\.txt:2"):
        list(read_documents(texts))


# ir_datasets


class Paper(NamedTuple):
    doc_id: str
    title: str
    text: str
    year: int

    def default_text(self):
        return f"{self.title} {self.text}"


class Page(NamedTuple):
    doc_id: str
    url: str
    body: bytes

    def default_text(self):
        return self.body.decode()


@pytest.fixture
def register(monkeypatch):
    """Registers a dataset of these documents in ir_datasets for the length of a test."""
    ir_datasets = pytest.importorskip("ir_datasets")

    def register(name, documents, entity="docs"):
        class Handler(ir_datasets.formats.BaseDocs if entity == "docs" else ir_datasets.formats.BaseQueries):
            def docs_iter(self):
                return iter(documents)

        monkeypatch.setitem(ir_datasets.registry._registered, name, ir_datasets.Dataset(Handler()))

    return register


def test_ir_datasets(register):
    register("tiny/papers", [Paper("1", "T", "a b", 2015), Paper("2", "", "c", 2016)])
    expected = [Document("1", "a b", "T", {"year": 2015}), Document("2", "c", "", {"year": 2016})]
    assert list(read_documents("ir_datasets:tiny/papers")) == expected
    assert list(read_documents("tiny/papers")) == expected
    [document, _] = read_documents("tiny/papers", text_fields=["text"])
    assert document == Document("1", "a b", "", {"title": "T", "year": 2015})
    register("tiny/pages", [Page("1", "u", b"page")])
    assert list(read_documents("tiny/pages")) == [Document("1", "page", "", {"url": "u"})]


def test_ir_datasets_errors(register, tmp_path):
    register("tiny/empty", [])
    register("tiny/queries", [], entity="queries")
    register("tiny/bad", [Paper("", "T", "a", 1)])
    with pytest.raises(EmptyCorpus, match="tiny/empty: no documents"):
        list(read_documents("ir_datasets:tiny/empty"))
    with pytest.raises(EmptyCorpus, match="no documents of its own"):
        read_documents("tiny/queries")
    with pytest.raises(FormatError, match="tiny/bad:1: the id in 'doc_id' is ''"):
        list(read_documents("tiny/bad"))
    with pytest.raises(DatasetError, match=r"no such dataset in ir_datasets; expected a \.jsonl"):
        read_documents("ir_datasets:tiny/none")
    with pytest.raises(DatasetError, match=r"corpus\.jsnl: no such file, folder or dataset; expected a \.jsonl"):
        read_documents("corpus.jsnl")
    with pytest.raises(DatasetError, match=r"no such file or folder; expected a \.jsonl"):
        read_documents(tmp_path / "none")


# Sources that cannot be read


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.csv", "collection.tsv", "c.tsv", "header.csv"])
def test_empty_files(tmp_path, name):
    path = write(tmp_path / name, "id,text\n" if name == "header.csv" else "")
    with pytest.raises(EmptyCorpus, match="no documents"):
        list(read_documents(path))


def test_nothing_but_bad_records_is_empty_too(tmp_path):
    documents = read_documents(write(tmp_path / "c.jsonl", "{}\n[]\n"), on_error="skip")
    with pytest.raises(EmptyCorpus, match=r"2 records were skipped, the first: .*c\.jsonl:1: no field 'id'"):
        list(documents)
    assert documents.skipped == 2


def test_unknown_files_and_folders(tmp_path):
    with pytest.raises(DatasetError, match=r"cannot read \.pdf; expected a \.jsonl"):
        read_documents(write(tmp_path / "c.pdf", ""))
    with pytest.raises(DatasetError, match=r"nothing to read in this folder; expected a \.jsonl"):
        read_documents(tmp_path)


@pytest.mark.parametrize("arguments", [{"on_error": "ignore"}, {"text_fields": "text"}, {"text_fields": []}])
def test_bad_arguments_are_named(tmp_path, arguments):
    [(name, value)] = arguments.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}".replace("[", r"\[")):
        read_documents(tmp_path, **arguments)


# Real data


@pytest.mark.parametrize(("name", "count"), [("nfcorpus", 3633), ("scifact", 5183), ("cranfield", 1400)])
def test_real_collections(name, count):
    if not (SHARED / name).is_dir():
        pytest.skip("the shared data is not here")
    documents = read_documents(SHARED / name)
    ids = {document.id for document in documents if document.contents}
    assert documents.read == count and documents.skipped == 0
    assert len(ids) >= count - 2  # Cranfield has two empty documents
