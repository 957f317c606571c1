"""Learning to compress: nDCG@10 against bytes, for every trainer beside what needs no training, at equal bytes.

    python scripts/compression_study.py                               # collections by ir_datasets id, model by hub name
    python scripts/compression_study.py --data DIR --model PATH       # BEIR folders DIR/nfcorpus, ..., offline
    python scripts/compression_study.py --bytes 48 24 --methods opq distill-vq --plot curve.png

Each collection is compressed alone, with queries made of its own documents (label-free) or with its training labels,
where it has some; and all of them together as one corpus ("joined"), where a document competes with those of all
others, codebooks serve all, and labels are those of NFCorpus and SciFact only: the rest is zero-shot. A small
collection flatters quantisers: its codebooks could nearly hold the vectors themselves (the column `codebook` counts
their bytes per document).

A finished cell is kept in --results, so that the same command goes on where it stopped. Needs the extra `encoders`,
and `datasets` without --data. --quick: LSA vectors of the Cranfield collection that comes with the package.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, parser

import eval as evaluation
import retrieval
from eval.errors import DatasetError
from eval.significance import paired_t_test
from indexes.codecs import OPQ, PQ, RQ, BinaryAutoencoder, Chain, Codec, RaBitQ, RandomRotation, SignBits
from indexes.dense.base import normalize
from retrieval.documents import Document, read_documents
from retrieval.encoders.base import Encoder
from retrieval.encoders.cache import Encodings
from retrieval.encoders.lsa import LSA
from retrieval.encoders.sentence_transformer import SentenceTransformerEncoder
from retrieval.training import teachers, unlabelled
from retrieval.training.bebr import BEBR
from retrieval.training.bpr import BPR
from retrieval.training.data import TrainingData, labelled, nearest
from retrieval.training.distill_vq import DistillVQ
from retrieval.training.itq import ITQ
from retrieval.training.jpq import JPQ
from retrieval.training.loop import train
from retrieval.training.method import Decoded, Method
from retrieval.training.negatives import mined
from retrieval.training.repconc import RepCONC

IDS = {"nfcorpus": "beir/nfcorpus", "scifact": "beir/scifact", "cranfield": "cranfield", "vaswani": "vaswani"}
MEASURE, JOINED = "nDCG@10", "joined"
QUERIES = 10_000  # made of the documents of a collection
NEGATIVES = 20  # of each query, for margins
DEV = 500  # made queries that are held out from learning margins
FLOAT = "float32"


@dataclass
class Judged:
    """Test queries of one collection: vectors, and judged rows of the unit's documents. `first`: the row of its own."""

    name: str
    queries: np.ndarray
    dataset: evaluation.Dataset


@dataclass
class Unit:
    """What is compressed at once: one collection, or all of them."""

    name: str
    ids: list[str]
    documents: np.ndarray
    made: np.ndarray
    sources: np.ndarray  # of each made query the row of its document
    judged: list[Judged]
    labels: list[tuple[np.ndarray, list[np.ndarray]]] = field(default_factory=list)

    def free(self) -> TrainingData:
        """Queries made of the documents; no label."""
        return TrainingData(self.documents, self.made)

    def margins(self) -> TrainingData:
        """Queries made of the documents, with GPL's margins by the float vectors."""
        positives = list(self.sources[:, None])
        negatives = mined([nearest(self.made, self.documents, 2 * NEGATIVES)], positives, NEGATIVES)
        return teachers.taught(TrainingData(self.documents, self.made, positives, None, negatives))

    def taught(self) -> TrainingData:
        """Training queries with their relevant documents."""
        queries = np.concatenate([queries for queries, _ in self.labels])
        return TrainingData(self.documents, queries, [rows for _, positives in self.labels for rows in positives])

    def measure(self, documents: Any) -> dict[str, list[float]]:
        """nDCG@10 of each test query of each collection, by vectors (n, d) or what decodes to them."""
        values = {}
        for part in self.judged:
            found = nearest(part.queries, documents, 20)
            run = {
                query: {self.ids[row]: -float(place) for place, row in enumerate(rows)}
                for query, rows in zip(part.dataset.queries, found, strict=True)
            }
            qrels = {q: {f"{part.name}/{d}": g for d, g in grades.items()} for q, grades in part.dataset.qrels.items()}
            values[part.name] = evaluation.evaluate(run, qrels, [MEASURE]).values(MEASURE)
        return values


