"""Bi-encoders of sentence-transformers: queries and documents as dense vectors of one space.

Reimers & Gurevych, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks", EMNLP 2019.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.encoders import pretrained
from retrieval.encoders.base import Encoder
from retrieval.errors import EncoderError

logger = logging.getLogger(__name__)

SIMILARITIES = {"cosine": "cosine", "dot": "ip", "euclidean": "l2"}  # theirs -> ours
PROBE = "What is the boiling point of water at 2,000 metres above the sea?"
# lowest cosine at which two probes are of one model: the CPU's kernels for int8 differ among themselves
SAME = {"float32": 0.99, "bfloat16": 0.99, "int8": 0.9}


class SentenceTransformerEncoder(Encoder):
    """Any sentence-transformers model, by folder or hub name; loaded at its first use, saved by reference.

        encoder = SentenceTransformerEncoder("sentence-transformers/all-MiniLM-L6-v2", dtype="bfloat16")
        vectors = encoder.encode_documents(["a text", "another"])  # float32 (2, 384)

    model: a folder, or a name on the hub. Models that bring their own code are not accepted.
    revision: branch, tag or commit on the hub; None: the newest. After loading, the commit.
    dtype: "float32"; "bfloat16" (twice to three times as fast on CPUs and GPUs that compute in it, nDCG within 0.001);
        "int8" (CPU only, weights of the linear layers; for CPUs without bfloat16; a vector depends a little on the
        texts beside it). Vectors are float32 in any case.
    batch_size: texts per step, sorted by length over the whole call.
    max_length: tokens that are read of each text, the rest is cut off; None: the model's own.
    device: "cpu", "cuda", "mps" ...; None: the best at hand. Not saved: a collection opens on other machines.
    query_prompt, document_prompt: put before each text; None: the model's own; "": none.

    The vectors of a probe sentence are saved with the encoder; a restored one compares them when it loads its model,
    and refuses another model, since vectors of two models cannot be compared. Threads may share an encoder; they take
    turns.
    Raises `EncoderError` (a parameter, a model that cannot be loaded or is not the saved one, NaN) and `MissingExtra`.
    """

    kind = "sentence-transformer"
    costly = True

    def __init__(
        self,
        model: str | Path,
        *,
        revision: str | None = None,
        dtype: str = "float32",
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> None:
        pretrained.check_parameters(dtype=dtype, batch_size=batch_size, max_length=max_length, device=device)
        self.model = pretrained.reference(model)
        self.revision = revision
        self.dtype = dtype
        self.batch_size = batch_size
        self.max_length = max_length
        self.device = device
        self.query_prompt = query_prompt
        self.document_prompt = document_prompt
        self._model: Any = None
        self._probe: np.ndarray | None = None  # of the saved encoder, or of the loaded model
        self._turn = threading.RLock()

    @cached_property
    def similarity(self) -> str:  # type: ignore[override]
        """The model's own similarity: "cosine", "ip" or "l2"."""
        name = self._load().similarity_fn_name
        if name not in SIMILARITIES:
            raise EncoderError(f"model {self.model!r} compares by {name!r}; accepted: {', '.join(SIMILARITIES)}")
        return SIMILARITIES[name]

    @cached_property
    def dimension(self) -> int:
        return self.arrays()["probe"].shape[1]

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, d), finite. Raises `TypeError` naming the position of what is not a string."""
        return self._encode("document", texts)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (nq, d), finite. Raises `TypeError` naming the position of what is not a string."""
        return self._encode("query", texts)

    def settings(self) -> dict[str, Any]:
        """Loads the model, unless it was restored: its commit, similarity and dimension are among them."""
        dimension, similarity = self.dimension, self.similarity
        return {
            "model": self.model,
            "revision": self.revision,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "query_prompt": self.query_prompt,
            "document_prompt": self.document_prompt,
            "dimension": dimension,
            "similarity": similarity,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """`probe`: float32 (2, d), what the model makes of one sentence as a document and as a query, of length 1."""
        if self._probe is None:
            self._load()
        assert self._probe is not None
        return {"probe": self._probe}

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> SentenceTransformerEncoder:
        """Loads nothing yet. Without the saved probe any model is accepted, and asked what it is."""
        parameters = dict(settings)
        dimension, similarity = parameters.pop("dimension"), parameters.pop("similarity")
        encoder = cls(**parameters)
        if "probe" in arrays:
            encoder.dimension, encoder.similarity, encoder._probe = dimension, similarity, arrays["probe"]
        return encoder

    def _encode(self, side: str, texts: Sequence[str]) -> np.ndarray:
        checked = pretrained.check_texts(texts)
        if not checked:
            return np.empty((0, self.dimension), dtype=np.float32)
        with self._turn:  # tokenizers refuse to be used by two threads at once
            vectors = self._run(self._load(), side, checked)
        pretrained.check_finite(vectors, self.model)
        return vectors

    def _run(self, model: Any, side: str, texts: list[str]) -> np.ndarray:
        prompt = self.query_prompt if side == "query" else self.document_prompt
        options = {"prompt": prompt, "batch_size": self.batch_size, "show_progress_bar": False}
        if hasattr(model, "encode_query"):
            vectors = getattr(model, f"encode_{side}")(texts, **options)
        else:  # sentence-transformers before 5
            name = side if prompt is None and side in model.prompts else None
            vectors = model.encode(texts, prompt_name=name, **options)
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _load(self) -> Any:
        with self._turn:
            if self._model is None:
                model, commit = pretrained.load(
                    "SentenceTransformer",
                    self.model,
                    revision=self.revision,
                    dtype=self.dtype,
                    device=self.device,
                    max_length=self.max_length,
                )
                self._check_probe(np.concatenate([self._run(model, side, [PROBE]) for side in ("document", "query")]))
                self.revision = commit or self.revision
                self._model = model
                logger.debug("loaded %s, revision %s, on %s", self.model, self.revision, model.device)
            return self._model

    def _check_probe(self, probe: np.ndarray) -> None:
        """Keep the probe of a model loaded first; refuse a model whose probe is not the saved one."""
        pretrained.check_finite(probe, self.model)
        unit = probe / np.maximum(np.linalg.norm(probe, axis=1, keepdims=True), np.float32(1e-12))
        if self._probe is None:
            self._probe = unit.round(3)  # coarse: threads and batches move the last bits
            return
        if unit.shape != self._probe.shape:
            raise EncoderError(
                f"model {self.model!r} gives {unit.shape[1]} dimensions; the saved encoder has {self._probe.shape[1]}"
            )
        cosine = float((unit * self._probe).sum(axis=1).min())
        if cosine < SAME[self.dtype]:
            raise EncoderError(
                f"model {self.model!r} is not the one that was saved: their vectors of one sentence have cosine "
                f"{cosine:.3f}, at least {SAME[self.dtype]} is expected"
            )
