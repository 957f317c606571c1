"""The analyzer for every language, and how analyzers are named, stored and loaded."""

from __future__ import annotations

import json
import unicodedata
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.analysis import UnknownAnalyzer, analyzer, load_analyzer
from retrieval.analysis.multilingual import LANGUAGES, UNSTEMMED, UnicodeAnalyzer, stemmers

plain = analyzer("unicode")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("東京タワー", ["東京", "京タ", "タワ", "ワー"]),
        ("人々は 字。", ["人々", "々は", "字"]),
        ("iPhone用ケース", ["iphone", "用ケ", "ケー", "ース"]),
        ("ﾊﾟﾝ", ["パン"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("ກິນ", ["ກິ", "ິນ"]),
        ("한국어 형태소", ["한국어", "형태소"]),
        ("\u1112\u1161\u11ab", ["한"]),
        ("Ｃａｆé Cafe\u0301", ["café", "café"]),
        ("STRASSE Straße", ["strasse", "strasse"]),
        ("ΟΔΟΣ οδος", ["οδοσ", "οδοσ"]),
        ("İstanbul istanbul", ["istanbul", "istanbul"]),
        ("co\u00adoperate می\u200cخواهم", ["cooperate", "میخواهم"]),
        ("CO₂ m² ½", ["co2", "m2", "1⁄2"]),
        ("👍🏽 ❤️", ["👍🏽", "❤"]),
        ("\U00017000\U00017001", ["\U00017000\U00017001"]),
        ("\u3164", []),
    ],
)
def test_terms(text: str, terms: list[str]) -> None:
    assert plain(text) == terms


def test_a_run_without_spaces_is_one_token() -> None:
    assert plain.tokenize("これは漢字とカナ、2024年") == ["これは漢字とカナ", "2024", "年"]
    assert list(plain.spans("x 漢字")) == [(0, 1, ("x",)), (2, 4, ("漢字",))]


INVISIBLE = "\u115f\u1160\u3164\uffa0"  # fillers: letters that nobody sees


@given(st.characters(categories=["Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No"], exclude_characters=INVISIBLE))
def test_no_letter_or_number_is_dropped(character: str) -> None:
    assert plain(character)
    assert plain(f"x{character} {character}y")


@given(st.text())
def test_forms_of_a_text_that_look_the_same_have_the_same_terms(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    assert plain(composed) == plain(unicodedata.normalize("NFD", composed))


@pytest.mark.parametrize(
    ("name", "text", "terms"),
    [
        ("de", "Die Häuser der Straßen", ["die", "haus", "der", "strass"]),
        ("french", "continuellement", ["continuel"]),
        ("ru", "Книги книгами", ["книг", "книг"]),
        ("turkish", "Irak İzmir", ["ırak", "izmir"]),
        ("pt-BR", "informações", ["inform"]),
        ("ar", "الكتاب", ["كتاب"]),
    ],
)
def test_stemmed_languages(name: str, text: str, terms: list[str]) -> None:
    assert analyzer(name)(text) == terms


def test_names_of_one_language_are_one_analyzer() -> None:
    assert analyzer("de") == analyzer("German") == analyzer("de_AT")
    assert hash(analyzer("de")) == hash(analyzer("german"))
    assert analyzer("de") != analyzer("fr")
    assert analyzer("en") == analyzer("english") != analyzer("unicode")
    assert analyzer("de") != "german"
    assert repr(analyzer("de")) == "UnicodeAnalyzer(language='german')"


def test_every_stemmer_has_a_code_and_every_code_works_without_a_warning() -> None:
    assert len(stemmers()) >= 25
    assert set(LANGUAGES.values()) >= stemmers()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for code, language in LANGUAGES.items():
            if language in stemmers() | UNSTEMMED:
                assert analyzer(code) == analyzer(language)
        assert all(analyzer(name) == plain for name in UNSTEMMED)


def test_a_language_without_stemmer_warns_once_and_keeps_the_words(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.warns(UserWarning, match="'Swahili': no stemmer"):
        swahili = analyzer("Swahili")
    assert swahili == analyzer("swahili") == plain
    assert not recwarn
    assert swahili("vitabu vyangu") == ["vitabu", "vyangu"]


@pytest.mark.parametrize("name", ["english", "german", "unicode", "ja"])
def test_settings_rebuild_the_analyzer(name: str) -> None:
    original = analyzer(name)
    again = load_analyzer(json.loads(json.dumps(original.settings())))
    assert again == original
    assert again("Die Häuser of the 東京タワー") == original("Die Häuser of the 東京タワー")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "kind=None is unknown; allowed are english, huggingface, unicode"),
        ({"kind": "lucene"}, "kind='lucene' is unknown"),
        ({"kind": ["english"]}, "is unknown"),
        ({"kind": "english", "stop": []}, "'english': .*'stop'"),
        ({"kind": "unicode", "lang": "de"}, "'unicode': .*'lang'"),
        ({"kind": "huggingface"}, "'huggingface': .*'name'"),
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UnknownAnalyzer, match=message):
        load_analyzer(settings)


@pytest.mark.parametrize("name", ["", "  ", "hf:", "-"])
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(UnknownAnalyzer, match="allowed are 'english'"):
        analyzer(name)


def test_a_stored_language_without_stemmer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"language='klingon' has no stemmer; allowed are None, arabic"):
        UnicodeAnalyzer(language="klingon")
