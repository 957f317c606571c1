"""Lucene indexes: made here by Lucene itself, read as plain counts, and searched as Lucene does.

What needs pyserini and Java is skipped without them: pip install 'retrieval[lucene]', and set JAVA_HOME.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from indexes import BM25, EagerIndex
from indexes.sparse.interchange import InterchangeError
from indexes.sparse.lucene import MissingLucene, read_lucene

CRANFIELD = Path(__file__).resolve().parents[2] / "retrieval" / "cranfield"
K1, B = 0.9, 0.4
# What Lucene's lengths in one byte do to the scores of the ten best for Cranfield's 225 queries: they are up to 3.5%
# higher than ours, 0.55% on average, and 24 of the 2,250 documents are others.
LARGEST_DIFFERENCE = 0.035
needs_lucene = pytest.mark.skipif(
    find_spec("pyserini") is None or not (os.environ.get("JAVA_HOME") or shutil.which("javac")),
    reason="needs pyserini (the extra lucene) and Java",
)


def java(name: str) -> Any:
    from pyserini.pyclass import autoclass

    return autoclass(name if name.startswith("java.") else f"org.apache.lucene.{name}")


def directory(folder: Path) -> Any:
    return java("store.FSDirectory").open(java("java.nio.file.Paths").get(str(folder)))


def string(text: str) -> Any:
    """A Java string; pyjnius by itself cuts characters beyond 16 bits."""
    return java("java.lang.String")(text.encode(), "UTF-8")


def document(id: str | None, text: str, **fields: Any) -> Any:
    made, yes, no = java("document.Document")(), java("document.Field$Store").YES, java("document.Field$Store").NO
    if id is not None:
        made.add(java("document.StringField")("id", string(id), yes))
    made.add(java("document.TextField")("contents", string(text), no))
    for name, value in fields.items():
        made.add(java("document.StringField")(name, value, no))
    return made


def write(folder: Path, *segments: dict[str, str], deleted: tuple[str, ...] = ()) -> None:
    """A Lucene index with the words between white space as terms; each segment is a dict of id -> text."""
    settings = java("index.IndexWriterConfig")(java("analysis.core.WhitespaceAnalyzer")())
    settings.setMergePolicy(java("index.NoMergePolicy").INSTANCE)
    writer = java("index.IndexWriter")(directory(folder), settings)
    for texts in segments:
        for id, text in texts.items():
            writer.addDocument(document(id, text, kind="test"))
        writer.commit()
    for id in deleted:
        writer.deleteDocuments(java("search.TermQuery")(java("index.Term")("id", id)))
    writer.close()


def texts_of(name: str) -> dict[str, str]:
    with gzip.open(CRANFIELD / name, "rt", encoding="utf8") as lines:
        records = map(json.loads, lines)
        return {r["_id"]: f"{r.get('title', '')} {r['text']}".lower() for r in records}


@pytest.fixture(scope="module")
def cranfield(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lucene") / "cranfield"
    write(folder, texts_of("corpus.jsonl.gz"))
    return folder


def read_as_counters(*read: Any) -> list[tuple[str, Counter[str]]]:
    counts, terms, ids = read
    return [
        (id, Counter(dict(zip((terms[t] for t in row.indices), row.data.tolist(), strict=True))))
        for id, row in zip(ids, counts, strict=True)
    ]


@needs_lucene
def test_counts_terms_and_ids_are_those_of_the_texts(cranfield):
    counts, terms, ids = read_lucene(cranfield)
    expected = {id: Counter(text.split()) for id, text in texts_of("corpus.jsonl.gz").items()}
    assert read_as_counters(counts, terms, ids) == list(expected.items())
    assert terms == sorted(set().union(*expected.values()))
    assert counts.dtype == np.int32 and counts.has_canonical_format


@needs_lucene
def test_segments_deletions_and_any_script(tmp_path):
    first = {"a": "wing wing flow", "b": "only here", "d 4": "naïve 日本 日本 😀 😀"}
    second, third = {"empty": ""}, {"ü😀": "flow ünder 😀", "e": "heat wing"}
    write(tmp_path, first, second, third, deleted=("b", "e"))
    counts, terms, ids = read_lucene(tmp_path)
    kept = {id: Counter(text.split()) for id, text in (first | second | third).items() if id not in ("b", "e")}
    assert read_as_counters(counts, terms, ids) == list(kept.items())
    assert terms == ["flow", "naïve", "wing", "ünder", "日本", "😀"]  # "heat" and "only" went with their documents


@needs_lucene
def test_an_index_without_documents(tmp_path):
    write(tmp_path, {})
    counts, terms, ids = read_lucene(tmp_path)
    assert (counts.shape, terms, ids) == ((0, 0), [], [])


def floor_to_a_byte(lengths: np.ndarray) -> np.ndarray:
    """Lucene's lengths: those below 40 as they are, others as 24 + a number of four significant bits (SmallFloat)."""
    above = np.maximum(lengths - 24, 8).astype(np.int64)
    unit = 2 ** (np.floor(np.log2(above)).astype(np.int64) - 3)
    return np.where(lengths < 40, lengths, 24 + above // unit * unit)


@needs_lucene
def test_bm25_scores_are_lucenes_but_for_the_rounding_of_lengths(cranfield):
    counts, terms, _ = read_lucene(cranfield)
    lengths = np.asarray(counts.sum(axis=1)).reshape(-1)
    held = np.flatnonzero(lengths)  # Lucene's statistics are those of documents with terms
    index = EagerIndex(weighting=BM25(k1=K1, b=B)).add(counts[held], held)

    # by the definition, with lengths as Lucene has them
    df = np.diff(counts.tocsc().indptr)
    relative = floor_to_a_byte(lengths) / lengths[held].mean()
    idf = np.log1p((len(held) - df + 0.5) / (df + 0.5))
    weights = counts.astype(np.float64)
    norms = np.repeat(K1 * (1 - B + B * relative), np.diff(counts.indptr))
    weights.data = idf[counts.indices] * weights.data / (weights.data + norms)

    columns = {term: column for column, term in enumerate(terms)}
    asked = [text.split() for text in texts_of("queries.jsonl.gz").values()]
    queries = [sorted({columns[word] for word in words if word in columns}) for words in asked]
    starts = np.cumsum([0, *map(len, queries)])
    rows = csr_matrix((np.ones(starts[-1]), np.concatenate(queries), starts), shape=(len(queries), len(terms)))
    ours = index.search(rows, len(held))
    rounded = (rows @ weights.T).toarray()

    reader = java("index.DirectoryReader").open(directory(cranfield))
    searcher = java("search.IndexSearcher")(reader, signature="(Lorg/apache/lucene/index/IndexReader;)V")
    searcher.setSimilarity(java("search.similarities.BM25Similarity")(K1, B))
    term, term_query, builder = java("index.Term"), java("search.TermQuery"), java("search.BooleanQuery$Builder")
    should, differences = java("search.BooleanClause$Occur").SHOULD, []
    for query, hits, by_definition in zip(queries, ours, rounded, strict=True):
        any_of = builder()
        for column in query:
            any_of.add(term_query(term("contents", terms[column])), should)
        lucenes = {hit.doc: hit.score for hit in searcher.search(any_of.build(), 10).scoreDocs}
        scores = dict(hits)
        tenth = hits[9][1]
        assert [by_definition[row] for row in lucenes] == pytest.approx(list(lucenes.values()), rel=1e-5)
        differences += [scores[row] / score - 1 for row, score in lucenes.items()]
        assert all(scores[row] >= tenth * (1 - LARGEST_DIFFERENCE) for row in lucenes)
    reader.close()
    assert -LARGEST_DIFFERENCE <= min(differences) <= max(differences) <= 1e-6
    assert np.mean(differences) == pytest.approx(-0.0055, abs=0.0005)


# -- what cannot be read -----------------------------------------------------------------------------------------------


@needs_lucene
def test_a_field_that_is_not_there_or_has_no_counts(tmp_path, cranfield):
    with pytest.raises(InterchangeError, match=r"no terms in a field 'body'; fields with terms: contents, id, kind"):
        read_lucene(cranfield, "body")
    with pytest.raises(InterchangeError, match="the field 'kind' tells which terms occur, and not how often"):
        read_lucene(cranfield, "kind")


@needs_lucene
def test_documents_without_an_id(tmp_path):
    write(tmp_path, {"a": "wing"}, {None: "flow"})
    with pytest.raises(InterchangeError, match="the document after 1 others has no stored field 'id'"):
        read_lucene(tmp_path)


@needs_lucene
def test_a_folder_without_an_index_and_a_damaged_one(tmp_path):
    with pytest.raises(InterchangeError, match=r"Lucene cannot read it .*IndexNotFoundException"):
        read_lucene(tmp_path)
    write(tmp_path / "i", {"a": "wing flow", "b": "heat"})
    whole = next((tmp_path / "i").glob("segments_*"))
    whole.write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(InterchangeError, match="i: Lucene cannot read it"):
        read_lucene(tmp_path / "i")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no folder"):
        read_lucene(tmp_path / "absent")


def test_without_pyserini_the_error_says_what_to_install(tmp_path, monkeypatch):
    for name in ("pyserini", "pyserini.pyclass"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingLucene, match=r"pip install 'retrieval\[lucene\]'.*JDK 21 .*JAVA_HOME"):
        read_lucene(tmp_path)
