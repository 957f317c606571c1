"""Importing is cheap: what is heavy is loaded when it is first used."""

import subprocess
import sys
from pathlib import Path

import pytest

import retrieval

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "faiss", "numba", "scipy", "sentence_transformers", "transformers", "ir_measures", "pyarrow",
         "ir_datasets", "sklearn")  # fmt: skip


@pytest.mark.parametrize(
    "statement",
    [
        "import retrieval",
        "from retrieval import Collection, Document, Fusion, Rerank, Result, bm25, dense, index, open, read_documents",
        "import retrieval.cli.app",
        "from retrieval import bm25, dense; bm25(); dense()",
    ],
)
def test_heavy_packages_are_not_loaded(statement):
    script = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


def test_every_public_name_exists_and_others_do_not():
    assert {name for name in retrieval.__all__ if getattr(retrieval, name) is not None} == set(dir(retrieval))
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        retrieval.serach  # noqa: B018
