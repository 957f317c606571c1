"""Bytes against quality: every codec over the embeddings of one model, by nDCG@10 on NFCorpus and SciFact.

    python scripts/storage_study.py                                  # datasets by ir_datasets id, the model by hub name
    python scripts/storage_study.py --data DIR --model PATH          # BEIR folders DIR/nfcorpus, DIR/scifact, offline
    python scripts/storage_study.py --plot pareto.png                # and a picture (needs matplotlib)

Needs the extras `encoders` and, without --data, `datasets`. Embeddings are kept in --cache, as by reproduce.py. --quick
takes LSA vectors of the Cranfield collection that comes with the package instead, and leaves out what learns slowly.

Codecs are fitted on the documents; LeanVec also on the queries of the split "train", which are not measured. Claims
that this checks ("Optimization of embeddings storage for RAG systems using quantization and dimensionality reduction
techniques", 2025): float8 loses less than 0.3% at a fourth of the bytes, and half of the dimensions by PCA, as float8,
are better than what int8 alone reaches, at half of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser

import eval as evaluation
import retrieval
from eval.significance import paired_t_test
from indexes.codecs import (
    LVQ,
    OPQ,
    PCA,
    PQ,
    SQ,
    BFloat16,
    Chain,
    Codec,
    Float8,
    Float16,
    Float32,
    LeanVec,
    RaBitQ,
    RandomRotation,
    Residual,
    SignBits,
)  # fmt: skip
from indexes.dense.base import normalize
from retrieval.documents import read_documents
from retrieval.encoders.cache import Encodings
from retrieval.encoders.lsa import LSA
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder

IDS = {"nfcorpus": "beir/nfcorpus", "scifact": "beir/scifact"}
MEASURE, DEPTH = "nDCG@10", 100
EXACT = "float32"


@dataclass
class Data:
    """Vectors of one dataset, of length 1, and its judgements. `sample`: vectors of other queries, to learn from."""

    name: str
    ids: Sequence[str]
    documents: np.ndarray
    queries: np.ndarray
    sample: np.ndarray
    judged: evaluation.Dataset

    def measure(self, scores: np.ndarray) -> list[float]:
        """nDCG@10 of each query, by scores (nq, n)."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        run = {
            query: {self.ids[i]: float(row[i]) for i in top}
            for query, row, top in zip(self.judged.queries, scores, best, strict=True)
        }
        found = evaluation.evaluate(run, self.judged.qrels, [MEASURE], exclude_self=self.judged.exclude_self)
        return found.values(MEASURE)


