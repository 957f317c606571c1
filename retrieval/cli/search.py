"""search."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.terminal import bold, marks, say

if TYPE_CHECKING:
    from retrieval.analysis.base import Analyzer
    from retrieval.collection import Collection
    from retrieval.search import Result


def search(
    folder: Annotated[Path, typer.Argument(help="The collection's folder.")],
    question: Annotated[str | None, typer.Argument(help="Left out: questions are read, one a line.")] = None,
    k: Annotated[int, typer.Option("-k", help="Number of results.")] = 10,
    index: Annotated[
        str | None, typer.Option(help="bm25, dense, hybrid (default: hybrid if there are several).")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="Filter on metadata, such as \"year > 2000 and lang = 'en'\".")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per question.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell what earned each score.")] = False,
) -> None:
    """Search a collection: one question, or interactively, or one per line from a pipe.

    Examples:

        retrieval search my.idx "effects of cholesterol" -k 5 --explain

        retrieval search my.idx "wing" --index bm25 --where "year > 1955" --json
    """
    from retrieval import building

    with building.open(folder) as collection:
        for query in _questions(question):
            results = collection.search(query, k, index=index, where=where, explain=explain)
            if as_json:
                say(json.dumps({"query": query, "results": [asdict(result) for result in results]}, ensure_ascii=False))
            else:
                show(collection, query, results)


def _questions(question: str | None) -> Iterator[str]:
    if question is not None:
        yield question
        return
    if sys.stdin.isatty():
        print("One question a line; an empty line or Ctrl-D ends.", file=sys.stderr)
        while line := _ask():
            yield line
        return
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _ask() -> str:
    try:
        return input("? ").strip()
    except EOFError:
        return ""


def show(collection: Collection, query: str, results: list[Result]) -> None:
    """Print results with highlighted snippets."""
    from retrieval.snippets import snippet

    if not results:
        say("no document matches")
    analyzer = highlighter(collection)
    terms = frozenset(analyzer(query))
    for result in results:
        say(f"{result.rank:3}. {bold(result.title or result.id)}  [{result.id}]  {result.score:.4f}")
        say(f"     {snippet(result.text, terms, analyzer).marked(*marks())}")
        for name, part in result.explanation.items():
            say(f"     {name}: {_told(part)}")


def highlighter(collection: Collection) -> Analyzer:
    """The analyzer whose terms are highlighted: that of the first lexical index, or English."""
    from retrieval.analysis.base import analyzer
    from retrieval.encoders.bag_of_words import BagOfWords

    with collection.reading() as retrievers:
        for retriever in retrievers.values():
            if isinstance(retriever.encoder, BagOfWords):
                return retriever.encoder.analyzer
    return analyzer("english")


def _told(part: dict[str, object]) -> str:
    words = []
    for key, value in part.items():
        if isinstance(value, dict):
            words += [f"{term} {gain:.2f}" for term, gain in value.items()]
        else:
            words.append(f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(words)


COMMANDS = (search,)
