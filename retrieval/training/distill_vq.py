"""Distill-VQ: compressed vectors, and lists of them, learn the order in which float vectors rank, without any label.

Xiao et al., "Distill-VQ: Learning Retrieval Oriented Vector Quantization By Distilling Knowledge from Dense
Embeddings", SIGIR 2022. The teacher is the embedding itself; of the losses that the paper compares, ListNet was best.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from indexes import IVFIndex
from indexes.base import Index
from indexes.codecs import Codec
from retrieval.training import losses
from retrieval.training.data import TrainingData, nearest
from retrieval.training.jpq import with_positives
from retrieval.training.lists import NEAREST, Lists
from retrieval.training.method import Decoded, search_codes
from retrieval.training.quantizer import QuantizerMethod

RATES = {"product": 0.01, "additive": 0.005, "binary": 0.001}
CAREFUL = 0.03  # learning rate of additive codebooks, in units of the error they leave
DEPTH = 100  # of the teacher's and the student's nearest documents


class DistillVQ(QuantizerMethod):
    """The teacher's distribution over candidates is learned by the codes' scores.

    `bytes`, `codebooks`: as of `JPQ`. `linear`: centroids as a basis times one matrix per codebook (SimVQ).
    `temperature`: of both softmaxes, in units of the scores; cosines of the best hundred lie within some 0.2.
    `lr`: None is 0.01 for product and 0.001 for binary codebooks (whose start is hard to better: on NFCorpus and
    Vaswani no rate gained anything without labels); for additive ones, which on small collections leave next to nothing
    that steps could gain and much that they could lose, 0.03 times the squared error that they leave, in units of the
    variance, and at most 0.005.
    `recode`: codes are chosen anew by the trained centroids before each epoch; otherwise they stay as they were. None
    does so for product codebooks: others are chosen by a search that takes longer, and gained nothing by it.
    Candidates of a query are the 100 documents nearest by the float vectors (the paper's virtual positives), the 100
    nearest by the codes, found anew before each epoch, and `random` others. Relevant documents, where data has labels,
    join the candidates; what they are worth is the teacher's to say.
    `nlist`: learn so many inverted lists too (see `Lists`), for an `IVFIndex` that visits the number which is its
    default; None is for a `ScanIndex`, of which every query visits all codes.
    """

    name = "distill-vq"

    def __init__(
        self, *, bytes: int = 48, codebooks: str = "product", tune: str = "adapter", rank: int = 16,
        lr: float | None = None, query_lr: float = 1e-4, temperature: float = 0.02, random: int = 50,
        recode: bool | None = None, linear: bool = False, nlist: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.codebooks, self.tune, self.rank = bytes, codebooks, tune, rank
        self.lr = lr
        self.recode = codebooks == "product" if recode is None else recode
        self.query_lr, self.temperature, self.random = query_lr, temperature, random
        self.linear, self.nlist, self.seed = linear, nlist, seed

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        self.usual = RATES[self.codebooks]
        if self.lr is None and self.codebooks == "additive":
            self.usual = min(self.usual, CAREFUL * self.quantizer.left_over(data.documents, self.coded))
        self.teacher = nearest(data.queries, data.documents, DEPTH)
        self.student = self.teacher[:, :0]
        self.lists = None if self.nlist is None else Lists(data.documents, self.nlist, self.seed)
        if self.lists is not None:
            self.modules["lists"] = self.lists

    def rate(self) -> float:
        return self.usual if self.lr is None else self.lr

    def epoch(self, data: TrainingData, number: int) -> None:
        if self.recode and number > 1:
            self.code_anew(data)
        asked = self.asked(data.queries, data.texts)
        self.student = search_codes(self.codec(), self.coded, asked, DEPTH)
        self.listed = None if self.lists is None else self.lists.of(data.documents)

    def loss(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        candidates = self.candidates(data, rows, random)
        queries = torch.from_numpy(data.queries[rows])
        documents = torch.from_numpy(data.documents[candidates])
        teacher = torch.bmm(documents, queries[:, :, None])[:, :, 0]
        scores = self.quantizer.scores(self.queries(rows), self.coded, candidates)
        teacher = teacher.masked_fill(torch.from_numpy(candidates < 0), -torch.inf)
        loss = losses.list_net(scores, teacher, self.temperature)
        if self.lists is None or self.listed is None:
            return loss
        best = self.teacher[rows, :NEAREST]
        found = torch.bmm(torch.from_numpy(data.documents[best]), queries[:, :, None])[:, :, 0]
        texts = None if data.texts is None else [data.texts[row] for row in rows]
        asked = torch.from_numpy(self.asked(data.queries[rows], texts))  # lists see queries as an index does
        return loss + self.lists.loss(asked, self.listed[best], found, self.temperature)

    def candidates(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Rows int64 (B, m) of the candidates of some queries, each once; -1 for none."""
        drawn = random.integers(0, len(data.documents), (len(rows), self.random))
        found = np.concatenate([self.teacher[rows], self.student[rows], drawn], axis=1)
        if data.positives is not None:
            found = with_positives(found, [data.positives[row] for row in rows])[0]
        order = np.argsort(found, axis=1, kind="stable")
        ascending = np.take_along_axis(found, order, axis=1)
        ascending[:, 1:][ascending[:, 1:] == ascending[:, :-1]] = -1
        return ascending

    def search(self, codec: Codec, codes: np.ndarray, data: TrainingData, asked: np.ndarray, k: int) -> np.ndarray:
        if self.lists is None:
            return super().search(codec, codes, data, asked, k)
        visited, lists = self.lists.visited(asked), self.lists.of(data.documents)
        return nearest(asked, Decoded(codec, codes), k, lambda queries, rows: visited[queries][:, lists[rows]])

    def index(self, codec: Codec, metric: str) -> Index:
        if self.lists is None:
            return super().index(codec, metric)
        learned = self.lists.learned(metric)
        empty = IVFIndex(nlist=len(learned), codec=codec, metric=metric, rerank=None)
        return empty.fit(learned.vectors, centroids=learned)
