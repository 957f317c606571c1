"""The command line: `retrieval COMMAND`. One module per group of commands; heavy imports happen inside them."""

from __future__ import annotations

import sys

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def main() -> None:
    """Entry point. Expected errors are one line on stderr and exit code 1; wrong usage is 2; Ctrl-C is 130."""
    from retrieval.cli.app import app

    try:
        app()
    except KeyboardInterrupt:
        print("interrupted: what was committed stays; the same command again goes on from there", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # the reader of our pipe has gone
        sys.stderr.close()
        raise SystemExit(EXIT_ERROR) from None
    except (ValueError, TypeError, LookupError, ImportError, OSError, RuntimeError) as error:
        if not _expected(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_ERROR) from None


def _expected(error: Exception) -> bool:
    """Whether an error is one of ours or the file system's, which a message explains; others are bugs."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in ("retrieval", "indexes", "eval")
