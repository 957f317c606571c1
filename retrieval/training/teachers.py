"""Pseudo-labels: what a teacher scores the positive of a query, and the negatives mined for it.

GPL (Wang et al., "GPL: Generative Pseudo Labeling for Unsupervised Domain Adaptation of Dense Retrieval", NAACL 2022):
a query made from a document, a document mined for it, and the margin between both by a cross-encoder. Margins say what
labels cannot: that a mined negative is as good as the positive. The methods with a parameter `gpl` learn them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from retrieval.errors import TrainingError
from retrieval.retriever import Progress
from retrieval.search import Scorer
from retrieval.training.data import TrainingData

EMBEDDING = "embedding"  # the name of the teacher that costs nothing; other names are those of cross-encoders

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

    They are multiplied by one number, so that their margins are as large as those of the float vectors' inner products
    (root mean square): a cross-encoder tells by 10 what cosines tell by 0.1, and codes are to keep these.
    Raises `TrainingError` when data lack positives or negatives, or when a query has no positive.
    """
    if data.positives is None or data.negatives is None:
        lacking = "positives" if data.positives is None else "negatives"
        raise TrainingError(f"the data have no {lacking}; margins are between a positive and mined negatives")
    nq, m = data.negatives.shape
    every = candidates(data, np.arange(nq))
    given, own = np.full((2, nq, 1 + m), -np.inf, np.float32)
    for query, rows in enumerate(every):
        present = rows >= 0
        given[query, present] = teacher(data, query, rows[present])
        own[query, present] = by_embedding(data, query, rows[present])
        if progress:
            progress("scoring by the teacher", query + 1, nq)
    there = every[:, 1:] >= 0
    wanted, found = (float(np.sqrt(np.square((s[:, :1] - s[:, 1:])[there]).sum())) for s in (own, given))
    return replace(data, teacher=given * np.float32(wanted / found if wanted > 0 and found > 0 else 1))


def candidates(data: TrainingData, queries: np.ndarray) -> np.ndarray:
    """Rows int64 (B, 1 + m) of documents: the first positive of each query, by its row, then its negatives, or -1.

    Raises `TrainingError` when one has no positive.
    """
    assert data.positives is not None and data.negatives is not None
    for query in queries:
        if not len(data.positives[query]):
            raise TrainingError(f"query {query} has no positive; margins are between a positive and mined negatives")
    firsts = np.array([data.positives[query][0] for query in queries], np.int64)
    return np.concatenate([firsts[:, None], data.negatives[queries]], axis=1)
