"""train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.build import Folder, Quiet
from retrieval.cli.terminal import note, progress, say

if TYPE_CHECKING:
    from retrieval.training.pipeline import TrainedIndex
    from retrieval.training.sources import Questions


def train(
    method: Annotated[str, typer.Argument(help="jpq, distill-vq, repconc ...; a wrong name lists all.")],
    folder: Folder,
    to: Annotated[str, typer.Option(help="The new index's name.")],
    index: Annotated[
        str | None, typer.Option(help="Whose vectors to compress (default: those of the only dense index).")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            help="What to learn from: a BEIR or MS MARCO folder (split train, and dev if there is one), or a .jsonl or "
            ".tsv file or one with a question a line. Default: queries made from the documents."
        ),
    ] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements of a file of queries: TREC or BEIR format.")] = None,
    bytes: Annotated[int, typer.Option(help="Per document.")] = 48,
    tune: Annotated[
        str | None, typer.Option(help="What is trained too: code (nothing), adapter or encoder (of queries), encoders.")
    ] = None,
    parameter: Annotated[
        list[str] | None, typer.Option("--set", help="Another parameter of the method, NAME=VALUE (lr=0.01); repeat.")
    ] = None,
    generate: Annotated[
        list[str] | None,
        typer.Option(help="Queries made from documents: auto, title, leading, phrases, cloze, genq:MODEL; repeat."),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of queries made from documents, at most.")] = 10_000,
    keep_top: Annotated[
        int | None, typer.Option(help="Keep made queries that find their document among the first so many.")
    ] = None,
    gpl: Annotated[
        str | None,
        typer.Option(
            help="Learn margins of a teacher instead of labels (jpq, bpr): a cross-encoder by name or folder, or "
            "'embedding', the vectors themselves."
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Measure on its queries, too: a BEIR or MS MARCO folder, or an ir_datasets id.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the dataset.")] = "test",
    epochs: Annotated[int | None, typer.Option(help="At most (default: the method's).")] = None,
    batch: Annotated[int, typer.Option(help="Queries per step.")] = 64,
    patience: Annotated[int, typer.Option(help="Epochs without a better dev quality before training stops.")] = 3,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Of torch (default: its own choice).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Learn to compress the vectors of an index; what comes of it is a new index in the collection.

    Without --queries no label is needed. Interrupted, the same command goes on from the last epoch.

    Examples:

        retrieval train distill-vq my.idx --to small --bytes 24

        retrieval train jpq my.idx --to jpq --queries ./scifact --dataset ./scifact --bytes 48

        retrieval train bpr my.idx --to bits --gpl cross-encoder/ms-marco-MiniLM-L6-v2

        retrieval search my.idx "some question" --index small
    """
    from eval import load
    from retrieval import building, training

    parameters = dict(map(_parameter, parameter or [])) | {"bytes": bytes, "seed": seed}
    if tune is not None:
        parameters["tune"] = tune
    if gpl is not None:
        parameters["gpl"] = gpl
    made = training.by_name(method, **parameters)
    asked, dev = _questions(queries, qrels)
    test = None if dataset is None else load(dataset, split)
    with building.open(folder) as collection, progress(quiet) as report:
        result = collection.train(
            made, to, index=index, queries=asked, dev=dev, generate=generate or ["auto"], count=count,
            keep_top=keep_top, test=test, epochs=epochs, batch=batch, patience=patience, threads=threads,
            progress=report,
        )  # fmt: skip
    if as_json:
        say(json.dumps(_told(result), indent=1))
        return
    say(_table(result))
    for row in result.trained.history:
        loss = "-" if row["loss"] != row["loss"] else f"{row['loss']:.4f}"
        note(f"epoch {row['epoch']:.0f}: loss {loss}, dev {row['dev']:.4f}")
    say(f"index {to} added: epoch {result.trained.best} of {method} was the best on the dev queries")


def _questions(queries: Path | None, qrels: Path | None) -> tuple[Questions | None, Questions | None]:
    """What to learn from, and what to stop by where a folder has such a split."""
    from eval.errors import DatasetError
    from retrieval.training.sources import read_questions

    if queries is None:
        if qrels is not None:
            raise typer.BadParameter("--qrels judges queries: give --queries too")
        return None, None
    dev = None
    if queries.is_dir():
        try:
            dev = read_questions(queries, split="dev")
        except DatasetError:
            dev = None
    return read_questions(queries, qrels), dev


def _parameter(given: str) -> tuple[str, Any]:
    """NAME=VALUE, a value of JSON, or else a string."""
    name, equals, value = given.partition("=")
    if not equals:
        raise typer.BadParameter(f"--set {given}: expected NAME=VALUE, such as lr=0.01")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _table(result: TrainedIndex) -> str:
    from eval import Table

    measured = [name for name in result.rows[0] if name != "dev"]
    columns = [*measured[:2], "dev", *measured[2:]]
    dev = "nDCG@10" if result.labelled else "share of the 10 documents nearest by float vectors that are found"
    notes = [
        f"dev: {dev}, on {result.dev_queries} held-out queries; learned from {result.queries} others.",
        "Rows in between are unsupervised codecs of as many bytes per document.",
    ]
    if result.trained.method.rerank is not None:
        notes.append("All codes find candidates, which vectors on disk rank; bytes are those of the codes.")
    return Table(columns, [[row[column] for column in columns] for row in result.rows], notes=notes).to_text()


def _told(result: TrainedIndex) -> dict[str, Any]:
    history = [{k: None if v != v else v for k, v in row.items()} for row in result.trained.history]
    return {
        "index": result.name, "best": result.trained.best, "labelled": result.labelled, "queries": result.queries,
        "dev_queries": result.dev_queries, "rows": result.rows, "history": history,
    }  # fmt: skip


COMMANDS = (train,)
