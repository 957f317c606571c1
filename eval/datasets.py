"""Test collections: queries and judgements of a BEIR folder, an MS MARCO folder, or an ir_datasets id."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.errors import DatasetError, FormatError, MissingExtra
from eval.files import find, read_lines
from eval.measures import SELF_RULE
from eval.trec import Qrels, read_qrels

PREFIX = "ir_datasets:"
SELF_RETRIEVING = frozenset({"arguana", "quora"})
"""Datasets whose queries are documents of the corpus under the same id, so that each query would find itself."""

_DEFAULT_SPLIT = "test"
_BEIR_QRELS = re.compile(r"(.+)\.tsv(?:\.gz|\.zst)?")
_MSMARCO_QUERIES = re.compile(r"queries\.(.+)\.tsv(?:\.gz|\.zst)?")


@dataclass(frozen=True)
class Dataset:
    """Judged queries of one split.

    `name`: the folder's name or the ir_datasets id. `split`: as found ("dev.small" where "dev" was asked for and only
    the small files exist; empty when an ir_datasets id names its split itself). `queries`: query id -> text, only
    judged queries, in the order of the source. `qrels`: query id -> document id -> grade, for the same queries.
    `exclude_self`: pass it on to `evaluate`.
    """

    name: str
    split: str
    queries: dict[str, str]
    qrels: Qrels
    exclude_self: bool

    def rules(self) -> list[str]:
        """What a reader of a report has to know about this dataset, one sentence each."""
        split = f", split {self.split}" if self.split else ""
        judgements = sum(len(grades) for grades in self.qrels.values())
        rules = [f"Dataset {self.name}{split}: {len(self.queries)} judged queries, {judgements} judgements."]
        return [*rules, SELF_RULE] if self.exclude_self else rules


def load(data: str | Path, split: str = _DEFAULT_SPLIT, *, exclude_self: bool | None = None) -> Dataset:
    """Load the queries and judgements of a dataset.

    `data` is a folder in BEIR's layout (queries.jsonl, qrels/SPLIT.tsv) or in MS MARCO's (queries.SPLIT.tsv,
    qrels.SPLIT.tsv or .txt; else the same with SPLIT.small), each file plain, .gz or .zst; or an ir_datasets id, with
    the prefix "ir_datasets:" or as a string that is no existing path. `split` is appended to the id when that is an
    id too ("beir/scifact" + "test"). Queries without judgements are dropped.

    `exclude_self` None means: true for ArguAna and Quora, whose queries are documents, false for all others.

    Raises DatasetError for an unknown dataset, a missing split (listing those that exist), empty or incomplete data;
    FormatError for a malformed file; MissingExtra when ir_datasets is needed and absent.
    """
    prefixed = isinstance(data, str) and data.startswith(PREFIX)
    path = Path(data)
    if not prefixed and path.is_dir():
        name = os.path.basename(os.path.abspath(path))
        split, texts, qrels = _read_folder(path, split)
    elif not prefixed and (isinstance(data, Path) or path.exists()):
        problem = "is no folder" if path.exists() else "does not exist"
        raise DatasetError(f"{data} {problem}; expected a dataset's folder or an ir_datasets id")
    else:
        name, split, texts, qrels = _read_ir_dataset(str(data).removeprefix(PREFIX), split)
    if exclude_self is None:
        exclude_self = not SELF_RETRIEVING.isdisjoint(name.lower().split("/"))
    return Dataset(name, split, _judged(str(data), texts, qrels), qrels, exclude_self)


def _judged(data: str, texts: dict[str, str], qrels: Qrels) -> dict[str, str]:
    """The judged ones of `texts`; DatasetError when one has no text or nothing is left."""
    if not texts:
        raise DatasetError(f"{data} has no queries")
    if not qrels:
        raise DatasetError(f"{data} has no relevance judgements")
    missing = [query for query in qrels if not texts.get(query, "").strip()]
    if missing:
        raise DatasetError(f"{data}: {len(missing)} of {len(qrels)} judged queries have no text: {_some(missing)}")
    return {query: text for query, text in texts.items() if query in qrels}


def _some(names: Iterable[str], limit: int = 10) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _read_folder(folder: Path, split: str) -> tuple[str, dict[str, str], Qrels]:
    queries = find(folder, "queries.jsonl")
    if queries is not None:
        qrels = find(folder / "qrels", f"{split}.tsv")
        if qrels is None:
            raise _no_split(folder, f"qrels/{split}.tsv", _names(folder / "qrels", _BEIR_QRELS))
        return split, _read_texts(queries, _json_query), read_qrels(qrels)
    splits = _names(folder, _MSMARCO_QUERIES)
    if not splits:
        there = _some(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        wanted = "neither queries.jsonl (BEIR) nor queries.SPLIT.tsv (MS MARCO)"
        raise DatasetError(f"{folder} has {wanted}; there is {there}")
    for stem in (split, f"{split}.small"):
        queries = find(folder, f"queries.{stem}.tsv")
        qrels = find(folder, f"qrels.{stem}.tsv") or find(folder, f"qrels.{stem}.txt")
        if queries is not None and qrels is not None:
            return stem, _read_texts(queries, _tab_query), read_qrels(qrels)
    complete = [s for s in splits if find(folder, f"qrels.{s}.tsv") or find(folder, f"qrels.{s}.txt")]
    raise _no_split(folder, f"queries.{split}.tsv with qrels.{split}.tsv", complete)


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    if not folder.is_dir():
        return []
    matches = (pattern.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted({match[1] for match in matches if match})


def _no_split(folder: Path, wanted: str, splits: list[str]) -> DatasetError:
    return DatasetError(f"{folder} has no {wanted} (nor .gz, .zst); splits there: {', '.join(splits) or 'none'}")


def _read_texts(path: Path, read_query: Callable[[str], tuple[str, str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            query, text = read_query(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(path, number, str(error)) from None
        if query in texts:
            raise FormatError(path, number, f"query id {query!r} is repeated")
        texts[query] = text
    return texts


def _json_query(line: str) -> tuple[str, str]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object with _id and text, got {line[:80]!r}")
    query, text = record.get("_id"), record.get("text")
    if isinstance(query, bool) or not isinstance(query, str | int):
        raise ValueError(f"_id must be a string or an integer, got {query!r} (fields: {', '.join(record)})")
    if not isinstance(text, str):
        raise ValueError(f"text must be a string, got {text!r} (fields: {', '.join(record)})")
    return str(query), text


def _tab_query(line: str) -> tuple[str, str]:
    query, tab, text = line.partition("\t")
    if not tab:
        raise ValueError(f"expected query id, tab, text, got {line[:80]!r}")
    return query.strip(), text.strip()


def _read_ir_dataset(name: str, split: str) -> tuple[str, str, dict[str, str], Qrels]:
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtra("ir_datasets", "datasets", f"{name!r}, which is no folder, as a dataset id") from error
    candidates = [(f"{name}/{split}", split)]
    if split == _DEFAULT_SPLIT or split in name.split("/"):  # another split, asked for by name, is never left out
        candidates.append((name, ""))
    for identifier, found in candidates:
        dataset = _registered(ir_datasets.registry, identifier)
        if dataset is not None and dataset.has_queries() and dataset.has_qrels():
            texts = {str(query.query_id): query.default_text() or "" for query in dataset.queries_iter()}
            return identifier, found, texts, _ir_qrels(identifier, dataset)
    parts = sorted(i for i in ir_datasets.registry if i.startswith(f"{name}/"))
    if parts or _registered(ir_datasets.registry, name) is not None:
        tried = " or ".join(identifier for identifier, _ in candidates)
        raise DatasetError(f"no queries with judgements in {tried}; parts of {name}: {_some(parts) or 'none'}")
    close = difflib.get_close_matches(name, list(ir_datasets.registry), n=5)
    hint = f"; close ids: {', '.join(close)}" if close else ""
    raise DatasetError(f"{name!r} is neither an existing folder nor an id of ir_datasets{hint}")


def _registered(registry: Any, identifier: str) -> Any:
    try:
        return registry[identifier]
    except KeyError:
        return None


def _ir_qrels(identifier: str, dataset: Any) -> Qrels:
    """Judgements of an ir_datasets dataset; a pair that repeats its own grade (it happens) counts once."""
    qrels: Qrels = {}
    for judgement in dataset.qrels_iter():
        query, document, grade = str(judgement.query_id), str(judgement.doc_id), int(judgement.relevance)
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise DatasetError(f"{identifier} grades document {document!r} twice for query {query!r}, and differently")
    return qrels
