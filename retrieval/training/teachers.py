"""Pseudo-labels: what a teacher scores the positive of a query, and the negatives mined for it.

GPL (Wang et al., "GPL: Generative Pseudo Labeling for Unsupervised Domain Adaptation of Dense Retrieval", NAACL 2022):
a query made from a document, a document mined for it, and the margin between both by a cross-encoder. Margins say what
labels cannot: that a mined negative is as good as the positive. `losses.margin_mse` learns them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retrieval.errors import TrainingError
from retrieval.retriever import Progress
from retrieval.search import Scorer
from retrieval.training.data import TrainingData

Teacher = Callable[[TrainingData, int, np.ndarray], np.ndarray]
"""Scores float32 (m,) of a query, by its row, with documents by their rows int64 (m,); higher is better."""


def by_embedding(data: TrainingData, query: int, rows: np.ndarray) -> np.ndarray:
    """The teacher that costs nothing: inner products of the float vectors."""
    return data.documents[rows] @ data.queries[query]


def by_cross_encoder(scorer: Scorer, contents: Callable[[np.ndarray], Sequence[str]]) -> Teacher:
    """A teacher that reads query and document together, as `retrieval.encoders.cross_encoder.CrossEncoder` does.

    `contents`: rows int64 (m,) -> what is read of these documents, title and text.
    """

    def scores(data: TrainingData, query: int, rows: np.ndarray) -> np.ndarray:
        if data.texts is None:
            raise TrainingError("queries have no texts, which a cross-encoder reads")
        return scorer.score(data.texts[query], contents(rows))

    return scores


def taught(data: TrainingData, teacher: Teacher = by_embedding, *, progress: Progress | None = None) -> TrainingData:
    """The same data with `teacher`: scores of each query's first positive and of its negatives.

    Raises `TrainingError` when data lack positives or negatives, or when a query has no positive.
    """
    if data.positives is None or data.negatives is None:
        lacking = "positives" if data.positives is None else "negatives"
        raise TrainingError(f"the data have no {lacking}; margins are between a positive and mined negatives")
    nq, m = data.negatives.shape
    given = np.full((nq, 1 + m), -np.inf, np.float32)
    for query, (relevant, negatives) in enumerate(zip(data.positives, data.negatives, strict=True)):
        if not len(relevant):
            raise TrainingError(f"query {query} has no positive; margins are between a positive and mined negatives")
        candidates = np.concatenate([relevant[:1], negatives])
        given[query, candidates >= 0] = teacher(data, query, candidates[candidates >= 0])
        if progress:
            progress("scoring by the teacher", query + 1, nq)
    return replace(data, teacher=given)
