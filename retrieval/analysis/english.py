"""English text as Lucene's EnglishAnalyzer has it, which is what published BM25 results were made with.

Lucene's chain is StandardTokenizer, EnglishPossessiveFilter, LowerCaseFilter, StopFilter, PorterStemFilter; its tokens
are the terms here, one for one. Compared with Lucene 9.9.1 (Java 17): no difference on the documents and queries of
NFCorpus, SciFact, Cranfield, Vaswani and MS MARCO samples, and none on random strings of the characters of Unicode
12.1, which is the version that Lucene's tokenizer knows. Letters, marks and digits that Unicode added later are part
of words here as far as the installed ``regex`` knows them, and separators in Lucene.
"""

from __future__ import annotations

from typing import Any

from retrieval.analysis import segmentation
from retrieval.analysis.base import WordAnalyzer
from retrieval.analysis.porter import stem

STOP_WORDS = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not", "of",
    "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was", "will", "with",
})  # fmt: skip
"""The 33 stop words of Lucene's EnglishAnalyzer."""

_POSSESSIVE = ("'s", "'S", "\u2019s", "\u2019S", "\uff07s", "\uff07S")


class EnglishAnalyzer(WordAnalyzer):
    """Words in lower case without ``'s`` and without `STOP_WORDS`, stemmed by Porter's stemmer: as Lucene does it.

    A word of more than 255 UTF-16 code units is one token of several terms, which are the words that Lucene cuts it to.
    """

    def words(self) -> Any:
        return segmentation.standard_words()

    def terms(self, token: str) -> tuple[str, ...]:
        # A character takes up to two units, so that only a token of this length may be too long.
        words = segmentation.pieces(token) if 2 * len(token) > segmentation.MAX_WORD else (token,)
        lowered = (_lower(word[:-2] if word.endswith(_POSSESSIVE) else word) for word in words)
        return tuple(stem(word) for word in lowered if word not in STOP_WORDS)

    def settings(self) -> dict[str, Any]:
        return {"kind": "english"}


def _lower(word: str) -> str:
    """Lower case character by character, as Java's Character.toLowerCase: str.lower looks around a capital sigma."""
    return word.lower() if word.isascii() else word.replace("\u0130", "i").replace("\u03a3", "\u03c3").lower()
