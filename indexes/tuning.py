"""Find the fastest search setting of an index that still finds enough, on sample queries.

    queries --+-- one half: every setting of the ladders -> recall and a first time
              |             those that reach the target race, round after round, and the fastest is chosen
              +-- the other half: does the chosen one reach the target here too? If not, a safer one is taken

What to try comes from the index (`Index.search_ladders`), what is right from an exact search. Recall and the settings
tried are the same in every run; times are not, so a setting must be 3% faster to take the place of a safer one.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from indexes.base import Hits, Index
from indexes.binary.base import BinaryIndex
from indexes.binary.hamming import HammingIndex
from indexes.binary.multi_index import MultiIndexHashing
from indexes.dense.base import DenseIndex
from indexes.dense.flat import FlatIndex
from indexes.errors import InvalidIds, InvalidParameter
from indexes.sparse.blockmax import BlockMaxIndex
from indexes.sparse.eager import EagerIndex

logger = logging.getLogger(__name__)

# those that answer exactly at the first value of each of their ladders
EXACT = (FlatIndex, EagerIndex, BlockMaxIndex, HammingIndex, MultiIndexHashing)
# parameter -> what `describe` calls the number beyond which more of it changes nothing
BOUNDS = {"nprobe": "nlist", "candidates": "n", "ef_search": "n", "search_window": "n"}
FEWEST = 20  # queries: below, a half of them says little about a recall
TIE = 1e-6  # scores closer than this share of the k-th best are equal to it
FASTER = 0.97  # times the time of a safer setting: what a riskier one must stay below
ABANDONED = 0.1  # a setting this far below the target is followed no further down the ladders
RACERS = 24  # settings that race, at most,
SLOWEST = 1.5  # and how many times the first time of the fastest one theirs may be
ROUNDS, SECONDS = 5, 1.0  # the race takes so many rounds at least, and more as long as it takes less than this


@dataclass(frozen=True, eq=False)
class Setting:
    """One setting of one index, as measured on the half of the queries on which the choice is made."""

    index: Index
    knobs: dict[str, Any]
    recall: float
    bytes: int
    times: list[float] = field(default_factory=list)
    """Microseconds per query, of each pass over the queries: the more, the further the setting came in the race."""

    @property
    def microseconds(self) -> float:
        """Per query, the median of the passes."""
        return median(self.times)


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose. `reached`: whether it found `target_recall` on both halves of the queries.

    `curve`: all settings that were tried, those of one index together, the safest first.
    """

    chosen: Setting
    held_out_recall: float
    target_recall: float
    k: int
    curve: list[Setting]

    @property
    def reached(self) -> bool:
        return min(self.chosen.recall, self.held_out_recall) >= self.target_recall

    def rows(self) -> list[dict[str, Any]]:
        """The curve as JSON values, for a table or a plot: kind, bytes, recall, microseconds, chosen, and knobs."""
        return [
            {
                "kind": setting.index.kind, "bytes": setting.bytes, "recall": setting.recall,
                "microseconds": setting.microseconds, "chosen": setting is self.chosen, **setting.knobs,
            }
            for setting in self.curve
        ]  # fmt: skip


