"""Effectiveness measures, computed by ir_measures (MacAvaney, Macdonald, Ounis 2022) under this package's rules.

The rules: one tie order for every measure (`eval.trec.ranking`), averages over all judged queries, and, on request,
no document that is its own query.
"""

from __future__ import annotations

import ast
import logging
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.trec import Qrels, Run, ranking

if TYPE_CHECKING:
    from ir_measures import Measure

logger = logging.getLogger(__name__)

DEFAULT_MEASURES = ("nDCG@10", "R@100", "MRR@10")
SELF_RULE = "A document whose id equals the query's id is dropped from the ranking before it is measured."

_LARGEST_GRADE = 100_000
_EXAMPLES = "nDCG@10, R@100, MRR@10, MAP, P@5, Success@1, Judged@10, R(rel=2)@100"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: values by the name under which a measure was asked for.

    `queries`: ids of all judged queries, sorted. `per_query`: measure -> query id -> value. `mean`: measure -> mean
    over `queries`. `exclude_self`: whether documents with the id of their query were dropped.
    """

    queries: tuple[str, ...]
    per_query: dict[str, dict[str, float]]
    mean: dict[str, float]
    exclude_self: bool = False

    def values(self, measure: str) -> list[float]:
        """The values of one measure, in the order of `queries`; ValueError for a measure that was not computed."""
        if measure not in self.per_query:
            raise ValueError(f"measure {measure!r} was not computed; there are {', '.join(self.per_query)}")
        return [self.per_query[measure][query] for query in self.queries]


def parse(names: Sequence[str]) -> tuple[Measure, ...]:
    """Measures of ir_measures from their names, such as "nDCG@10", "MRR@10" (an alias of RR), "R(rel=2)@100".

    Raises ValueError for a name, parameter or cutoff that does not exist or that no installed package computes.
    """
    if isinstance(names, str):
        raise ValueError(f"measures must be a sequence of names such as [{names!r}], got the string {names!r}")
    return tuple(_parse_one(name) for name in names)


def _parse_one(name: str) -> Measure:
    import ir_measures

    # ir_measures' own parser uses parts of ast that Python 3.14 removed.
    try:
        node = ast.parse(name.strip(), mode="eval").body
        parameters: dict[str, Any] = {}
        cutoff = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            cutoff = ast.literal_eval(node.right)
            node = node.left
        if isinstance(node, ast.Call) and not node.args:
            parameters = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            node = node.func
        if not isinstance(node, ast.Name):
            raise ValueError
    except (SyntaxError, ValueError, TypeError, AttributeError):
        form = "Name(parameter=value)@cutoff"
        raise ValueError(f"cannot read the measure {name!r}: not of the form {form}; examples: {_EXAMPLES}") from None
    base = ir_measures.measures.registry.get(node.id)
    if base is None:
        raise ValueError(f"unknown measure {name!r}; examples: {_EXAMPLES}")
    if cutoff is not None:
        parameters[base.AT_PARAM] = cutoff
    measure: Measure = base(**parameters)
    _check_parameters(name, measure)
    return measure


def _check_parameters(name: str, measure: Measure) -> None:
    import ir_measures

    allowed: dict[str, Any] = measure.SUPPORTED_PARAMS
    pipeline: Any = ir_measures.DefaultPipeline
    for parameter in measure.params:
        if parameter not in allowed:
            takes = ", ".join(allowed) or "none"
            raise ValueError(f"measure {name!r}: unknown parameter {parameter!r}; it takes {takes}")
    for parameter, info in allowed.items():
        value = measure.params.get(parameter)
        if value is None and info.required:
            raise ValueError(f"measure {name!r} needs {parameter}, as in {measure.NAME}@10")
        valid = value is None or info.validate(value)
        if valid and parameter == "cutoff" and value is not None:
            valid = value is not True and value >= 1
        if not valid:
            raise ValueError(f"measure {name!r}: {parameter}={value!r} is not allowed ({info.desc})")
    gains = measure.params.get("gains", {})
    if any(type(gain) is not int or not 0 <= gain <= _LARGEST_GRADE for gain in gains.values()):
        raise ValueError(f"measure {name!r}: gains must be integers from 0 to {_LARGEST_GRADE}, got {gains}")
    if isinstance(measure.aggregator(), ir_measures.SumAgg):
        raise ValueError(f"{name!r} is a count, not a measure that is averaged over queries; examples: {_EXAMPLES}")
    if not pipeline.supports(measure):
        raise ValueError(f"no installed package computes {name!r}; examples that always work: {_EXAMPLES}")


def evaluate(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str] = DEFAULT_MEASURES,
    *,
    exclude_self: bool = False,
) -> Evaluation:
    """Measure a run against judgements; neither is changed.

    Averages are over all queries of `qrels`: one that the run does not answer scores 0 (a warning is logged). Queries
    of the run without judgements are ignored. Ties follow `eval.trec.ranking`, whatever the measure. With
    `exclude_self`, a document whose id equals the query's is dropped first (ArguAna, Quora: queries are documents).

    Raises ValueError for empty qrels, grades above 100,000, scores that are not finite, unknown measures; TypeError
    for ids that are not strings or grades that are not integers.
    """
    import ir_measures

    parsed = dict(zip(measures, parse(measures), strict=True))
    judgements = _checked(qrels)
    ranked = _decreasing_scores(run, judgements, exclude_self)
    queries = tuple(sorted(judgements))
    per_query: dict[str, dict[str, float]] = {}
    for name, measure in parsed.items():
        values = dict.fromkeys(queries, float(measure.DEFAULT))
        # One call for each measure: within one call, ir_measures lets measures share an invocation of trec_eval, so
        # that nDCG with and without custom gains overwrite each other, in an order that depends on the hash seed.
        for metric in ir_measures.iter_calc([measure], judgements, ranked):
            values[metric.query_id] = float(metric.value)
        per_query[name] = values
    mean = {name: math.fsum(values.values()) / len(queries) for name, values in per_query.items()}
    return Evaluation(queries, per_query, mean, exclude_self)


def _checked(qrels: Mapping[str, Mapping[str, int]]) -> Qrels:
    """A copy of the judgements that trec_eval can take.

    It treats all grades below 0 alike, but crashes or hangs on a query that has no others: there they become 0, which
    is no more relevant. It takes memory and time in proportion to the highest grade, hence `_LARGEST_GRADE`.
    """
    if not qrels:
        raise ValueError("qrels are empty: there is nothing to measure against")
    checked: Qrels = {}
    for query, grades in qrels.items():
        for word in (query, *grades):
            if not isinstance(word, str):
                raise TypeError(f"qrels, query {query!r}: ids must be strings, got {word!r}")
        try:
            exact = {document: operator.index(grade) for document, grade in grades.items()}
        except TypeError:
            seen = list(grades.values())[:10]
            raise TypeError(f"qrels, query {query!r}: grades must be integers, got {seen}") from None
        highest = max(exact.values(), default=0)
        if highest > _LARGEST_GRADE:
            raise ValueError(f"qrels, query {query!r}: grades must be at most {_LARGEST_GRADE}, got {highest}")
        lowest = 0 if highest < 0 else -1
        checked[query] = {document: max(grade, lowest) for document, grade in exact.items()}
    return checked


def _decreasing_scores(run: Mapping[str, Mapping[str, float]], qrels: Qrels, exclude_self: bool) -> Run:
    """Judged queries with results, their rankings written as strictly decreasing scores that leave no tie to break."""
    ranked: Run = {}
    for query, scores in run.items():
        if query not in qrels:
            continue
        try:
            documents = ranking(scores)
        except (ValueError, TypeError) as error:
            raise type(error)(f"run, query {query!r}: {error}") from None
        if exclude_self:
            documents = [document for document in documents if document != query]
        if documents:
            # Positive, because one provider (Compat) takes a document that was not retrieved for one scored 0.
            ranked[query] = {document: float(len(documents) - i) for i, document in enumerate(documents)}
    unjudged = sum(query not in qrels for query in run)
    if unjudged:
        logger.info("%d queries of the run have no judgements and are ignored", unjudged)
    if len(ranked) < len(qrels):
        logger.warning("%d of %d judged queries have no results and score 0", len(qrels) - len(ranked), len(qrels))
    return ranked