def codecs(d: int, quick: bool) -> dict[str, Codec]:
    """What is compared, by name: 4 bytes per dimension first, then ever fewer."""
    half, quarter, eighth = d // 2, d // 4, d // 8
    found: dict[str, Codec] = {
        EXACT: Float32(),
        "float16": Float16(),
        "bfloat16": BFloat16(),
        "LVQ 4x8": Residual(LVQ(bits=4), LVQ(bits=8)),
        "float8 e4m3": Float8(),
        "float8 e5m2": Float8(format="e5m2"),
        "int8 per dimension": SQ(),
        "int8 global": SQ(scope="global"),
        "LVQ 8": LVQ(),
        "PCA 1/2 + float8 e4m3": Chain(PCA(dimensions=half), Float8()),
        "PCA 1/2 + int8": Chain(PCA(dimensions=half), SQ()),
        "LeanVec 1/2 + int8": Chain(LeanVec(dimensions=half), SQ()),
        "int4 per dimension": SQ(bits=4),
        "int4 global": SQ(bits=4, scope="global"),
        "rotation + int4 global": Chain(RandomRotation(), SQ(bits=4, scope="global")),
        "LVQ 4": LVQ(bits=4),
        "PCA 1/4 + float8 e4m3": Chain(PCA(dimensions=quarter), Float8()),
        "PCA 1/2 + rotation + int4": Chain(PCA(dimensions=half), RandomRotation(), SQ(bits=4)),
        "LeanVec 1/4 + int8": Chain(LeanVec(dimensions=quarter), SQ()),
        "LeanVec 1/2 + rotation + int4": Chain(LeanVec(dimensions=half), RandomRotation(), SQ(bits=4)),
        "RaBitQ": RaBitQ(),
        "sign bits": SignBits(),
        "rotation + sign bits": Chain(RandomRotation(), SignBits()),
    }
    if not quick:
        found |= {
            f"PQ {quarter} x 8": PQ(M=quarter),
            f"OPQ {quarter} x 8": Chain(OPQ(M=quarter), PQ(M=quarter)),
            f"PQ {eighth} x 8": PQ(M=eighth),
            f"OPQ {eighth} x 8": Chain(OPQ(M=eighth), PQ(M=eighth)),
            f"LeanVec + OPQ {eighth} x 8": Chain(LeanVec(dimensions=d), OPQ(M=eighth), PQ(M=eighth)),
            f"OPQ {quarter} x 4": Chain(OPQ(M=quarter, bits=4), PQ(M=quarter, bits=4)),
            f"OPQ + 2 levels of PQ {eighth // 2} x 8": Chain(
                OPQ(M=eighth // 2), Residual(PQ(M=eighth // 2), PQ(M=eighth // 2))
            ),
        }
    return found


def study(data: Sequence[Data], quick: bool) -> list[list[Any]]:
    """One row per codec, fitted anew on each dataset; sizes are those of the first."""
    rows: list[list[Any]] = []
    exact: list[list[float]] = []
    for name, codec in codecs(data[0].documents.shape[1], quick).items():
        values, errors = [], []
        for part in data:
            codec.fit(part.documents, part.sample)
            values.append(part.measure(codec.scores(part.queries, codec.encode(part.documents))))
            errors.append(codec.score_error(part.documents, part.queries))
        exact = exact or values
        means = [float(np.mean(some)) for some in values]
        share = float(np.mean([mean / np.mean(some) for mean, some in zip(means, exact, strict=True)]))
        p = paired_t_test(np.concatenate(values), np.concatenate(exact))
        rmse, correlation = (float(np.mean([getattr(e, part) for e in errors])) for part in ("rmse", "correlation"))
        size = codec.bytes_per_vector
        rows.append([name, size, 4 * data[0].documents.shape[1] / size, *means, share, p, rmse, correlation])
    return sorted(rows, key=lambda row: -row[1])


def claims(rows: Sequence[Sequence[Any]], share: int) -> list[str]:
    """The two published claims beside what was found here."""
    found = {row[0]: (row[1], 100 * row[share] - 100) for row in rows}
    float8, both, int8 = (found[name] for name in ("float8 e4m3", "PCA 1/2 + float8 e4m3", "int8 per dimension"))
    int4 = found["int4 per dimension"]
    return [
        f"Claim: float8 loses under 0.3%. Here {float8[1]:+.2f}%, at {float8[0]} bytes (int8 {int8[1]:+.2f}%).",
        f"Claim: PCA to half and float8 beat int8 alone. Here {both[1]:+.2f}% at {both[0]} bytes; int8 {int8[1]:+.2f}% "
        f"at {int8[0]}, int4 {int4[1]:+.2f}% at {int4[0]}.",
    ]


def draw(rows: Sequence[Sequence[Any]], share: int, path: Path) -> None:
    """Share of the quality of float32 against bytes; a line joins the codecs that no other beats in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    front, best = [], -np.inf
    for row in sorted(rows, key=lambda row: (row[1], -row[share])):
        if row[share] > best:
            front.append(row)
            best = row[share]
    figure, axes = pyplot.subplots(figsize=(10, 8))
    axes.plot([row[1] for row in rows], [100 * row[share] for row in rows], "o", color="tab:gray", markersize=4)
    axes.plot([row[1] for row in front], [100 * row[share] for row in front], "o-", color="tab:blue", markersize=5)
    axes.set_xscale("log", base=2)
    sizes = sorted({row[1] for row in rows})
    axes.set_xticks(sizes[::-1], map(str, sizes[::-1]), fontsize=7, rotation=90)
    lowest, highest = axes.get_ylim()
    below: dict[int, float] = {}  # where the last label at each size stands, so that the next goes below it
    for row in sorted(rows, key=lambda row: -row[share]):
        place = min(100 * row[share], below.get(row[1], np.inf) - (highest - lowest) / 50)
        axes.annotate(row[0], (row[1], place), fontsize=6, xytext=(4, -2), textcoords="offset points")
        below[row[1]] = place
    axes.set_xlabel("bytes per vector")
    axes.set_ylabel(f"{MEASURE}, % of float32")
    axes.grid(True, alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def embedded(sources: Mapping[str, str], model: str, dtype: str, cache: Path) -> list[Data]:
    """Datasets as vectors of a sentence-transformers model."""
    encoder = SentenceTransformerEncoder(model, dtype=dtype)
    found = []
    for name, source in sources.items():
        folder = Path(source).exists()
        documents = list(read_documents(source))
        chunks = Encodings(cache, encoder).stream(document.contents for document in documents)
        vectors = normalize(np.concatenate(list(chunks)))
        judged = evaluation.load(source if folder else f"{source}/test", "test")
        train = evaluation.load(source if folder else f"{source}/train", "train")
        queries, sample = (
            normalize(encoder.encode_queries(list(part.queries.values()))) for part in (judged, train)
        )  # fmt: skip
        found.append(Data(name, [document.id for document in documents], vectors, queries, sample, judged))
    return found


def cranfield() -> list[Data]:
    """Cranfield as LSA vectors; every other query is for LeanVec to learn from, and not measured."""
    folder = Path(retrieval.__file__).parent / "cranfield"
    documents = list(read_documents(folder))
    texts = [document.contents for document in documents]
    encoder = LSA().fit(lambda: texts)
    judged = evaluation.load(folder)
    names = list(judged.queries)[::2]
    vectors = normalize(encoder.encode_queries(list(judged.queries.values())))
    measured = evaluation.Dataset(
        judged.name, judged.split, {name: judged.queries[name] for name in names},
        {name: judged.qrels[name] for name in names}, judged.exclude_self,
    )  # fmt: skip
    ids = [document.id for document in documents]
    return [Data("cranfield", ids, normalize(encoder.encode_documents(texts)), vectors[::2], vectors[1::2], measured)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, metavar="DIR", help="a folder of BEIR folders, instead of downloads")
    options.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="hub name or path")
    options.add_argument("--cache", type=Path, default=Path("results/encodings"), help="where embeddings are kept")
    options.add_argument("--dtype", default="float32", help="what the model computes in: float32, bfloat16 or int8")
    options.add_argument("--plot", type=Path, metavar="FILE", help="a picture of quality against bytes")
    args = options.parse_args()
    sources = {name: str(args.data / name) if args.data else identifier for name, identifier in IDS.items()}
    data = cranfield() if args.quick else embedded(sources, args.model, args.dtype, args.cache)
    rows = study(data, args.quick)
    share = 3 + len(data)  # the column of the share of float32
    columns = ["codec", "bytes", "compression", *(f"{part.name} {MEASURE}" for part in data)]
    columns += [f"share of {EXACT}", f"p against {EXACT}", "score RMSE", "score correlation"]
    vectors = "LSA" if args.quick else Path(args.model).name
    notes = [
        f"Vectors: {vectors}, {data[0].documents.shape[1]} dimensions, of length 1; queries stay float32.",
        "p: paired t-test over the queries of all datasets, not corrected for the number of codecs.",
        *claims(rows, share),
    ]
    if not args.quick:
        notes.append("PQ learns its centroids from these few thousand documents themselves, which flatters it.")
    if args.plot:
        draw(rows, share, args.plot)
    finish(columns, rows, notes, args.json)


if __name__ == "__main__":
    main()
