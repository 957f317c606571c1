"""evaluate, fuse."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.terminal import note, say

if TYPE_CHECKING:
    from eval import Table

RUN_DEPTH = 1000


def evaluate(
    folder: Annotated[Path | None, typer.Argument(help="A collection's folder; left out when runs are given.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Queries and judgements: a BEIR or MS MARCO folder, or an ir_datasets id.")
    ] = None,
    split: Annotated[str, typer.Option(help="Of the dataset.")] = "test",
    index: Annotated[
        list[str] | None, typer.Option(help="An index of the collection; repeat to compare (default: all, and hybrid).")
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(help="A TREC run file; repeat to compare.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements for run files: TREC or BEIR format.")] = None,
    measure: Annotated[
        list[str] | None,
        typer.Option(
            "--measure", "-m", help="nDCG@10, R@100, MRR@10, MAP, P@5, Success@1, Judged@10, R(rel=2)@100 ..."
        ),
    ] = None,
    test: Annotated[str, typer.Option(help="Significance test: t-test or randomization.")] = "t-test",
    correction: Annotated[str, typer.Option(help="For several comparisons: holm or bonferroni.")] = "holm",
    baseline: Annotated[
        str | None, typer.Option(help="Compare all with this system only (default: every pair).")
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Documents ranked per query (default: the deepest cutoff measured, 300 or more).")
    ] = None,
    run_out: Annotated[
        Path | None, typer.Option(help="Write the run in TREC format (with several systems: FILE.NAME).")
    ] = None,
    per_query: Annotated[Path | None, typer.Option(help="Write every query's values as JSON.")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the table as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
) -> None:
    """Measure a collection on a dataset, or run files against judgements, side by side with significance tests.

    Examples:

        retrieval evaluate my.idx --dataset ./scifact --index bm25 --index hybrid --run-out runs.trec

        retrieval evaluate --run A.trec --run B.trec --qrels qrels.tsv --json table.json
    """
    import eval as evaluation
    from eval.measures import DEFAULT_MEASURES

    measures = tuple(dict.fromkeys(measure or DEFAULT_MEASURES))
    if folder is not None and dataset is not None and not run and qrels is None:
        data = evaluation.load(dataset, split)
        judgements, exclude_self, rules = data.qrels, data.exclude_self, data.rules()
        runs = _collection_runs(
            folder, data, index, (_deep_enough(measures) if depth is None else depth) + exclude_self
        )
    elif run and qrels is not None and folder is None and dataset is None:
        if index or run_out:
            raise typer.BadParameter("--index and --run-out are of a collection, not of run files")
        judgements, exclude_self, rules = evaluation.read_qrels(qrels), False, [f"Judgements: {qrels}"]
        runs = {name: evaluation.read_run(path) for name, path in _names(run).items()}
    else:
        raise typer.BadParameter("give either DIR and --dataset, or --run (once or more) and --qrels")
    found = {
        name: evaluation.evaluate(own, judgements, measures, exclude_self=exclude_self) for name, own in runs.items()
    }
    comparisons: list[Any] = []
    if len(found) > 1:
        for name in measures:
            comparisons += evaluation.compare(found, name, baseline=baseline, test=test, correction=correction)  # type: ignore[arg-type]
    table = evaluation.report(found, measures=measures, comparisons=comparisons, rules=rules)
    say(table.to_text())
    if comparisons:
        say(evaluation.comparison_table(comparisons).to_text())
    _write(table, as_json, markdown)
    if per_query:
        _write_json(per_query, {name: one.per_query for name, one in found.items()})
    if run_out:
        for name, own in runs.items():
            path = run_out if len(runs) == 1 else run_out.with_name(f"{run_out.name}.{name}")
            evaluation.write_run(own, path, tag=name)
            note(f"run written to {path}")


def _deep_enough(measures: Sequence[str]) -> int:
    """The depth at which a ranking is cut: what fusion looks at, or what a measure does if that is more.

    Deeper would change the ranking of a hybrid, and so the measure: min-max looks at the last score.
    """
    from retrieval.search import FUSION_DEPTH

    cutoffs = [re.search(r"@(\d+)$", name) for name in measures]
    return max(FUSION_DEPTH, *(int(found[1]) if found else RUN_DEPTH for found in cutoffs))


def _collection_runs(folder: Path, data: Any, index: list[str] | None, depth: int) -> dict[str, Any]:
    from retrieval import building

    with building.open(folder) as collection:
        if not any(id in collection for grades in data.qrels.values() for id in grades):
            note(f"warning: {folder} holds none of the documents that {data.name} judges; is it of another corpus?")
        names = index or [*collection.indexes, *(["hybrid"] if len(collection.indexes) > 1 else [])]
        return {name: collection.stage(name).run(data.queries, depth) for name in names}


def _names(paths: list[Path]) -> dict[str, Path]:
    """Short names of run files, or whole paths where those repeat."""
    short = [path.name.removesuffix(".gz").removesuffix(".trec") for path in paths]
    return dict(zip(short if len(set(short)) == len(short) else map(str, paths), paths, strict=True))


def fuse(
    runs: Annotated[list[Path], typer.Argument(help="TREC run files.")],
    out: Annotated[Path, typer.Option(help="The TREC run to write.")],
    method: Annotated[str, typer.Option(help="rrf, minmax, zscore or none (raw scores).")] = "minmax",
    weight: Annotated[list[float] | None, typer.Option(help="One per run, in their order; default 1 each.")] = None,
    k: Annotated[int, typer.Option("-k", help="Documents kept per query.")] = RUN_DEPTH,
) -> None:
    """Fuse runs into one.

    Example:

        retrieval fuse A.trec B.trec --method rrf --out C.trec
    """
    import eval as evaluation
    from retrieval.fusion import fuse_runs

    fused = fuse_runs([evaluation.read_run(path) for path in runs], method=method, weights=weight or None, k=k)
    evaluation.write_run(fused, out, tag=f"fused-{method}")
    note(f"{len(fused):,} queries fused by {method} from {len(runs)} runs, written to {out}")


def _write(table: Table, as_json: Path | None, markdown: Path | None) -> None:
    from eval.files import write_atomically

    for path, text in ((as_json, table.to_json()), (markdown, table.to_markdown())):
        if path:
            with write_atomically(path) as out:
                out.write(text)


def _write_json(path: Path, value: Any) -> None:
    import json

    from eval.files import write_atomically

    with write_atomically(path) as out:
        json.dump(value, out, indent=1)


COMMANDS = (evaluate, fuse)
