"""Collections: documents and the indexes over them, in one folder on disk.

    DIR/collection.sqlite        documents, metadata, the live generation and the names of the live index folders
    DIR/indexes/NAME.GENERATION  one folder per index: its encoder and its index
    DIR/encodings/NAME           vectors of an unfinished build, so that it can go on where it stopped
    DIR/training/NAME            vectors, queries and checkpoints of an unfinished training, likewise

A change writes new index folders first and commits the database last. After a crash at any moment the collection
holds the last committed generation; folders that it does not name are removed by the next change.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from indexes.errors import CorruptIndex
from indexes.storage import fsync_folder
from retrieval.documents import Document
from retrieval.errors import CollectionError
from retrieval.retriever import Progress, Retriever
from retrieval.search import Fusion, Single, Stage
from retrieval.store import NAME, Store

if TYPE_CHECKING:
    from eval import Dataset
    from indexes import Tuned
    from retrieval.training.method import Method
    from retrieval.training.pipeline import TrainedIndex
    from retrieval.training.sources import Questions

FUSION_METHOD = "minmax"


class Collection:
    """Documents in a folder, searchable through one index or several. Use `Collection.create` or `Collection.open`.

    `collection["bm25"]` is the search through one index, `collection.hybrid` through all of them, fused; both are
    stages that compose (see `retrieval.search`). A change made by another process is seen by the next search.
    """

    def __init__(self, folder: Path, store: Store, verify: bool) -> None:
        self.folder = folder
        self.store = store
        self._verify = verify
        self._generation = -1
        self._retrievers: dict[str, Retriever] = {}
        self._refresh()

    # -- create, open, close ---------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: str | Path, retrievers: Mapping[str, Retriever]) -> Collection:
        """A new, empty collection. `retrievers`: index name -> empty retriever, see `retrieval.bm25` and `dense`.

        A folder in which an earlier build was interrupted before its first commit is taken over.
        Raises `CollectionError` when the folder holds anything else.
        """
        folder = Path(folder)
        if not isinstance(retrievers, Mapping) or not all(isinstance(r, Retriever) for r in retrievers.values()):
            raise TypeError(f'retrievers are {retrievers!r}; expected index names with retrievers: {{"bm25": bm25()}}')
        if not retrievers:
            raise CollectionError("a collection needs at least one index")
        for name in retrievers:
            _check_name(name)
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / NAME).exists())):
            raise CollectionError(f"{folder}: exists and is no collection; choose a new folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise CollectionError(f"{folder}: cannot be made: {problem.strerror}") from problem
        with contextlib.closing(Store(folder, create=True)) as store, store.writing():
            if store.generation and (len(store) or store.last_key()):
                raise CollectionError(f"{folder}: holds a collection already; open it, or remove the folder first")
            store.set_folders(_save_all(folder, retrievers, store.generation + 1))
        fsync_folder(folder)
        fsync_folder(folder.parent)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = True) -> Collection:
        """Open the collection in `folder`. `verify`: check the SHA-256 of index files (a second per GB).

        Raises `CollectionError`, and `IndexFileError` for a truncated, altered or newer index file.
        """
        return cls(Path(folder), Store(Path(folder)), verify)

    def close(self) -> None:
        self.store.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- change ----------------------------------------------------------------------------------------------------

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        update: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Add documents (`Document`, or mappings with `id`, `text`, and perhaps `title`; other entries are metadata).

        `update`: replace documents whose id is there. Returns how many were added or replaced. All of them or, after
        an error, none. Index files are written anew, so add many at a time.
        Raises `DuplicateDocument`, `CollectionLocked`, and whatever reading `documents` raises.
        """
        if isinstance(documents, str | Mapping | Document):
            raise TypeError(f"documents is one {type(documents).__name__}; expected several, such as a list of them")
        with self._changing() as change:
            store, last, before = change.store, change.store.last_key(), change.store.keys()
            count = 0
            for count in store.insert(map(_as_document, documents), update=update):
                _report(progress, "reading", count, 0)
            gone = np.setdiff1d(before, store.keys()) if update else np.empty(0, np.int64)
            for name, retriever in change.retrievers.items():
                told = _named(progress, name)
                retriever.remove(gone)
                if not len(retriever.index) or retriever.outgrown(len(store)):
                    change.retrievers[name] = retriever.emptied()
                    change.retrievers[name].build(store.keys(), store.contents, told, self._encodings(name))
                else:
                    retriever.add(store.keys(last), store.contents(last), told, self._encodings(name))
        return count

    def delete(self, ids: str | Iterable[str]) -> int:
        """Delete documents by id; ids that are not there are ignored. Returns how many were deleted."""
        with self._changing() as change:
            before = change.store.keys()
            count = change.store.delete([ids] if isinstance(ids, str) else list(ids))
            gone = np.setdiff1d(before, change.store.keys())
            for retriever in change.retrievers.values():
                retriever.remove(gone)
        return count

    def add_index(self, name: str, retriever: Retriever, progress: Progress | None = None) -> None:
        """Index the documents in one more way, beside those there are. Raises `CollectionError` for a name in use.

        `retriever`: empty, or one that holds the documents that were there earlier, under their keys: then it is
        brought up to date.
        """
        _check_name(name)
        with self._changing() as change:
            if name in change.retrievers:
                raise CollectionError(f"index {name!r} is there already; drop it first")
            store, keys, told = change.store, change.store.keys(), _named(progress, name)
            retriever.remove(np.setdiff1d(retriever.index.ids, keys))
            if len(retriever.index):
                last = int(retriever.index.ids.max())
                retriever.add(store.keys(last), store.contents(last), told, self._encodings(name))
            else:
                retriever.build(keys, store.contents, told, self._encodings(name))
            change.retrievers[name] = retriever

    def drop_index(self, name: str) -> None:
        """Remove an index; the documents stay. Raises `CollectionError` for an unknown name and for the last index."""
        with self._changing() as change:
            if name not in change.retrievers or len(change.retrievers) == 1:
                raise CollectionError(f"cannot drop {name!r}; the indexes are: {', '.join(change.retrievers)}")
            del change.retrievers[name]

    def tune(
        self,
        name: str,
        queries: Sequence[str],
        k: int = 10,
        *,
        target_recall: float = 0.99,
        threads: int | None = 1,
        progress: Progress | None = None,
    ) -> Tuned:
        """Make the fastest search setting that finds enough on sample queries the default of index `name`.

        See `indexes.tune` for the parameters, the rule of the choice and what comes back. What is right comes from an
        exact search; where the index keeps codes instead of vectors, all documents are encoded for it once more, and
        held in float32. Queries of which the encoder knows no word do not count.
        Raises `CollectionError` for an unknown name and what `indexes.tune` raises; nothing is changed then.
        """
        from indexes import FlatIndex, tune
        from indexes.dense.base import DenseIndex

        if isinstance(queries, str):
            raise TypeError("queries is one string; expected several, such as a list of them")
        with self._changing() as change:
            if name not in change.retrievers:
                raise CollectionError(f"no index {name!r} to tune; the indexes are: {', '.join(change.retrievers)}")
            encoder, index = change.retrievers[name].encoder, change.retrievers[name].index
            exact = None
            if isinstance(index, DenseIndex) and not hasattr(type(index), "vectors"):
                twin = Retriever(encoder, FlatIndex(metric=index.metric))
                twin.add(change.store.keys(), change.store.contents(), _named(progress, name), self._encodings(name))
                exact = twin.index
            vectors = encoder.encode_queries(list(queries))
            if isinstance(vectors, np.ndarray) and encoder.similarity != "l2":
                vectors = vectors[vectors.any(axis=1)]  # to the others, `Retriever.search` finds nothing
            return tune(index, vectors, k, target_recall=target_recall, exact=exact, threads=threads)

    def train(
        self, method: str | Method, to: str, *, index: str | None = None,
        queries: Questions | Sequence[str] | None = None, dev: Questions | None = None,
        generate: Sequence[str] = ("auto",), count: int = 10_000, keep_top: int | None = None,
        test: Dataset | None = None, epochs: int | None = None, batch: int = 64, patience: int = 3,
        threads: int | None = None, progress: Progress | None = None, **parameters: Any,
    ) -> TrainedIndex:  # fmt: skip
        """Learn to compress the vectors of an index, and add what comes of it as the index `to`, beside the others.

        `method`: a name of `retrieval.training.METHODS`, with `parameters` of its constructor (bytes=24,
        tune="adapter", seed=1 ...), or one that is made already. `index`: whose vectors; by default those of the only
        dense index. `queries`: `Questions` with or without labels (see `retrieval.training.sources.read_questions`),
        or texts. Without, no label is looked at: at most `count` queries are made from the documents, of the kinds
        `generate` (see `retrieval.training.unlabelled.mixed`), of which those are kept that find their document among
        the first `keep_top`, if that is given; methods that need labels take that document for relevant. `dev`:
        questions that stop training and choose its best epoch; by default a tenth of the others. `test`: judged queries
        for the comparison that comes back. `epochs`, `batch`, `patience`, `threads`: see `retrieval.training.loop`.
        With tune="encoder" the trained query model is saved in the index (`retrieval.encoders.two_towers`), with
        tune="encoders" (RepCONC, BPR; labels needed) the one for both sides (`retrieval.encoders.tuned`).
        Interrupted, the same call goes on from what it left in the collection's folder training/NAME. Others may change
        the collection meanwhile: at the end the new index is brought up to date. Later changes keep what was learned.
        Raises `CollectionError` (a name in use, an unknown index), `TrainingError`, `MissingExtra` (torch).
        """
        _check_name(to)
        if to in self.indexes:
            raise CollectionError(f"index {to!r} is there already; drop it first")
        from retrieval import training

        made = training.by_name(method, **parameters) if isinstance(method, str) else method
        from retrieval.training.pipeline import train_index

        return train_index(
            self, made, to, index=index, queries=queries, dev=dev, generate=generate, count=count, keep_top=keep_top,
            test=test, epochs=epochs, batch=batch, patience=patience, threads=threads, progress=progress,
        )  # fmt: skip

    def compact(self, progress: Progress | None = None) -> None:
        """Build every index anew from the documents (encoders that learn are fitted again) and free disk space.

        Trained indexes keep what training gave, and the encoder whose vectors it was learned from.
        """
        with self._changing() as change:
            keys = change.store.keys()
            for name, retriever in change.retrievers.items():
                change.retrievers[name] = retriever.emptied()
                told = _named(progress, name)
                change.retrievers[name].build(keys, change.store.contents, told, self._encodings(name))
        self.store.vacuum()

    # -- search ----------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: str | Sequence[str],
        k: int = 10,
        *,
        index: str | None = None,
        where: str | None = None,
        explain: bool = False,
    ) -> Any:
        """The `k` best documents: a list of `Result` for one query, a list of such lists for several.

        `index`: the name of one index, or "hybrid" for all of them fused; by default hybrid when there are several.
        `where`: a filter on metadata, see `retrieval.where`. `explain`: tell what earned each score.
        """
        return self.stage(index).search(queries, k, where=where, explain=explain)

    def stage(self, index: str | None = None) -> Stage:
        """The search through one index by name, or through all of them fused ("hybrid", or None)."""
        if index is None or index == "hybrid":
            return self.hybrid
        return self[index]

    def __getitem__(self, name: str) -> Single:
        return Single(self, name)

    @property
    def hybrid(self) -> Stage:
        """All indexes, fused by a sum of min-max normalised scores; with a single index, that index.

        Weights are even, but for encoders that say otherwise (`Encoder.fusion_weight`: LSA has half).
        """
        with self.reading() as retrievers:
            stages = [Single(self, name) for name in retrievers]
            weights = [retriever.encoder.fusion_weight for retriever in retrievers.values()]
        return Fusion(stages, method=FUSION_METHOD, weights=weights) if len(stages) > 1 else stages[0]

    @contextlib.contextmanager
    def reading(self) -> Iterator[dict[str, Retriever]]:
        """The retrievers by name; documents and indexes belong to one generation within the block."""
        with self.store.lock:
            while not self.store.is_reading:
                self._refresh()
                with self.store.reading():
                    if self.store.generation == self._generation:
                        yield self._retrievers
                        return
            yield self._retrievers  # within another such block

    # -- look at ---------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.store)

    def __contains__(self, id: str) -> bool:
        return self.store.document(id) is not None

    def get(self, id: str) -> Document | None:
        """The document with this id, if there is one."""
        return self.store.document(id)

    @property
    def indexes(self) -> list[str]:
        """The names of the indexes."""
        with self.reading() as retrievers:
            return list(retrievers)

    def info(self) -> dict[str, Any]:
        """Documents, generation, metadata fields, bytes on disk, and each index's description. JSON values."""
        with self.reading() as retrievers:
            described = {name: retriever.describe() for name, retriever in retrievers.items()}
            size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
            return {
                "folder": str(self.folder), "documents": len(self), "generation": self.store.generation,
                "fields": sorted(self.store.fields()), "bytes_on_disk": size, "indexes": described,
            }  # fmt: skip

    def verify(self) -> None:
        """Read everything once. Raises `CollectionError` or `IndexFileError` where something is damaged."""
        with self.store.reading():
            self.store.check()
            keys = self.store.keys()
            for name, retriever in _load_all(self.folder, self.store, verify=True).items():
                if not np.array_equal(np.sort(retriever.index.ids), keys):
                    raise CollectionError(f"{self.folder}: index {name!r} does not hold the collection's documents")

    # -- inside ----------------------------------------------------------------------------------------------------

    def _encodings(self, name: str) -> Path:
        return self.folder / "encodings" / name

    def _refresh(self) -> None:
        """Load the live generation, if it is not the one in memory."""
        failed = -1
        while True:
            with self.store.reading():
                generation = self.store.generation
                if generation == self._generation:
                    return
                try:
                    self._retrievers = _load_all(self.folder, self.store, self._verify)
                    self._generation = generation
                    return
                except (FileNotFoundError, CorruptIndex):
                    # another process may have committed and then removed this generation's files: look again, once
                    if generation == failed:
                        raise
                    failed = generation

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_Change]:
        """A change, on a connection and on retrievers of its own, so that searches go on meanwhile.

        At the end of the block the retrievers are written and the database is committed.
        """
        with contextlib.closing(Store(self.folder)) as store:
            try:
                with store.writing():
                    self._remove_unnamed(store)
                    retrievers = _load_all(self.folder, store, verify=False)
                    yield _Change(store, retrievers)
                    store.set_folders(_save_all(self.folder, retrievers, store.generation + 1))
            except BaseException:
                self._tidy(store)
                raise
            self._tidy(store, self.folder / "encodings")
        self._refresh()

    def _tidy(self, store: Store, *unneeded: Path) -> None:
        """Remove what a change left, unless another process has begun a change: then that one does."""
        with contextlib.suppress(CollectionError), store.exclusive():
            self._remove_unnamed(store)
            for path in unneeded:
                shutil.rmtree(path, ignore_errors=True)

    def _remove_unnamed(self, store: Store) -> None:
        """Remove index folders that the database does not name: of past generations and of crashes.

        Only while nobody else writes: the new folders of another's change have no name in the database yet.
        """
        live = set(store.folders().values())
        if (self.folder / "indexes").exists():
            for path in (self.folder / "indexes").iterdir():
                if path.name not in live:
                    shutil.rmtree(path, ignore_errors=True)