# -- what is compared --------------------------------------------------------------------------------------------------

Fitted = Callable[[int, int, int], Codec]  # bytes, d, seed -> a codec to fit
UNSUPERVISED: dict[str, Fitted] = {
    "pq": lambda size, d, seed: PQ(M=size, seed=seed),
    "opq": lambda size, d, seed: Chain(OPQ(M=size, seed=seed), PQ(M=size, seed=seed)),
    "rq": lambda size, d, seed: RQ(M=size, seed=seed),
    "binary autoencoder": lambda size, d, seed: BinaryAutoencoder(bytes=size, seed=seed),
    "sign bits": lambda size, d, seed: Chain(RandomRotation(seed=seed), SignBits()),
    "rabitq": lambda size, d, seed: RaBitQ(seed=seed),
}
TRAINED: dict[str, tuple[bool, Callable[[int, int], Method]]] = {  # whether it takes labels, and the method
    "itq": (False, lambda size, seed: ITQ(bytes=size, seed=seed)),
    "bpr, label-free": (False, lambda size, seed: BPR(bytes=size, seed=seed)),
    "bpr, gpl": (False, lambda size, seed: BPR(bytes=size, gpl="embedding", seed=seed)),
    "bpr": (True, lambda size, seed: BPR(bytes=size, seed=seed)),
    "distill-vq": (False, lambda size, seed: DistillVQ(bytes=size, seed=seed)),
    "distill-vq, labels": (True, lambda size, seed: DistillVQ(bytes=size, seed=seed)),
    "distill-vq, additive": (False, lambda size, seed: DistillVQ(bytes=size, codebooks="additive", seed=seed)),
    "distill-vq, binary": (False, lambda size, seed: DistillVQ(bytes=size, codebooks="binary", seed=seed)),
    "jpq": (True, lambda size, seed: JPQ(bytes=size, seed=seed)),
    "jpq, additive": (True, lambda size, seed: JPQ(bytes=size, codebooks="additive", seed=seed)),
    "jpq, binary": (True, lambda size, seed: JPQ(bytes=size, codebooks="binary", seed=seed)),
    "bebr": (False, lambda size, seed: BEBR(bytes=size, seed=seed)),
    "repconc": (True, lambda size, seed: RepCONC(bytes=size, seed=seed)),
}  # fmt: skip
BINARY = {"sign bits", "rabitq", "itq", "bpr", "bpr, label-free", "bpr, gpl", "bebr"}  # compared at d / 8 bytes only


