"""CIFF, Anserini's JSON vectors and topics, scipy's .npz: round trips, the formats themselves, damaged files."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from indexes import EagerIndex
from indexes.errors import InvalidVectors
from indexes.sparse import ciff as module
from indexes.sparse.ciff import read_ciff, write_ciff
from indexes.sparse.interchange import (
    InterchangeError,
    read_npz,
    read_vectors,
    stream_vectors,
    write_npz,
    write_vectors,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
in_one_folder = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@st.composite
def collections(draw: Any, weights: Any, texts: Any = TEXT) -> tuple[sparse.csr_matrix, list[str], list[str]]:
    """(vectors (n, V), ids, terms), rows and columns of zeros among them."""
    ids = draw(st.lists(texts, unique=True, max_size=6))
    terms = draw(st.lists(texts, unique=True, max_size=6))
    values = [draw(st.lists(st.just(0) | weights, min_size=len(terms), max_size=len(terms))) for _ in ids]
    return sparse.csr_matrix(np.array(values).reshape(len(ids), len(terms))), ids, terms


def as_dicts(vectors: Any, ids: Sequence[str], terms: Sequence[str]) -> dict[str, dict[str, float]]:
    rows = sparse.csr_matrix(vectors)
    return {id: {terms[t]: rows[i, t] for t in rows[i].indices if rows[i, t]} for i, id in enumerate(ids)}


# -- CIFF --------------------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """Its definition, byte by byte; negative numbers are 64 bits wide in Protocol Buffers."""
    value %= 1 << 64
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value >> 7)


def message(*fields: tuple[int, Any]) -> bytes:
    body = b""
    for number, value in fields:
        if isinstance(value, float):
            body += varint(number * 8 + 1) + struct.pack("<d", value)
        elif isinstance(value, int):
            body += varint(number * 8) + varint(value)
        else:
            body += varint(number * 8 + 2) + varint(len(value)) + value
    return body


def posting(docid: int, tf: int) -> tuple[int, bytes]:
    return 4, message((1, docid), (2, tf))


def ciff_file(lists: Sequence[bytes], records: Sequence[bytes], version: int = 1, **sizes: int) -> bytes:
    said = (2, sizes.get("num_lists", len(lists))), (3, sizes.get("num_docs", len(records)))
    header = message((1, version), *said, (8, b"by hand"))
    return b"".join(varint(len(part)) + part for part in (header, *lists, *records))


LISTS = [
    message((1, b"b"), (2, 2), (3, 301), posting(0, 300), posting(2, 1)),
    message((1, "ä".encode()), (2, 1), (3, 7), posting(1, 7)),
]
RECORDS = [message((1, i), (2, f"D{i}".encode()), (3, 10 + i)) for i in range(3)]


@in_one_folder
@given(collections(st.integers(1, 2**31 // 6)), st.sampled_from(["a.ciff", "a.ciff.gz"]), st.sampled_from([1, 7, 99]))
def test_ciff_round_trip(tmp_path, collection, name, window):
    counts, ids, terms = collection  # lengths, the sums of rows, fit 32 bits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        write_ciff(tmp_path / name, counts, terms, ids, description="äöü")
        back = read_ciff(tmp_path / name)
    assert back.ids == ids
    assert back.terms == sorted({term for vector in as_dicts(*collection).values() for term in vector})
    assert as_dicts(back.counts, back.ids, back.terms) == as_dicts(counts, ids, terms)
    assert back.lengths.tolist() == counts.sum(axis=1).ravel().tolist()[0]
    assert (back.counts.dtype, back.lengths.dtype) == (np.int32, np.int32)
    assert back.header["description"] == "äöü" and back.header["total_docs"] == len(ids)
    assert back.header["total_terms_in_collection"] == counts.sum()


def test_ciff_written_by_hand(tmp_path):
    path = tmp_path / "a.ciff"
    path.write_bytes(ciff_file(LISTS, RECORDS))
    found = read_ciff(path)
    assert found.terms == ["b", "ä"] and found.ids == ["D0", "D1", "D2"] and found.lengths.tolist() == [10, 11, 12]
    assert found.counts.toarray().tolist() == [[300, 0], [0, 7], [1, 0]]
    assert found.header["description"] == "by hand"


def test_ciff_fields_in_any_order_and_unknown_ones(tmp_path):
    unknown = [(9, 5), (10, b"xyz"), (11, 2.5)]
    first = message(*unknown, posting(0, 300), (1, b"b"), (4, message((2, 1), (3, 1.0), (1, 2))))
    records = [message((3, 10 + i), *unknown, (2, f"D{i}".encode()), (1, i)) for i in (2, 0, 1)]
    (tmp_path / "a.ciff").write_bytes(ciff_file([first, LISTS[1]], records))
    (tmp_path / "b.ciff").write_bytes(ciff_file(LISTS, RECORDS))
    one, other = read_ciff(tmp_path / "a.ciff"), read_ciff(tmp_path / "b.ciff")
    assert one.ids == other.ids and one.terms == other.terms and one.lengths.tolist() == other.lengths.tolist()
    assert (one.counts != other.counts).nnz == 0


def test_ciff_of_some_documents_only(tmp_path):
    records = [message((1, 7), (2, b"seven"), (3, 1)), message((1, 1_000_000), (2, b"million"), (3, 1))]
    (tmp_path / "a.ciff").write_bytes(ciff_file([message((1, b"t"), posting(7, 1), posting(999_993, 2))], records))
    found = read_ciff(tmp_path / "a.ciff")
    assert found.ids == ["seven", "million"] and found.counts.toarray().tolist() == [[1], [2]]


def test_ciff_cut_anywhere(tmp_path):
    whole = ciff_file(LISTS, RECORDS)
    for length in range(len(whole)):
        (tmp_path / "a.ciff").write_bytes(whole[:length])
        with pytest.raises(InterchangeError, match=rf"a\.ciff, byte {length}: the file ends within"):
            read_ciff(tmp_path / "a.ciff")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "byte 0: the file ends within the header"),
        (b"\xff" * 11, "byte 0: not the length of a header"),
        (varint(2**31) + b"x", "byte 0: not the length of a header"),
        (b"\x03abc", "byte 1: a malformed field of the header"),
        (varint(9) + message((1, 1.0)), "byte 1: version of the header has the wrong type"),
        (varint(4) + message((8, b"\xff\xff")), "not UTF-8"),
        (ciff_file([], [], version=2), "version 2"),
        (ciff_file(LISTS, RECORDS) + b"\0", "byte 80: bytes after the last"),
        (ciff_file(LISTS, RECORDS, num_lists=1), "document record 0 is malformed"),
        (ciff_file(LISTS, RECORDS, num_docs=4), "byte 80: the file ends within document record 3 of 4"),
        (ciff_file(LISTS, RECORDS[:2]), "no record"),
        (ciff_file(LISTS, []), "no record"),
        (ciff_file(LISTS, [*RECORDS, RECORDS[0]]), "same document number"),
        (ciff_file([*LISTS, LISTS[0]], RECORDS), "two postings lists"),
        (ciff_file([message((1, b"t"), posting(1, 1), posting(0, 1))], RECORDS), "byte .*: postings list 0"),
        (ciff_file([message((1, b"t"), posting(1, -1))], RECORDS), "postings list 0 is malformed"),
        (ciff_file([message((1, b"t"), posting(2**31, 1))], RECORDS), "postings list 0 is malformed"),
        (ciff_file([message(posting(2**31 - 1, 1), posting(1, 1))], RECORDS), "postings list 0 is malformed"),
        (ciff_file([message((1, b"\xc3"))], RECORDS), "not UTF-8"),
        (ciff_file([LISTS[0], b"\x0b"], RECORDS), "byte 39: postings list 1 is malformed"),
        (ciff_file(LISTS, [*RECORDS, message((1, -1))]), "document record 3 is malformed"),
        (ciff_file(LISTS, [*RECORDS, b"\x12\x05ab"]), "document record 3 is malformed"),
    ],
)  # fmt: skip
def test_ciff_that_makes_no_sense(tmp_path, data, reason):
    (tmp_path / "a.ciff").write_bytes(data)
    with pytest.raises(InterchangeError, match=reason):
        read_ciff(tmp_path / "a.ciff")


@settings(in_one_folder, max_examples=200)
@given(st.integers(0, 79), st.integers(0, 255))
def test_ciff_with_one_byte_altered_is_read_or_refused(tmp_path, place, byte):
    whole = bytearray(ciff_file(LISTS, RECORDS))
    whole[place] = byte
    (tmp_path / "a.ciff").write_bytes(whole)
    try:
        found = read_ciff(tmp_path / "a.ciff")
    except InterchangeError as error:
        assert "a.ciff" in str(error)
    else:
        found.counts.check_format(full_check=True)
        assert found.counts.shape == (len(found.ids), len(found.terms)) and len(found.lengths) == len(found.ids)


@pytest.mark.parametrize("name", ["a.ciff.gz", "a.jsonl.gz"])
def test_damaged_gzip(tmp_path, name):
    read = read_ciff if "ciff" in name else lambda path: read_vectors(path, {})
    whole = gzip.compress(ciff_file(LISTS, RECORDS) if "ciff" in name else b'{"id": 1, "vector": {"a": 1}}\n' * 50)
    for damaged in (whole[:-9], b"no gzip at all", whole[:20] + b"\xff\xff" + whole[22:]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InterchangeError, match="damaged gzip"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("counts", "terms", "ids", "lengths", "reason"),
    [
        ([[1, 0]], ["a"], ["x"], None, "terms are 1"),
        ([[1, 0]], ["a", "a"], ["x"], None, "terms hold a text twice"),
        ([[1], [1]], ["a"], ["x", "x"], None, "ids hold a text twice"),
        ([[1]], ["a"], [7], None, "ids are 1 values"),
        ([[-1]], ["a"], ["x"], None, "no finite number"),
        ([[0.5]], ["a"], ["x"], None, "whole numbers"),
        ([[2.0**31]], ["a"], ["x"], None, "whole numbers"),
        ([[1]], ["a"], ["x"], np.array([1, 2]), "lengths"),
        ([[1]], ["a"], ["x"], np.array([-1]), "lengths"),
    ],
)
def test_ciff_refuses_to_write(tmp_path, counts, terms, ids, lengths, reason):
    (tmp_path / "a.ciff").write_bytes(b"before")
    with pytest.raises(InvalidVectors, match=reason):
        write_ciff(tmp_path / "a.ciff", sparse.csr_matrix(np.array(counts)), terms, ids, lengths)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"before"]


def test_ciff_against_the_toolkit_of_its_makers(tmp_path):
    """ciff-toolkit reads what we write, with Protocol Buffers' own decoder, and writes what we read."""
    reading = pytest.importorskip("ciff_toolkit.read")
    writing = pytest.importorskip("ciff_toolkit.write")
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.integers(1, 1000, (300, 40)) * (rng.random((300, 40)) < 0.3))
    ids, terms = [f"doc-{i}" for i in range(300)], sorted(f"tërm{i}" for i in range(40))
    write_ciff(tmp_path / "ours.ciff", counts, terms, ids, np.arange(300))
    with reading.CiffReader(tmp_path / "ours.ciff") as reader:
        header, lists = reader.read_header(), list(reader.read_postings_lists())
        documents = list(reader.read_documents())
    assert (header.num_docs, header.average_doclength) == (300, 149.5)
    assert [(d.docid, d.collection_docid, d.doclength) for d in documents] == [(i, f"doc-{i}", i) for i in range(300)]
    for t, one in enumerate(lists):
        column = counts[:, t].toarray().ravel()
        docids = np.cumsum([posting.docid for posting in one.postings])
        assert (one.term, one.df, one.cf) == (terms[t], (column > 0).sum(), column.sum())
        assert docids.tolist() == np.flatnonzero(column).tolist()
        assert [posting.tf for posting in one.postings] == column[docids].tolist()
    with writing.CiffWriter(tmp_path / "theirs.ciff") as writer:
        writer.write_header(header)
        writer.write_postings_lists(lists)
        writer.write_documents(documents)
    assert (tmp_path / "theirs.ciff").read_bytes() == (tmp_path / "ours.ciff").read_bytes()
    assert (read_ciff(tmp_path / "theirs.ciff").counts != counts).nnz == 0


