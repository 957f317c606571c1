"""Reproduce published figures: BM25, MiniLM, hybrid, HNSW and IVF-PQ on NFCorpus and SciFact, and the DL19 runs.

    python scripts/reproduce.py                                   # datasets by ir_datasets id, the model by hub name
    python scripts/reproduce.py --data DIR --model PATH           # BEIR folders DIR/nfcorpus, DIR/scifact, offline

Needs the extras `encoders` and, without --data, `datasets`. --quick leaves out the model. Embeddings are kept in
--cache, so that a second run takes seconds. With DIR/msmarco-dl (a pool of judged passages, qrels/dl19.tsv and
runs/dl19.*.trec.gz) the runs of TREC DL 2019 are measured and fused too; --pool also encodes and searches the pool.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser

import eval as evaluation
import retrieval
from indexes import FlatIndex, Hits, HNSWIndex, IVFPQIndex
from retrieval.encoders.cache import Encodings
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.fusion import fuse_runs
from retrieval.search import FUSION_DEPTH

IDS = {"nfcorpus": "beir/nfcorpus/test", "scifact": "beir/scifact/test"}
# (dataset, system, measure) -> published value: flat Lucene runs and MiniLM of the public reproduction tables
PUBLISHED = {
    ("nfcorpus", "BM25", "nDCG@10"): 0.3218,
    ("nfcorpus", "BM25", "R@100"): 0.2457,
    ("scifact", "BM25", "nDCG@10"): 0.6789,
    ("scifact", "BM25", "R@100"): 0.9253,
    ("nfcorpus", "MiniLM exact", "nDCG@10"): 0.3159,
    ("scifact", "MiniLM exact", "nDCG@10"): 0.6451,
    ("DL19 runs", "BM25", "nDCG@10"): 0.5058,
    ("DL19 runs", "D_BERT_KD_TASB", "nDCG@10"): 0.7210,
}
MEASURES = ("nDCG@10", "R@100", "MRR@10")
DEPTH = FUSION_DEPTH  # of rankings
CHOSEN = ("ef_search", "nlist", "nprobe")
COLUMNS = ("dataset", "system", *MEASURES, "published nDCG@10", "published R@100", "recall@10 of exact", "bytes/vector")


class Study:
    """Collects the rows of the table."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.notes: list[str] = []

    def add(self, dataset: str, system: str, run: dict[str, dict[str, float]], data: Any, **more: Any) -> None:
        """Measure a run and add its row."""
        found = evaluation.evaluate(run, data.qrels, MEASURES, exclude_self=data.exclude_self)
        published = [PUBLISHED.get((dataset, system, measure)) for measure in ("nDCG@10", "R@100")]
        row = [dataset, system, *(found.mean[measure] for measure in MEASURES), *published]
        self.rows.append([*row, more.get("recall"), more.get("bytes_per_vector")])


class Corpus:
    """One dataset: its documents in a BM25 + LSA collection, and its vectors by a sentence-transformers model."""

    def __init__(self, name: str, source: str, split: str, folder: Path) -> None:
        self.name = name
        self.data = evaluation.load(source, split)
        documents = source.removesuffix(f"/{split}") if not Path(source).exists() else source
        self.collection = retrieval.index(documents, folder / f"{name}.idx")
        keys = self.collection.store.keys()
        self.ids = self.collection.store.ids(keys.tolist())
        self.keys = keys

    def run(self, index: str) -> dict[str, dict[str, float]]:
        """Rankings of the collection, as deep as fusion looks."""
        return self.collection.stage(index).run(self.data.queries, DEPTH)

    def vectors(self, encoder: SentenceTransformerEncoder, cache: Path) -> tuple[np.ndarray, np.ndarray]:
        """Document and query vectors."""
        chunks = Encodings(cache, encoder).stream(self.collection.store.contents())
        queries = encoder.encode_queries(list(self.data.queries.values()))
        return np.concatenate(list(chunks)), queries

    def named(self, hits: Hits) -> dict[str, dict[str, float]]:
        """Hits of an index over the collection's keys as a run."""
        return {
            query: {self.ids[key]: score for key, score in pairs}
            for query, pairs in zip(self.data.queries, hits, strict=True)
        }


def lexical(study: Study, corpus: Corpus) -> dict[str, dict[str, float]]:
    """BM25, and the hybrid that needs no model."""
    bm25 = corpus.run("bm25")
    study.add(corpus.name, "BM25", bm25, corpus.data)
    study.add(corpus.name, "LSA", corpus.run("dense"), corpus.data)
    study.add(corpus.name, "hybrid BM25 + LSA (default)", corpus.run("hybrid"), corpus.data)
    return bm25


