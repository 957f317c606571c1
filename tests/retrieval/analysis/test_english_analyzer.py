"""The English analyzer against Lucene itself.

``lucene_english.jsonl`` holds texts (hand-made nasty strings, seeded random ones, queries and documents of Cranfield,
words of its vocabulary and made-up words with chains of Porter's suffixes) and what org.apache.lucene.analysis.en.
EnglishAnalyzer, with its defaults, of Lucene 9.9.1 (in the jar of pyserini 1.6.0, under Java 17) made of them. A Java
program read each text as hexadecimal UTF-16, so that nothing else touched it, and printed the terms of its tokenStream.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retrieval.analysis import analyzer
from retrieval.analysis.english import STOP_WORDS
from retrieval.analysis.porter import stem
from retrieval.analysis.segmentation import ASCII_WORDS, multilingual_words, standard_words

LINES = Path(__file__).with_name("lucene_english.jsonl").read_text(encoding="utf-8").split("\n")
LUCENE = [json.loads(line) for line in LINES if line]
english = analyzer("english")

# Characters that the rules of segmentation are about, so that random strings of them meet.
NASTY = (
    "aZs019_.,:;'\"’·‘-# *\u200d\u200d\ufe0f\ufe0e\u20e3\u0301\u00ad\u2060😀☝👍🏽🇺🇸ℹⓂ©★אבあア漢々กำ한"
    "\u1100\u1161１\u0661𝕒🏴①²〰ー・\u3000\u202f\n\u06dd\u19da"
)


@pytest.mark.parametrize("line", range(len(LUCENE)))
def test_terms_are_those_of_lucene(line: int) -> None:
    assert english(LUCENE[line]["text"]) == LUCENE[line]["tokens"]


def test_lucene_fixture_covers_what_it_claims() -> None:
    text = "\n".join(line["text"] for line in LUCENE)
    assert len(LUCENE) > 400
    assert set(NASTY) <= set(text)
    assert max(len(term) for line in LUCENE for term in line["tokens"]) == 255


@given(st.text(st.characters(max_codepoint=127)))
@example("_" * 300 + "a")
@example("a.b:c'd 1,2;3.4'5 a1.b2 1.a _._ __1__.2")
def test_the_patterns_agree_on_ascii(text: str) -> None:
    words = ASCII_WORDS.findall(text)
    assert words == standard_words().findall(text) == multilingual_words().findall(text)


@given(st.text(st.sampled_from(NASTY)))
@example(" é  x.é é é_ _ é")
def test_cutting_a_text_at_spaces_changes_nothing(text: str) -> None:
    assert english.tokenize(text) == standard_words().findall(text)
    assert analyzer("unicode").tokenize(text) == multilingual_words().findall(text)


@given(st.text(st.sampled_from(NASTY)) | st.text())
def test_spans_are_where_the_tokens_are(text: str) -> None:
    for each in (english, analyzer("unicode")):
        spans = list(each.spans(text))
        assert [text[start:end] for start, end, _ in spans] == each.tokenize(text)
        assert [term for _, _, terms in spans for term in terms] == each(text)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_spans_count_code_points_and_keep_dropped_tokens() -> None:
    assert list(english.spans("😀 The dog’s")) == [(0, 1, ("😀",)), (2, 5, ()), (6, 11, ("dog",))]


def test_a_long_word_is_one_token_of_several_terms() -> None:
    word = "x" * 600
    assert english.tokenize(f"a {word} b") == ["a", word, "b"]
    assert [len(term) for term in english.terms(word)] == [255, 255, 90]
    assert [len(term) for term in english.terms("𝕒" * 200)] == [127, 73]


def test_terms_of_one_token() -> None:
    assert len(STOP_WORDS) == 33
    assert all(english.terms(word) == () for word in STOP_WORDS)
    assert english.terms("The") == ()
    assert english.terms("it's") == ()
    assert english.terms("Retrieval") == ("retriev",)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"), ("ponies", "poni"), ("agreed", "agre"), ("plastered", "plaster"), ("hopping", "hop"),
        ("falling", "fall"), ("filing", "file"), ("happy", "happi"), ("sky", "sky"), ("relational", "relat"),
        ("conditional", "condit"), ("triplicate", "triplic"), ("hopefulness", "hope"), ("adoption", "adopt"),
        ("probate", "probat"), ("controll", "control"), ("possibly", "possibl"), ("analogy", "analog"), ("is", "is"),
        ("trekked", "trek"), ("say", "sai"), ("𝕒s", "𝕒"),
    ],
)  # fmt: skip
def test_porter(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_a_text_of_letters_without_a_token_warns_once(recwarn: pytest.WarningsRecorder) -> None:
    assert english("") == english(" .,-") == []
    assert not recwarn
    tangut = "\U00017000\U00017001"  # neither letters nor ideographs to Lucene
    with pytest.warns(UserWarning, match="EnglishAnalyzer.. finds no token"):
        assert english(tangut) == []
    assert english(tangut) == []
    assert not recwarn