def cells(unit: Unit, sizes: Sequence[int], methods: Sequence[str] | None) -> list[tuple[str, int]]:
    """Methods and bytes that make sense for a unit: hashers at one bit per dimension, labels where there are some."""
    d = unit.documents.shape[1]
    found = [(FLOAT, 4 * d)]
    for size in sizes:
        for name in [*UNSUPERVISED, *TRAINED]:
            if methods and name not in methods:
                continue
            if (name in BINARY and size != d // 8) or (name == "pq" and d % size):
                continue
            if name in TRAINED and TRAINED[name][0] and not unit.labels:
                continue
            found.append((name, size))
    return found


def measured(unit: Unit, name: str, size: int, seed: int) -> dict[str, Any]:
    """One cell: nDCG@10 of each query, and what it took."""
    started = time.perf_counter()
    if name == FLOAT:
        return {"values": unit.measure(unit.documents), "seconds": 0.0, "codebook": 0.0, "history": []}
    if name in UNSUPERVISED:
        codec = UNSUPERVISED[name](size, unit.documents.shape[1], seed).fit(unit.documents)
        codes, history = codec.encode(unit.documents), []
    else:
        with_labels, make = TRAINED[name]
        method = make(size, seed)
        if method.gpl is None:
            trained = train(method, unit.taught() if with_labels else unit.free())
        else:  # a made query's own document says little: how well the float vectors' order is kept chooses the epoch
            order = np.random.default_rng(seed).permutation(len(unit.made))
            dev = TrainingData(unit.documents, unit.made[order[:DEV]])
            trained = train(method, unit.margins().part(order[DEV:]), dev)
        codec, codes, history = trained.codec, trained.codes, trained.history
    return {
        "values": unit.measure(Decoded(codec, codes)), "seconds": round(time.perf_counter() - started, 1),
        "codebook": sum(array.nbytes for array in codec.arrays().values()) / len(unit.documents), "history": history,
    }  # fmt: skip


def kept(folder: Path, unit: Unit, name: str, size: int, seed: int, finished: bool) -> dict[str, Any] | None:
    """A cell from --results, or else measured and written there. Its name holds a digest of the vectors."""
    digest = zlib.crc32(np.ascontiguousarray(unit.documents[::50]).tobytes() + unit.made[::50].tobytes())
    path = folder / f"{unit.name}-{name.replace(', ', '-').replace(' ', '-')}-{size}-{seed}-{digest:08x}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    if finished and name != FLOAT:
        return None
    cell = measured(unit, name, size, seed)
    print(f"{path.stem}: {({k: round(float(np.mean(v)), 4) for k, v in cell['values'].items()})}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cell), encoding="utf-8")
    return cell


def table(units: Sequence[Unit], args: Any) -> list[list[Any]]:
    """One row for each method, bytes and way of indexing; collections apart, then their average share of float32."""
    names = list(dict.fromkeys(part.name for unit in units for part in unit.judged))
    found: dict[tuple[str, str, int, str], list[list[float]]] = {}  # way, method, bytes, collection -> values by seed
    spent: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for unit in units:
        way = JOINED if unit.name == JOINED else "alone"
        for name, size in cells(unit, args.bytes, args.methods):
            for seed in range(1 if name == FLOAT else args.seeds):
                cell = kept(args.results, unit, name, size, seed, args.finished)
                if cell is None:
                    continue
                for part, values in cell["values"].items():
                    found.setdefault((way, name, size, part), []).append(values)
                spent.setdefault((way, name, size), []).append((cell["seconds"], cell["codebook"]))
    rows = []
    for way, name, size in spent:
        parts = [part for part in names if (way, name, size, part) in found]
        exact = {part: found[next(key for key in found if key[0] == way and key[1] == FLOAT and key[3] == part)][0]
                 for part in parts}  # fmt: skip
        means = {part: float(np.mean(found[way, name, size, part])) for part in parts}
        shares = [means[part] / float(np.mean(exact[part])) for part in parts]
        p: float | None = None
        if name != FLOAT and all((way, "opq", size, part) in found for part in parts):
            mine = np.concatenate([np.mean(found[way, name, size, part], axis=0) for part in parts])
            base = np.concatenate([np.mean(found[way, "opq", size, part], axis=0) for part in parts])
            p = None if name == "opq" else paired_t_test(mine, base)
        low, high = interval([(np.mean(found[way, name, size, part], axis=0), np.array(exact[part])) for part in parts])
        spread = max(float(np.ptp(np.mean(found[way, name, size, part], axis=1))) for part in parts)
        seconds, codebook = np.median(np.array(spent[way, name, size]), axis=0)
        labels = "labels" if name in TRAINED and TRAINED[name][0] else "-"
        rows.append([way, size, name, labels, *(means.get(part) for part in names), float(np.mean(shares)), low, high,
                     min(shares), spread, p, round(float(codebook), 1), round(float(seconds))])  # fmt: skip
    return sorted(rows, key=lambda row: (row[0], -row[1]))


def interval(pairs: Sequence[tuple[np.ndarray, np.ndarray]], draws: int = 2000) -> tuple[float, float]:
    """The 95% bootstrap interval, over queries, of the mean share. `pairs`: values of each query, and those of float32.

    A draw takes as many queries of each collection as it has, with replacement, the same ones for both.
    """
    rng, shares = np.random.default_rng(0), np.zeros(draws)
    for mine, exact in pairs:
        taken = rng.integers(0, len(mine), (draws, len(mine)))
        shares += mine[taken].mean(axis=1) / exact[taken].mean(axis=1) / len(pairs)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


# -- collections -------------------------------------------------------------------------------------------------------


def encoded(texts: Sequence[str], encoder: Encoder, cache: Path | None) -> np.ndarray:
    """Queries as vectors of length 1, kept in `cache`."""
    if cache is None:
        return normalize(encoder.encode_queries(texts))
    identity = json.dumps([encoder.settings(), list(texts)], sort_keys=True)
    path = cache / f"queries-{zlib.crc32(identity.encode()):08x}-{len(texts)}.npy"
    if not path.exists():
        np.save(path, encoder.encode_queries(texts))
    return normalize(np.load(path))


def unit_of(
    name: str, documents: Sequence[Document], vectors: np.ndarray, encoder: Encoder, source: Any, cache: Path | None
) -> Unit:
    """A collection as a unit. Labels are taken from its split "train", if it has one."""
    encode = lambda texts: encoded(list(texts), encoder, cache)  # noqa: E731
    made = unlabelled.mixed(documents, count=QUERIES)
    judged = evaluation.load(source)
    unit = Unit(name, [f"{name}/{d.id}" for d in documents], vectors, encode(made.texts), made.sources, [
        Judged(name, encode(judged.queries.values()), judged)])  # fmt: skip
    try:
        taught = evaluation.load(source, "train")
    except DatasetError:
        return unit
    texts, positives = labelled(taught.qrels, taught.queries, {d.id: row for row, d in enumerate(documents)})
    unit.labels.append((encode(texts), positives))
    return unit


def joined(units: Sequence[Unit]) -> Unit:
    """All collections as one corpus."""
    whole = Unit(JOINED, [], np.concatenate([unit.documents for unit in units]),
                 np.concatenate([unit.made for unit in units]), np.empty(0, np.int64), [])  # fmt: skip
    for unit in units:
        whole.sources = np.concatenate([whole.sources, unit.sources + len(whole.ids)])
        whole.labels += [(queries, [rows + len(whole.ids) for rows in positives]) for queries, positives in unit.labels]
        whole.ids += unit.ids
        whole.judged += unit.judged
    return whole


def embedded(args: Any) -> list[Unit]:
    """Collections as vectors of a sentence-transformers model."""
    encoder = SentenceTransformerEncoder(args.model, dtype=args.dtype)
    units = []
    for name in args.collections or ([*IDS, "msmarco-dl"] if args.data else list(IDS)):
        source = args.data / name if args.data else IDS[name]
        documents = list(read_documents(source))
        chunks = Encodings(args.cache, encoder).stream(document.contents for document in documents)
        units.append(unit_of(name, documents, normalize(np.concatenate(list(chunks))), encoder, source, args.cache))
    return units


def cranfield() -> list[Unit]:
    """Cranfield as LSA vectors; labels are those of every other query, which is not measured."""
    folder = Path(retrieval.__file__).parent / "cranfield"
    documents = list(read_documents(folder))
    texts = [document.contents for document in documents]
    encoder = LSA(d=128).fit(lambda: texts)
    unit = unit_of("cranfield", documents, normalize(encoder.encode_documents(texts)), encoder, folder, None)
    whole = unit.judged[0].dataset
    names = list(whole.queries)
    texts, positives = labelled({q: whole.qrels[q] for q in names[1::2]}, whole.queries,
                                {d.id: row for row, d in enumerate(documents)})  # fmt: skip
    unit.labels.append((normalize(encoder.encode_queries(texts)), positives))
    tested = evaluation.Dataset(whole.name, whole.split, {q: whole.queries[q] for q in names[::2]},
                                {q: whole.qrels[q] for q in names[::2]}, whole.exclude_self)  # fmt: skip
    unit.judged = [Judged("cranfield", unit.judged[0].queries[::2], tested)]
    return [unit]


def draw(rows: Sequence[Sequence[Any]], share: int, path: Path) -> None:
    """Share of float32 against bytes, a line for each method; collections alone and joined side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    ways = sorted({row[0] for row in rows})
    names = list(dict.fromkeys(row[2] for row in rows if row[2] != FLOAT))
    sizes = sorted({row[1] for row in rows if row[2] != FLOAT})
    shape: dict[str, Any] = {"figsize": (7 * len(ways), 6), "squeeze": False, "sharex": True, "sharey": True}
    figure, all_axes = pyplot.subplots(1, len(ways), **shape)
    for axes, way in zip(all_axes[0], ways, strict=True):
        for name, color in zip(names, pyplot.colormaps["tab20"].colors, strict=False):
            points = sorted((row[1], 100 * row[share]) for row in rows if row[0] == way and row[2] == name)
            label = f"{name} (labels)" if name in TRAINED and TRAINED[name][0] and "labels" not in name else name
            style = "o-" if name in TRAINED else "s--"
            axes.plot([size for size, _ in points], [value for _, value in points], style, color=color, label=label)
        axes.set(xscale="log", xlabel="bytes per document", title=f"collections {way}")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.axhline(100, color="gray", linewidth=0.5)
        axes.grid(True, alpha=0.3)
    all_axes[0][0].set_ylabel(f"{MEASURE}, % of float32")
    all_axes[0][0].legend(fontsize="small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, metavar="DIR", help="a folder of BEIR folders, instead of downloads")
    options.add_argument("--collections", nargs="+", help="names of them (default: all known)")
    options.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="hub name or path")
    options.add_argument("--dtype", default="float32", help="what the model computes in")
    options.add_argument("--cache", type=Path, default=Path("results/encodings"), help="where embeddings are kept")
    options.add_argument("--results", type=Path, default=Path("results/compression"), help="where cells are kept")
    options.add_argument("--bytes", type=int, nargs="+", help="per document (default: d / 4, / 8, / 16 and / 32)")
    options.add_argument("--methods", nargs="+", help=f"of {', '.join([*UNSUPERVISED, *TRAINED])}")
    options.add_argument("--without-joined", action="store_true", help="each collection alone only")
    options.add_argument("--only-joined", action="store_true", help="all collections together only")
    options.add_argument("--finished", action="store_true", help="only show cells that are in --results")
    options.add_argument("--seeds", type=int, default=1, help="runs of each cell")
    options.add_argument("--plot", type=Path, metavar="FILE", help="a picture of quality against bytes")
    args = options.parse_args()
    units = cranfield() if args.quick else embedded(args)
    d = units[0].documents.shape[1]
    args.bytes = args.bytes or ([d // 16] if args.quick else [d // 4, d // 8, d // 16, d // 32])
    if args.quick:
        args.methods = args.methods or ["opq", "rq", "distill-vq", "jpq"]
    together = [joined(units)] if len(units) > 1 and not args.without_joined else []
    rows = table([*([] if args.only_joined else units), *together], args)
    names = [unit.name for unit in units]
    columns = ["indexed", "bytes", "method", "trained with", *(f"{name} {MEASURE}" for name in names), "mean share",
               "95% from", "to", "least share", "seeds differ", "p against opq", "codebook", "seconds"]  # fmt: skip
    notes = [
        f"{'LSA' if args.quick else Path(args.model).name}, {d} dimensions; queries stay float32; seeds: {args.seeds}.",
        "mean share: of float32, over the collections of the row, each indexed as the first column says; from, to: its",
        "bootstrap interval over queries. seeds differ: how far nDCG@10 of seeds differs, on a collection at most.",
        "p: paired t-test over all queries, not corrected. codebook: bytes of what is learned, per document.",
    ]
    if args.plot:
        draw(rows, 4 + len(names), args.plot)
    finish(columns, rows, notes, args.json)


if __name__ == "__main__":
    main()
