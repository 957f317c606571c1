"""Hard negatives: documents that an index ranks high for a query, and that nobody called relevant.

    found = rows_found(collection_retriever, texts, keys, 100)        # of any index of ours
    negatives = mined([found, found_by_another], positives, count=50)
    data = TrainingData(documents, queries, positives, negatives=negatives)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.errors import TrainingError
from retrieval.retriever import Retriever


def rows_found(retriever: Retriever, texts: Sequence[str], keys: np.ndarray, k: int) -> np.ndarray:
    """Rows int64 (nq, k) that a retriever ranks first for queries, best first, -1 for none.

    `keys`: int64 (n,), ascending, the key of each row. Documents that the retriever has and `keys` lack are left out.
    """
    if not len(retriever.index):
        return np.full((len(texts), k), -1, np.int64)
    found = retriever.search(texts, k).ids
    rows = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
    return np.where((found >= 0) & (keys[rows] == found), rows, -1)


def mined(found: Sequence[np.ndarray], positives: Sequence[np.ndarray], count: int, *, skip: int = 0) -> np.ndarray:
    """Rows int64 (nq, count) of the best documents that are no positives, each once, -1 where there are fewer.

    `found`: one array of rows int64 (nq, m), best first, for each index that was asked; all their first places come
    before all second ones (GPL, Wang et al., NAACL 2022, takes negatives of several retrievers, as one alone lacks
    variety). `skip`: so many first places of each that are left out, since what is found first and judged by nobody
    is often relevant. Raises `TrainingError`.
    """
    if count < 1 or skip < 0:
        raise TrainingError(f"count is {count}, skip {skip}; at least 1 and 0")
    if not found or any(rows.ndim != 2 or len(rows) != len(positives) for rows in found):
        shapes = ", ".join(str(rows.shape) for rows in found) or "none"
        raise TrainingError(f"found are {shapes}; one or more are needed, (nq, m) for {len(positives)} queries")
    negatives = np.full((len(positives), count), -1, np.int64)
    for query, relevant in enumerate(positives):
        lists = [rows[query][rows[query] >= 0][skip:].tolist() for rows in found]
        places = range(max(map(len, lists)))
        turns = dict.fromkeys(own[place] for place in places for own in lists if place < len(own))
        known = set(np.asarray(relevant).tolist())
        kept = [row for row in turns if row not in known][:count]
        negatives[query, : len(kept)] = kept
    return negatives


def round_trip(found: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """bool (nq,): whether the document that a query was made from, `sources` int64 (nq,), is among those found for it.

    Promptagator (Dai et al., ICLR 2023): queries that do not lead back to their document are about something else, or
    about nothing. `found`: rows int64 (nq, K); the paper takes K = 1.
    """
    return (found == np.asarray(sources)[:, None]).any(axis=1)
