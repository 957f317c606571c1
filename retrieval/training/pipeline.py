"""From a collection to a trained index in it: data, training, the comparison with what needs no training.

    documents --> float vectors --+
    questions, or made of texts --+--> TrainingData --> loop.train --> codec --> an index, beside the others
        (gpl: negatives mined from all indexes, a teacher's margins)

Everything that is made on the way lies in DIR/training/NAME, so that the same call goes on after an interruption; it is
removed at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import eval as evaluation
from eval.files import write_atomically
from indexes import storage
from indexes.base import Index
from indexes.codecs import OPQ, PCA, PQ, BinaryAutoencoder, Chain, Codec, RandomRotation, SignBits
from indexes.dense.base import DenseIndex
from retrieval.encoders.base import Encoder
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.encoders.tuned import prompted, trainable
from retrieval.errors import CollectionError, TrainingError
from retrieval.retriever import Progress, Retriever
from retrieval.store import Store
from retrieval.training import teachers, unlabelled
from retrieval.training.data import TrainingData, nearest, quality
from retrieval.training.loop import Trained, train
from retrieval.training.method import SAMPLE, Method, sampled
from retrieval.training.negatives import mined, round_trip, rows_found
from retrieval.training.query_side import PRETRAINED
from retrieval.training.sources import Questions, document_vectors, query_vectors, rows_of

if TYPE_CHECKING:
    from retrieval.collection import Collection

logger = logging.getLogger(__name__)
DEPTH = 100  # documents ranked per test query
NEGATIVES = 20  # of each query, which a teacher scores
BLOCK = 65_536  # vectors added to the index at once
MEASURES = ("nDCG@10", "R@100")  # of a test dataset
Search = Callable[[np.ndarray, int], np.ndarray]  # queries (nq, d), k -> rows int64 (nq, k), best first


@dataclass(frozen=True)
class TrainedIndex:
    """What a trained index is worth. `trained`: codec, codes and the history of training.

    `rows`: one for the float vectors, one for each unsupervised codec of as many bytes, one for the trained index
    (before it, with tune="encoders", one for the float vectors of the trained encoder):
    vectors (what they are), bytes (per document), dev (nDCG@10 on the dev queries with labels, otherwise the share of
    the 10 documents nearest by float vectors that are among the first 10), and the measures on the test queries. Where
    the method keeps vectors on disk to rank again by (BiDR), all rows of codes are ranked so, and bytes are those of
    the codes.
    `labelled`: which of the two `dev` is. `queries`, `dev_queries`: how many were learned from, and held out.
    """

    name: str
    trained: Trained
    rows: list[dict[str, Any]]
    labelled: bool
    queries: int
    dev_queries: int


@dataclass(frozen=True)
class _Corpus:
    """The documents as they were when training began. `rows`: id -> row."""

    retriever: Retriever
    keys: np.ndarray
    vectors: np.ndarray
    rows: dict[str, int]
    folder: Path


def train_index(
    collection: Collection, method: Method, to: str, *, index: str | None = None,
    queries: Questions | Sequence[str] | None = None, dev: Questions | None = None,
    generate: Sequence[str] = ("auto",), count: int = unlabelled.COUNT, keep_top: int | None = None,
    test: evaluation.Dataset | None = None, epochs: int | None = None, batch: int = 64, patience: int = 3,
    threads: int | None = None, progress: Progress | None = None,
) -> TrainedIndex:  # fmt: skip
    """Train an index and add it to a collection. See `Collection.train`, which is how to call it."""
    folder = collection.folder / "training" / to
    retriever = _source(collection, index)
    if epochs and not method.epochs:
        raise TrainingError(f"{method.name} takes no steps; epochs must be left out")
    method.check()
    if method.tune in PRETRAINED:
        _neural(retriever.encoder, method.tune)  # said now, not after all documents have been encoded
    with contextlib.closing(Store(collection.folder)) as store, store.reading():  # one generation
        keys = store.keys()
        vectors = document_vectors(retriever, keys, store.contents(), folder, progress)
        ids = store.ids(keys.tolist())
        rows = {ids[key]: row for row, key in enumerate(keys.tolist())}
        corpus = _Corpus(retriever, keys, vectors, rows, folder)
        if queries is None:
            made = _made(store, corpus, generate, count, keep_top, method.seed, progress)
            labels = method.labelled or method.gpl is not None
            data = _data(corpus, method, made.texts, list(made.sources[:, None]) if labels else None)
        else:
            data = _asked(corpus, method, queries)
        if method.gpl is not None:
            data = _taught(store, corpus, data, method.gpl, _others(collection, retriever), progress)
        if method.tune == "encoders":
            contents = prompted(_neural(retriever.encoder, method.tune), list(store.contents()), "document")
            data = replace(data, contents=contents)
    held = _asked(corpus, method, dev) if dev is not None else None
    if held is None:
        data, held = data.split(seed=method.seed)
        if queries is None and method.gpl is not None:
            held = held.without_labels()  # the document that a query was made from is one of many answers
    model = trainable(_neural(retriever.encoder, method.tune)) if method.tune in PRETRAINED else None
    trained = train(
        method, data, held, epochs=epochs, batch=batch, patience=patience, checkpoint=folder / "checkpoint",
        model=model, threads=threads, progress=progress,
    )  # fmt: skip
    encoder = trained.method.encoder(retriever.encoder)
    made_index = _index(corpus, trained)
    compared = _compare(corpus, encoder, method, trained, held, test, progress)
    collection.add_index(to, Retriever(encoder, made_index), progress)
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
    return TrainedIndex(to, trained, compared, held.positives is not None, len(data.queries), len(held.queries))


def _source(collection: Collection, index: str | None) -> Retriever:
    """The retriever whose vectors are to be compressed: the one called `index`, or the only dense one."""
    with collection.reading() as retrievers:
        dense = [n for n, one in retrievers.items() if isinstance(one.index, DenseIndex) and not one.index.trained]
        if index is None and len(dense) != 1:
            names = ", ".join(dense) or "none"
            raise CollectionError(f"index must say whose vectors to compress; the dense ones are: {names}")
        if index is not None and index not in retrievers:
            raise CollectionError(f"no index {index!r}; the indexes are: {', '.join(retrievers)}")
        return retrievers[dense[0] if index is None else index]


# -- data --------------------------------------------------------------------------------------------------------------


def _asked(corpus: _Corpus, method: Method, questions: Questions | Sequence[str]) -> TrainingData:
    """Questions that were given. Those of which no relevant document is in the collection are left out."""
    given = questions if isinstance(questions, Questions) else Questions(list(questions))
    if given.positives is None:
        return _data(corpus, method, given.texts, None)
    positives = rows_of(given.positives, corpus.rows)
    kept = [i for i, rows in enumerate(positives) if len(rows)]
    if not kept:
        raise TrainingError(f"of {len(given.texts)} questions, none has a relevant document in the collection")
    negatives = None
    if given.negatives is not None:
        listed = rows_of([given.negatives[i] for i in kept], corpus.rows)
        negatives = np.full((len(kept), max(1, *map(len, listed))), -1, np.int64)
        for row, some in zip(negatives, listed, strict=True):
            row[: len(some)] = some
    return _data(corpus, method, [given.texts[i] for i in kept], [positives[i] for i in kept], negatives)


def _made(
    store: Store, corpus: _Corpus, kinds: Sequence[str], count: int, keep_top: int | None, seed: int,
    progress: Progress | None,
) -> unlabelled.PseudoQueries:  # fmt: skip
    """Queries made from at most `count` of the documents; sources are rows. They are kept for the next attempt."""
    digest = hashlib.sha256(json.dumps([list(kinds), count, seed]).encode() + corpus.keys.tobytes()).hexdigest()
    path = corpus.folder / f"queries.{digest[:16]}.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf8"))
        made = unlabelled.PseudoQueries(kept["texts"], np.array(kept["sources"], np.int64))
    else:
        n = len(corpus.keys)
        rows = np.sort(np.random.default_rng(seed).permutation(n)[:count])
        documents = store.documents(corpus.keys[rows].tolist())
        made = unlabelled.mixed(
            [documents[key] for key in corpus.keys[rows].tolist()], kinds, count=count, seed=seed, progress=progress
        )
        made = replace(made, sources=rows[made.sources])
        corpus.folder.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as out:
            json.dump({"texts": made.texts, "sources": made.sources.tolist()}, out)
    if keep_top is not None:
        if keep_top < 1:
            raise TrainingError(f"keep_top is {keep_top}; it must be at least 1, or None")
        found = nearest(query_vectors(corpus.retriever.encoder, made.texts), corpus.vectors, keep_top)
        back = np.flatnonzero(round_trip(found, made.sources))
        logger.info("%d of %d queries lead back to their document", len(back), len(made))
        made = made.part(back)
    if len(made) < 2:
        raise TrainingError(f"{len(made)} queries were made from the documents; training needs 2 at least")
    return made


def _data(
    corpus: _Corpus, method: Method, texts: Sequence[str], positives: Sequence[np.ndarray] | None,
    negatives: np.ndarray | None = None,
) -> TrainingData:  # fmt: skip
    """Training data of questions; those of which the encoder knows no word are left out."""
    encoder = corpus.retriever.encoder
    vectors = query_vectors(encoder, texts)
    known = np.flatnonzero(vectors.any(axis=1))
    if not len(known):
        raise TrainingError(f"the encoder {encoder.kind!r} knows no word of the {len(texts)} questions")
    asked = prompted(_neural(encoder, method.tune), texts) if method.tune in PRETRAINED else list(texts)
    return TrainingData(corpus.vectors, vectors, positives, asked, negatives).part(known)


def _others(collection: Collection, source: Retriever) -> list[Retriever]:
    """The retrievers of the collection that no training made, but `source`."""
    with collection.reading() as retrievers:
        return [one for one in retrievers.values() if one is not source and not one.index.trained]


def _taught(
    store: Store, corpus: _Corpus, data: TrainingData, name: str, others: Sequence[Retriever], progress: Progress | None
) -> TrainingData:  # fmt: skip
    """The data with negatives, mined from the vectors and from `others` where there are none, and what the teacher
    `name` scores them. Scores are kept for the next attempt."""
    if data.positives is None:
        raise TrainingError("gpl learns margins between a relevant document and others: the questions have no labels")
    texts = list(data.texts or ())
    if data.negatives is None:
        found = [nearest(data.queries, corpus.vectors, NEGATIVES * 2)]
        found += [rows_found(one, texts, corpus.keys, NEGATIVES * 2) for one in others]
        data = replace(data, negatives=mined(found, data.positives, NEGATIVES))
    digest = hashlib.sha256(json.dumps([name, texts, data.fingerprint()]).encode()).hexdigest()
    path = corpus.folder / f"teacher.{digest[:16]}"
    if (path / storage.HEADER).exists():
        kept, _ = storage.load_arrays(path, storage.load_header(path), mmap=False, verify=True)
        return replace(data, teacher=kept["teacher"])
    teacher: teachers.Teacher = teachers.by_embedding
    if name != teachers.EMBEDDING:
        from retrieval.encoders.cross_encoder import CrossEncoder

        def contents(rows: np.ndarray) -> list[str]:
            keys = corpus.keys[rows].tolist()
            documents = store.documents(keys)
            return [documents[key].contents for key in keys]

        teacher = teachers.by_cross_encoder(CrossEncoder(name), contents)
    data = teachers.taught(data, teacher, progress=progress)
    assert data.teacher is not None
    storage.save(path, {}, {"teacher": data.teacher})
    return data


def _neural(encoder: Encoder, tune: str) -> SentenceTransformerEncoder:
    if not isinstance(encoder, SentenceTransformerEncoder) or encoder.similarity != "cosine":
        raise TrainingError(
            f"tune={tune!r} needs a sentence-transformers model that compares by cosine, not the encoder "
            f"{encoder.kind!r} that compares by {encoder.similarity!r}"
        )
    return encoder


# -- the index, and what it is worth -----------------------------------------------------------------------------------


def _index(corpus: _Corpus, trained: Trained) -> Index:
    """The method's index of all documents, under their keys."""
    made = trained.method.index(trained.codec, corpus.retriever.encoder.similarity)
    for start in range(0, len(corpus.keys), BLOCK):
        block = slice(start, start + BLOCK)
        made.add(np.ascontiguousarray(trained.documents[block]), corpus.keys[block])
    return made


