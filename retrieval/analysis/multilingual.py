"""Text of any language: Unicode words and normal forms, bigrams for scripts without spaces, Snowball stemmers."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any

from retrieval.analysis import segmentation
from retrieval.analysis.base import WordAnalyzer

LANGUAGES = {
    "ar": "arabic", "hy": "armenian", "eu": "basque", "my": "burmese", "ca": "catalan", "zh": "chinese", "cs": "czech",
    "da": "danish", "nl": "dutch", "en": "english", "eo": "esperanto", "et": "estonian", "fi": "finnish",
    "fr": "french", "de": "german", "el": "greek", "hi": "hindi", "hu": "hungarian", "id": "indonesian", "ga": "irish",
    "it": "italian", "ja": "japanese", "km": "khmer", "ko": "korean", "lo": "lao", "lt": "lithuanian", "ne": "nepali",
    "no": "norwegian", "nb": "norwegian", "nn": "norwegian", "fa": "persian", "pl": "polish", "pt": "portuguese",
    "ro": "romanian", "ru": "russian", "sr": "serbian", "st": "sesotho", "es": "spanish", "sv": "swedish",
    "ta": "tamil", "th": "thai", "tr": "turkish", "yi": "yiddish",
}  # fmt: skip
"""ISO 639-1 code to the language's English name, which is also that of its Snowball stemmer."""

UNSTEMMED = frozenset({"burmese", "chinese", "japanese", "khmer", "korean", "lao", "thai", "unicode"})
"""Names that ask for no stemmer, so that it is no surprise that there is none."""


@cache
def stemmers() -> frozenset[str]:
    """Languages that the installed Snowball (PyStemmer) can stem."""
    import Stemmer

    return frozenset(Stemmer.algorithms()) & frozenset(LANGUAGES.values())


@cache
def _ignorable() -> Any:
    import regex

    return regex.compile(r"\p{Default_Ignorable_Code_Point}+")


class UnicodeAnalyzer(WordAnalyzer):
    """Words of any language in a normal form, stemmed where a language is given; no stop words, diacritics are kept.

    A word's term is its NFKC case folding (full-width letters become plain ones, ``ß`` becomes ``ss``) without
    characters that one cannot see (soft hyphens, joiners). A run of a script that is written without spaces (Han,
    Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) is one token; its terms are its overlapping bigrams of characters,
    or the character where it has only one. Hangul is written with spaces: its words are indexed as they stand.

    Args:
        language: English name of a language with a Snowball stemmer (`stemmers`); by default words are not stemmed.

    Raises:
        ValueError: ``language`` has no stemmer.
    """

    def __init__(self, *, language: str | None = None) -> None:
        if language is not None and language not in stemmers():
            raise ValueError(f"language={language!r} has no stemmer; allowed are None, {', '.join(sorted(stemmers()))}")
        self.language = language

    def words(self) -> Any:
        return segmentation.multilingual_words()

    def terms(self, token: str) -> tuple[str, ...]:
        term = self._fold(token)
        if not term:
            return ()
        if not token.isascii() and segmentation.unspaced().match(token):
            return tuple(term[i : i + 2] for i in range(max(len(term) - 1, 1)))
        return (term if self.language is None else _stemmer(self.language).stemWord(term),)

    def settings(self) -> dict[str, Any]:
        return {"kind": "unicode", "language": self.language}

    def _fold(self, token: str) -> str:
        if self.language == "turkish":
            token = token.replace("I", "ı")
        if token.isascii():
            return token.lower()
        # Case folding makes a dotted capital I two characters; everybody types one.
        folded = unicodedata.normalize("NFKC", token).replace("İ", "i").casefold()
        return unicodedata.normalize("NFKC", _ignorable().sub("", folded))


@cache
def _stemmer(language: str) -> Any:
    import Stemmer

    return Stemmer.Stemmer(language, 0)  # no cache of its own: callers keep terms by token
