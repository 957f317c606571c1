"""BPR: hashes learned for two stages, candidates by Hamming distance and their order by float queries.

Yamada, Asai and Hajishirzi, "Efficient Passage Retrieval with Hashing for Open-domain Question Answering", ACL 2021.
Learned from labels it falls behind on other collections; trained on generated queries of the collection at hand, or
with no labels at all, it comes back (INCOME: Thakur, Reimers and Lin, 2023).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrieval.training import losses, teachers
from retrieval.training.data import TrainingData
from retrieval.training.hashing import Hasher, HashHead, signs, targets
from retrieval.training.query_side import TUNES


class BPR(Hasher):
    """With labels the paper's two losses, without them the order in which the float vectors rank, or margins.

    Labels: codes are tanh(sqrt(1 + 0.1 step) z), which sharpens to signs (section 3.1); their products with the codes
    of queries are to set relevant documents apart by `margin`, and float
    queries are to pick them by cross-entropy, of scores in units of `contrast`. Negatives are what the current index
    returns. No labels: ListNet between the float vectors' scores and those of the signs, both by `temperature`.
    `gpl`: see `Method`; both losses are of margins then, by their squared error, in units of inner products: for float
    queries, and for their codes times the mean size of what they are signs of, which is nearest to it.
    `lr`: 0.01 overshoots (overlap on held-out made queries of NFCorpus and SciFact, and of five collections as one).
    `bytes`: of a code, 8 bits each. `random`: documents drawn into each batch's candidates.
    The encoders of the paper are a linear map of documents and another of queries here, over frozen embeddings. With
    tune="encoders" the encoder below is trained too: a step reads the texts of its queries, and of a relevant and of a
    mined document of each, which are all its candidates.
    """

    name = "bpr"
    tunes = TUNES
    head: HashHead

    def __init__(
        self, *, bytes: int = 48, tune: str = "code", rank: int = 16, lr: float = 3e-3, query_lr: float = 1e-4,
        temperature: float = 0.02, margin: float = 2.0, contrast: float = 0.05, random: int = 100,
        gpl: str | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.tune, self.rank, self.lr, self.query_lr = bytes, tune, rank, lr, query_lr
        self.temperature, self.margin, self.contrast = temperature, margin, contrast
        self.random, self.gpl, self.seed = random, gpl, seed

    def epoch(self, data: TrainingData, number: int) -> None:
        if self.gpl is None:
            super().epoch(data, number)

    def step(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        if self.gpl is not None:
            return self.margins(data, rows, random)
        candidates = self.candidates(data, rows, random)
        documents = self.vectors(data, candidates)
        numbers, asked = self.head(documents), self.head.asked(self.queries(rows))
        if data.positives is None:
            teacher = torch.from_numpy(data.queries[rows]) @ documents.T
            return losses.list_net(self.head.scale * asked @ signs(numbers).T, teacher, self.temperature)
        codes = torch.tanh(self.sharpness() * numbers)
        present = [data.positives[row][np.isin(data.positives[row], candidates)] for row in rows]
        chosen, known = targets(present, candidates, random)
        target, hidden = torch.from_numpy(chosen), torch.from_numpy(known)
        binary = (torch.tanh(self.sharpness() * asked) @ codes.T).masked_fill(hidden, -torch.inf)
        ranked = (self.head.scale * asked @ codes.T).masked_fill(hidden, -torch.inf)
        return losses.margin_ranking(binary, target, self.margin) + losses.info_nce(ranked, target, self.contrast)

    def candidates(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if self.tune != "encoders":
            return super().candidates(data, rows, random)
        assert data.positives is not None
        mined = [np.setdiff1d(self.student[row], data.positives[row]) for row in rows]
        lists = [*(data.positives[row] for row in rows), *(some for some in mined if len(some))]
        return np.unique([random.choice(some) for some in lists])

    def sharpness(self) -> float:
        """What numbers are multiplied by before tanh, at this step."""
        return (1 + 0.1 * self.steps()) ** 0.5

    def margins(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        """The loss of a teacher's margins, of float queries and of their codes."""
        assert data.teacher is not None
        candidates, scored = teachers.candidates(data, rows), data.teacher[rows]
        if self.tune == "encoders":
            read = np.array([0, random.integers(1, candidates.shape[1])])
            candidates, scored = candidates[:, read], scored[:, read]
        documents, places = np.unique(candidates, return_inverse=True)
        codes = torch.tanh(self.sharpness() * self.head(self.vectors(data, documents)))
        asked = self.head.asked(self.queries(rows))
        binary = torch.tanh(self.sharpness() * asked) * asked.detach().abs().mean(dim=1, keepdim=True)
        teacher, chosen = torch.from_numpy(scored), torch.from_numpy(places.reshape(candidates.shape))
        scores = (self.head.scale * both @ codes.T for both in (asked, binary))
        return torch.stack([losses.margin_mse(s.gather(1, chosen), teacher) for s in scores]).sum()
