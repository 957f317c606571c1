"""One way of finding documents: an encoder and the index that its vectors feed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import indexes
from indexes.base import Hits, Index
from retrieval.encoders.base import Encoder, batches, load_encoder
from retrieval.errors import EncoderError

BATCH = 1024  # documents encoded at once
TRAINING_SAMPLE = 100_000  # vectors from which an index learns centroids and rotations
# Documents from which a block-max index is preferred to an eager matrix. On titles of 8 terms, one query of 3 terms
# takes 43 and 42 microseconds among 100,000 documents, 69 and 63 among 300,000, 187 and 83 among 780,000 (k=10, one
# thread). At k=100 the matrix is faster for longer (121 and 192 among 300,000, 274 and 258 among 780,000), and it is
# built in a third of the time: hence the middle of the two crossings.
MANY = 300_000
Progress = Callable[[str, int, int], None]  # (what is being done, documents done, documents in all)


class Retriever:
    """An encoder (text -> vectors) and an index (vectors -> ranked ids), built, searched and saved together.

    Ids are the collection's integer keys. See `bm25` and `dense` below for the usual pairs.
    An `EagerIndex` or `BlockMaxIndex` that weighs counts and has defaults otherwise is replaced by the other one where
    that is faster for so many documents: results are the same to the last bit.
    """

    def __init__(self, encoder: Encoder, index: Index) -> None:
        self.encoder, self.index = encoder, index

    def build(
        self,
        keys: np.ndarray,
        texts: Callable[[], Iterable[str]],
        progress: Progress | None = None,
        encodings: Path | None = None,
    ) -> None:
        """Fit encoder and index on the texts where they learn, and add them under `keys` int64 (n,).

        An encoder stays as it is where a trained index learned from its vectors (`Index.trained`).
        `texts()` starts a new pass over them. `encodings`: a folder in which the vectors of a costly encoder are kept
        chunk by chunk, so that an interrupted build goes on where it stopped.
        """
        if not len(keys):
            return
        if not self.index.trained:
            if progress and type(self.encoder).fit is not Encoder.fit:
                progress("fitting", 0, 0)
            self.encoder.fit(texts)
        if not self.index.needs_fit:
            self.add(keys, texts(), progress, encodings)
            return
        vectors = np.concatenate(list(self.encoded(texts(), len(keys), progress, encodings)))
        self.index.fit(vectors[:: max(1, -(-len(keys) // TRAINING_SAMPLE))])
        self.index.add(vectors, keys)

    def add(
        self,
        keys: np.ndarray,
        texts: Iterable[str],
        progress: Progress | None = None,
        encodings: Path | None = None,
    ) -> None:
        """Add texts under `keys` int64 (n,), with the encoder and index as they were fitted."""
        self.index = _suited(self.index, len(self.index) + len(keys))
        start = 0
        for vectors in self.encoded(texts, len(keys), progress, encodings):
            self.index.add(vectors, keys[start : start + vectors.shape[0]])
            start += vectors.shape[0]

    def encoded(
        self, texts: Iterable[str], total: int, progress: Progress | None = None, encodings: Path | None = None
    ) -> Iterator[Any]:
        """The vectors of `total` documents, chunk by chunk; `encodings` as for `build`. Raises `EncoderError`."""
        done = 0
        for vectors in self._chunks(texts, encodings):
            yield vectors
            done += vectors.shape[0]
            if progress:
                progress("encoding", done, total)
        if done != total:
            raise EncoderError(f"the encoder {self.encoder.kind!r} gave {done} vectors for {total} texts")

    def _chunks(self, texts: Iterable[str], encodings: Path | None) -> Iterator[Any]:
        if self.encoder.costly and encodings is not None:
            from retrieval.encoders.cache import Encodings

            yield from Encodings(encodings, self.encoder).stream(texts)
            return
        yield from map(self.encoder.encode_documents, batches(texts, BATCH))

    def remove(self, keys: np.ndarray) -> None:
        """Remove these keys; absent ones are ignored."""
        self.index.remove(keys)

    def search(self, queries: Sequence[str], k: int, allow: np.ndarray | None = None, **knobs: Any) -> Hits:
        """The `k` best keys for each query; `allow` as in `Index.search`.

        A query that becomes the zero vector (no word that LSA knows) finds nothing: all documents would tie.
        """
        vectors = self.encoder.encode_queries(queries)
        hits = self.index.search(vectors, k, allow=allow, **knobs)
        if isinstance(vectors, np.ndarray) and self.encoder.similarity != "l2":
            nothing = ~vectors.any(axis=1)
            hits.scores[nothing], hits.ids[nothing] = -np.inf, -1
        return hits

    def explain(self, query: str, key: int) -> dict[str, float]:
        """Index term -> what it adds to the score of `key`, best first; empty where scores have no such parts.

        BM25L and BM25+ give something for terms without which a document is, too: the entry "(terms it lacks)".
        """
        from scipy.sparse import csr_matrix

        from indexes.sparse.base import SparseIndex
        from retrieval.encoders.bag_of_words import BagOfWords

        if not isinstance(self.index, SparseIndex) or not isinstance(self.encoder, BagOfWords):
            return {}
        # ask for the score of this document by all terms, and by each term alone
        vector = self.encoder.encode_queries([query])
        count, terms, weights = vector.nnz, vector.indices, vector.data
        starts = np.concatenate([[0], np.arange(count, 2 * count + 1)])
        asked = csr_matrix((np.tile(weights, 2), np.tile(terms, 2), starts), shape=(count + 1, vector.shape[1]))
        hits = self.index.search(asked, 1, allow=self.index.ids == key, threads=1)
        whole, *gains = hits.scores[:, 0].tolist()
        found = [(-gain, int(term)) for term, gain in zip(terms, gains, strict=True) if np.isfinite(gain)]
        parts = {self.encoder.term(term): -minus for minus, term in sorted(found)}
        weighting = getattr(self.index, "weighting", None)
        if parts and len(parts) < count and weighting is not None and weighting.nonoccurrence(np.ones(1)).any():
            parts["(terms it lacks)"] = whole - sum(parts.values())
        return parts

    def emptied(self) -> Retriever:
        """A new retriever with the same settings, nothing added, and nothing learned but what training gave."""
        if self.index.trained:
            return Retriever(self.encoder, self.index.emptied())
        return Retriever(type(self.encoder).restore(self.encoder.settings(), {}), self.index.emptied())

    def outgrown(self, n: int) -> bool:
        """Whether `n` documents should be indexed anew, because what was fitted no longer suits so many."""
        return not self.index.trained and self.encoder.outgrown(n)

    def describe(self) -> dict[str, Any]:
        """The encoder's kind and settings and the index's description."""
        return {"encoder": {"kind": self.encoder.kind, **self.encoder.settings()}, "index": self.index.describe()}

    def save(self, folder: str | Path) -> None:
        """Save both into sub-folders of `folder`."""
        self.encoder.save(Path(folder) / "encoder")
        self.index.save(Path(folder) / "index")

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = True) -> Retriever:
        """Open what `save` wrote; models are loaded at their first use. Errors as of `Index.load`, `load_encoder`."""
        encoder = load_encoder(Path(folder) / "encoder", verify=verify)
        return cls(encoder, indexes.load(Path(folder) / "index", verify=verify))


def _suited(index: Index, n: int) -> Index:
    """An index with the content of `index`, of the kind that answers faster when it holds `n` documents."""
    from indexes.sparse.blockmax import BlockMaxIndex
    from indexes.sparse.eager import EagerIndex

    if not isinstance(index, EagerIndex | BlockMaxIndex) or index.weighting is None:
        return index
    plain = type(index)(weighting=index.weighting)
    better: EagerIndex | BlockMaxIndex = (BlockMaxIndex if n >= MANY else EagerIndex)(weighting=index.weighting)
    if better.kind == index.kind or index.parameters() != plain.parameters():
        return index
    if isinstance(index, EagerIndex):
        return better.add(index.counts(), index.ids)
    return index if len(index) else better  # one that has shrunk stays until it is built anew


def bm25(analyzer: str = "english", *, method: str = "lucene", k1: float = 0.9, b: float = 0.4) -> Retriever:
    """BM25 over the index terms of an analyzer. See `indexes.BM25` and `retrieval.analysis`.

    Few documents are kept in an `EagerIndex`, from `MANY` on in a `BlockMaxIndex`.
    """
    from indexes import BM25, EagerIndex
    from retrieval.encoders.bag_of_words import BagOfWords

    return Retriever(BagOfWords(analyzer), EagerIndex(weighting=BM25(method=method, k1=k1, b=b)))


def dense(
    model: str | Encoder = "lsa", *, ann: str = "flat", encoder_dtype: str = "float32", **parameters: Any
) -> Retriever:
    """Dense vectors of `model` in an index of kind `ann`.

    `model`: "lsa" (fitted on the corpus, nothing to download), a sentence-transformers model by hub name or path, or
    an encoder with settings of its own, such as `LSA(d=512, analyzer="german")`.
    `ann`: "flat" (exact), "scan" (4-bit codes, then exact), "graph" (8-bit codes in a graph, then exact), "ivf" (4-bit
    codes in lists, then exact), "hnsw" or "ivfpq". `encoder_dtype`: what a model by name computes in, "float32",
    "bfloat16" or "int8" (see `SentenceTransformerEncoder`). `parameters` go to the index: `FlatIndex`, `ScanIndex`,
    `GraphIndex`, `IVFIndex`, `HNSWIndex`, `IVFPQIndex`.
    """
    from indexes import FlatIndex, GraphIndex, HNSWIndex, IVFIndex, IVFPQIndex, ScanIndex
    from retrieval.encoders.lsa import LSA

    kinds: dict[str, Callable[..., Index]] = {
        "flat": FlatIndex, "scan": ScanIndex, "graph": GraphIndex, "ivf": IVFIndex, "hnsw": HNSWIndex,
        "ivfpq": IVFPQIndex,
    }  # fmt: skip
    if ann not in kinds:
        raise ValueError(f"ann is {ann!r}; it must be one of {', '.join(kinds)}")
    encoder: Encoder
    if isinstance(model, Encoder):
        encoder = model
    elif model == "lsa":
        encoder = LSA()
    else:
        from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder

        encoder = SentenceTransformerEncoder(model, dtype=encoder_dtype)
    return Retriever(encoder, kinds[ann](metric=encoder.similarity, **parameters))
