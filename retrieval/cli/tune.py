"""tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.cli.build import Folder, Quiet
from retrieval.cli.terminal import progress, say

if TYPE_CHECKING:
    from indexes import Tuned


def tune(
    folder: Folder,
    index: Annotated[str, typer.Option(help="The index, by name.")],
    queries: Annotated[
        Path,
        typer.Option(
            help="Questions like those to come, a few hundred: BEIR's queries.jsonl, a .tsv file (id, tab, text), or "
            "any other with one question a line; .gz, .zst."
        ),
    ],
    recall: Annotated[float, typer.Option(help="The share of an exact search's answers that must be found.")] = 0.99,
    k: Annotated[int, typer.Option("-k", help="Number of results that count.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Find the fastest search setting of an index that still finds enough, and make it the default.

    Example:

        retrieval tune my.idx --index dense --queries ./scifact/queries.jsonl --recall 0.99
    """
    from retrieval import building

    texts = _read_queries(queries)
    with building.open(folder) as collection, progress(quiet) as report:
        tuned = collection.tune(index, texts, k, target_recall=recall, progress=report)
    if as_json:
        say(json.dumps(_told(index, tuned), indent=1))
        return
    say(_table(tuned))
    say(_sentence(index, tuned))


def _read_queries(path: Path) -> list[str]:
    """The texts of a file of queries, of which format its name tells."""
    from eval.errors import DatasetError, FormatError
    from eval.files import read_lines
    from retrieval.documents import read_documents

    format = Path(path.stem if path.suffix in (".gz", ".zst") else path.name).suffix.lower()
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; expected queries in a .jsonl or .tsv file, or one a line")
    if format in (".jsonl", ".ndjson"):
        return [query.text for query in read_documents(path)]
    texts = []
    for number, line in read_lines(path):
        _, tab, text = line.partition("\t") if format == ".tsv" else ("", "\t", line)
        if not tab and line.strip():
            raise FormatError(path, number, f"expected query id, tab, text, found {line[:80]!r}")
        texts.append(text)
    return [text for text in texts if text.strip()]


def _table(tuned: Tuned) -> str:
    from eval import Table

    columns = [*tuned.chosen.knobs, "recall", "microseconds", "chosen"]
    rows = [[row[column] for column in columns] for row in tuned.rows()]
    notes = [
        f"recall at {tuned.k}, on every other query; the rest confirm the choice.",
        "microseconds per query, of searching by its vector; one thread, this process on this machine.",
    ]
    return Table(columns, rows, notes=notes).to_text()


def _sentence(name: str, tuned: Tuned) -> str:
    chosen = tuned.chosen
    setting = ", ".join(f"{knob}={value}" for knob, value in chosen.knobs.items()) or "its only setting"
    found = f"recall@{tuned.k} {chosen.recall:.4f}, on held-out queries {tuned.held_out_recall:.4f}"
    missed = "" if tuned.reached else f"; no setting reaches {tuned.target_recall:g} on both"
    return f"{name} ({chosen.index.kind}) now searches with {setting}: {found}, {chosen.microseconds:.1f} us{missed}"


def _told(name: str, tuned: Tuned) -> dict[str, object]:
    return {
        "index": name, "k": tuned.k, "target_recall": tuned.target_recall, "reached": tuned.reached,
        "chosen": tuned.chosen.knobs, "recall": tuned.chosen.recall, "held_out_recall": tuned.held_out_recall,
        "microseconds": tuned.chosen.microseconds, "settings": tuned.rows(),
    }  # fmt: skip


COMMANDS = (tune,)