def _check_name(name: str) -> None:
    if not name.isidentifier() or name == "hybrid":
        raise CollectionError(f"index name {name!r}: use letters, digits and _; 'hybrid' means all together")


class _Change(NamedTuple):
    store: Store
    retrievers: dict[str, Retriever]


def _load_all(folder: Path, store: Store, verify: bool) -> dict[str, Retriever]:
    folders = store.folders().items()
    return {name: Retriever.load(folder / "indexes" / own, verify=verify) for name, own in folders}


def _save_all(folder: Path, retrievers: Mapping[str, Retriever], generation: int) -> dict[str, str]:
    """Write the retrievers into new folders; returns index name -> folder name."""
    folders = {name: f"{name}.{generation}" for name in retrievers}
    try:
        for name, retriever in retrievers.items():
            retriever.save(folder / "indexes" / folders[name])
    except OSError as problem:
        raise CollectionError(f"{folder}: an index cannot be written ({problem}); nothing was changed") from problem
    fsync_folder(folder / "indexes")
    return folders


def _as_document(document: Document | Mapping[str, Any]) -> Document:
    if not isinstance(document, Document):
        if not isinstance(document, Mapping):
            raise CollectionError(f"a document is {document!r:.40}; expected a Document or a mapping")
        rest = dict(document)
        try:
            identifier, text = rest.pop("id"), rest.pop("text")
        except KeyError as missing:
            raise CollectionError(f"a document lacks {missing}; it has: {', '.join(map(str, document))}") from missing
        title, metadata = rest.pop("title", ""), rest.pop("metadata", {})
        document = Document(identifier, text, title, {**metadata, **rest} if isinstance(metadata, dict) else metadata)
    if not all(isinstance(value, str) for value in (document.id, document.text, document.title)):
        raise CollectionError(f"document {document.id!r}: id, text and title must be strings")
    if not isinstance(document.metadata, dict) or not all(isinstance(name, str) for name in document.metadata):
        raise CollectionError(f"document {document.id!r}: metadata must be a dict with strings as keys")
    return document


def _report(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress:
        progress(what, done, total)


def _named(progress: Progress | None, name: str) -> Progress | None:
    """Progress that says which index is meant."""
    if progress is None:
        return None
    tell: Callable[[str, int, int], None] = progress
    return lambda what, done, total: tell(f"{what} {name}", done, total)
