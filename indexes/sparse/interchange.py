"""Sparse vectors in the files of other systems: Anserini's JSON vectors and topics, and scipy's `.npz`.

    .jsonl, .json     one object a line: {"id": "d7", "contents": "...", "vector": {"term": weight}}; `_id` will do, too
    .tsv              pre-encoded queries: id, tab, each term as often as it weighs ("what what what is")
    a folder          all of these in it, in the order of their names

Each also as `.gz`. CIFF has its own module, `indexes.sparse.ciff`. A *vocabulary* is a dict of term -> column.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from indexes.errors import IndexFileError, InvalidVectors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FLOAT32_MAX = float(np.finfo(np.float32).max)
SUFFIXES = (".jsonl", ".json", ".tsv")


class InterchangeError(IndexFileError):
    """A file in another system's format is damaged or no such file; the message names the file, the line or byte."""


def stream_vectors(
    path: str | Path, vocabulary: dict[str, int], batch: int = 10_000
) -> Iterator[tuple[list[str], csr_matrix]]:
    """The vectors of a file or folder, as (ids, float32 (m, V)) of up to `batch` vectors at a time.

    `vocabulary`: terms that are new to it are added, so V grows from batch to batch: indexes take that. To read
    queries, give the vocabulary of the documents.
    Raises `FileNotFoundError`, and `InterchangeError` at a bad line; weights must be finite numbers >= 0.
    """
    from scipy.sparse import csr_matrix

    ids: list[str] = []
    starts, terms, weights = [0], [], []  # type: list[int], list[int], list[float]

    def vectors() -> tuple[list[str], csr_matrix]:
        data, columns = np.array(weights, np.float32), np.array(terms, np.int32)
        matrix = csr_matrix((data, columns, np.array(starts)), shape=(len(ids), len(vocabulary)))
        matrix.sort_indices()
        return ids, matrix

    for id, vector in _records(Path(path)):
        ids.append(id)
        terms.extend([vocabulary.setdefault(term, len(vocabulary)) for term in vector])
        weights.extend(vector.values())
        starts.append(len(terms))
        if len(ids) == batch:
            yield vectors()
            ids, starts, terms, weights = [], [0], [], []
    if ids:
        yield vectors()


def read_vectors(path: str | Path, vocabulary: dict[str, int]) -> tuple[list[str], csr_matrix]:
    """All vectors of a file or folder at once: ids and float32 (n, V). See `stream_vectors`."""
    from scipy.sparse import csr_matrix, vstack

    batches = list(stream_vectors(path, vocabulary))
    for _, vectors in batches:
        vectors.resize(vectors.shape[0], len(vocabulary))
    ids = list(chain.from_iterable(some for some, _ in batches))
    if not batches:
        return ids, csr_matrix((0, len(vocabulary)), dtype=np.float32)
    return ids, csr_matrix(vstack([vectors for _, vectors in batches], format="csr"))


def write_vectors(
    path: str | Path, ids: Sequence[str], vectors: Any, terms: Iterable[str], contents: Sequence[str] | None = None
) -> None:
    """Write `vectors`, sparse (n, V), as JSON lines, or as topics if the name says `.tsv`; `.gz` compresses.

    `terms`: the names of the V columns (a vocabulary in the order of its columns will do). `contents`: the documents'
    texts, by default empty; topics have none.
    Raises `InvalidVectors`; for topics also when weights are not whole or a term holds white space.
    """
    names, path = list(terms), Path(path)
    rows, topics = checked(vectors, ids, names), _format(path) == ".tsv"
    if topics:
        _check_topics(rows, ids, names)
    whole = bool((rows.data == np.rint(rows.data)).all()) and rows.data.max(initial=0) < 2**53
    weights = rows.data.astype(np.int64 if whole else np.float64)
    with replacing(path) as out:
        for row, id in enumerate(ids):
            part = slice(rows.indptr[row], rows.indptr[row + 1])
            vector = {names[t]: w for t, w in zip(rows.indices[part].tolist(), weights[part].tolist(), strict=True)}
            if topics:
                line = f"{id}\t{' '.join(chain.from_iterable(repeat(term, w) for term, w in vector.items()))}"
            else:
                text = "" if contents is None else contents[row]
                line = json.dumps({"id": id, "contents": text, "vector": vector}, ensure_ascii=False)
            out.write(line.encode() + b"\n")


def write_npz(
    path: str | Path, vectors: Any, ids: Sequence[str] | None = None, terms: Iterable[str] | None = None
) -> None:
    """Write what `scipy.sparse.load_npz` reads, with ids and the names of the columns in the same file."""
    names = None if terms is None else list(terms)
    rows = checked(vectors, ids, names)
    arrays = {"format": np.array(b"csr"), "shape": np.array(rows.shape)}
    arrays |= {"indptr": rows.indptr, "indices": rows.indices, "data": rows.data}
    arrays |= {name: np.array(text, np.str_) for name, text in (("ids", ids), ("terms", names)) if text is not None}
    with replacing(Path(path)) as out:
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]