def tune(
    index: Index | Sequence[Index], queries: Any, k: int = 10, *, target_recall: float = 0.99,
    exact: Index | Hits | None = None, budget_bytes: int | None = None, threads: int | None = 1,
) -> Tuned:  # fmt: skip
    """Choose the fastest setting whose recall at `k` is at least `target_recall`, and make it the index's default.

    `index`: one that is built, or several over the same ids, of which one is chosen with its setting. Only the chosen
    one is changed; `save` keeps the change, `describe` shows it.
    `queries`: as for `search`, (nq, d) or sparse (nq, V), like those to come. Every other one is held out to confirm
    the choice. A few hundred are good; those that no document answers do not count, and 20 must remain.
    `exact`: what is right: an index over the same ids that answers exactly, or its `Hits` for these queries (k columns
    or more: documents as good as the k-th count only where they are listed). By default the first given index that is
    exact itself, or else one made for the time being of the vectors that a given index holds beside its codes or lists.
    `budget_bytes`: indexes whose `describe()["bytes"]` are more are left out.
    `threads`: as for `search`, while times are taken; by default 1, which disturbs them least.

    If no setting reaches the target on the first half, the most accurate one is chosen; if none of those that reach it
    there does so on the other half, the safest of them. Both are logged as a warning, and `Tuned.reached` is False.
    Raises `InvalidParameter` (too few queries, no exact answers to be had, all indexes over the budget, a target that
    is not in (0, 1]), `InvalidIds` where indexes hold different ids, and what `search` raises; nothing is changed then.
    """
    if not 0 < target_recall <= 1:
        raise InvalidParameter(f"target_recall is {target_recall!r}; it must be above 0 and at most 1")
    indexes = [index] if isinstance(index, Index) else list(index)
    sizes = _within(indexes, budget_bytes)
    truth = exact if exact is not None else _twin(indexes)
    for other in [*indexes, truth]:
        if isinstance(other, Index) and not np.array_equal(np.sort(other.ids), np.sort(indexes[0].ids)):
            raise InvalidIds(f"{other.kind} ({len(other)} rows) does not hold the ids of {indexes[0].kind}")
    whole = _sampled(queries, k, truth, threads)
    sample, held_out = whole.part(slice(0, None, 2)), whole.part(slice(1, None, 2))

    curve = [setting for one in indexes if one in sizes for setting in _tried(one, sizes[one], sample, target_recall)]
    bar = min(target_recall, max(setting.recall for setting in curve))
    safest_first = sorted((s for s in curve if s.recall >= bar), key=lambda s: -s.recall)
    chosen = _fastest(safest_first, sample)
    confirmed = held_out.recall(chosen.index, chosen.knobs)
    if bar == target_recall and confirmed < target_recall:
        safer = safest_first[: safest_first.index(chosen)]
        again = {id(s): held_out.recall(s.index, s.knobs) for s in safer}
        safer = [s for s in safer if again[id(s)] >= target_recall]
        chosen = _fastest(safer, sample) if safer else safest_first[0]
        confirmed = again.get(id(chosen), confirmed)

    tuned = Tuned(chosen, confirmed, target_recall, k, curve)
    if not tuned.reached:
        logger.warning(
            "no setting reaches recall@%d of %g: the best one, %s of %s, has %.4f, and %.4f on held-out queries",
            k, target_recall, chosen.knobs, chosen.index.kind, chosen.recall, confirmed,
        )  # fmt: skip
    for name, value in chosen.knobs.items():
        setattr(chosen.index, name, value)
    return tuned


# -- what is right -----------------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """Queries, and for each the ids that are right: those that score as much as the k-th best, or more."""

    queries: Any
    right: list[np.ndarray]
    k: int
    threads: int | None

    def part(self, which: slice | np.ndarray) -> _Sample:
        rows = np.arange(len(self.right))[which]
        return self._replace(queries=self.queries[rows], right=[self.right[row] for row in rows])

    def search(self, index: Index, knobs: dict[str, Any]) -> tuple[np.ndarray, float]:
        """The ids found, int64 (nq, k), and the microseconds per query that it took."""
        start = perf_counter()
        hits = index.search(self.queries, self.k, threads=self.threads, **knobs)
        return hits.ids, (perf_counter() - start) / len(self.right) * 1e6

    def share(self, found: np.ndarray) -> float:
        """The mean share of right ids among the first k, or among as many as there are."""
        pairs = zip(found, self.right, strict=True)
        mean = np.mean([np.isin(ids, right).sum() / min(self.k, len(right)) for ids, right in pairs])
        return round(float(mean), 9)  # so that 0.99 of them is 0.99

    def recall(self, index: Index, knobs: dict[str, Any]) -> float:
        return self.share(self.search(index, knobs)[0])


def _sampled(queries: Any, k: int, truth: Index | Hits, threads: int | None) -> _Sample:
    """The queries that have an answer, with what is right."""
    rows = queries.tocsr() if hasattr(queries, "tocsr") else np.atleast_2d(np.asarray(queries))
    if isinstance(truth, Hits):
        if truth.ids.shape[0] != rows.shape[0] or truth.ids.shape[1] < k:
            raise InvalidParameter(f"exact holds hits {truth.ids.shape}; they must be ({rows.shape[0]}, {k}) or wider")
        right, _ = _best(truth, k)
    else:
        right = _searched(truth, rows, k)
    answered = np.array([len(ids) > 0 for ids in right], np.bool_)
    if answered.sum() < FEWEST:
        raise InvalidParameter(
            f"queries are {rows.shape[0]}, of which {answered.sum()} have an answer; at least {FEWEST} must have one"
        )
    return _Sample(rows, right, k, threads).part(answered)


def _searched(exact: Index, queries: Any, k: int) -> list[np.ndarray]:
    """What is right for each query. Those for which more may score as much as the k-th are searched again, deeper."""
    safest = {name: ladder[0] for name, ladder in exact.search_ladders.items()}
    right: list[np.ndarray] = [np.empty(0, np.int64)] * queries.shape[0]
    rows, depth = np.arange(queries.shape[0]), 2 * k
    while len(rows):
        found, whole = _best(exact.search(queries[rows], depth, **safest), k)
        for row, ids in zip(rows, found, strict=True):
            right[row] = ids
        rows, depth = rows[~whole & (depth < len(exact))], 2 * depth
    return right


