"""Evaluation of retrieval: queries + judgements + runs -> numbers, significance tests, reports.

    from eval import compare, evaluate, load, read_run, report

    dataset = load("scifact")
    results = {name: evaluate(read_run(f"{name}.trec"), dataset.qrels) for name in ("bm25", "dense")}
    print(report(results, comparisons=compare(results, "nDCG@10"), rules=dataset.rules()).to_text())

Names are imported when first used, so that `import eval` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.ann import approximation_effect, epsilon_recall, knn_recall, latency
    from eval.ann_benchmarks import read_ann_benchmarks
    from eval.datasets import Dataset, load
    from eval.dimensionality import lid, lid_summary
    from eval.measures import Evaluation, evaluate
    from eval.significance import Comparison, compare
    from eval.tables import Table, comparison_table, report
    from eval.trec import read_qrels, read_run, write_run

__all__ = [
    "Comparison",
    "Dataset",
    "Evaluation",
    "Table",
    "approximation_effect",
    "compare",
    "comparison_table",
    "epsilon_recall",
    "evaluate",
    "knn_recall",
    "latency",
    "lid",
    "lid_summary",
    "load",
    "read_ann_benchmarks",
    "read_qrels",
    "read_run",
    "report",
    "write_run",
]

_HOMES = {
    "ann": ("approximation_effect", "epsilon_recall", "knn_recall", "latency"),
    "ann_benchmarks": ("read_ann_benchmarks",),
    "datasets": ("Dataset", "load"),
    "dimensionality": ("lid", "lid_summary"),
    "measures": ("Evaluation", "evaluate"),
    "significance": ("Comparison", "compare"),
    "tables": ("Table", "comparison_table", "report"),
    "trec": ("read_qrels", "read_run", "write_run"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
