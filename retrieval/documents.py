"""Documents from files, folders and datasets: streamed, in the order of the source, never all in memory.

What is read, by the name of the source (text formats also as .gz and .zst):

    .jsonl, .ndjson   one object a line: BEIR (_id, title, text, metadata), Anserini (id, contents), fields by argument
    .csv, .tsv        a header, then records; values may be quoted and then hold newlines
    collection.tsv    MS MARCO: id, tab, passage, no header; so is any .tsv of two columns that starts with an integer
    .parquet          columns as the fields of JSON lines
    a folder          BEIR (corpus.jsonl), MS MARCO (collection.tsv), .jsonl files (Anserini), or .txt and .md files
    ir_datasets:ID    a dataset of ir_datasets; the prefix may be left out where no such file exists

The id is `_id` or `id`, the text is `text` (with an optional `title`) or `contents`; every other field becomes
metadata, and an object named `metadata` is merged in (where both have a name, the field outside wins). Values of JSON
and parquet keep their types. A value of a CSV or TSV file that is written as a JSON number becomes a number in the
metadata (2015 and -1.5e3; not 007, +1 or an integer beyond 64 bits), and an empty one is left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, time
from decimal import Decimal
from math import isfinite
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple, TypeAlias, Union

from eval.errors import DatasetError, FormatError
from eval.files import byte_lines, find, not_utf8, read_lines
from retrieval.errors import MissingExtra

JSON: TypeAlias = Union[bool, int, float, str, "list[JSON]", "dict[str, JSON]", None]

ACCEPTED = (
    "a .jsonl, .ndjson, .csv or .tsv file (plain, .gz or .zst), a .parquet file, a folder with corpus.jsonl (BEIR), "
    "collection.tsv (MS MARCO), .jsonl files or .txt and .md files, or the id of an ir_datasets dataset"
)
_REASONS = 10
_PARQUET_ROWS = 256  # per batch: small, because a document may have megabytes


class EmptyCorpus(DatasetError):
    """A source without a single document; the message names it and tells how many records were skipped."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document. The id is unique within a collection (which checks it); the text may be empty."""

    id: str
    text: str
    title: str = ""
    metadata: dict[str, JSON] = field(default_factory=dict)

    @property
    def contents(self) -> str:
        """What gets indexed: title and text, joined by a space."""
        return f"{self.title} {self.text}".strip()


class Documents(Iterator[Document]):
    """Iterates once over the documents of a source.

    read, skipped: how many documents were given and how many records were left out so far.
    reasons: why, for the first 10 of those left out.

    Raises FormatError (file, line, problem) at a bad record, unless these are skipped; always at a damaged file.
    Raises EmptyCorpus at the end if there was no document at all.
    """

    def __init__(self, source: str, records: Iterator[Document | FormatError], skip: bool) -> None:
        self.source = source
        self.read = 0
        self.skipped = 0
        self.reasons: list[str] = []
        self._records = records
        self._skip = skip

    def __next__(self) -> Document:
        for record in self._records:
            if isinstance(record, Document):
                self.read += 1
                return record
            if not self._skip:
                raise record
            self.skipped += 1
            if len(self.reasons) < _REASONS:
                self.reasons.append(str(record))
        if not self.read:
            why = f" ({self.skipped} records were skipped, the first: {self.reasons[0]})" if self.skipped else ""
            raise EmptyCorpus(f"{self.source}: no documents{why}")
        raise StopIteration


