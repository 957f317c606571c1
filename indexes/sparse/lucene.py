"""Lucene indexes, such as Anserini's, read by Lucene itself: pyserini brings it, and runs it inside this process.

    counts, terms, ids = read_lucene("indexes/cranfield")
    EagerIndex(weighting=BM25()).add(counts)  # an index of impacts: EagerIndex().add(counts)

The sum of a document's counts is its length, exactly. Lucene keeps lengths in one byte: those from 40 on are rounded
down, to 24 and a number of four significant bits (`SmallFloat.intToByte4`). Its BM25 scores of the ten best documents
of Cranfield's queries are therefore up to 3.5% higher than ours, 0.55% on average, and 1% of the documents are others
(tests/indexes/test_lucene.py). Documents without any term do not count as documents there; here they are empty rows.
"""

from __future__ import annotations

from array import array
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.sparse.interchange import InterchangeError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ID = "id"  # the stored field in which Anserini keeps a document's name
NO_MORE_DOCS = 2**31 - 1


class MissingLucene(ImportError):
    """pyserini or Java is not there, or they do not work together; the message says what to install."""


def read_lucene(path: str | Path, field: str = "contents") -> tuple[csr_matrix, list[str], list[str]]:
    """The terms of one field of a Lucene index: (counts (n, V), terms, ids), in a folder that stays as it is.

    counts: int32, CSR: how often each term occurs in each document, or its quantised impact in an index of impacts.
    terms: the V names of the columns, ascending. ids: the stored field "id" of each row. Rows are in the order of
    Lucene's document numbers; deleted documents are left out, and terms that only those have.
    About 2 microseconds a posting and 40 a document: every number comes from Java by a call of its own.
    Raises `FileNotFoundError`, `MissingLucene`, and `InterchangeError` where the folder holds no index that Lucene
    can read, no such field, no counts or no ids.
    """
    if not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no folder; a Lucene index is one")
    Paths, FSDirectory, DirectoryReader = _classes()
    from jnius import JavaException

    try:
        with (
            closing(FSDirectory.open(Paths.get(str(Path(path).absolute())))) as directory,
            closing(DirectoryReader.open(directory)) as reader,
        ):
            return _read(path, field, [leaf.reader() for leaf in reader.leaves().toArray()])
    except JavaException as problem:
        raise InterchangeError(f"{path}: Lucene cannot read it ({_first_line(problem)})") from problem


def _classes() -> list[Any]:
    """Those of Java that open an index. The Java machine is started, if none runs in this process."""
    try:
        from pyserini.pyclass import autoclass

        names = ("store.FSDirectory", "index.DirectoryReader")
        return [autoclass("java.nio.file.Paths"), *(autoclass(f"org.apache.lucene.{name}") for name in names)]
    except Exception as problem:  # pyjnius raises whatever its search for Java, or an older Java, ends with
        raise MissingLucene(
            f"a Lucene index is read by pyserini in Java ({_first_line(problem)}): pip install 'retrieval[lucene]', "
            "and install a Java development kit (JDK 21 or later), whose folder JAVA_HOME names"
        ) from problem


def _first_line(problem: Exception) -> str:
    return str(problem).partition("\n")[0]


def _read(path: str | Path, field: str, segments: list[Any]) -> tuple[csr_matrix, list[str], list[str]]:
    from scipy.sparse import csr_matrix

    vocabulary: dict[str, int] = {}
    ids: list[str] = []
    parts = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.int32))]
    fields = sorted({info.name for segment in segments for info in _indexed(segment)})
    if segments and field not in fields:
        raise InterchangeError(f"{path}: no terms in a field {field!r}; fields with terms: {', '.join(fields)}")
    for segment in segments:
        numbers = _rows(path, segment, ids)
        terms = segment.terms(field)
        if terms is None:
            continue
        if not terms.hasFreqs():
            raise InterchangeError(f"{path}: the field {field!r} tells which terms occur, and not how often")
        documents, columns, counts = _postings(terms, vocabulary)
        rows = numbers[documents]
        parts.append((rows[rows >= 0], columns[rows >= 0], counts[rows >= 0]))
    rows, columns, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    held = np.bincount(columns, minlength=len(vocabulary)) > 0
    names = sorted(term for term, column in vocabulary.items() if held[column])
    places = np.zeros(len(vocabulary), np.int32)
    places[[vocabulary[term] for term in names]] = np.arange(len(names))
    return csr_matrix((counts, (rows, places[columns])), shape=(len(ids), len(names))), names, ids


def _indexed(segment: Any) -> list[Any]:
    """Lucene's descriptions of the fields that have terms."""
    infos = segment.getFieldInfos().iterator()
    found = []
    while infos.hasNext():
        info = infos.next()
        if info.getIndexOptions().toString() != "NONE":
            found.append(info)
    return found


def _rows(path: str | Path, segment: Any, ids: list[str]) -> np.ndarray:
    """int32: the row of each document of the segment, or -1 for a deleted one. Their names are put behind `ids`."""
    live, stored = segment.getLiveDocs(), segment.storedFields()
    rows = np.full(segment.maxDoc(), -1, np.int32)
    for document in range(len(rows)):
        if live is None or live.get(document):
            name = stored.document(document).get(ID)
            if name is None:
                raise InterchangeError(f"{path}: the document after {len(ids)} others has no stored field {ID!r}")
            rows[document] = len(ids)
            ids.append(name)
    return rows


def _postings(terms: Any, vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 document numbers in the segment, columns and counts; new terms get the next columns."""
    documents, counts, columns, sizes = array("i"), array("i"), array("i"), array("i")
    each, postings = terms.iterator(), None
    while each.next() is not None:
        columns.append(vocabulary.setdefault(each.term().utf8ToString(), len(vocabulary)))
        postings = each.postings(postings)
        before, next_document, count = len(documents), postings.nextDoc, postings.freq
        while (document := next_document()) != NO_MORE_DOCS:
            documents.append(document)
            counts.append(count())
        sizes.append(len(documents) - before)
    return np.array(documents, np.int32), np.repeat(np.array(columns, np.int32), sizes), np.array(counts, np.int32)
