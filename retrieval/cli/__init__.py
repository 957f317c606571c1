"""The command line: `retrieval COMMAND`. One module per group of commands; heavy imports happen inside them."""

from __future__ import annotations

import sys
import warnings
from typing import Any

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def main() -> None:
    """Entry point. Expected errors are one line on stderr and exit code 1; wrong usage is 2; Ctrl-C is 130."""
    from retrieval.cli.app import app

    warnings.showwarning = _show_warning
    try:
        app(prog_name="retrieval")
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # what typer makes of Ctrl-C
            print("interrupted: what was committed stays; the same command again goes on from there", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of our pipe has gone
        sys.stderr.close()
        raise SystemExit(EXIT_ERROR) from None
    except (ValueError, TypeError, LookupError, ImportError, OSError, RuntimeError) as error:
        if not _expected(error):
            raise
        told = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else error
        print(f"error: {told}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    """One line, without the place in our code, which is no business of the user's."""
    print(f"warning: {message}", file=sys.stderr)


def _expected(error: Exception) -> bool:
    """Whether a message explains the error: one of ours, a value that our own code refuses, or the file system's.

    Others are bugs, and bugs show where they happen.
    """
    raised_in = ""
    trace = error.__traceback__
    while trace is not None:
        raised_in, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    ours = type(error).__module__ if type(error) is not ValueError else raised_in
    return isinstance(error, OSError) or ours.partition(".")[0] in ("retrieval", "indexes", "eval")
