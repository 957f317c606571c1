"""Fixtures of the tests of `indexes`."""

from __future__ import annotations

import os

import pytest
from index_cases import CASES, Case

# read when faiss is first imported: on a busy machine its threads would spend the time waiting for each other
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test pulls the plug, so none needs fsync, which takes most of the time of a small save."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param