def _best(hits: Hits, k: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The ids that score as much as the k-th or more, and bool (nq,): whether the ranking goes on below them."""
    kth = hits.scores[:, k - 1]
    with np.errstate(invalid="ignore"):
        bars = np.where(np.isfinite(kth), kth - TIE * np.abs(kth), -np.inf)
    good = (hits.ids >= 0) & (hits.scores >= bars[:, None])
    return [ids[kept] for ids, kept in zip(hits.ids, good, strict=True)], ~good[:, -1]


def _twin(indexes: Sequence[Index]) -> Index:
    """An index over the same rows that answers exactly."""
    for index in indexes:
        if isinstance(index, EXACT):
            return index
    for index in indexes:
        vectors = getattr(index, "vectors", None)
        if hasattr(vectors, "tocsr"):
            return EagerIndex().add(vectors, index.ids)
        if isinstance(index, DenseIndex) and vectors is not None and len(vectors):
            return FlatIndex(metric=index.metric, dtype=vectors.dtype.name).add(vectors, index.ids)
        if isinstance(index, BinaryIndex):
            return HammingIndex().add(index.codes, index.ids)
    kinds = ", ".join(index.kind for index in indexes)
    raise InvalidParameter(f"exact is None, and {kinds} holds no vectors to search; give an exact index or its Hits")


# -- what is fast ------------------------------------------------------------------------------------------------------


def _within(indexes: Sequence[Index], budget_bytes: int | None) -> dict[Index, int]:
    """The indexes that fit the budget, with their bytes."""
    sizes = {index: int(index.describe()["bytes"]) for index in indexes}
    if not sizes:
        raise InvalidParameter("index is an empty list; give one index or more")
    if budget_bytes is not None and min(sizes.values()) > budget_bytes:
        raise InvalidParameter(f"budget_bytes is {budget_bytes}; the smallest index has {min(sizes.values())} bytes")
    return {index: size for index, size in sizes.items() if budget_bytes is None or size <= budget_bytes}


def _tried(index: Index, size: int, sample: _Sample, target: float) -> list[Setting]:
    """Every setting of the ladders, and the index's own, but for those beyond one that missed the target by far."""
    ladders = _ladders(index)
    sample.search(index, {})  # what a first search builds, compiles or loads is no setting's fault
    tried: list[Setting] = []

    def measure(knobs: dict[str, Any]) -> float:
        found, time = sample.search(index, knobs)
        tried.append(Setting(index, knobs, sample.share(found), size, [time]))
        return tried[-1].recall

    own = {name: getattr(index, name) for name in ladders}
    if any(own[name] not in ladder for name, ladder in ladders.items()):
        measure(own)
    abandoned: list[tuple[int, ...]] = []
    for steps in itertools.product(*(range(len(ladder)) for ladder in ladders.values())):
        if any(all(a <= b for a, b in zip(lost, steps, strict=True)) for lost in abandoned):
            continue
        recall = measure({name: ladder[step] for (name, ladder), step in zip(ladders.items(), steps, strict=True)})
        if recall < min(target, max(setting.recall for setting in tried)) - ABANDONED:
            abandoned.append(steps)
    return tried


def _ladders(index: Index) -> dict[str, list[Any]]:
    """The index's ladders without the values that do the same as a smaller one: more lists than it has, or rows."""
    described = index.describe()
    ladders = {}
    for name, ladder in index.search_ladders.items():
        bound = described.get(BOUNDS.get(name, ""))
        enough = [] if bound is None else sorted(value for value in ladder if value is not None and value >= bound)
        ladders[name] = [value for value in ladder if value not in enough[1:]]
    return ladders


def _fastest(safest_first: Sequence[Setting], sample: _Sample) -> Setting:
    """The winner of a race between the settings that were fast at first."""
    if len(safest_first) == 1:
        return safest_first[0]

    def one_round(racers: Sequence[Setting]) -> None:
        for setting in racers:
            setting.times.append(sample.search(setting.index, setting.knobs)[1])

    one_round(safest_first)  # one time alone may have been bad luck
    times = sorted(min(setting.times) for setting in safest_first)
    limit = min(SLOWEST * times[0], times[:RACERS][-1])
    racers = [setting for setting in safest_first if min(setting.times) <= limit]
    seconds = sum(min(setting.times) for setting in racers) * len(sample.right) / 1e6
    rounds = max(ROUNDS, min(10 * ROUNDS, int(SECONDS / max(seconds, 1e-9))))
    for _ in range(rounds):
        one_round(racers)
    chosen = racers[0]
    for setting in racers[1:]:
        # compared within each round: what else the machine does slows all of them down
        pairs = zip(setting.times[-rounds:], chosen.times[-rounds:], strict=True)
        if median(own - FASTER * other for own, other in pairs) < 0:
            chosen = setting
    return chosen
