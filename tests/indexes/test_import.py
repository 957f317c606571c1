"""What importing `indexes` may not bring along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import indexes

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "faiss", "numba", "scipy", "sklearn", "retrieval", "eval", "ir_measures", "sentence_transformers"}


def modules_after(code: str) -> set[str]:
    """Top-level names of the modules that a new process holds after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    return set(json.loads(done.stdout))


def test_importing_brings_nothing_heavy():
    assert not modules_after("import indexes, indexes.base, indexes.storage, indexes.errors; dir(indexes)") & HEAVY


def test_a_flat_index_is_built_and_saved_without_anything_heavy():
    code = """
import tempfile, numpy as np, indexes
with tempfile.TemporaryDirectory() as folder:
    indexes.FlatIndex().add(np.ones((3, 2))).save(folder)
    indexes.load(folder)
"""
    assert not modules_after(code) & HEAVY


def test_no_index_brings_the_layers_above():
    code = """
import numpy as np, indexes
indexes.HNSWIndex().add(np.ones((3, 2))).search(np.ones(2), 1)
indexes.EagerIndex(weighting=indexes.BM25()).add(np.ones((3, 2))).search(np.ones(2), 1)
"""
    assert not modules_after(code) & {"torch", "retrieval", "eval", "sentence_transformers", "ir_measures"}


def test_every_public_name_is_there():
    for name in indexes.__all__:
        assert getattr(indexes, name).__name__ == name
    assert dir(indexes) == sorted(indexes.__all__)
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        indexes.no_such  # noqa: B018
