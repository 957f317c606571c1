"""The Porter stemmer as Lucene has it, for English words in lower case.

M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the two changes that he made later in his
own implementation, and Lucene kept: ``-bli`` becomes ``-ble`` (was ``-abli``), and ``-logi`` becomes ``-log``. Snowball's
``porter`` is not it: it keeps ``possibli``, stems words of two letters, and doubles only the consonants of English.
"""

from __future__ import annotations

import re

# From here on, Y is a y that is a consonant: one that starts the word or follows a vowel.
_CONSONANT_Y = re.compile(r"^y|(?<=[aeiou])y|yy")
_VOWEL = re.compile(r"[aeiouy]")
_VOWELS_CONSONANTS = re.compile(r"[aeiouy]+[^aeiouy]+")
_CVC = re.compile(r"[^aeiouy][aeiouy][^aeiouyYwx]")

_STEP_2 = {
    "ational": "ate", "ization": "ize", "iveness": "ive", "fulness": "ful", "ousness": "ous", "tional": "tion",
    "biliti": "ble", "ation": "ate", "entli": "ent", "ousli": "ous", "alism": "al", "aliti": "al", "iviti": "ive",
    "enci": "ence", "anci": "ance", "izer": "ize", "alli": "al", "ator": "ate", "logi": "log", "bli": "ble", "eli": "e",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ness": "", "ful": ""}
_STEP_4 = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous", "ive", "ize", "ion",
    "al", "er", "ic", "ou",
)  # fmt: skip


def stem(word: str) -> str:
    """Stem of ``word``, which must be in lower case; words of one or two UTF-16 code units are their own stem."""
    if not word.isascii() and max(word) > "\uffff":  # Java's characters are UTF-16 code units, two for such a letter
        units = word.encode("utf-16-be").decode("utf-16-be", "surrogatepass")
        return units
    return word


def _measure(stem: str) -> int:
    """Number of vowel-consonant sequences: m in [C](VC)^m[V]."""
    return len(_VOWELS_CONSONANTS.findall(stem))
