"""A peer in a process of its own, often of another Python: the parent's end, `Worker`, and the child's, `serve`.

They talk in lines of JSON through the child's standard input and output, one question at a time, so that only one of
them computes. The child holds the clock, and pipes and JSON cost no peer anything. This file runs in the child too and
needs the standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

Setting = dict[str, Any]  # search parameters by name, JSON values


class NotInstalled(Exception):
    """The child's Python cannot import the peer."""


class PeerFailed(Exception):
    """The child raised an error, or ended."""


class Peer(Protocol):
    """What the child serves: a system that indexes a workload and answers its queries by number."""

    settings: Sequence[Setting]  # those to be measured, at least one

    def build(self) -> None:
        """Index the documents; timed."""

    def build_from_text(self) -> bool:
        """Index the raw texts with the peer's own analyzer; timed. False where that is not measured."""

    def megabytes(self) -> float:
        """What was built."""

    def warm_up(self) -> None:
        """Whatever makes later searches fast; not timed."""

    def search(self, i: int, k: int, setting: Setting) -> Any:
        """The answer to query i in the peer's own form; timed."""

    def ids(self, answer: Any) -> list[int]:
        """The documents in an answer, by number; not timed."""

    def batch(self, k: int, threads: int, setting: Setting) -> None:
        """All queries at once; timed."""


def timed(search: Callable[[int], Any], first: int, stop: int) -> tuple[list[Any], list[float]]:
    """Answers to the queries first..stop, and the seconds each took."""
    answers, seconds = [], []
    for i in range(first, stop):
        started = time.perf_counter()
        answer = search(i)
        seconds.append(time.perf_counter() - started)
        answers.append(answer)
    return answers, seconds


class Worker:
    """Runs `python script name folder` and asks it; `settings`, `build_seconds`, `text_seconds`, `megabytes`.

    Raises NotInstalled, and PeerFailed there and in every call.
    """

    def __init__(self, python: str, script: Path, name: str, folder: Path) -> None:
        self._errors = folder / f"{name}.log"
        with open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                [python, str(script), name, str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.name = name
        try:
            built = self._ask("build")
        except BaseException:
            self.close()
            raise
        self.settings: list[Setting] = built["settings"]
        self.build_seconds: float = built["build"]
        self.text_seconds: float | None = built["text"]
        self.megabytes: float = built["megabytes"]

    def search(self, first: int, stop: int, k: int, setting: Setting) -> tuple[list[list[int]], list[float]]:
        """Ids for the queries first..stop, one query a call on one thread, and the seconds each took."""
        answer = self._ask("search", first=first, stop=stop, k=k, setting=setting)
        return answer["ids"], answer["seconds"]

    def batch(self, k: int, threads: int, setting: Setting) -> float:
        """Seconds for all queries on several threads."""
        seconds: float = self._ask("batch", k=k, threads=threads, setting=setting)["seconds"]
        return seconds

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, verb: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"verb": verb, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            last = self._errors.read_text(errors="replace").strip().splitlines()[-1:]
            raise PeerFailed(f"{self.name} ended with code {self._process.wait()}: {' '.join(last)}")
        answer = json.loads(line)
        if "missing" in answer:
            raise NotInstalled(answer["missing"])
        if "error" in answer:
            raise PeerFailed(f"{self.name}: {answer['error']}")
        return answer


def serve(make: Callable[[], Peer]) -> None:
    """Answer the parent until it closes the pipe. `make` may raise ImportError."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a peer prints goes to the log
    peer: Peer | None = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if peer is None:
                peer = make()
            reply = _reply(peer, **question)
        except ImportError as error:
            reply = {"missing": str(error)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _reply(peer: Peer, verb: str, k: int = 10, setting: Setting | None = None, **rest: Any) -> dict[str, Any]:
    if verb == "build":
        started = time.perf_counter()
        peer.build()
        built = time.perf_counter()
        from_text = peer.build_from_text()
        text = time.perf_counter() - built if from_text else None
        peer.warm_up()
        size = peer.megabytes()
        return {"build": built - started, "text": text, "megabytes": size, "settings": list(peer.settings)}
    if verb == "search":
        answers, seconds = timed(lambda i: peer.search(i, k, setting or {}), rest["first"], rest["stop"])
        return {"ids": [peer.ids(answer) for answer in answers], "seconds": seconds}
    started = time.perf_counter()
    peer.batch(k, rest["threads"], setting or {})
    return {"seconds": time.perf_counter() - started}