# -- JSON vectors and topics -------------------------------------------------------------------------------------------

WEIGHTS = st.floats(0.0009765625, 2.0**127, width=32)


@in_one_folder
@given(collections(WEIGHTS) | collections(st.integers(1, 300)), st.sampled_from(["v.jsonl", "v.jsonl.gz", "v.json"]))
def test_json_round_trip(tmp_path, collection, name):
    vectors, ids, terms = collection
    write_vectors(tmp_path / name, ids, vectors, terms)
    vocabulary: dict[str, int] = {}
    back_ids, back = read_vectors(tmp_path / name, vocabulary)
    assert back_ids == ids and back.shape == (len(ids), len(vocabulary)) and back.dtype == np.float32
    assert as_dicts(back, ids, list(vocabulary)) == as_dicts(vectors, ids, terms)
    known = {term: column for column, term in enumerate(terms)}  # columns stay where a vocabulary has them
    assert (read_vectors(tmp_path / name, known)[1] != vectors.astype(np.float32)).nnz == 0
    assert list(known) == terms


PLAIN = st.text("aä#7.", min_size=1, max_size=4)


@in_one_folder
@given(collections(st.integers(1, 20), PLAIN), st.sampled_from(["topics.tsv", "topics.tsv.gz"]))
def test_topics_round_trip(tmp_path, collection, name):
    vectors, ids, terms = collection
    write_vectors(tmp_path / name, ids, vectors, terms)
    vocabulary = {term: column for column, term in enumerate(terms)}
    back_ids, back = read_vectors(tmp_path / name, vocabulary)
    assert back_ids == ids and (back != vectors).nnz == 0


