"""Paired tests between systems, and corrections for making many of them.

Smucker, Allan, Carterette: "A comparison of statistical significance tests for information retrieval evaluation"
(CIKM 2007) recommends the two tests that are here, the paired t-test and the randomization (sign-flip) test.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.measures import Evaluation

Test = Literal["t-test", "randomization"]
Correction = Literal["holm", "bonferroni"]

EXACT_UP_TO = 13
"""So many differing queries give fewer sign patterns than the default number of permutations: all are enumerated."""
_BATCH_BYTES = 1 << 25


@dataclass(frozen=True)
class Comparison:
    """System `a` against system `b` on one measure.

    `difference`: mean of a minus mean of b. `p`: of the test alone; `p_corrected`: for the comparisons made together.
    `wins`, `ties`, `losses`: queries on which a is better, equal, worse.
    """

    measure: str
    a: str
    b: str
    difference: float
    p: float
    p_corrected: float
    wins: int
    ties: int
    losses: int
    test: str
    correction: str


def paired_t_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of Student's t-test on the differences of paired values (n,).

    1.0 where nothing can be told apart: equal values, or one pair. Differences that are all the same and not 0 have
    no variance, and p is 0, as in scipy.
    """
    from scipy.special import stdtr

    differences = _differences(a, b)
    n = len(differences)
    if n < 2 or not differences.any():
        return 1.0
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    if error == 0.0:
        return 0.0
    return float(2.0 * stdtr(n - 1, -abs(float(differences.mean())) / error))


def randomization_test(a: ArrayLike, b: ArrayLike, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Two-sided p of Fisher's sign-flip test on the sum of the differences of paired values (n,).

    With at most `EXACT_UP_TO` pairs that differ, all sign patterns are enumerated and p is exact. Otherwise p is
    (1 + hits) / (1 + permutations), which is never 0 and never too small on average (Phipson, Smyth 2010); the same
    seed gives the same p. Equal values: 1.0.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    differences = _differences(a, b)
    differences = differences[differences != 0]  # flipping the sign of 0 changes no sum
    n = len(differences)
    # Sums of the same terms in another order may differ in the last digits: they count as equal.
    threshold = abs(float(differences.sum())) - 1e-12 * float(np.abs(differences).sum())
    if n <= EXACT_UP_TO:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * patterns) @ differences) >= threshold))
    generator = np.random.default_rng(seed)
    batch = max(1, _BATCH_BYTES // (8 * n))
    hits = 0
    for start in range(0, permutations, batch):
        flips = generator.integers(0, 2, size=(min(batch, permutations - start), n), dtype=np.int8)
        hits += int(np.count_nonzero(np.abs((1.0 - 2.0 * flips) @ differences) >= threshold))
    return (1 + hits) / (1 + permutations)


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"a and b must pair up, at least one value each, got shapes {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("a and b must be finite")
    return first - second


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """Each p times the number of tests, at most 1."""
    return [min(1.0, p * len(p_values)) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): as safe as Bonferroni's, and never weaker."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = largest
    return adjusted


_CORRECTIONS: dict[str, Callable[[Sequence[float]], list[float]]] = {"holm": holm, "bonferroni": bonferroni}
_TESTS: dict[str, Callable[..., float]] = {"t-test": paired_t_test, "randomization": randomization_test}


def compare(
    evaluations: Mapping[str, Evaluation],
    measure: str,
    *,
    baseline: str | None = None,
    test: Test = "t-test",
    correction: Correction = "holm",
    permutations: int = 10_000,
    seed: int = 0,
) -> list[Comparison]:
    """Test every system against `baseline`, or, when that is None, every pair of systems, on one measure.

    The correction is over the comparisons returned. `permutations` and `seed` are those of the randomization test.
    Raises ValueError for fewer than two systems, an unknown baseline, measure, test or correction, and systems
    measured on different queries.
    """
    for argument, value, allowed in (("test", test, _TESTS), ("correction", correction, _CORRECTIONS)):
        if value not in allowed:
            raise ValueError(f"{argument} must be one of {', '.join(allowed)}, got {value!r}")
    if len(evaluations) < 2:
        raise ValueError(f"a comparison takes at least two systems, got {', '.join(evaluations) or 'none'}")
    if baseline is not None and baseline not in evaluations:
        raise ValueError(f"baseline must be one of {', '.join(evaluations)}, got {baseline!r}")
    if len({evaluation.queries for evaluation in evaluations.values()}) > 1:
        sizes = ", ".join(f"{name}: {len(evaluation.queries)}" for name, evaluation in evaluations.items())
        raise ValueError(f"systems measured on different queries cannot be compared ({sizes})")

    p_value = partial(randomization_test, permutations=permutations, seed=seed)
    run_test = p_value if test == "randomization" else paired_t_test
    values = {name: np.array(evaluation.values(measure)) for name, evaluation in evaluations.items()}
    if baseline is None:
        pairs = list(itertools.combinations(evaluations, 2))
    else:
        pairs = [(name, baseline) for name in evaluations if name != baseline]
    p_values = [run_test(values[a], values[b]) for a, b in pairs]
    return [
        Comparison(
            measure=measure,
            a=a,
            b=b,
            difference=evaluations[a].mean[measure] - evaluations[b].mean[measure],
            p=p,
            p_corrected=p_corrected,
            wins=int(np.count_nonzero(values[a] > values[b])),
            ties=int(np.count_nonzero(values[a] == values[b])),
            losses=int(np.count_nonzero(values[a] < values[b])),
            test=test,
            correction=correction,
        )
        for (a, b), p, p_corrected in zip(pairs, p_values, _CORRECTIONS[correction](p_values), strict=True)
    ]
