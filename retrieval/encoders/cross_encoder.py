"""Cross-encoders: one score for a query and a text that are read together, to rerank what an index found.

Nogueira & Cho, "Passage Re-ranking with BERT", 2019.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.encoders import pretrained
from retrieval.errors import EncoderError


class CrossEncoder:
    """Any cross-encoder of sentence-transformers, by folder or hub name; loaded at its first use.

        reranker = CrossEncoder("cross-encoder/ms-marco-MiniLM-L6-v2")
        scores = reranker.score("a query", ["a text", "another"])  # float32 (2,)

    model, revision, dtype, batch_size, device: as in `SentenceTransformerEncoder`.
    max_length: tokens of query and text together, the rest is cut off; None: the model's own.
    Threads may share a cross-encoder; they take turns.
    Raises `EncoderError` (a parameter, a model that cannot be loaded or gives more than one score) and `MissingExtra`.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | None = None,
    ) -> None:
        pretrained.check_parameters(dtype=dtype, batch_size=batch_size, max_length=max_length, device=device)
        self.model = pretrained.reference(model)
        self.revision = revision
        self.dtype = dtype
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = device
        self._model: Any = None
        self._turn = threading.RLock()

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """float32 (n,): how relevant each text is to the query; higher is better, comparable within one query.

        These are the model's logits. Its activation (often a sigmoid) is left out: it keeps their order, but rounds
        the best ones to the same number. Raises `TypeError` naming the position of what is not a string.
        """
        if not isinstance(query, str):
            raise TypeError(f"query is of type {type(query).__name__}, expected str")
        pretrained.check_texts([query], "query")
        checked = pretrained.check_texts(texts)
        if not checked:
            return np.empty(0, dtype=np.float32)
        with self._turn:
            model = self._load()
            import torch

            scores = model.predict(
                [(query, text) for text in checked],
                batch_size=self.batch_size,
                show_progress_bar=False,
                activation_fn=torch.nn.Identity(),
            )
        scores = np.ascontiguousarray(scores, dtype=np.float32)
        pretrained.check_finite(scores, self.model)
        return scores

    def _load(self) -> Any:
        with self._turn:
            if self._model is None:
                model, commit = pretrained.load(
                    "CrossEncoder",
                    self.model,
                    revision=self.revision,
                    dtype=self.dtype,
                    device=self.device,
                    max_length=self.max_length,
                )
                self._check_head(model)
                self.revision = commit or self.revision
                self._model = model
            return self._model

    def _check_head(self, model: Any) -> None:
        if model.num_labels != 1:
            raise EncoderError(f"model {self.model!r} gives {model.num_labels} scores per pair, expected 1")
        transformer = pretrained.transformer(model)
        saved_as = getattr(getattr(transformer, "config", None), "architectures", None)
        if saved_as and type(transformer).__name__ not in saved_as:  # then the head was made up while loading
            raise EncoderError(f"model {self.model!r} is a {saved_as[0]}: it has no trained head that scores pairs")
