"""What commands print on a terminal and not in a pipe: progress, colours."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retrieval.retriever import Progress


@contextlib.contextmanager
def progress(quiet: bool = False) -> Iterator[Progress | None]:
    """A progress callback that draws on stderr; None when stderr is no terminal or `quiet`."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        tasks: dict[str, object] = {}

        def report(what: str, done: int, total: int) -> None:
            task = what.partition(",")[0]  # what follows tells of its state: a loss
            if task not in tasks:
                tasks[task] = bars.add_task(what, total=total or None)
            bars.update(tasks[task], description=what, completed=done, total=total or None)  # type: ignore[arg-type]

        yield report


def bold(text: str) -> str:
    """Bold on a terminal, as it is in a pipe."""
    return f"\x1b[1m{text}\x1b[0m" if sys.stdout.isatty() else text


def marks() -> tuple[str, str]:
    """What stands before and after a highlighted word."""
    return ("\x1b[1;33m", "\x1b[0m") if sys.stdout.isatty() else ("**", "**")


def say(text: str = "") -> None:
    """Print to stdout."""
    print(text)


def note(text: str) -> None:
    """Print to stderr: what is not the answer."""
    print(text, file=sys.stderr)
