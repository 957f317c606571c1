"""Fixtures of the tests of `indexes`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from index_cases import CASES, Case

import indexes
from indexes.errors import CorruptIndex

# read when faiss is first imported: on a busy machine its threads would spend the time waiting for each other
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pulls the plug, so none needs fsync, which takes most of the time of a small save."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    if request.param.needs is not None:
        pytest.importorskip(request.param.needs)
    return request.param


@pytest.fixture
def refusing() -> Callable[[Path], Callable[..., None]]:
    """`refusing(folder)`: a function that changes a copy of the saved header and expects `CorruptIndex`."""

    def of(folder: Path) -> Callable[..., None]:
        path = folder / "index.json"
        good = path.read_text()

        def refused(change: Callable[[dict[str, Any]], Any], match: str) -> None:
            header = json.loads(good)
            change(header)
            path.write_text(json.dumps(header))
            with pytest.raises(CorruptIndex, match=match):
                indexes.load(folder)

        return refused

    return of
