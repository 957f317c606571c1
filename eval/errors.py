"""The named errors of `eval`."""

from __future__ import annotations

from pathlib import Path


class FormatError(ValueError):
    """A file breaks its format: `path`, `line` (1-based, None when no single line is at fault), `problem`."""

    def __init__(self, path: str | Path, line: int | None, problem: str) -> None:
        super().__init__(path, line, problem)
        self.path = Path(path)
        self.line = line
        self.problem = problem

    def __str__(self) -> str:
        place = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.problem}"


class DatasetError(ValueError):
    """A dataset is unknown, incomplete or empty; the message says what was looked for and what exists."""


class MissingExtra(ImportError):
    """An optional package is not installed: `package`, and the `extra` of the distribution that brings it."""

    def __init__(self, package: str, extra: str, purpose: str = "this") -> None:
        super().__init__(package, extra, purpose)
        self.package = package
        self.extra = extra
        self.purpose = purpose

    def __str__(self) -> str:
        return f"{self.purpose} needs the package {self.package}: pip install 'retrieval[{self.extra}]'"
