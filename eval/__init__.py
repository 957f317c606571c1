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
    from eval.datasets import Dataset, load
    from eval.measures import Evaluation, evaluate
    from eval.significance import Comparison, compare
    from eval.tables import Table, comparison_table, report
    from eval.trec import read_qrels, read_run, write_run

__all__ = [
    "Comparison",
    "Dataset",
    "Evaluation",
    "Table",
    "compare",
    "comparison_table",
    "evaluate",
    "load",
    "read_qrels",
    "read_run",
    "report",
    "write_run",
]

_HOMES = {
    "datasets": ("Dataset", "load"),
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
