"""The loop that all methods share: batches, steps, validation, early stopping, checkpoints, resuming.

    method.start(data) --> validate --> epoch: method.epoch, then for each batch method.loss and a step of AdamW
                                          |--> method.anew: documents by the trained encoder, where there is one
                                          |--> validate: the best codec so far is kept
                                          +--> checkpoint --> next epoch, or the end

Validation comes before the first step too, so that the result is never worse than the unsupervised start on the dev
queries. Batches of an epoch are drawn from (seed, epoch) alone, so that a resumed run takes the same steps.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indexes import storage
from indexes.codecs import Codec
from retrieval.errors import TrainingError
from retrieval.retriever import Progress
from retrieval.training.data import TrainingData, nearest, quality
from retrieval.training.method import Method

logger = logging.getLogger(__name__)

HEADER = "checkpoint.json"
DEPTH = 10
WARM_UP = 0.1  # share of all steps over which the learning rate of a pretrained model grows, as BERT's does


@dataclass(frozen=True)
class Trained:
    """What training gave. `codec`: fitted, takes vectors as embedded. `codes` uint8 (n, bytes): of all documents.

    `documents`: float32 (n, d), what was coded: vectors as they came, or those of an encoder that was trained.
    `history`: one row per validation, the first before any step: epoch, loss, dev (nDCG@10 with labels, otherwise
    overlap with the 10 nearest by float vectors) and what the method reports. `best`: the epoch that was kept.
    `method`: holds the trained encoder, if there is one.
    """

    codec: Codec
    codes: np.ndarray
    history: list[dict[str, float]]
    best: int
    method: Method
    documents: np.ndarray


def train(
    method: Method, data: TrainingData, dev: TrainingData | None = None, *, epochs: int | None = None,
    batch: int = 64, patience: int = 3, checkpoint: str | Path | None = None, model: Any = None,
    threads: int | None = None, progress: Progress | None = None,
) -> Trained:  # fmt: skip
    """Learn to compress `data.documents`.

    `dev`: queries that stop training and choose the epoch; by default a tenth of the queries of `data`, at most 500.
    `epochs`: at most so many, default the method's own. `batch`: queries per step. `patience`: epochs without a better
    dev quality before it stops. `checkpoint`: a folder that is written after every epoch; a run with the same data and
    parameters goes on from there. `model`: the loaded sentence-transformers model, for methods that tune an encoder.
    `threads` of torch; results may differ in their last bits between numbers of threads.
    Raises `TrainingError`.
    """
    if dev is None:
        data, dev = data.split(seed=method.seed)
    limit = method.epochs if epochs is None else epochs
    if limit < 0 or batch < 1 or patience < 1:
        raise TrainingError(f"epochs={limit}, batch={batch}, patience={patience}; at least 0, 1 and 1")
    with _threads(threads):
        run = _Run(method, data, dev, batch, checkpoint, model)
        while run.number < limit and run.waited() < patience:
            run.one_epoch(limit, progress)
        return run.result()


class _Run:
    """The state of a run between epochs, which is what a checkpoint holds."""

    def __init__(
        self, method: Method, data: TrainingData, dev: TrainingData, batch: int, checkpoint: str | Path | None,
        model: Any,
    ) -> None:  # fmt: skip
        self.method, self.data, self.dev, self.batch = method, data, dev, batch
        self.folder = None if checkpoint is None else Path(checkpoint)
        self.identity = {"method": method.name, "parameters": method.parameters(), "batch": batch,
                         "data": data.fingerprint(), "dev": dev.fingerprint()}  # fmt: skip
        self.exact = nearest(dev.queries, dev.documents, DEPTH) if dev.positives is None else None
        method.start(data, model)
        self.optimizer = self._optimizer()
        self.number = self.best = 0
        self.history: list[dict[str, float]] = []
        if not self._resume():
            self._validate(float("nan"))

    def _optimizer(self) -> torch.optim.Optimizer | None:
        groups = self.method.groups()
        return torch.optim.AdamW(groups, weight_decay=0.0) if groups else None

    def waited(self) -> int:
        """Epochs since the best one, or since the last one of the stage before; 0 while stages are to come."""
        begun = max((start - 1 for start in self.method.restarts() if start <= self.number), default=0)
        pending = any(start > self.number for start in self.method.restarts())
        return 0 if pending else self.number - max(self.best, begun)

    def one_epoch(self, limit: int, progress: Progress | None) -> None:
        self.number += 1
        random = np.random.default_rng([self.method.seed, self.number])
        torch.manual_seed(self.method.seed * 1_000_003 + self.number)
        self.method.modules.train()
        self.method.epoch(self.data, self.number)
        if self.number in self.method.restarts():
            self.optimizer = self._optimizer()
        order = self.method.order(self.data, random)
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        losses = []
        for step, rows in enumerate(batches, 1):
            loss = self.method.loss(self.data, rows, random)
            if not torch.isfinite(loss):
                where = f"epoch {self.number}, step {step}"
                raise TrainingError(f"{self.method.name}: the loss is {loss.item()} at {where}")
            if self.optimizer is not None and loss.requires_grad:
                done = (self.number - 1) * len(batches) + step
                _warm_up(self.optimizer, done / (WARM_UP * limit * len(batches)))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            losses.append(loss.item())
            if progress:
                told = f"epoch {self.number} of {limit}, loss {np.mean(losses):.4f}, dev {self.history[-1]['dev']:.4f}"
                progress(told, step, len(batches))
        self.method.modules.eval()
        self.data = self.method.anew(self.data, progress)
        self._validate(float(np.mean(losses)))

    def _validate(self, loss: float) -> None:
        codec, codes = self.method.codec(), self.method.codes(self.data)
        asked = self.method.asked(self.dev.queries, self.dev.texts)
        found = self.method.search(codec, codes, self.dev, asked, DEPTH)
        value = quality(found, self.dev, self.exact)
        row = {"epoch": self.number, "loss": loss, "dev": value, **self.method.report()}
        self.history.append(row)
        logger.info("%s: %s", self.method.name, row)
        if self.number == 0 or value > self.history[self.best]["dev"]:
            self.best, self.codec, self.codes, self.documents = self.number, codec, codes, self.data.documents
            self.weights = copy.deepcopy(self.method.modules.state_dict())
        self._save()

    def result(self) -> Trained:
        self.method.modules.load_state_dict(self.weights)
        return Trained(self.codec, self.codes, self.history, self.best, self.method, self.documents)

    # -- checkpoints: arrays and JSON, as all files of ours --------------------------------------------------------

    def _save(self) -> None:
        if self.folder is None:
            return
        arrays = {f"now.{name}": _array(tensor) for name, tensor in self.method.modules.state_dict().items()}
        arrays |= {f"best.{name}": _array(tensor) for name, tensor in self.weights.items()}
        arrays |= {f"method.{name}": array for name, array in self.method.arrays().items()}
        arrays |= {f"codec.{name}": array for name, array in self.codec.arrays().items()} | {"codes": self.codes}
        if self.method.tune == "encoders":
            arrays |= {"documents.now": self.data.documents, "documents.best": self.documents}
        if self.optimizer is not None:
            for i, state in self.optimizer.state_dict()["state"].items():
                arrays |= {f"optimizer.{i}.{name}": _array(tensor) for name, tensor in state.items()}
        header = {"identity": self.identity, "number": self.number, "best": self.best, "codec": self.codec.header(),
                  "history": [{k: None if v != v else v for k, v in row.items()} for row in self.history]}  # fmt: skip
        storage.save(self.folder, header, arrays, name=HEADER)

    def _resume(self) -> bool:
        """Go on from the checkpoint. Raises `TrainingError` when it is of another run."""
        if self.folder is None or not (self.folder / HEADER).exists():
            return False
        header = storage.load_header(self.folder, name=HEADER)
        if json.loads(json.dumps(self.identity)) != header.get("identity"):
            raise TrainingError(
                f"{self.folder}: a checkpoint of another run (data, method or parameters differ); remove it"
            )
        arrays, _ = storage.load_arrays(self.folder, header, mmap=False, verify=True)
        parts: dict[str, dict[str, np.ndarray]] = {}
        for name, array in arrays.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = array
        self.method.restore(parts.get("method", {}))
        self.method.modules.load_state_dict({k: torch.from_numpy(a) for k, a in parts.get("now", {}).items()})
        self.weights = {name: torch.from_numpy(array) for name, array in parts.get("best", {}).items()}
        if self.optimizer is not None:
            saved = self.optimizer.state_dict()
            for name, array in parts.get("optimizer", {}).items():
                i, _, rest = name.partition(".")
                saved["state"].setdefault(int(i), {})[rest] = torch.from_numpy(array)
            self.optimizer.load_state_dict(saved)
        vectors = parts.get("documents", {})
        self.data = replace(self.data, documents=vectors.get("now", self.data.documents))
        self.documents = vectors.get("best", self.data.documents)
        self.number, self.best = header["number"], header["best"]
        self.history = [{k: float("nan") if v is None else v for k, v in row.items()} for row in header["history"]]
        self.codec, self.codes = Codec.restore(header["codec"], parts.get("codec", {})), arrays["codes"]
        logger.info("%s: goes on after epoch %d", self.method.name, self.number)
        return True


def _warm_up(optimizer: torch.optim.Optimizer, share: float) -> None:
    """The learning rate of a pretrained model (a group with a `peak`) after so much of its warm-up, in proportion."""
    for group in optimizer.param_groups:
        if "peak" in group:
            group["lr"] = group["peak"] * min(1.0, share)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


@contextlib.contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """torch on so many threads within the block; the caller's setting comes back after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