def _compare(
    corpus: _Corpus, encoder: Encoder, method: Method, trained: Trained, dev: TrainingData,
    test: evaluation.Dataset | None, progress: Progress | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of a `TrainedIndex`."""
    frozen = corpus.retriever.encoder
    exact = nearest(dev.queries, corpus.vectors, 10)

    def row(name: str, size: int, own: Encoder, asked: np.ndarray, find: Search) -> dict[str, Any]:
        told: dict[str, Any] = {"vectors": name, "bytes": size, "dev": quality(find(asked, 10), dev, exact)}
        return told if test is None else told | _tested(corpus, test, own, find)

    def by_vectors(documents: np.ndarray) -> Search:
        return lambda queries, k: nearest(queries, documents, k)

    def by(codec: Codec, codes: np.ndarray) -> Search:
        return lambda queries, k: method.search(codec, codes, dev, queries, k)

    rows = [row("full precision", 4 * corpus.vectors.shape[1], frozen, dev.queries, by_vectors(corpus.vectors))]
    size = trained.codes.shape[1]
    for name, codec in _baselines(corpus.vectors, size, method.seed, progress).items():
        rows.append(row(name, size, frozen, dev.queries, by(codec, codec.encode(corpus.vectors))))
    asked = trained.method.asked(dev.queries, dev.texts)
    if method.tune == "encoders":
        rows.append(row("full precision, tuned", rows[0]["bytes"], encoder, asked, by_vectors(trained.documents)))
    return [*rows, row(method.name, size, encoder, asked, by(trained.codec, trained.codes))]


def _baselines(vectors: np.ndarray, size: int, seed: int, progress: Progress | None) -> dict[str, Codec]:
    """Unsupervised codecs of `size` bytes, of those that exist for so many dimensions and documents."""
    n, d = vectors.shape
    chosen: dict[str, Codec] = {}
    if n >= max(256, d) and size <= d:
        chosen["opq"] = Chain(OPQ(M=size, seed=seed), PQ(M=size, seed=seed))
    if size > 1 and n <= SAMPLE:  # coding more would take longer than most training
        chosen["binary autoencoder"] = BinaryAutoencoder(bytes=size, seed=seed)
    if 8 * size < d:
        chosen["sign bits"] = Chain(PCA(dimensions=8 * size), RandomRotation(seed=seed), SignBits())
    elif 8 * size == d:
        chosen["sign bits"] = Chain(RandomRotation(seed=seed), SignBits())
    sample = sampled(vectors, seed)
    for place, (name, codec) in enumerate(chosen.items()):
        if progress:
            progress(f"fitting {name} to compare with", place, len(chosen))
        codec.fit(sample)
    return chosen


def _tested(corpus: _Corpus, test: evaluation.Dataset, encoder: Encoder, find: Search) -> dict[str, float]:
    """The measures of a way to search on judged test queries."""
    found = find(query_vectors(encoder, list(test.queries.values())), DEPTH + test.exclude_self)
    names = list(corpus.rows)
    run = {
        query: {names[row]: -float(place) for place, row in enumerate(rows) if row >= 0}
        for query, rows in zip(test.queries, found.tolist(), strict=True)
    }
    return evaluation.evaluate(run, test.qrels, MEASURES, exclude_self=test.exclude_self).mean
