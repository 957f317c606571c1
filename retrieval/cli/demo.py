"""demo: a real test collection, indexed, searched and evaluated."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.search import show
from retrieval.cli.terminal import bold, note, progress, say

if TYPE_CHECKING:
    from retrieval.collection import Collection

CRANFIELD = Path(__file__).parent.parent / "cranfield"
QUESTIONS = ("heat transfer in hypersonic flow", "flutter of thin panels", "why do wings stall")


def demo(
    to: Annotated[
        Path | None, typer.Option(help="Keep the collection in this new folder (default: a temporary one).")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Index the Cranfield collection (1,400 abstracts on aerodynamics), search it, evaluate it. No download, no torch.

    Example:

        retrieval demo
    """
    from retrieval import building

    with _folder(to) as folder:
        note("Cranfield: 1,400 abstracts, 225 queries with graded judgements (Cleverdon, 1967).")
        started = time.perf_counter()
        with progress(quiet) as report:
            collection = building.index(CRANFIELD, folder, progress=report)
        note(f"indexed by BM25 and by latent semantic analysis in {time.perf_counter() - started:.1f} s\n")
        with collection:
            for question in QUESTIONS:
                say(bold(f"? {question}"))
                show(collection, question, collection.search(question, k=3))
                say()
            say(_table(collection))
    if to is not None:
        say(f'kept: try  retrieval search {to} "boundary layer" --explain')


@contextmanager
def _folder(to: Path | None) -> Iterator[Path]:
    if to is not None:
        yield to
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "cranfield.idx"


def _table(collection: Collection) -> str:
    import eval as evaluation
    from eval.measures import DEFAULT_MEASURES
    from retrieval.search import FUSION_DEPTH

    data = evaluation.load(CRANFIELD)
    info = collection.info()["indexes"]
    sizes = {name: part["index"]["bytes"] for name, part in info.items()}
    sizes["hybrid"] = sum(sizes.values())
    found, speeds = {}, {}
    for name in ("bm25", "dense", "hybrid"):
        stage = collection.stage(name)
        found[name] = evaluation.evaluate(stage.run(data.queries, FUSION_DEPTH), data.qrels)
        speeds[name] = _queries_per_second(stage, list(data.queries.values()))
    comparisons = [c for measure in DEFAULT_MEASURES for c in evaluation.compare(found, measure)]
    report = evaluation.report(found, comparisons=comparisons, rules=data.rules())
    extra = {name: [sizes[name], round(speeds[name])] for name in found}
    rows = [[*row, *own] for row, own in zip(report.rows, extra.values(), strict=True)]
    notes = [
        *report.notes,
        "The hybrid weighs BM25 twice as much as LSA, on every collection; nothing was tuned on this one.",
        "queries/s: one query per call, text in to text out, this process on this machine.",
    ]
    return evaluation.Table([*report.columns, "index bytes", "queries/s"], rows, notes=notes).to_text()


def _queries_per_second(stage: Any, queries: list[str]) -> float:
    times = []
    for query in queries:
        started = time.perf_counter()
        stage.search(query, 10)
        times.append(time.perf_counter() - started)
    return 1 / sorted(times)[len(times) // 2]


COMMANDS = (demo,)
