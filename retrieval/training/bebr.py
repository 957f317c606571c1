"""BEBR: recurrent binary codes, learned from embeddings alone, which two versions of a model can share.

Gan et al., "Binary Embedding-based Retrieval at Tencent", KDD 2023. Its blocks are small networks; here they are
linear, so that a codec is four arrays.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indexes.codecs import Recurrent
from indexes.codecs.recurrent import LEVELS
from retrieval.errors import TrainingError
from retrieval.training import losses
from retrieval.training.data import TrainingData
from retrieval.training.hashing import Hasher, Head, signs, targets
from retrieval.training.itq import bits, itq, principal, random_rows, sizes

# the size of the first level, in root mean squares: evenly spaced values with the least squared error for Gaussian
# numbers (Max, "Quantizing for minimum distortion", 1960)
SPREAD = {1: 0.7979, 2: 0.9957, 4: 1.3408, 8: 1.9685}


class RecurrentHead(Head):
    """The maps of a `Recurrent` codec: W and A, float32 (d', d), which start every level, and R = A^T 2^-i.

    `numbers` is what codes are to stand for, W (x - mean), and has a size near 1; x is near A^T numbers + mean. A and R
    are trained in units of the size of A, so that one learning rate suits all.
    """

    mean: Tensor
    unit: Tensor

    def __init__(self, binarize: np.ndarray, queries: np.ndarray, mean: np.ndarray, levels: int) -> None:
        super().__init__()
        unit = np.float32(max(float(np.sqrt(np.square(queries).mean())), 1e-12))
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("unit", torch.tensor([unit]))
        start = torch.from_numpy(queries / unit)
        self.binarize = nn.Parameter(torch.from_numpy(binarize).repeat(levels, 1, 1))
        shares = 2.0 ** -torch.arange(levels - 1)
        self.rebuild = nn.Parameter(shares[:, None, None] * start.T)
        self.queries = nn.Parameter(start.clone())

    def forward(self, documents: Tensor) -> Tensor:
        """The numbers float32 (m, d') that codes of documents (m, d) stand for; gradients go straight through signs."""
        rest, numbers = documents - self.mean, torch.zeros(())
        for level, binarize in enumerate(self.binarize):
            binary = signs(2.0**level * (rest @ binarize.T))
            numbers = numbers + 2.0**-level * binary
            if level < len(self.rebuild):
                rest = rest - self.unit * (binary @ self.rebuild[level].T)
        return numbers

    def asked(self, queries: Tensor) -> Tensor:
        """float32 (B, d') of queries (B, d); products with numbers are scores."""
        return self.unit * (queries @ self.queries.T)

    def codec(self, query_matrix: np.ndarray) -> Recurrent:
        """The maps as a codec, for queries that `query_matrix` (d, d) turns first."""
        unit, arrays = float(self.unit), {name: p.detach().numpy().copy() for name, p in self.named_parameters()}
        asking = unit * arrays["queries"] @ query_matrix
        return Recurrent.of(arrays["binarize"], unit * arrays["rebuild"], asking, self.mean.numpy().copy())


class BEBR(Hasher):
    """Contrast of queries with a queue of codes.

    `bytes`: of a code. `levels`: bits a number, 1, 2, 4 or 8; there are 8 bytes / levels numbers.
    Without labels the softmax over a batch's candidates and the queue is to be that of the float vectors; with labels a
    relevant document is to be picked, by cross-entropy; both by `temperature`. `queue`: documents whose codes, as of
    the last epoch's average, every query is compared with; the paper keeps past batches', by a momentum encoder.
    `earlier`: codes uint8 (n, bytes) of the same documents, in the same order, by a `Recurrent` codec of an earlier
    model with the same bytes and levels. Queries then learn to find these as well (backward-compatible training,
    section 3.2), so that one index may hold codes of both versions.
    """

    name = "bebr"

    def __init__(
        self, *, bytes: int = 48, levels: int = 2, tune: str = "code", rank: int = 16, lr: float = 1e-2,
        query_lr: float = 1e-4, temperature: float = 0.02, queue: int = 4096, random: int = 100,
        earlier: np.ndarray | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.bytes, self.levels, self.tune, self.rank, self.lr, self.query_lr = bytes, levels, tune, rank, lr, query_lr
        self.temperature, self.queue, self.random, self.earlier, self.seed = temperature, queue, random, earlier, seed

    def parameters(self) -> dict[str, Any]:
        """As of all methods; of `earlier` its digest."""
        given = super().parameters()
        if self.earlier is not None:
            given["earlier"] = hashlib.sha256(np.ascontiguousarray(self.earlier).tobytes()).hexdigest()
        return given

    def begin(self, data: TrainingData) -> None:
        super().begin(data)
        self.queued = torch.empty(0, self.width(data), dtype=torch.float32)

    def width(self, data: TrainingData) -> int:
        """How many numbers a code holds. Raises `TrainingError`."""
        d = data.documents.shape[1]
        if self.levels not in LEVELS:
            raise TrainingError(f"levels is {self.levels!r}; it must be one of {', '.join(map(str, LEVELS))}")
        return bits(self.bytes, d) // self.levels

    def start_head(self, data: TrainingData, sample: np.ndarray) -> RecurrentHead:
        width, d = self.width(data), sample.shape[1]
        if self.earlier is not None:
            return self._compatible(data, width)
        if self.levels == 1 or width > d:
            projection = itq(sample, width, seed=self.seed)
        else:
            projection = random_rows(width, width, self.seed) @ principal(sample, width)
        mean, _, root = sizes(sample, projection)
        size = np.float32(root * SPREAD[self.levels])
        return RecurrentHead(projection / size, projection * size, mean, self.levels)

    def _compatible(self, data: TrainingData, width: int) -> RecurrentHead:
        """The head whose numbers are nearest those of the earlier codes, by least squares."""
        shape = (len(data.documents), self.bytes)
        if not isinstance(self.earlier, np.ndarray) or self.earlier.shape != shape or self.earlier.dtype != np.uint8:
            seen = f"{getattr(self.earlier, 'dtype', type(self.earlier).__name__)} {getattr(self.earlier, 'shape', '')}"
            raise TrainingError(f"earlier is {seen}; it must be uint8 {shape}: one code for each document")
        self.known = torch.from_numpy(Recurrent(dimensions=width, levels=self.levels).numbers(self.earlier))
        numbers = self.known.numpy()
        mean = data.documents.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = data.documents - mean
        binarize, queries = _least_squares(centred, numbers), _least_squares(numbers, centred).T.copy()
        return RecurrentHead(binarize, queries, mean, self.levels)

    def epoch(self, data: TrainingData, number: int) -> None:
        super().epoch(data, number)
        codec = self.codec()
        assert isinstance(codec, Recurrent)
        self.queued = torch.from_numpy(codec.numbers(self.codes(data)))

    def step(self, data: TrainingData, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        candidates = self.candidates(data, rows, random)
        n = len(self.queued)
        others = np.setdiff1d(random.choice(n, min(self.queue, n), replace=False), candidates)
        numbers = torch.cat([self.head(torch.from_numpy(data.documents[candidates])), self.queued[others]])
        asked, compared = self.head.asked(self.queries(rows)), np.concatenate([candidates, others])
        loss = self.contrast(data, rows, asked @ numbers.T, compared, len(candidates), random)
        if self.earlier is None:
            return loss
        return loss + self.contrast(data, rows, asked @ self.known[compared].T, compared, len(candidates), random)

    def contrast(
        self, data: TrainingData, rows: np.ndarray, scores: Tensor, compared: np.ndarray, count: int,
        random: np.random.Generator,
    ) -> Tensor:  # fmt: skip
        """The loss of scores (B, m) with the documents at rows `compared`; relevant ones are in the first `count`."""
        if data.positives is None:
            teacher = torch.from_numpy(data.queries[rows] @ data.documents[compared].T)
            return losses.list_net(scores, teacher, self.temperature)
        chosen, known = targets([data.positives[row] for row in rows], compared[:count], random)
        hidden = np.pad(known, ((0, 0), (0, len(compared) - count)))
        shown = scores.masked_fill(torch.from_numpy(hidden), -torch.inf)
        return losses.info_nce(shown, torch.from_numpy(chosen), self.temperature)


def _least_squares(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """M float32 (e, d) with the least squared error of M x for wanted (n, e), x given (n, d), a little shrunk."""
    moment = given.T.astype(np.float64) @ given
    ridge = 1e-3 * np.trace(moment) / len(moment) + 1e-12
    solved = np.linalg.solve(moment + ridge * np.eye(len(moment)), given.T.astype(np.float64) @ wanted)
    return np.ascontiguousarray(solved.T.astype(np.float32))
