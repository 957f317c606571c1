"""Where training data come from: questions in files, and the vectors of a collection's documents, on disk."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import eval as evaluation
from eval.errors import FormatError
from eval.files import read_lines
from eval.trec import Qrels
from indexes.dense.base import DenseIndex, normalize
from retrieval.encoders.base import Encoder
from retrieval.errors import TrainingError
from retrieval.retriever import Progress, Retriever

IN_MEMORY = 1 << 28  # bytes of vectors; more of them stay on disk


@dataclass(frozen=True)
class Questions:
    """Questions, and for each the ids of documents that answer it and of some that do not, where that is known."""

    texts: list[str]
    positives: list[list[str]] | None = None
    negatives: list[list[str]] | None = None


def read_questions(path: str | Path, qrels: str | Path | None = None, *, split: str = "train") -> Questions:
    """The questions of a dataset or of a file (plain, .gz or .zst).

    `path`: a BEIR or MS MARCO folder, of which the questions judged in `split` are taken; or a file:

        .jsonl   BEIR's queries, {"_id": .., "text": ..}; or labelled, {"query": .., "positives": ["id", ..],
                 "negatives": [..]}, where one id needs no list and negatives may be left out
        .tsv     id, tab, text; or labelled, under the header "query, tab, positives" or "query, tab, positives, tab,
                 negatives", ids separated by spaces
        other    one question a line

    `qrels`: judgements (TREC or BEIR) of the ids in such a file; questions without a relevant document are left out.
    Raises `FormatError` with the line, `DatasetError`, `TrainingError` when nothing is left.
    """
    path = Path(path)
    if path.is_dir():
        if qrels is not None:
            raise TrainingError(f"{path} is a folder, which has judgements of its own; qrels are for a file")
        dataset = evaluation.load(path, split)
        return _judged(dataset.queries, dataset.qrels, f"{path}, split {split}")
    if not path.is_file():
        raise TrainingError(f"{path}: no such file or folder of questions")
    suffix = Path(path.stem if path.suffix in (".gz", ".zst") else path.name).suffix.lower()
    records = {".jsonl": _json_records, ".ndjson": _json_records, ".tsv": _tab_records}.get(suffix, _line_records)
    read = list(records(path))
    if not read:
        raise TrainingError(f"{path}: no questions")
    if qrels is not None:
        texts = {id: text for id, text, _, _ in read if id is not None}
        return _judged(texts, evaluation.read_qrels(qrels), f"{path} with {qrels}")
    asked = [text for _, text, _, _ in read]
    if all(positives is None for _, _, positives, _ in read):
        return Questions(asked)
    return Questions(asked, [p or [] for _, _, p, _ in read], [n or [] for _, _, _, n in read])


_Record = tuple[str | None, str, list[str] | None, list[str] | None]  # id, text, positives, negatives


def _json_records(path: Path) -> Iterable[_Record]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as problem:
            raise FormatError(path, number, f"no JSON: {problem}") from None
        if not isinstance(record, dict):
            raise FormatError(path, number, f"expected an object, found {line[:80]!r}")
        labelled = "query" in record
        text, id = record.get("query" if labelled else "text"), record.get("_id", record.get("id"))
        if not isinstance(text, str):
            raise FormatError(path, number, f"expected a string as query or text; fields: {', '.join(record)}")
        positives, negatives = (_ids(record.get(name), path, number, name) for name in ("positives", "negatives"))
        if labelled and positives is None:
            raise FormatError(path, number, f"a query without positives; fields: {', '.join(record)}")
        if text.strip():
            yield None if id is None else str(id), text, positives, negatives


def _ids(value: Any, path: Path, number: int, name: str) -> list[str] | None:
    if value is None:
        return None
    listed = value if isinstance(value, list) else [value]
    if any(isinstance(id, bool) or not isinstance(id, str | int) for id in listed):
        raise FormatError(path, number, f"{name} must be ids, found {value!r:.80}")
    return [str(id) for id in listed]


def _tab_records(path: Path) -> Iterable[_Record]:
    header: list[str] | None = None
    for number, line in read_lines(path):
        cells = line.split("\t")
        if number == 1 and cells[:2] == ["query", "positives"] and cells[2:] in ([], ["negatives"]):
            header = cells
        elif not line.strip():
            continue
        elif header is not None:
            if not 2 <= len(cells) <= len(header):
                raise FormatError(path, number, f"expected {', tab, '.join(header)}, found {line[:80]!r}")
            yield None, cells[0], cells[1].split(), cells[2].split() if len(cells) > 2 else []
        elif len(cells) < 2:
            raise FormatError(path, number, f"expected query id, tab, text, found {line[:80]!r}")
        elif line.partition("\t")[2].strip():
            yield cells[0].strip(), line.partition("\t")[2].strip(), None, None


def _line_records(path: Path) -> Iterable[_Record]:
    return ((None, line, None, None) for _, line in read_lines(path) if line.strip())


def _judged(texts: dict[str, str], qrels: Qrels, source: str) -> Questions:
    relevant = {query: [id for id, grade in grades.items() if grade > 0] for query, grades in qrels.items()}
    kept = [query for query in texts if relevant.get(query)]
    if not kept:
        raise TrainingError(f"{source}: of {len(texts)} questions, none is judged to have a relevant document")
    return Questions([texts[query] for query in kept], [relevant[query] for query in kept])


def query_vectors(encoder: Encoder, texts: Sequence[str]) -> np.ndarray:
    """float32 (nq, d), of length 1 where the encoder compares by cosine (zero where it knows no word)."""
    return _comparable(encoder, encoder.encode_queries(list(texts)))


def document_vectors(
    retriever: Retriever, keys: np.ndarray, texts: Iterable[str], folder: Path, progress: Progress | None = None
) -> np.ndarray:
    """float32 (n, d) of the documents with `keys` int64 (n,), of length 1 where the encoder compares by cosine.

    Those in the retriever's index, where that holds just these and keeps them as float32. Otherwise `texts` are encoded
    and written to documents.npy in `folder`, which is mapped to memory if it is large, chunk by chunk; chunks of a
    costly encoder are kept in its sub-folder encodings until then, so that an interrupted run goes on where it stopped.
    Raises `TrainingError` (sparse vectors, no documents) and what the encoder raises.
    """
    encoder, index = retriever.encoder, retriever.index
    if not isinstance(index, DenseIndex) or encoder.similarity == "l2":
        raise TrainingError(
            f"an index of kind {index.kind!r} that compares by {encoder.similarity!r}: only dense vectors that are "
            "compared by inner product or cosine can be compressed by training"
        )
    if not len(keys):
        raise TrainingError("there are no documents to learn from")
    held = getattr(index, "vectors", None) if np.array_equal(index.ids, keys) else None
    if held is not None and held.dtype == np.float32:
        return held if index.metric == encoder.similarity else _comparable(encoder, held)
    folder.mkdir(parents=True, exist_ok=True)
    path, done = folder / "documents.npy", 0
    with open(path, "wb") as out:
        for vectors in retriever.encoded(texts, len(keys), progress, folder / "encodings"):
            if not done:
                header = {"descr": "<f4", "fortran_order": False, "shape": (len(keys), vectors.shape[1])}
                np.lib.format.write_array_header_1_0(out, header)
            np.ascontiguousarray(_comparable(encoder, vectors), "<f4").tofile(out)
            done += len(vectors)
    large = path.stat().st_size > IN_MEMORY
    return np.load(path, mmap_mode="r" if large else None, allow_pickle=False)


def _comparable(encoder: Encoder, vectors: Any) -> np.ndarray:
    if not isinstance(vectors, np.ndarray):
        raise TrainingError(f"the encoder {encoder.kind!r} gives a {type(vectors).__name__}, not dense vectors")
    return normalize(vectors) if encoder.similarity == "cosine" else vectors


def rows_of(ids: Sequence[Sequence[str]], rows: dict[str, int]) -> list[np.ndarray]:
    """Rows int64, ascending, of lists of ids; ids that are not in the collection are left out."""
    return [np.array(sorted({rows[id] for id in some if id in rows}), np.int64) for some in ids]
