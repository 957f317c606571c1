"""The Porter stemmer as Lucene has it, for English words in lower case.

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the two changes of his own later code that
Lucene keeps: ``-bli`` becomes ``-ble`` (was ``-abli`` to ``-able``), and ``-logi`` becomes ``-log``. Snowball's
``porter`` is another one: ``possibly`` and ``trekked`` become ``possibli`` and ``trekk`` there, ``possibl`` and
``trek`` here, and it also stems words of two letters (``is`` to ``i``).
"""

from __future__ import annotations

import re

# While a word is stemmed, Y stands for a y that is a consonant: the first letter, or one after a vowel.
_CONSONANT_Y = re.compile(r"^y|(?<=[aeiou])y|yy")
_VOWEL = re.compile(r"[aeiouy]")
_VOWELS_CONSONANTS = re.compile(r"[aeiouy]+[^aeiouy]+")
_SHORT = re.compile(r"[^aeiouy][aeiouy][^aeiouyYwx]\Z")
_ASTRAL = re.compile("([\U00010000-\U0010ffff])")

# Longer suffixes come first.
_STEP_2 = {
    "ational": "ate", "ization": "ize", "iveness": "ive", "fulness": "ful", "ousness": "ous", "tional": "tion",
    "biliti": "ble", "ation": "ate", "entli": "ent", "ousli": "ous", "alism": "al", "aliti": "al", "iviti": "ive",
    "enci": "ence", "anci": "ance", "izer": "ize", "alli": "al", "ator": "ate", "logi": "log", "bli": "ble", "eli": "e",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ness": "", "ful": ""}
_STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ion", "ism", "ate", "iti", "ous", "ive", "ize",
    "al", "er", "ic", "ou",
)  # fmt: skip


def stem(word: str) -> str:
    """Stem of ``word``, which is in lower case; a word of at most two UTF-16 code units is its own stem."""
    # Java sees two characters in a letter beyond U+FFFF: NUL, which no word holds, stands for the second.
    word = word if word.isascii() else _ASTRAL.sub("\\1\0", word)
    if len(word) > 2:
        if "y" in word:
            word = _CONSONANT_Y.sub(lambda found: found.group()[:-1] + "Y", word)
        word = _plural_and_participle(word)
        if word[-1] in "yY" and _VOWEL.search(word, 0, len(word) - 1):
            word = word[:-1] + "i"
        word = _final_e(_remove(_replace(_replace(word, _STEP_2), _STEP_3))).replace("Y", "y")
    return word.replace("\0", "")


def _measure(stem: str) -> int:
    """Number m of vowel-consonant sequences in [C](VC){m}[V]."""
    return len(_VOWELS_CONSONANTS.findall(stem))


def _plural_and_participle(word: str) -> str:
    """Steps 1a and 1b: -s, -ed, -ing, and what they leave behind."""
    if word.endswith(("sses", "ies")):
        word = word[:-2]
    elif word[-1] == "s" and word[-2] != "s":
        word = word[:-1]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    if not word.endswith(("ed", "ing")):
        return word
    stem = word[: -2 if word.endswith("ed") else -3]
    if not _VOWEL.search(stem):
        return word
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if len(stem) > 1 and stem[-1].lower() == stem[-2].lower() and not _VOWEL.match(stem[-1]):
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _SHORT.search(stem[-3:]) else stem


def _replace(word: str, suffixes: dict[str, str]) -> str:
    """Steps 2 and 3: the longest of ``suffixes`` becomes its replacement, after a stem of m > 0."""
    if word.endswith(tuple(suffixes)):
        suffix = next(suffix for suffix in suffixes if word.endswith(suffix))
        stem = word[: -len(suffix)]
        if _measure(stem):
            return stem + suffixes[suffix]
    return word


def _remove(word: str) -> str:
    """Step 4: the longest suffix goes, after a stem of m > 1; -ion only after s or t."""
    if word.endswith(_STEP_4):
        suffix = next(suffix for suffix in _STEP_4 if word.endswith(suffix))
        stem = word[: -len(suffix)]
        if (suffix != "ion" or stem.endswith(("s", "t"))) and _measure(stem) > 1:
            return stem
    return word


def _final_e(word: str) -> str:
    """Step 5: a final -e goes, and one l of a final -ll."""
    measure = _measure(word)
    if word[-1] == "e" and (measure > 1 or (measure == 1 and not _SHORT.search(word[-4:-1]))):
        word = word[:-1]
    return word[:-1] if measure > 1 and word.endswith("ll") else word
