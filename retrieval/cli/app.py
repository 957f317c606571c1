"""The commands and their help."""

from __future__ import annotations

import typer

from retrieval.cli import build, demo, evaluate, look, search, train, tune

app = typer.Typer(
    name="retrieval",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Search a corpus from the command line: BM25, dense and hybrid, with an honest evaluation.

    Start with `retrieval demo`, or:

        retrieval index corpus.jsonl --to my.idx

        retrieval search my.idx "some question"
    """,
)
for module in (demo, build, tune, train, search, evaluate, look):
    for command in module.COMMANDS:
        app.command()(command)
