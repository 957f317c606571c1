"""Texts as counts of their index terms: what BM25 and TF-IDF score."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.analysis.base import Analyzer, load_analyzer
from retrieval.analysis.base import analyzer as named_analyzer
from retrieval.encoders.base import Encoder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class BagOfWords(Encoder):
    """Counts of terms, CSR float32 (n, V). The vocabulary grows with the documents, in the order of first occurrence.

    `analyzer`: a name ("english", "german", "ja", "unicode", "hf:MODEL"; see `retrieval.analysis`) or an `Analyzer`.
    """

    kind = "bag-of-words"
    similarity = "ip"

    def __init__(self, analyzer: str | Analyzer = "english") -> None:
        self.analyzer = named_analyzer(analyzer) if isinstance(analyzer, str) else analyzer
        self.vocabulary: dict[str, int] = {}
        self._grown, self._known = _TermIds(self, grow=True), _TermIds(self, grow=False)

    def encode_documents(self, texts: Sequence[str]) -> csr_matrix:
        """Counts (n, V) with V the vocabulary after these texts."""
        self._known.clear()  # what was unknown to queries may be known after this
        return self._counts(texts, self._grown)

    def encode_queries(self, texts: Sequence[str]) -> csr_matrix:
        """Counts (nq, V); terms that no document has are dropped."""
        return self._counts(texts, self._known)

    def _counts(self, texts: Sequence[str], term_ids: _TermIds) -> csr_matrix:
        from scipy.sparse import csr_matrix

        tokenize, look_up = self.analyzer.tokenize, term_ids.__getitem__
        rows = [
            np.fromiter(chain.from_iterable(map(look_up, tokenize(text))), np.int64) if text else np.empty(0, np.int64)
            for text in texts
        ]
        lengths = np.array([len(row) for row in rows], np.int64)
        V = len(self.vocabulary)
        keys = np.repeat(np.arange(len(rows)), lengths) * max(V, 1) + np.concatenate([np.empty(0, np.int64), *rows])
        cells, counts = np.unique(keys, return_counts=True)
        starts = np.searchsorted(cells, np.arange(len(rows) + 1) * max(V, 1))
        return csr_matrix((counts.astype(np.float32), cells % max(V, 1), starts), shape=(len(rows), V))

    def keep(self, columns: Iterable[int]) -> None:
        """Forget all terms but those of these columns, which are numbered anew in this order."""
        terms = list(self.vocabulary)
        self.vocabulary = {terms[old]: new for new, old in enumerate(columns)}
        self._grown.clear()
        self._known.clear()

    def term(self, number: int) -> str:
        """The term with this column."""
        if len(self._terms) != len(self.vocabulary):
            self._terms = list(self.vocabulary)
        return self._terms[number]

    _terms: Sequence[str] = ()

    def settings(self) -> dict[str, Any]:
        return {"analyzer": self.analyzer.settings()}

    def arrays(self) -> dict[str, np.ndarray]:
        return {"terms": pack_terms(self.vocabulary)}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> BagOfWords:
        bag = cls(load_analyzer(settings["analyzer"]))
        if arrays:
            bag.vocabulary = unpack_terms(arrays["terms"])
        return bag


class _TermIds(dict[str, tuple[int, ...]]):
    """Surface token -> columns of its terms, worked out once per token."""

    def __init__(self, bag: BagOfWords, grow: bool) -> None:
        super().__init__()
        self._bag, self._grow = bag, grow

    def __missing__(self, token: str) -> tuple[int, ...]:
        vocabulary = self._bag.vocabulary
        terms = self._bag.analyzer.terms(token)
        if self._grow:
            ids = tuple([vocabulary.setdefault(term, len(vocabulary)) for term in terms])
        else:
            ids = tuple([vocabulary[term] for term in terms if term in vocabulary])
        if len(ids) <= 1:  # where a token has many terms (a run of Han, cut into bigrams) it hardly comes again
            self[token] = ids
        return ids


def pack_terms(vocabulary: dict[str, int]) -> np.ndarray:
    """Terms in the order of their columns as UTF-8 JSON, uint8."""
    return np.frombuffer(json.dumps(list(vocabulary), ensure_ascii=True).encode(), np.uint8).copy()


def unpack_terms(packed: np.ndarray) -> dict[str, int]:
    """The inverse of `pack_terms`."""
    return {term: column for column, term in enumerate(json.loads(packed.tobytes()))}