def read_documents(
    data: str | Path,
    *,
    id_field: str | None = None,
    text_fields: Sequence[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Documents:
    """The documents of a file, folder or dataset (see the top of this module), streamed.

    id_field: the field that holds the id, a string or an integer; `_id` or `id` by default.
    text_fields: the fields that make up the text, joined by a space; a `title` among several becomes the title.
        By default `text` with `title`, or `contents`. Fields that are not named become metadata.
    on_error: "raise" stops at the first bad record; "skip" leaves bad records out and counts them. A record is bad when
        it is malformed, lacks its id or a text field, has a text that is no string, or holds bytes that are not UTF-8.
        In a folder of text files each file is a record, and its relative path is the id.

    Raises DatasetError when `data` is nothing that can be read, MissingExtra when that needs a package which is not
    installed, and while iterating what `Documents` names.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'skip'")
    if text_fields is not None and (isinstance(text_fields, str) or not text_fields):
        raise ValueError(f"text_fields={text_fields!r}: expected one or more names of fields in a list")
    fields = _Fields(id_field, None if text_fields is None else tuple(text_fields))
    return Documents(str(data), _records(data, fields), on_error == "skip")


class _Fields(NamedTuple):
    id: str | None
    texts: tuple[str, ...] | None


# Every reader yields a Document or, for a bad record, the FormatError: raised inside, it would end the generator.
# What makes the rest of the source unreadable is raised.
_Records: TypeAlias = Iterator[Document | FormatError]


def _records(data: str | Path, fields: _Fields) -> _Records:
    path = Path(data)
    if path.is_dir():
        return _read_folder(path, fields)
    if path.exists():
        return _read_file(path, fields)
    if isinstance(data, str):
        return _read_dataset(data, fields)
    raise DatasetError(f"{data}: no such file or folder; expected {ACCEPTED}")


def _read_file(path: Path, fields: _Fields) -> _Records:
    format = _format(path)
    if format in (".jsonl", ".ndjson"):
        return _read_jsonl(path, fields)
    if format == ".tsv" and fields == (None, None) and _is_msmarco(path):
        return _read_msmarco(path)
    if format in (".csv", ".tsv"):
        return _read_table(path, fields, "," if format == ".csv" else "\t")
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path, fields)
    raise DatasetError(f"{path}: cannot read {path.suffix or 'a file without a suffix'}; expected {ACCEPTED}")


def _read_folder(folder: Path, fields: _Fields) -> _Records:
    for name in ("corpus.jsonl", "collection.tsv"):
        if (path := find(folder, name)) is not None:
            return _read_file(path, fields)
    visible = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    visible = sorted((p for p in visible if not any(part.startswith(".") for part in p.parts)), key=PurePath.as_posix)
    if lines := [path for path in visible if _format(path) in (".jsonl", ".ndjson")]:
        return (record for path in lines for record in _read_jsonl(folder / path, fields))
    if texts := [path for path in visible if _format(path) in (".txt", ".md")]:
        return (_read_text(folder, path) for path in texts)
    raise DatasetError(f"{folder}: nothing to read in this folder; expected {ACCEPTED}")


def _format(path: Path) -> str:
    """The suffix in lower case, without .gz or .zst."""
    return Path(path.stem if path.suffix in (".gz", ".zst") else path.name).suffix.lower()


# Readers


def _lines(path: Path) -> Iterator[tuple[int, str, FormatError | None]]:
    """Number, text and, where its bytes are not UTF-8, the error. `read_lines` cannot go on after such a line."""
    for number, line in byte_lines(path):
        try:
            yield number, line.decode(), None
        except UnicodeDecodeError as error:
            yield number, line.decode(errors="replace"), not_utf8(path, number, error)


def _read_jsonl(path: Path, fields: _Fields) -> _Records:
    for number, line, damage in _lines(path):
        if damage is not None:
            yield damage
        elif line and not line.isspace():
            try:
                record = _parse_json(line)
            except ValueError as error:
                yield FormatError(path, number, str(error))
            else:
                yield _document(record, fields, path, number)


def _read_msmarco(path: Path) -> _Records:
    for number, line, damage in _lines(path):
        columns = line.split("\t")
        if damage is not None:
            yield damage
        elif len(columns) == 2:
            yield _document({"id": columns[0], "text": columns[1]}, _Fields(None, None), path, number)
        elif line and not line.isspace():
            yield FormatError(path, number, f"expected 2 columns (id, tab, passage), found {len(columns)}")


def _is_msmarco(path: Path) -> bool:
    if path.name.startswith("collection.tsv"):
        return True
    first = next((line for _, line, _ in _lines(path) if line), "")
    return re.fullmatch(r"[0-9]+\t[^\t]*", first) is not None


def _read_table(path: Path, fields: _Fields, delimiter: str) -> _Records:
    rows = _rows(path, delimiter)
    number, header, damage = next(rows, (1, [], None))
    if damage is None and len(set(header)) < len(header):
        damage = FormatError(path, number, f"a name occurs twice in the header: {', '.join(header)}")
    if damage is not None:
        raise damage
    for number, row, damage in rows:
        if damage is None and len(row) != len(header):
            damage = FormatError(path, number, f"expected {len(header)} values, as in the header, found {len(row)}")
        record = damage or _document(dict(zip(header, row, strict=True)), fields, path, number)
        if isinstance(record, Document):
            metadata = {name: _number(value) for name, value in record.metadata.items() if value != ""}
            record = replace(record, metadata=metadata)
        yield record


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str], FormatError | None]]:
    """The number of its first line, the values and the damage of every row that is not blank."""
    damage: list[FormatError] = []

    def text() -> Iterator[str]:
        for _, line, error in _lines(path):
            if error is not None:
                damage.append(error)
            yield line + "\n"

    rows = csv.reader(text(), delimiter=delimiter, strict=True)
    row: list[str] | None = []
    while row is not None:
        number = rows.line_num + 1
        try:
            row = _next_row(rows)
        except csv.Error as error:
            row = []
            damage.append(FormatError(path, number, f"malformed record up to line {rows.line_num}: {error}"))
        if row or damage:
            yield number, row or [], damage[0] if damage else None
        damage.clear()


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row, however long its values. The limit of the csv module belongs to the whole process: put it back."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path, fields: _Fields) -> _Records:
    try:
        import pyarrow.parquet as parquet
        from pyarrow import ArrowException
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", "reading Parquet") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield _document(record, fields, path, number)
    except ArrowException as error:
        raise FormatError(path, number + 1, f"damaged or not parquet: {error}") from error


def _read_text(folder: Path, path: Path) -> Document | FormatError:
    id = path.as_posix()
    try:
        id.encode()
        return Document(id, "\n".join(line for _, line in read_lines(folder / path)))
    except UnicodeEncodeError:
        return FormatError(folder / path, None, "the name of the file is not UTF-8")
    except FormatError as error:
        return error


def _read_dataset(data: str, fields: _Fields) -> _Records:
    name = data.removeprefix("ir_datasets:")
    try:
        import ir_datasets
    except ImportError as error:
        if name != data:
            raise MissingExtra("ir_datasets", "datasets", "a dataset by id") from error
        hint = "datasets by id need: pip install 'retrieval[datasets]'"
        raise DatasetError(f"{data}: no such file or folder; expected {ACCEPTED} ({hint})") from error
    try:
        dataset = ir_datasets.load(name)
    except KeyError as error:
        what = "no such dataset in ir_datasets" if name != data else "no such file, folder or dataset"
        raise DatasetError(f"{data}: {what}; expected {ACCEPTED}") from error
    if not dataset.has_docs():
        raise EmptyCorpus(f"{data}: this dataset of ir_datasets has no documents of its own")
    return _dataset_documents(name, dataset, fields)


def _dataset_documents(name: str, dataset: Any, fields: _Fields) -> _Records:
    """Unless fields are named, the text is the one that ir_datasets finds best; metadata are the fields not in it."""
    place = Path(f"ir_datasets:{name}")
    for number, doc in enumerate(dataset.docs_iter(), start=1):
        record = doc._asdict()
        if fields.texts is None:
            text = doc.default_text()
            title = record.pop("title", None) or ""
            starts = isinstance(title, str) and text.startswith(title)
            record = {key: value for key, value in record.items() if not (isinstance(value, str) and value in text)}
            record |= {"title": title, "text": text[len(title) :].strip()} if starts else {"text": text}
        record["doc_id"] = doc.doc_id
        yield _document(record, fields._replace(id=fields.id or "doc_id"), place, number)


# Records


def _document(record: Any, fields: _Fields, path: Path, number: int) -> Document | FormatError:
    try:
        return _convert(record, fields)
    except ValueError as error:
        return FormatError(path, number, str(error))


def _convert(record: Any, fields: _Fields) -> Document:
    """Raises ValueError with what is wrong with the record."""
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {record!r:.40}")
    id_field = fields.id or ("_id" if "_id" in record else "id")
    title_field = None
    if fields.texts is not None:
        text_fields = fields.texts
        if "title" in text_fields and len(text_fields) > 1:
            title_field, text_fields = "title", tuple(name for name in text_fields if name != "title")
    elif "contents" in record and "text" not in record:
        text_fields = ("contents",)
    else:
        text_fields, title_field = ("text",), "title" if "title" in record else None

    id = _value(record, id_field, "an id" if fields.id else "an id ('_id' or 'id')")
    if isinstance(id, bool) or not isinstance(id, (str, int)) or id == "":
        raise ValueError(f"the id in {id_field!r} is {id!r:.40}: expected a string or an integer")
    text = " ".join([_text(record, name, fields) for name in text_fields])
    title = _text(record, title_field, fields) if title_field and record.get(title_field, "") is not None else ""

    used = {id_field, title_field, *text_fields}
    # Raw bytes (images, unparsed pages) are no metadata.
    rest = {k: _json(k, v) for k, v in record.items() if k not in used and not isinstance(v, bytes)}
    nested = rest.get("metadata")
    if isinstance(nested, dict):
        del rest["metadata"]
        rest = nested | rest
    return Document(str(id), text, title, rest)


def _value(record: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in record:
        seen = ", ".join(f"{key:.40}" for key in list(record)[:20])
        raise ValueError(f"no field {name!r} for {what}; fields seen: {seen or 'none'}")
    return record[name]


def _text(record: Mapping[str, Any], name: str, fields: _Fields) -> str:
    value = _value(record, name, "a text" if fields.texts else "a text ('text' or 'contents')")
    if not isinstance(value, str):
        raise ValueError(f"the text in {name!r} is {value!r:.40}: expected a string")
    return value


def _json(name: str, value: Any) -> JSON:
    """What parquet and ir_datasets hold beyond JSON: dates become ISO strings, decimals floats, NaN (missing) null."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, (float, Decimal)):
        return float(value) if isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_json(name, item) for item in value]
    if isinstance(value, dict):
        return {str(key): _json(name, item) for key, item in value.items()}
    if isinstance(value, (date, time)):
        return value.isoformat()
    raise ValueError(f"the field {name!r} holds a {type(value).__name__}, which JSON cannot")


# JSON as SQLite will read it back: no NaN or infinity, and text that is Unicode.


def _parse_json(line: str) -> Any:
    """Raises ValueError with the problem."""
    try:
        value = _DECODER.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"malformed JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("malformed JSON: nested too deeply") from error
    if re.search(r"\\u[dD][89a-fA-F]", line):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half a surrogate pair ({error.object[error.start]!r}) is no text") from error
    return value


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):
        raise ValueError(f"malformed JSON: {number} is no finite 64-bit number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _number(value: JSON) -> JSON:
    match = _JSON_NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    if match.lastindex is None:
        return int(match[0]) if len(match[0]) < 20 and -(2**63) <= int(match[0]) < 2**63 else value
    return float(match[0]) if isfinite(float(match[0])) else value
