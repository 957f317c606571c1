"""What every way of learning to compress provides; `retrieval.training.loop` does the rest."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from indexes import ScanIndex
from indexes.base import Index
from indexes.codecs import Codec
from retrieval.encoders.base import Encoder
from retrieval.errors import TrainingError
from retrieval.retriever import Progress
from retrieval.training.data import TrainingData, nearest
from retrieval.training.query_side import PRETRAINED, TUNES, EncodedQueries, QuerySide, query_side

SAMPLE = 65_536  # documents, at most, that unsupervised starts learn from


class Method(ABC):
    """Base of the methods. Constructors take keywords and only store them; `begin` looks at the data.

    `tune`: what is trained besides the code: "code" (nothing), "adapter" (of queries a residual of rank `rank`, folded
    into the codec), "encoder" (the query encoder), or, for methods whose codes may change, "encoders" (one encoder, of
    queries and documents, learned from labels): every step reads its documents' texts, and before each validation all
    documents are encoded anew.
    """

    name: ClassVar[str]
    needs_labels: ClassVar[bool] = False
    tunes: ClassVar[tuple[str, ...]] = TUNES[:-1]
    """What `tune` may be."""
    epochs: ClassVar[int] = 6
    """Passes over the queries when the caller does not say; 0 where `begin` does all there is to do."""
    rerank: ClassVar[str | None] = None
    """What an index keeps beside the codes to rank candidates by, as of `ScanIndex`; `search` does the same."""

    seed: int
    lr: float | None = 1e-3
    """Learning rate of what is not the query side; None where the method chooses one (`rate`)."""
    gpl: str | None = None
    """Whose margins are learned instead of labels, where a method can (`TrainingData.teacher`): "embedding", the float
    vectors, or the name or folder of a cross-encoder, which is what GPL takes; None learns from labels."""
    tune: str = "code"
    rank: int = 16
    query_lr: float = 1e-4
    """Learning rate of the adapter; pretrained weights get a share of it (`query_side.PRETRAINED`), which grows in
    proportion over the first tenth of all steps."""

    modules: nn.ModuleDict
    queries: QuerySide

    def parameters(self) -> dict[str, Any]:
        """The constructor's parameters, as JSON values."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    def check(self) -> None:
        """Refuse what the method cannot do with any data. Raises `TrainingError`."""
        if self.tune not in self.tunes:
            raise TrainingError(f"tune is {self.tune!r}; it must be one of {', '.join(self.tunes)} for {self.name}")

    @property
    def labelled(self) -> bool:
        """Whether relevant documents are needed; an encoder of documents has nothing else that it could be true to."""
        return self.needs_labels or self.tune == "encoders"

    def start(self, data: TrainingData, model: Any = None) -> None:
        """Everything before the first step: the unsupervised start, and what will be trained, in `modules`."""
        self.check()
        if self.labelled and data.positives is None:
            kind = self.name if self.needs_labels else "tune='encoders'"
            raise TrainingError(f"{kind} learns from relevant documents; without labels take distill-vq")
        if self.tune == "encoders" and data.contents is None:
            raise TrainingError("tune='encoders' needs the texts of the documents (`TrainingData.contents`)")
        if self.gpl is not None and data.teacher is None:
            raise TrainingError(f"gpl is {self.gpl!r}, and the data have no teacher's scores (`teachers.taught`)")
        torch.manual_seed(self.seed)
        self.queries = query_side(self.tune, data.queries, data.texts, model, rank=self.rank, seed=self.seed)
        self.modules = nn.ModuleDict({"queries": self.queries})
        self.begin(data)

    @abstractmethod
    def begin(self, data: TrainingData) -> None:
        """The unsupervised start; what is trained goes into `modules`."""

    def rate(self) -> float:
        """The learning rate of what is not the query side, after `begin`."""
        assert self.lr is not None
        return self.lr

    def groups(self) -> list[dict[str, Any]]:
        """Groups of parameters with learning rates, for the optimizer."""
        others = [p for name, module in self.modules.items() if name != "queries" for p in module.parameters()]
        queries: dict[str, Any] = {"params": list(self.queries.parameters()), "lr": self.query_lr}
        if self.tune in PRETRAINED:
            queries["lr"] = queries["peak"] = PRETRAINED[self.tune] * self.query_lr
        return [group for group in ({"params": others, "lr": self.rate()}, queries) if group["params"]]

    def epoch(self, data: TrainingData, number: int) -> None:
        """Before each pass: negatives mined anew, codes computed anew."""
        return

    def restarts(self) -> frozenset[int]:
        """Epochs at which a new stage begins, with a new loss: the optimizer forgets, and patience starts again."""
        return frozenset()

    def order(self, data: TrainingData, random: np.random.Generator) -> np.ndarray:
        """The rows of all queries, int64 (nq,), as a pass goes through them, batch by batch."""
        return random.permutation(len(data.queries))

    def loss(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        """The loss of some queries, rows int64 (B,) of `data.queries`; draws come from `random`."""
        raise TrainingError(f"{self.name} takes no steps; epochs must be 0 or left out")

    @abstractmethod
    def codec(self) -> Codec:
        """What has been learned so far, as a fitted codec that takes vectors as they were embedded."""

    def vectors(self, data: TrainingData, rows: np.ndarray) -> Tensor:
        """Documents float32 (m, d), by their rows int64 (m,); read by the model, with gradients, where it is trained
        for them."""
        if self.tune != "encoders":
            return torch.from_numpy(data.documents[rows])
        assert data.contents is not None and isinstance(self.queries, EncodedQueries)
        distinct, places = np.unique(rows, return_inverse=True)
        return self.queries.read([data.contents[row] for row in distinct])[torch.from_numpy(places)]

    def anew(self, data: TrainingData, progress: Progress | None = None) -> TrainingData:
        """The data with documents as the model encodes them after an epoch."""
        if self.tune != "encoders":
            return data
        assert data.contents is not None and isinstance(self.queries, EncodedQueries)
        return replace(data, documents=self.queries.embed_documents(data.contents, progress))

    def codes(self, data: TrainingData) -> np.ndarray:
        """The codes of all documents by `codec()`, uint8 (n, bytes)."""
        return self.codec().encode(data.documents)

    def asked(self, vectors: np.ndarray, texts: Sequence[str] | None) -> np.ndarray:
        """What `codec()` is asked by for queries (nq, d): what `encoder` gives, float32 (nq, d)."""
        return self.queries.asked(vectors, texts)

    def search(self, codec: Codec, codes: np.ndarray, data: TrainingData, asked: np.ndarray, k: int) -> np.ndarray:
        """Rows int64 (nq, k), best first, that an index of the method finds for queries as `asked` gives them."""
        return search_codes(codec, codes, asked, k)

    def index(self, codec: Codec, metric: str) -> Index:
        """The index, still empty, that `search` stands for. `codec`: the one of the epoch that was kept."""
        return ScanIndex(codec=codec, metric=metric, rerank=self.rerank)

    def encoder(self, base: Encoder) -> Encoder:
        """What encodes for the index, made of the encoder whose vectors were learned from."""
        if self.tune not in PRETRAINED:
            return base
        from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
        from retrieval.encoders.tuned import Tuned
        from retrieval.encoders.two_towers import TwoTowers

        assert isinstance(base, SentenceTransformerEncoder)
        return (Tuned if self.tune == "encoders" else TwoTowers).of(base, self.queries.model)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs beside the trained tensors."""
        return {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `arrays`, after `start`."""
        return

    def report(self) -> dict[str, float]:
        """Numbers of interest for the history, such as how evenly codes are used."""
        return {}


def sampled(documents: np.ndarray, seed: int, count: int = SAMPLE) -> np.ndarray:
    """At most `count` of the documents, drawn by `seed`, in memory."""
    if len(documents) <= count:
        return np.ascontiguousarray(documents)
    rows = np.sort(np.random.default_rng(seed).choice(len(documents), count, replace=False))
    return documents[rows]


def search_codes(codec: Codec, codes: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows int64 (nq, k) of the codes that score best, block by block by the decoded vectors."""
    return nearest(queries, Decoded(codec, codes), k)


class Decoded:
    """Codes that look like the array of vectors behind them, as much as `nearest` needs."""

    def __init__(self, codec: Codec, codes: np.ndarray) -> None:
        self.codec, self.codes = codec, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.codec.decode(self.codes[rows])
