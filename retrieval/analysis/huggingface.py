"""Hugging Face tokenizers as analyzers: sub-words of a model's vocabulary as index terms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrieval.analysis.base import Analyzer, warn_if_letters
from retrieval.errors import MissingExtra


class TokenizerNotFound(FileNotFoundError):
    """There is no tokenizer of this name, or it cannot be had."""


class TokenizerChanged(ValueError):
    """The tokenizer of this name is not the one that the settings were made with."""


class HuggingFaceAnalyzer(Analyzer):
    """The tokens of a Hugging Face tokenizer are both surface tokens and terms, its unknown token too.

    Special tokens, truncation and padding, which a model wants and an index does not, are left out.

    Args:
        name: a ``tokenizer.json``, a folder with one, or the name of a model on the Hugging Face hub.
        sha256: digest of the ``tokenizer.json`` to insist on; by default any, and `settings` tells which it was.

    Raises:
        TokenizerNotFound: there is no such file, and the hub has none or cannot be reached.
        TokenizerChanged: the file has another digest than ``sha256``.
        MissingExtra: the package ``tokenizers`` is not installed.
    """

    def __init__(self, *, name: str, sha256: str | None = None) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingExtra("tokenizers", "encoders", "a Hugging Face tokenizer") from error
        content = _find(name).read_bytes()
        self.name = name
        self.sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in (None, self.sha256):
            raise TokenizerChanged(f"name={name!r}: tokenizer.json has sha256 {self.sha256}, expected {sha256}")
        self._tokenizer = Tokenizer.from_str(content.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def tokenize(self, text: str) -> list[str]:
        tokens: list[str] = self._tokenizer.encode(text, add_special_tokens=False).tokens
        if not tokens:
            warn_if_letters(self, text)
        return tokens

    def terms(self, token: str) -> tuple[str, ...]:
        return (token,)

    def spans(self, text: str) -> Iterator[tuple[int, int, tuple[str, ...]]]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        for (start, end), token in zip(encoding.offsets, encoding.tokens, strict=True):
            yield start, end, (token,)

    def settings(self) -> dict[str, Any]:
        return {"kind": "huggingface", "name": self.name, "sha256": self.sha256}


def _find(name: str) -> Path:
    """Path of the ``tokenizer.json`` called ``name``, fetched from the hub if it is not here."""
    path = Path(name)
    for file in (path, path / "tokenizer.json"):
        if file.is_file():
            return file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.json"))
    except (OSError, ValueError) as error:
        raise TokenizerNotFound(
            f"name={name!r}: no tokenizer.json here, none in a folder of this name, and none from the hub ({error})"
        ) from error
