"""Runs and relevance judgements: their types, the order of a ranking, and the TREC and BEIR files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from eval.errors import FormatError
from eval.files import read_lines, write_atomically

Run = dict[str, dict[str, float]]
"""Query id -> document id -> score (higher is better)."""
Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> relevance grade (0 and below: judged, not relevant)."""

TIE_RULE = "Documents rank by score, descending; equal scores by document id, descending as strings (trec_eval's rule)."

_INTEGER = re.compile(r"[+-]?[0-9]+")


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Document ids from best to worst: score descending, then document id descending as strings.

    This is trec_eval's order, except that scores are compared as 64-bit floats; trec_eval rounds them to 32 bits.
    Raises ValueError for a score that is not finite, TypeError for an id that is not a string.
    """
    for document, score in scores.items():
        if not isinstance(document, str):
            raise TypeError(f"document ids must be strings, got {document!r}")
        if not math.isfinite(score):
            raise ValueError(f"scores must be finite, got {score} for document {document!r}")
    return [document for _, document in sorted(zip(scores.values(), scores, strict=True), reverse=True)]


def read_run(path: str | Path) -> Run:
    """Read a TREC run: query, Q0, document, rank, score, tag, separated by white space. Plain, .gz or .zst.

    The rank column is ignored, as trec_eval does: `ranking` orders by score.
    Raises FormatError for a wrong number of columns, a score that is not a finite number, a repeated document.
    """
    run: Run = {}
    for number, line in read_lines(path):
        columns = line.split()
        if not columns:
            continue
        if len(columns) != 6:
            wanted = "6 columns (query Q0 document rank score tag)"
            raise FormatError(path, number, f"expected {wanted}, got {len(columns)}: {line[:80]!r}")
        query, _, document, _, text, _ = columns
        try:
            score = float(text)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise FormatError(path, number, f"the score must be a finite number, got {text!r}")
        documents = run.setdefault(query, {})
        if document in documents:
            raise FormatError(path, number, f"document {document!r} is repeated for query {query!r}")
        documents[document] = score
    return run


def write_run(run: Mapping[str, Mapping[str, float]], path: str | Path, tag: str = "retrieval") -> None:
    """Write a TREC run, best first, ranks from 1; scores are written so that `read_run` returns the same floats.

    Raises ValueError for an id or tag that is empty or holds white space, and for scores that are not finite.
    """
    _check_word("tag", tag)
    with write_atomically(path) as file:
        for query, scores in run.items():
            _check_word("query id", query)
            for rank, document in enumerate(ranking(scores), start=1):
                _check_word("document id", document)
                file.write(f"{query} Q0 {document} {rank} {float(scores[document])!r} {tag}\n")


def _check_word(role: str, word: str) -> None:
    if word.split() != [word]:
        raise ValueError(f"a TREC run separates columns by white space, so the {role} must be one word, got {word!r}")


def read_qrels(path: str | Path) -> Qrels:
    """Read judgements, told apart by the first line: TREC (query, iteration, document, grade, separated by white space)
    or BEIR (query, document, grade, separated by tabs, under a header). Plain, .gz or .zst.

    Raises FormatError for a wrong number of columns, a grade that is not an integer, a repeated document.
    """
    qrels: Qrels = {}
    beir: bool | None = None
    for number, line in read_lines(path):
        if not line.strip():
            continue
        if beir is None:
            fields = line.split("\t")
            beir = len(fields) == 3
            if beir and not any(character.isdigit() for character in fields[2]):
                continue
        query, document, text = _judgement(path, number, line, beir)
        if not _INTEGER.fullmatch(text):
            raise FormatError(path, number, f"the relevance grade must be an integer, got {text!r}")
        documents = qrels.setdefault(query, {})
        if document in documents:
            raise FormatError(path, number, f"document {document!r} is judged twice for query {query!r}")
        documents[document] = int(text)
    return qrels


def _judgement(path: str | Path, number: int, line: str, beir: bool) -> tuple[str, str, str]:
    columns = [field.strip() for field in line.split("\t")] if beir else line.split()
    if len(columns) != (3 if beir else 4) or not all(columns):
        wanted = "3 tab-separated columns (query document grade)" if beir else "4 columns (query 0 document grade)"
        raise FormatError(path, number, f"expected {wanted}, got {line[:80]!r}")
    return columns[0], columns[-2], columns[-1]