def test_anserini_forms(tmp_path):
    lines = [
        '{"id": "a", "contents": "text", "vector": {"x": 2, "y": 0.5}}',
        "",
        '{"_id": 7, "vector": {"y": 1.5, "z": 0}, "title": "ignored"}',
    ]
    (tmp_path / "1.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "2.tsv").write_text("q 1\tz x z\r\nq2\t\n")
    (tmp_path / "3.json.gz").write_bytes(gzip.compress(lines[0].replace('"a"', '"b"').encode()))
    (tmp_path / "README.md").write_text("ignored")
    vocabulary = {"z": 0}
    batches = list(stream_vectors(tmp_path, vocabulary, batch=2))
    assert [ids for ids, _ in batches] == [["a", "7"], ["q 1", "q2"], ["b"]]
    assert vocabulary == {"z": 0, "x": 1, "y": 2}
    assert batches[0][1].toarray().tolist() == [[0, 2, 0.5], [0, 0, 1.5]]
    assert batches[1][1].toarray().tolist() == [[2, 1, 0], [0, 0, 0]]


def test_contents_are_written(tmp_path):
    write_vectors(tmp_path / "v.jsonl", ["d"], sparse.csr_matrix([[2.0, 0.5]]), {"a": 0, "b": 1}, ["ein Täxt\n"])
    line = (tmp_path / "v.jsonl").read_text("utf-8")
    assert json.loads(line) == {"id": "d", "contents": "ein Täxt\n", "vector": {"a": 2.0, "b": 0.5}}
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "Expecting"),
        (b"[1]", "no id and vector"),
        (b"7", "no id and vector"),
        (b'{"vector": {}}', "no '_id'"),
        (b'{"id": "a"}', "no 'vector'"),
        (b'{"id": null, "vector": {}}', "id None"),
        (b'{"id": "a", "vector": [1, 2]}', "no id and vector"),
        (b'{"id": "a", "vector": {"x": -1}}', "weight of 'x' is -1"),
        (b'{"id": "a", "vector": {"x": NaN}}', "weight of 'x' is nan"),
        (b'{"id": "a", "vector": {"x": 1e39}}', "weight of 'x' is 1e\\+39"),
        (b'{"id": "a", "vector": {"x": "1"}}', "weight of 'x' is '1'"),
        (b'{"id": "a", "vector": {"x": true}}', "weight of 'x' is True"),
        (b'{"id": "\xff", "vector": {}}', "utf-8"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_bad_json_lines_are_named(tmp_path, line, reason):
    (tmp_path / "v.jsonl").write_bytes(b'{"id": "ok", "vector": {"x": 1}}\n\n' + line + b"\n")
    with pytest.raises(InterchangeError, match=rf"v\.jsonl, line 3: .*{reason}"):
        read_vectors(tmp_path / "v.jsonl", {})


def test_bad_topics_and_names(tmp_path):
    (tmp_path / "t.tsv").write_text("1\ta b\nno tab here\n")
    with pytest.raises(InterchangeError, match=r"t\.tsv, line 2: no id, tab and terms"):
        read_vectors(tmp_path / "t.tsv", {})
    with pytest.raises(InterchangeError, match=r"v\.txt: the name must end in"):
        read_vectors(tmp_path / "v.txt", {})
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "absent.jsonl", {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(InterchangeError, match="a folder without"):
        read_vectors(tmp_path / "empty", {})


@pytest.mark.parametrize(
    ("ids", "vectors", "terms", "reason"),
    [
        (["q"], [[0.5]], ["a"], "whole numbers"),
        (["q"], [[1]], ["a b"], "white space"),
        (["q"], [[1]], [""], "white space"),
        (["q\t"], [[1]], ["a"], "tab"),
        ([""], [[1]], ["a"], "empty"),
        (["q"], [[np.inf]], ["a"], "finite"),
    ],
)
def test_topics_that_cannot_be_written(tmp_path, ids, vectors, terms, reason):
    with pytest.raises(InvalidVectors, match=reason):
        write_vectors(tmp_path / "t.tsv", ids, sparse.csr_matrix(np.array(vectors)), terms)
    assert not list(tmp_path.iterdir())


# -- .npz --------------------------------------------------------------------------------------------------------------


@in_one_folder
@given(collections(WEIGHTS) | collections(st.integers(1, 300)))
def test_npz_round_trip(tmp_path, collection):
    vectors, ids, terms = collection
    write_npz(tmp_path / "v.npz", vectors, ids, terms)
    back, back_ids, back_terms = read_npz(tmp_path / "v.npz")
    assert (back_ids, back_terms) == (ids, terms) and back.dtype == vectors.dtype
    assert back.shape == vectors.shape and (back != vectors).nnz == 0
    assert (sparse.load_npz(tmp_path / "v.npz") != vectors).nnz == 0


def test_npz_of_scipy(tmp_path):
    vectors = sparse.random(20, 30, 0.1, format="csr", random_state=0)
    sparse.save_npz(tmp_path / "v.npz", vectors.tocsc())
    back, ids, terms = read_npz(tmp_path / "v.npz")
    assert (back != vectors).nnz == 0 and ids is None and terms is None


def test_npz_damaged_or_foreign(tmp_path):
    path = tmp_path / "v.npz"
    write_npz(path, sparse.eye(3, format="csr"), ["a", "b", "c"])
    whole = path.read_bytes()
    for damaged in (b"", b"PK", whole[:-30], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InterchangeError, match=r"v\.npz"):
            read_npz(path)
    matrix = {"format": b"csr", "shape": (2, 2), "data": np.ones(2), "indptr": np.array([0, 1, 2])}
    for arrays, reason in (
        ({"dense": np.eye(2)}, "no sparse matrix"),
        ({**matrix, "indices": np.array([0, 9])}, "no sparse matrix"),
        ({**matrix, "indices": np.array([0, 1]), "ids": np.array(["a"])}, "ids are not 2 texts"),
        ({**matrix, "indices": np.array([0, 1]), "terms": np.array([{}, {}])}, "no sparse matrix"),  # pickled
    ):
        np.savez(path, **arrays)
        with pytest.raises(InterchangeError, match=reason):
            read_npz(path)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "absent.npz")


# -- real vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "splade-v3-nfcorpus").is_dir(), reason="the shared SPLADE vectors are not here")
def test_nfcorpus_by_splade():
    """nDCG@10 of exhaustive scoring of SPLADE-v3 documents."""
    from ir_measures import calc_aggregate, nDCG

    vocabulary: dict[str, int] = {}
    folder = SHARED / "splade-v3-nfcorpus"
    ids, documents = read_vectors(folder / "nfcorpus.splade-v3.docs.jsonl.gz", vocabulary)
    names, queries = read_vectors(folder / "nfcorpus.test.splade_distil_cocodenser_medium.queries.jsonl.gz", vocabulary)
    assert (len(ids), len(names)) == (3633, 323)
    hits = EagerIndex().add(documents).search(queries, 10)
    run = {name: {ids[row]: score for row, score in found} for name, found in zip(names, hits, strict=True)}
    qrels: dict[str, dict[str, int]] = {}
    lines = (SHARED / "nfcorpus" / "qrels" / "test.tsv").read_text().splitlines()[1:]
    for query, document, relevance in (line.split("\t") for line in lines):
        qrels.setdefault(query, {})[document] = int(relevance)
    assert calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10] == pytest.approx(0.357, abs=0.002)


@pytest.mark.skipif(not (SHARED / "queries").is_dir(), reason="the shared queries are not here")
def test_real_topics():
    vocabulary: dict[str, int] = {}
    path = SHARED / "queries" / "topics.beir-v1.0.0-nfcorpus.test.unicoil-noexp.tsv.gz"
    names, queries = read_vectors(path, vocabulary)
    assert len(names) == 323 and names[0] == "PLAIN-2" and queries.data.min() >= 1
    assert queries[0, vocabulary["do"]] > 1
