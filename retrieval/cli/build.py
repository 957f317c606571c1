"""index, add, delete, add-index, drop-index, compact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.terminal import note, progress

if TYPE_CHECKING:
    from retrieval.retriever import Retriever

Data = Annotated[
    str, typer.Argument(help="A file (.jsonl, .csv, .tsv, .parquet; .gz, .zst), a folder or an ir_datasets id.")
]
Folder = Annotated[Path, typer.Argument(help="The collection's folder.")]
IdField = Annotated[str | None, typer.Option(help="Field that holds the id (default: _id or id).")]
TextFields = Annotated[
    list[str] | None,
    typer.Option("--text-field", help="Field of the text; repeat for several (default: title and text, or contents)."),
]
OnError = Annotated[str, typer.Option(help="What a bad record does: raise, or skip (skipped records are counted).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

# how an index is made
ByBM25 = Annotated[bool, typer.Option("--bm25", help="Index by BM25.")]
ByDense = Annotated[
    str | None,
    typer.Option("--dense", help="Index by a dense encoder: lsa, or a sentence-transformers model by name or path."),
]
Ann = Annotated[str, typer.Option(help="Index of vectors: flat (exact), scan (4 bits first), graph, ivf, hnsw, ivfpq.")]
EncoderDtype = Annotated[str, typer.Option(help="The model computes in float32, bfloat16 or int8.")]
AnalyzerName = Annotated[str, typer.Option(help="Of BM25 and LSA: english, another language, unicode, or hf:MODEL.")]
Method = Annotated[str, typer.Option(help="Of BM25: lucene, robertson, atire, bm25l or bm25+.")]
OfBM25 = Annotated[float, typer.Option(help="Of BM25.")]


def index(
    data: Data,
    to: Annotated[Path, typer.Option(help="The folder to make.")],
    bm25: ByBM25 = False,
    dense: ByDense = None,
    ann: Ann = "flat",
    encoder_dtype: EncoderDtype = "float32",
    analyzer: AnalyzerName = "english",
    method: Method = "lucene",
    k1: OfBM25 = 0.9,
    b: OfBM25 = 0.4,
    id_field: IdField = None,
    text_field: TextFields = None,
    on_error: OnError = "raise",
    quiet: Quiet = False,
) -> None:
    """Make a searchable collection. Without --bm25 or --dense: BM25 and LSA, which needs no download.

    Interrupted, the same command goes on from the vectors computed so far.

    Examples:

        retrieval index corpus.jsonl --to my.idx

        retrieval index ./scifact --to scifact.idx --bm25 --dense sentence-transformers/all-MiniLM-L6-v2 --ann hnsw
    """
    from retrieval import building
    from retrieval.documents import read_documents

    if not bm25 and dense is None:
        bm25, dense = True, "lsa"
    chosen = _retrievers(bm25, dense, ann, encoder_dtype, analyzer, method, k1, b)
    documents = read_documents(data, **_reading(id_field, text_field, on_error))
    with progress(quiet) as report:
        collection = building.index(documents, to, chosen, progress=report)
    _describe(collection)
    _skipped(documents)


def add(
    folder: Folder,
    data: Data,
    update: Annotated[bool, typer.Option("--update", help="Replace documents whose id is there.")] = False,
    id_field: IdField = None,
    text_field: TextFields = None,
    on_error: OnError = "raise",
    quiet: Quiet = False,
) -> None:
    """Add documents to a collection, all of them or, after an error, none.

    Example:

        retrieval add my.idx more.jsonl --update
    """
    from retrieval import building
    from retrieval.documents import read_documents

    documents = read_documents(data, **_reading(id_field, text_field, on_error))
    collection = building.open(folder)
    with progress(quiet) as report:
        count = collection.add(documents, update=update, progress=report)
    note(f"{count:,} documents added{' or replaced' if update else ''}; the collection holds {len(collection):,}")
    _skipped(documents)


def delete(folder: Folder, ids: Annotated[list[str], typer.Argument(help="Ids of documents.")]) -> None:
    """Delete documents by id.

    Example:

        retrieval delete my.idx doc1 doc2
    """
    from retrieval import building

    collection = building.open(folder)
    note(f"{collection.delete(ids):,} documents deleted; the collection holds {len(collection):,}")


def add_index(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="The new index's name.")],
    bm25: ByBM25 = False,
    dense: ByDense = None,
    ann: Ann = "flat",
    encoder_dtype: EncoderDtype = "float32",
    analyzer: AnalyzerName = "english",
    method: Method = "lucene",
    k1: OfBM25 = 0.9,
    b: OfBM25 = 0.4,
    quiet: Quiet = False,
) -> None:
    """Index the documents of a collection in one more way, by --bm25 or by --dense.

    Interrupted, the same command goes on from the vectors computed so far.

    Example:

        retrieval add-index my.idx minilm --dense sentence-transformers/all-MiniLM-L6-v2 --ann hnsw
    """
    from retrieval import building

    if bm25 == (dense is not None):
        raise typer.BadParameter("give one of --bm25 and --dense MODEL")
    (made,) = _retrievers(bm25, dense, ann, encoder_dtype, analyzer, method, k1, b).values()
    collection = building.open(folder)
    with progress(quiet) as report:
        collection.add_index(name, made, report)
    _describe(collection)


def drop_index(folder: Folder, name: Annotated[str, typer.Argument(help="The index's name.")]) -> None:
    """Remove an index of a collection; the documents stay.

    Example:

        retrieval drop-index my.idx minilm
    """
    from retrieval import building

    collection = building.open(folder)
    collection.drop_index(name)
    note(f"index {name} dropped; the collection has: {', '.join(collection.indexes)}")


def compact(folder: Folder, quiet: Quiet = False) -> None:
    """Build the indexes anew from the documents and give disk space back.

    Example:

        retrieval compact my.idx
    """
    from retrieval import building

    with progress(quiet) as report:
        collection = building.open(folder)
        collection.compact(report)
    _describe(collection)


def _retrievers(
    bm25: bool, dense: str | None, ann: str, encoder_dtype: str, analyzer: str, method: str, k1: float, b: float
) -> dict[str, Retriever]:
    """Those that were asked for, by the names that they have in a new collection."""
    from retrieval import retriever as make
    from retrieval.encoders.lsa import LSA

    if dense is None and (ann, encoder_dtype) != ("flat", "float32"):
        raise typer.BadParameter("--ann and --encoder-dtype say how --dense is made: give --dense MODEL too")
    chosen = {}
    if bm25:
        chosen["bm25"] = make.bm25(analyzer, method=method, k1=k1, b=b)
    if dense is not None:
        model = LSA(analyzer=analyzer) if dense == "lsa" else dense
        chosen["dense"] = make.dense(model, ann=ann, encoder_dtype=encoder_dtype)
    return chosen


def _reading(id_field: str | None, text_fields: list[str] | None, on_error: str) -> dict[str, Any]:
    return {"id_field": id_field, "text_fields": text_fields or None, "on_error": on_error}


def _describe(collection: Any) -> None:
    info = collection.info()
    note(f"{info['folder']}: {info['documents']:,} documents, {info['bytes_on_disk'] / 1e6:.1f} MB on disk")
    for name, part in info["indexes"].items():
        told = {key: value for key, value in part["index"].items() if key not in ("bytes_per_part", "weighting")}
        note(f"  {name}: {part['encoder']['kind']}; " + ", ".join(f"{key}={value}" for key, value in told.items()))


def _skipped(documents: Any) -> None:
    if documents.skipped:
        note(f"{documents.skipped:,} bad records skipped, among them:")
        for reason in documents.reasons:
            note(f"  {reason}")


COMMANDS = (index, add, delete, add_index, drop_index, compact)
