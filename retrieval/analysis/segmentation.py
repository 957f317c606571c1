"""Where words begin and end: Unicode word segmentation (UAX #29) with the tailorings of Lucene's StandardTokenizer.

A *word* is the longest run that rules WB4 to WB13b of UAX #29 keep together (``U.S.A``, ``3.14``, ``1,000``,
``foo_bar``, ``don't``) and that holds at least one letter or digit. Lucene adds: each ideograph and each hiragana is a
word; letters of line-break class SA (Thai, Lao, Khmer, Myanmar) stay together as one run; and an emoji sequence (skin
tone, ZWJ family, keycap, flag) is a word. All other characters only separate words.

Two patterns say this: one of the standard ``re`` for ASCII text, which is most text and much faster, and a general one
over Unicode properties by the ``regex`` package. On ASCII text they agree. Repetitions are possessive, or decided by
the next character, and rows of joiners are tried only from their first: the time is linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

MAX_WORD = 255
"""Longest word of Lucene's StandardTokenizer, in UTF-16 code units. A longer one is cut by `pieces`."""

# \w is [A-Za-z0-9_]. A colon, stop or apostrophe joins letters; a comma, semicolon, stop or apostrophe joins digits.
ASCII_WORDS = re.compile(
    r"(?<!_)_*[A-Za-z0-9]\w*(?:(?:(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))\w+)*", re.ASCII
)

# Sets of characters. Lucene's tables are those of Unicode 12.1 (Lucene 9.9), the `regex` package has newer ones.
# The sets below put back what Unicode changed since for characters that existed then: colons join letters, modifier
# symbols are no letters, signs that span Arabic numbers are marks, and playing cards and chessmen are pictures. They
# keep the words of an index the same under every version of `regex`, but for characters that are newer than 12.1.
_WAS_NO_LETTER = r"[\u00B8\u02E5-\u02EB\u055A\u058A\uA708-\uA716]"
_WAS_MARK = r"\u0600-\u0605\u06DD\u070F\u08E2\U000110BD\U000110CD"
_WAS_PICTURE = (
    r"\u2388\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767\U0001F000-\U0001F0FF"
    r"\U0001F10D-\U0001F10F\U0001F12F\U0001F16C-\U0001F171\U0001F1AD-\U0001F1E5\U0001F249-\U0001F3FA"
    r"\U0001F400-\U0001F53D\U0001F546-\U0001F64F\U0001F680-\U0001F6FF\U0001F774-\U0001F77F\U0001F7D5-\U0001F7FF"
    r"\U0001F8AE-\U0001F8FF\U0001F947-\U0001FFFD"
)
_MODIFIER = r"[\U0001F3FB-\U0001F3FF]"
_PICTURE = rf"[[\p{{Extended_Pictographic}}\p{{Emoji}}{_WAS_PICTURE}]--[0-9\#*\p{{Regional_Indicator}}{_MODIFIER}]]"
_MARK = rf"[\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}{_WAS_MARK}]"
_LINK = r"\p{WB=ExtendNumLet}"
_MID_LETTER = r"[[\p{WB=MidLetter}\p{WB=MidNumLet}'\:\uFE55\uFF1A]--\u055F]"
_MID_NUMBER = r"[\p{WB=MidNum}\p{WB=MidNumLet}'\uFE10\uFE14]"
_HEBREW = r"\p{WB=Hebrew_Letter}"
_LETTER = rf"[[\p{{WB=ALetter}}{_HEBREW}]--{_WAS_NO_LETTER}--[{_WAS_MARK}]]"
_NUMBER = rf"[[\p{{WB=Numeric}}\uFF10-\uFF19]--[{_WAS_MARK}\u19DA]]"
_KATAKANA = r"\p{WB=Katakana}"
_SOUTH_EAST_ASIAN = r"[\p{LB=SA}\u19DA]"
_UNSPACED = rf"[\p{{Ideographic}}\p{{Script=Han}}\p{{Script=Hiragana}}{_KATAKANA}{_SOUTH_EAST_ASIAN}]"


