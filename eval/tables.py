"""Tables for people (aligned text, Markdown) and programs (JSON), and the report of an evaluation."""

from __future__ import annotations

import json
import math
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from eval.measures import SELF_RULE, Evaluation
from eval.significance import Comparison
from eval.trec import TIE_RULE


class Marked(NamedTuple):
    """A cell with letters after its value: printed beside it, left out of JSON."""

    value: Any
    marks: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns, with a caption above and notes below.

    A cell is a string, a number (Python's or numpy's), a bool, None, or a `Marked` one of these. Floats are printed
    with 4 decimals below 100 and with 1 above, integers with thousands separated by commas.
    Raises ValueError for no columns, repeated column names and rows of another length.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns must have names, all different, got {', '.join(self.columns) or 'none'}")
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {i} has {len(row)} cells for {len(self.columns)} columns: {row!r}")

    def to_text(self) -> str:
        """Plain text: columns two spaces apart, numbers to the right, everything else to the left."""
        columns = [self._text_column(i) for i in range(len(self.columns))]
        lines = ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]
        rule = "  ".join("-" * len(column[0]) for column in columns)
        caption = [self.caption, ""] if self.caption else []
        notes = ["", *self.notes] if self.notes else []
        return "\n".join([*caption, lines[0], rule, *lines[1:], *notes]) + "\n"

    def to_markdown(self) -> str:
        """A GitHub table; marks are superscripts, notes a list."""
        lines = ["| " + " | ".join(_escape(column) for column in self.columns) + " |"]
        alignments = ["---:" if self._is_numeric(i) else "---" for i in range(len(self.columns))]
        lines.append("| " + " | ".join(alignments) + " |")
        for row in self.rows:
            cells = [_escape(text) + (f"<sup>{marks}</sup>" if marks else "") for text, marks in map(_parts, row)]
            lines.append("| " + " | ".join(cells) + " |")
        caption = [f"**{_escape(self.caption)}**", ""] if self.caption else []
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*caption, *lines, *notes]) + "\n"

    def to_json(self) -> str:
        """An object with "caption", "columns", "rows" (one object for each, numbers unrounded) and "notes".

        Numbers that JSON cannot write (NaN, infinities) become null.
        """
        rows = [{column: _plain(cell) for column, cell in zip(self.columns, row, strict=True)} for row in self.rows]
        content = {"caption": self.caption, "columns": list(self.columns), "rows": rows, "notes": list(self.notes)}
        return json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False) + "\n"

    def _is_numeric(self, i: int) -> bool:
        values = [_value(row[i]) for row in self.rows]
        return any(map(_is_number, values)) and all(value is None or _is_number(value) for value in values)

    def _text_column(self, i: int) -> list[str]:
        """The heading and the cells of column i, padded to one width; marks have their own place on the right."""
        parts = [_parts(row[i]) for row in self.rows]
        marks_width = max((len(marks) + 1 for _, marks in parts if marks), default=0)
        width = max([len(text) for text, _ in parts] + [len(self.columns[i]) - marks_width])
        pad = str.rjust if self._is_numeric(i) else str.ljust
        cells = [pad(text, width) + f" {marks}".ljust(marks_width)[:marks_width] for text, marks in parts]
        return [pad(self.columns[i], width + marks_width), *cells]


def _value(cell: Any) -> Any:
    """The cell without marks, as a Python object."""
    value = cell.value if isinstance(cell, Marked) else cell
    return value.item() if hasattr(value, "item") else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parts(cell: Any) -> tuple[str, str]:
    """What is printed for a cell: its text on one line, and its marks."""
    value = _value(cell)
    if value is None:
        text = "-"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = _float_text(value)
    else:
        text = " ".join(str(value).split())
    return text, cell.marks if isinstance(cell, Marked) else ""


def _float_text(value: float) -> str:
    if value != 0 and abs(value) < 0.00005:
        return f"{value:.1e}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _plain(cell: Any) -> Any:
    value = _value(cell)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def report(
    evaluations: Mapping[str, Evaluation],
    *,
    measures: Sequence[str] | None = None,
    comparisons: Sequence[Comparison] = (),
    rules: Sequence[str] = (),
    level: float = 0.05,
    caption: str = "",
) -> Table:
    """Systems as rows, means of `measures` (default: all that were computed) as columns, the rules as notes.

    With `comparisons` (of `compare`, for one or several measures), each system gets a letter, and a value carries the
    letters of the systems that it beats with a corrected p below `level`. `rules` are further notes, such as
    `Dataset.rules()`.
    Raises ValueError when the systems were measured on different queries or under different rules.
    """
    if not evaluations:
        raise ValueError("evaluations are empty: there is nothing to report")
    if len({(evaluation.queries, evaluation.exclude_self) for evaluation in evaluations.values()}) > 1:
        raise ValueError("the systems were measured on different queries or with different exclude_self")
    first = next(iter(evaluations.values()))
    names = tuple(first.mean if measures is None else measures)
    for evaluation in evaluations.values():
        for name in names:
            evaluation.values(name)  # refuses a measure that was not computed
    letters = _letters(evaluations) if comparisons else dict.fromkeys(evaluations, "")
    rows = [
        [Marked(system, letters[system])]
        + [Marked(evaluation.mean[name], _beaten(system, name, comparisons, letters, level)) for name in names]
        for system, evaluation in evaluations.items()
    ]
    notes = [
        f"{len(first.queries)} judged queries; means are over all of them, a query without results scores 0.",
        TIE_RULE,
        *([SELF_RULE] if first.exclude_self else []),
        *rules,
        *_test_notes(comparisons, level),
    ]
    return Table(["system", *names], rows, caption, list(dict.fromkeys(notes)))


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """The numbers of each comparison, one row each."""
    columns = ["measure", "system", "against", "difference", "p", "p corrected", "wins", "ties", "losses"]
    rows = [[c.measure, c.a, c.b, c.difference, c.p, c.p_corrected, c.wins, c.ties, c.losses] for c in comparisons]
    return Table(columns, rows, notes=list(dict.fromkeys(_method(c) for c in comparisons)))


def _letters(systems: Sequence[str] | Mapping[str, Evaluation]) -> dict[str, str]:
    """a to z, then numbers, which need a separator between them."""
    names = [*string.ascii_lowercase, *(f"({i})" for i in range(27, len(systems) + 1))]
    return dict(zip(systems, names, strict=False))


def _beaten(
    system: str, measure: str, comparisons: Sequence[Comparison], letters: Mapping[str, str], level: float
) -> str:
    beaten = set()
    for c in comparisons:
        if c.measure == measure and c.p_corrected < level:
            winner, loser = (c.a, c.b) if c.difference > 0 else (c.b, c.a)
            if winner == system:
                beaten.add(loser)
    return "".join(letters[name] for name in letters if name in beaten)


def _method(c: Comparison) -> str:
    test = {"t-test": "two-sided paired t-test", "randomization": "two-sided paired randomization test"}[c.test]
    correction = {"holm": "Holm", "bonferroni": "Bonferroni"}[c.correction]
    return f"p values: {test}, corrected by {correction}'s method over the comparisons of each measure."


def _test_notes(comparisons: Sequence[Comparison], level: float) -> list[str]:
    if not comparisons:
        return []
    counts = Counter(c.measure for c in comparisons)
    made = ", ".join(f"{count} on {name}" for name, count in counts.items())
    letters = f"Letters after a value: significantly better than those systems (corrected p < {level:g})."
    return [letters, *dict.fromkeys(_method(c) for c in comparisons), f"Comparisons made: {made}."]
