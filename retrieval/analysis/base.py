"""The contract of analyzers, which turn text into index terms, and how they are named, stored and loaded."""

from __future__ import annotations

import inspect
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from retrieval.analysis.segmentation import ASCII_WORDS, stretches


class UnknownAnalyzer(ValueError):
    """Settings or a name ask for an analyzer, or a parameter of one, that does not exist."""


class Analyzer(ABC):
    """Text to index terms, in two steps, of which the second can be remembered.

    `tokenize` cuts a text into surface tokens and is fast; `terms` says what is indexed for one surface token and
    depends on that token only. A caller that meets the same tokens again and again keeps a dict from surface token to
    terms (or to their numbers), and then pays for stop words and stemming once per distinct token.

    Analyzers with the same `settings` are equal.
    """

    @abstractmethod
    def tokenize(self, text: str) -> list[str]:
        """Surface tokens of ``text``, in order."""

    @abstractmethod
    def terms(self, token: str) -> tuple[str, ...]:
        """Index terms of one surface token: none where it is dropped (a stop word), most often one, or several."""

    @abstractmethod
    def spans(self, text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        """Start, end (code points of ``text``) and terms of each surface token, in order, those without terms too."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """``kind`` and parameters, all JSON values, from which `load_analyzer` makes this analyzer again."""

    def __call__(self, text: str) -> list[str]:
        """All terms of ``text``, in order."""
        return [term for token in self.tokenize(text) for term in self.terms(token)]

    def __eq__(self, other: object) -> bool:
        return self.settings() == other.settings() if isinstance(other, Analyzer) else NotImplemented

    def __hash__(self) -> int:
        return hash(json.dumps(self.settings(), sort_keys=True))

    def __repr__(self) -> str:
        parameters = (f"{name}={value!r}" for name, value in self.settings().items() if name != "kind")
        return f"{type(self).__name__}({', '.join(parameters)})"


class WordAnalyzer(Analyzer):
    """An analyzer whose surface tokens are the matches of a pattern of `segmentation`."""

    @abstractmethod
    def words(self) -> Any:
        """Compiled pattern of a word, which agrees with `segmentation.ASCII_WORDS` on ASCII text and has no groups."""

    def tokenize(self, text: str) -> list[str]:
        if text.isascii():
            tokens: list[str] = ASCII_WORDS.findall(text)
        else:
            parts = stretches(text, self.words())
            tokens = [token for words, start, end in parts for token in words.findall(text, start, end)]
        if not tokens:
            warn_if_letters(self, text)
        return tokens

    def spans(self, text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        for words, start, end in stretches(text, self.words()):
            for match in words.finditer(text, start, end):
                yield match.start(), match.end(), self.terms(match.group())


def analyzer(name: str) -> Analyzer:
    """The analyzer called ``name``.

    Args:
        name: ``"english"`` or ``"en"`` for Lucene's EnglishAnalyzer; another language, by its English name or
            ISO 639-1 code (``"german"``, ``"de"``, ``"pt-BR"``, ``"ja"``), or ``"unicode"`` for none in particular
            (no stemming); ``"hf:NAME_OR_PATH"`` for a Hugging Face tokenizer. Case does not matter but in a path.

    A language without a stemmer that is not written without spaces warns, once, and is analyzed as ``"unicode"``:
    its words are indexed as they stand.

    Raises:
        UnknownAnalyzer: ``name`` is empty, or names no Hugging Face tokenizer after ``hf:``.
        TokenizerNotFound, MissingExtra: see `HuggingFaceAnalyzer`.
    """
    if name.startswith("hf:") and name[3:]:
        return load_analyzer({"kind": "huggingface", "name": name[3:]})
    language = name.strip().lower().replace("_", "-").split("-")[0]
    if not language or language == "hf:":
        raise UnknownAnalyzer(
            f"name={name!r}: allowed are 'english', 'unicode', a language such as 'german' or 'de', 'hf:NAME_OR_PATH'"
        )
    if language in ("english", "en"):
        return load_analyzer({"kind": "english"})
    from retrieval.analysis.multilingual import LANGUAGES, UNSTEMMED, UnicodeAnalyzer, stemmers

    language = LANGUAGES.get(language, language)
    if language in stemmers():
        return UnicodeAnalyzer(language=language)
    if language not in UNSTEMMED:
        warn_once(language, f"name={name!r}: no stemmer for this language; its words are indexed as they stand")
    return UnicodeAnalyzer()


def load_analyzer(settings: Mapping[str, Any]) -> Analyzer:
    """The analyzer whose `Analyzer.settings` are ``settings``.

    Raises:
        UnknownAnalyzer: ``kind`` is missing or unknown, or there is a parameter that this kind does not have.
        ValueError: a parameter has a value that is not allowed.
    """
    from retrieval.analysis.english import EnglishAnalyzer
    from retrieval.analysis.huggingface import HuggingFaceAnalyzer
    from retrieval.analysis.multilingual import UnicodeAnalyzer

    kinds: dict[str, type[Analyzer]] = {
        "english": EnglishAnalyzer,
        "huggingface": HuggingFaceAnalyzer,
        "unicode": UnicodeAnalyzer,
    }
    parameters = dict(settings)
    kind = parameters.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise UnknownAnalyzer(f"settings: kind={kind!r} is unknown; allowed are {', '.join(kinds)}")
    signature = inspect.signature(kinds[kind])
    try:
        signature.bind(**parameters)
    except TypeError as error:
        raise UnknownAnalyzer(f"settings of kind {kind!r}: {error}; it takes {signature}") from error
    return kinds[kind](**parameters)


_warned: set[object] = set()


def warn_once(about: object, message: str) -> None:
    """Warn with ``message``, unless this process has already warned about ``about``."""
    if about not in _warned:
        _warned.add(about)
        warnings.warn(message, stacklevel=3)


def warn_if_letters(analyzer: Analyzer, text: str) -> None:
    """Warn, once per analyzer, that ``analyzer`` finds no token in ``text`` though there are letters in it."""
    if any(map(str.isalpha, text)):
        warn_once(analyzer, f"{analyzer!r} finds no token in a text of letters; no search will find it: {text[:40]!r}")