def _emoji(letter: str) -> str:
    """Pattern of an emoji sequence (UTS #51) that is not all letters: a few emoji, such as U+2139, are letters too."""
    zwj, presentation, mark = r"\u200D", r"\uFE0F", rf"[{_MARK}--[\uFE0E\uFE0F]]"
    picture = rf"{mark}*+{presentation}?+"
    element = rf"(?:{zwj}*+{_PICTURE}{picture}|{_MODIFIER}{mark}*+)"
    joined = rf"(?:(?<={zwj})|{zwj})"
    letters = rf"(?:[{_PICTURE}&&{letter}]{picture}{joined}{zwj}*+)*+(?!{letter})"
    tags = r"[\U000E0020-\U000E007E]++\U000E007F"
    sequence = rf"(?:(?={zwj})(?<!{zwj})|(?!{zwj}){letters}){element}(?:{tags}|(?:{joined}{element})*+)"
    keycap = rf"[\#*]{mark}*{presentation}?\u20E3{mark}*+"
    flag = rf"(?:\p{{Regional_Indicator}}{_MARK}*+){{2}}"
    return rf"{sequence}|{keycap}|{flag}"


def _word(letter: str, number: str, *runs: str) -> str:
    """Pattern of a word of letters and numbers, or of characters of one of ``runs``, and of these linked by ``_``."""
    mark = rf"{_MARK}*+"  # WB4: marks belong to the character that they follow
    joined = rf"(?:{_MID_LETTER}{mark}{letter}{mark})*+"
    letters = rf"[{letter}--{_HEBREW}]++{mark}{joined}"
    hebrew = rf"{_HEBREW}{mark}(?:\"{mark}{_HEBREW}{mark}|'{mark}|{joined})"
    numbers = rf"{number}++{mark}(?:{_MID_NUMBER}{mark}{number}{mark})*+"
    core = "|".join([rf"(?:{letters}|{hebrew}|{numbers})++", *(rf"(?:{run}{mark})++" for run in runs)])
    link = rf"(?:{_LINK}{mark})"
    first = rf"(?:(?={_LINK})(?<!{_LINK}{mark}){link}++)?+"  # never inside a row of links, which may be long
    return rf"{first}(?:{core})(?:{link}++(?:{core}))*+{link}*+"


_RUN = rf"(?:{_UNSPACED}{_MARK}*+)++"


@cache
def standard_words() -> Any:
    """Compiled pattern of the words of any text as Lucene's StandardTokenizer finds them, without its `MAX_WORD`."""
    import regex

    run = rf"(?:{_SOUTH_EAST_ASIAN}{_MARK}*+)++|[[\p{{Script=Han}}\p{{Script=Hiragana}}]--\U00016FE2]{_MARK}*+"
    return regex.compile(f"{_emoji(_LETTER)}|{_word(_LETTER, _NUMBER, _KATAKANA)}|{run}", regex.VERSION1)


@cache
def multilingual_words() -> Any:
    """Compiled pattern of the words of any text, for search in every language.

    As `standard_words`, but a run of characters of scripts without spaces is one match, that of `unspaced`, and no
    letter or number is left out (``CO₂`` is a word).
    """
    import regex

    letter, number = rf"[[{_LETTER}\p{{L}}]--{_UNSPACED}]", rf"[[{_NUMBER}\p{{No}}\p{{Nl}}]--{_UNSPACED}]"
    return regex.compile(f"{_emoji(letter)}|{_word(letter, number)}|{_RUN}", regex.VERSION1)


@cache
def unspaced() -> Any:
    """Compiled pattern of a run of characters of Han, Hiragana, Katakana, other ideographs and line-break class SA."""
    import regex

    return regex.compile(_RUN, regex.VERSION1)


_NOT_ASCII = re.compile(r"[^\x00-\x7F][^ ]*(?: +[^\x00-\x7F][^ ]*)*")


def stretches(text: str, words: Any) -> Iterator[tuple[Any, int, int]]:
    """Cut ``text`` at spaces, which end every word, into stretches for `ASCII_WORDS` and others for ``words``.

    Yields: the pattern, start and end of each stretch, in order. Most of an English text with a few other characters
    is cut by the fast pattern this way.
    """
    position = 0
    for found in _NOT_ASCII.finditer(text):
        start = max(position, text.rfind(" ", position, found.start()) + 1)
        yield ASCII_WORDS, position, start
        yield words, start, found.end()
        position = found.end()
    yield ASCII_WORDS, position, len(text)


def pieces(word: str) -> Iterator[str]:
    """The words that Lucene's StandardTokenizer makes of a word of more than `MAX_WORD` UTF-16 code units.

    Its buffer holds `MAX_WORD` units, so that it takes the longest word within them, and goes on behind it.
    """
    words = standard_words()
    while word:
        found = words.search(word[: 2 * MAX_WORD])
        if not found:
            word = word[MAX_WORD:]
            continue
        word = word[found.start() :]
        buffer = word[:MAX_WORD].encode("utf-16-le")[: 2 * MAX_WORD].decode("utf-16-le", "ignore")
        match = words.match(buffer)
        if match:
            yield match.group()
        word = word[match.end() if match else 1 :]
