"""Snippets: which part of a text is shown and what is marked in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.analysis.base import analyzer
from retrieval.snippets import snippet

ENGLISH = analyzer("english")
FILLER = "lorem ipsum dolor amet "


def cut(text, query, width=240):
    return snippet(text, frozenset(ENGLISH(query)), ENGLISH, width)


def test_a_short_text_is_shown_whole_with_every_form_of_the_words_marked():
    shown = cut("Wings,  and\nthe wing's\tflow.", "wing")
    assert shown.marked() == "**Wings**, and the **wing's** flow."
    assert shown.marked("<b>", "</b>") == "<b>Wings</b>, and the <b>wing's</b> flow."
    assert shown.cut == (False, False)


def test_the_part_that_holds_most_different_words_is_shown():
    text = FILLER * 30 + "wing wing wing " + FILLER * 30 + "the heat of a wing " + FILLER * 30
    shown = cut(text, "wing heat")
    assert "**heat** of a **wing**" in shown.marked()
    assert shown.marked().startswith("... ") and shown.marked().endswith(" ...")
    assert len(shown.text) <= 260


def test_of_parts_with_the_same_words_the_one_with_more_of_them_then_the_first():
    text = FILLER * 30 + "wing " + FILLER * 30 + "wing wing " + FILLER * 30 + "wing wing " + FILLER * 30
    shown = cut(text, "wing")
    assert shown.marked().count("**wing**") == 2
    start = text.index("wing wing")
    assert text.find(shown.text) < start < text.find(shown.text) + len(shown.text)


@pytest.mark.parametrize("query", ["", "the of", "unheard"])
def test_without_a_word_to_mark_the_beginning_is_shown(query):
    shown = cut(FILLER * 40, query)
    assert (FILLER * 40).startswith(shown.text) and shown.highlights == ()
    assert shown.cut == (False, True)


def test_empty_texts_and_texts_without_words():
    assert cut("", "wing").marked() == ""
    assert cut(" \n ", "wing").marked() == ""
    assert cut("?! " * 5, "wing").text == "?! ?! ?! ?! ?!"


def test_a_word_longer_than_the_window_does_no_harm():
    shown = cut(FILLER * 20 + "x" * 400 + " wing " + FILLER * 20, f"wing {'x' * 400}", width=50)
    assert "**wing**" in shown.marked()


def test_of_a_very_long_text_only_the_beginning_is_looked_at():
    shown = cut("wing " * 60_000 + "heat", "heat wing")  # a quadratic search for the best part would take minutes
    assert shown.text.startswith("wing wing") and "heat" not in shown.text and shown.cut == (False, True)


words = st.sampled_from(["wing", "heat", "wings", "flow", "the", "x", "ünïcode", "日本", "aerodynamics"])


@given(text=st.lists(words, max_size=60).map(" ".join), query=st.lists(words, max_size=3).map(" ".join),
       width=st.integers(20, 80))  # fmt: skip
def test_marks_stand_on_words_of_the_query_and_the_window_is_a_best_one(text, query, width):
    terms = frozenset(ENGLISH(query))
    shown = snippet(text, terms, ENGLISH, width)
    assert shown.text in text
    marked = [set(ENGLISH(shown.text[a:b])) & terms for a, b in shown.highlights]
    assert all(marked)
    # the definition: of all windows of `width`, none holds more different words than those around the best one
    spans = [(a, b, set(t) & terms) for a, b, t in ENGLISH.spans(text) if set(t) & terms]
    best = max((len(set().union(*(own for c, b, own in spans if a <= c and b <= a + width))) for a, _, _ in spans),
               default=0)  # fmt: skip
    if len(text) <= width:
        assert len(set().union(*marked)) == best
    if best:
        assert marked
