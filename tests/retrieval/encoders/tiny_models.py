"""Making small random models: real code, no downloads."""

from __future__ import annotations

from typing import Any


def small_config(hidden: int, **more: Any) -> Any:
    from transformers import BertConfig

    # a wide initialisation: the usual one gives nearly the same vector to every text
    return BertConfig(
        num_hidden_layers=2,
        hidden_size=hidden,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,
        **more,
    )


def save_with_tokenizer(model: Any, tokenizer_of: str, folder: str) -> None:
    from transformers import AutoTokenizer

    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