def read_npz(path: str | Path) -> tuple[csr_matrix, list[str] | None, list[str] | None]:
    """(vectors (n, V), ids, terms) of a `.npz` that `write_npz` or `scipy.sparse.save_npz` wrote; the latter has no
    ids and terms. Nothing is unpickled. Raises `FileNotFoundError`, `InterchangeError`."""
    from scipy.sparse import csr_matrix, load_npz

    try:
        vectors = csr_matrix(load_npz(path))
        vectors.check_format(full_check=True)
        with np.load(path, allow_pickle=False) as file:
            names = [file[name].tolist() if name in file else None for name in ("ids", "terms")]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as problem:
        raise InterchangeError(f"{path}: no sparse matrix of scipy ({problem})") from problem
    for name, texts, size in zip(("ids", "terms"), names, vectors.shape, strict=True):
        if texts is not None and (not isinstance(texts, list) or len(texts) != size):
            raise InterchangeError(f"{path}: {name} are not {size} texts, as a matrix of shape {vectors.shape} needs")
    return vectors, names[0], names[1]


# -- reading lines -----------------------------------------------------------------------------------------------------


def _records(path: Path) -> Iterator[tuple[str, dict[str, float]]]:
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
        if not files:
            raise InterchangeError(f"{path}: a folder without a {', '.join(SUFFIXES)} file (plain or .gz)")
    for file in files:
        parse = _parse_topic if _format(file) == ".tsv" else _parse_json
        with opened(file) as data:
            for number, line in enumerate(data, 1):
                if line.isspace():
                    continue
                try:
                    yield parse(line.decode("utf-8"))
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
                    raise InterchangeError(f"{file}, line {number}: {_reason(problem)}") from problem


def _parse_json(line: str) -> tuple[str, dict[str, float]]:
    record = json.loads(line)
    id, vector = record["id"] if "id" in record else record["_id"], record["vector"]
    if not isinstance(id, str | int):
        raise ValueError(f"the id {id!r} is no text and no integer")
    for term, weight in vector.items():
        if type(weight) not in (int, float) or not 0 <= weight <= FLOAT32_MAX:
            raise ValueError(f"the weight of {term!r} is {weight!r}; weights are float32 >= 0")
    return str(id), vector


def _parse_topic(line: str) -> tuple[str, dict[str, float]]:
    id, tab, terms = line.rstrip("\r\n").partition("\t")
    if not tab or not id:
        raise ValueError("no id, tab and terms")
    vector: dict[str, float] = {}
    for term in terms.split():
        vector[term] = vector.get(term, 0) + 1
    return id, vector


def _reason(problem: Exception) -> str:
    if isinstance(problem, KeyError):
        return f"the record has no {problem}"
    return f"no id and vector of terms ({problem})" if isinstance(problem, TypeError | AttributeError) else str(problem)


# -- files -------------------------------------------------------------------------------------------------------------


def _suffix(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _format(path: Path) -> str:
    if _suffix(path) not in SUFFIXES:
        raise InterchangeError(f"{path}: the name must end in one of {', '.join(SUFFIXES)}, or these and .gz")
    return _suffix(path)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed if its name ends in `.gz`; damaged gzip data is an `InterchangeError`."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as data:
        try:
            yield data  # type: ignore[misc]
        except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
            raise InterchangeError(f"{path}: damaged gzip data ({problem})") from problem


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file, compressed if its name ends in `.gz`. `path` is replaced when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with contextlib.ExitStack() as open_files:
            out: Any = open_files.enter_context(open(temporary, "wb"))
            if path.suffix == ".gz":  # without a name and a time in it: the same vectors give the same bytes
                out = open_files.enter_context(gzip.GzipFile("", "wb", 6, out, mtime=0))
            yield out
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -- checks of what is written -----------------------------------------------------------------------------------------


def checked(vectors: Any, ids: Sequence[str] | None, terms: Sequence[str] | None) -> csr_matrix:
    """`vectors` as canonical CSR without zeros, or `InvalidVectors`: weights are finite and >= 0, names fit."""
    from scipy.sparse import csr_matrix

    rows = csr_matrix(vectors, copy=True)
    rows.sum_duplicates()
    rows.eliminate_zeros()
    if rows.dtype.kind not in "fiub" or not (np.isfinite(rows.data) & (rows.data >= 0)).all():
        raise InvalidVectors(f"vectors ({rows.dtype}) hold a weight that is no finite number >= 0")
    for name, texts, size in zip(("ids", "terms"), (ids, terms), rows.shape, strict=True):
        if texts is not None and (len(texts) != size or not all(isinstance(text, str) for text in texts)):
            raise InvalidVectors(f"{name} are {len(texts)} values; vectors of shape {rows.shape} need {size} texts")
        if texts is not None and len(set(texts)) != size:
            raise InvalidVectors(f"{name} hold a text twice; each must be another one")
    return rows


def _check_topics(rows: csr_matrix, ids: Sequence[str], terms: Sequence[str]) -> None:
    if (rows.data != np.rint(rows.data)).any():
        raise InvalidVectors("topics repeat each term as often as it weighs: weights must be whole numbers")
    for term in (terms[t] for t in np.unique(rows.indices).tolist()):
        if term.split() != [term]:
            raise InvalidVectors(f"the term {term!r} is empty or holds white space: topics cannot tell where it ends")
    for id in ids:
        if not id or any(character in id for character in "\t\r\n"):
            raise InvalidVectors(f"the id {id!r} is empty or holds a tab or the end of a line, which topics cannot")