def neural(study: Study, corpus: Corpus, bm25: dict[str, dict[str, float]], encoder: Any, cache: Path) -> None:
    """MiniLM exactly, by HNSW and by IVF-PQ, and fused with BM25."""
    documents, queries = corpus.vectors(encoder, cache)
    exact = FlatIndex(metric=encoder.similarity).add(documents, corpus.keys).search(queries, DEPTH)
    d = documents.shape[1]
    dense = corpus.named(exact)
    study.add(corpus.name, "MiniLM exact", dense, corpus.data, bytes_per_vector=4 * d)
    for index in (HNSWIndex(metric=encoder.similarity), IVFPQIndex(metric=encoder.similarity, bytes=32)):
        index.fit(documents).add(documents, corpus.keys)
        hits = index.search(queries, DEPTH)
        chosen = ", ".join(f"{name} {value}" for name, value in index.describe().items() if name in CHOSEN)
        stored = 4 * d + 8 * index.M if isinstance(index, HNSWIndex) else index.bytes
        system = f"MiniLM {type(index).__name__} ({chosen})"
        recall = _overlap(index.search(queries, 10).ids, exact.ids)  # deeper searches look further
        study.add(corpus.name, system, corpus.named(hits), corpus.data, recall=recall, bytes_per_vector=stored)
    study.add(corpus.name, "hybrid BM25 + MiniLM (default)", fuse_runs([bm25, dense], k=DEPTH), corpus.data)
    study.add(corpus.name, "hybrid BM25 + MiniLM by RRF", fuse_runs([bm25, dense], method="rrf", k=DEPTH), corpus.data)


def dl19(study: Study, folder: Path) -> None:
    """The six published runs over the shared pool, and their fusion, against the judgements of TREC DL 2019."""
    qrels = evaluation.read_qrels(folder / "qrels" / "dl19.tsv")
    data = evaluation.Dataset("dl19", "", {}, qrels, exclude_self=False)
    runs = {path.name.split(".")[1]: evaluation.read_run(path) for path in sorted(folder.glob("runs/dl19.*.trec.gz"))}
    for name, run in runs.items():
        study.add("DL19 runs", name, run, data)
    for method in ("minmax", "rrf"):
        study.add(
            "DL19 runs", f"all {len(runs)} fused by {method}", fuse_runs(list(runs.values()), method=method), data
        )


def pool(study: Study, folder: Path, work: Path, encoder: Any, cache: Path) -> None:
    """Our own BM25, MiniLM and hybrid over the pool, which is far smaller than the collection of the runs."""
    corpus = Corpus("DL19 pool", str(folder), "dl19", work)
    bm25 = lexical(study, corpus)
    if encoder is not None:
        neural(study, corpus, bm25, encoder, cache)


def _overlap(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a[:10]) & set(b[:10])) / 10 for a, b in zip(found, exact, strict=True)]))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, metavar="DIR", help="a folder of BEIR folders, instead of downloads")
    options.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="hub name or path of MiniLM")
    options.add_argument("--cache", type=Path, default=Path("results/encodings"), help="where embeddings are kept")
    options.add_argument("--dtype", default="float32", help="what the model computes in: float32, bfloat16 or int8")
    options.add_argument("--pool", action="store_true", help="encode and search the pool of DL19 too (15 minutes more)")
    args = options.parse_args()
    study = Study()
    encoder = None if args.quick else SentenceTransformerEncoder(args.model, dtype=args.dtype)
    with tempfile.TemporaryDirectory() as work:
        for name, identifier in IDS.items():
            source = str(args.data / name) if args.data else identifier
            corpus = Corpus(name, source, "test", Path(work))
            bm25 = lexical(study, corpus)
            if encoder is not None:
                neural(study, corpus, bm25, encoder, args.cache)
        if args.data and (args.data / "msmarco-dl").exists():
            dl19(study, args.data / "msmarco-dl")
            if not args.quick:
                pool(study, args.data / "msmarco-dl", Path(work), encoder if args.pool else None, args.cache)
    notes = [
        "Documents are title and text joined by a space. BM25: k1 0.9, b 0.4, English analyzer.",
        "The DL19 pool holds 32,256 passages, not the 8.8 million that the published runs searched: not comparable.",
    ]
    finish(COLUMNS, study.rows, notes, args.json)


if __name__ == "__main__":
    main()
