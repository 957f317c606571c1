"""The documents of a collection in one SQLite database, whose commit is the only commit of the collection."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.documents import Document
from retrieval.errors import CollectionError, CollectionLocked, DuplicateDocument
from retrieval.where import parse_where

FORMAT = 1
APPLICATION = 0x52455452  # "RETR": tells our databases from others
NAME = "collection.sqlite"
BATCH = 500  # rows per statement; SQLite allows 999 parameters everywhere

SCHEMA = """
create table if not exists documents (
    key integer primary key autoincrement, id text unique not null, title text not null, text text not null,
    metadata text not null
);
create table if not exists fields (name text primary key) without rowid;
create table if not exists indexes (name text primary key, folder text not null, position integer not null);
create table if not exists state (generation integer not null);
insert into state select 0 where not exists (select * from state);
"""


class Store:
    """Open the database in `folder`, or make it there with `create=True`.

    Documents have an integer key (ascending, never used twice) and a string id (unique). One connection, guarded by a
    lock; other processes may read at any time and see the last commit.
    Raises `CollectionError` when there is none, when it is another program's, or written by a newer release.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / NAME
        self.lock = threading.RLock()
        if not create and not self.path.exists():
            raise CollectionError(f"{folder}: no collection here ({NAME} is missing)")
        with _translated(self.path):
            self._db = self._connect("rwc" if create else "rw")
            try:
                if create and not self._one("select count(*) from sqlite_master"):
                    self._make()
                self._check_format()
                if not create and not self.generation:
                    raise CollectionError(f"{folder}: making this collection was interrupted; make it again")
            except BaseException:
                self._db.close()
                raise

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = self.path.absolute().as_uri()
        db = sqlite3.connect(f"{uri}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False)
        try:
            db.execute("select count(*) from sqlite_master").fetchone()
        except sqlite3.OperationalError as problem:
            db.close()
            if "open" not in str(problem) and "readonly" not in str(problem):
                raise
            # a folder that cannot be written: nobody writes, so no lock and no -shm file are needed
            log = self.path.with_name(f"{NAME}-wal")
            if log.exists() and log.stat().st_size:
                raise CollectionError(
                    f"{log}: holds changes that a writer left when it ended; open the collection once with the right "
                    "to write there, so that they are taken over"
                ) from problem
            db = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None, check_same_thread=False)
        db.execute("pragma synchronous = full")
        db.execute("pragma busy_timeout = 5000")
        return db

    def _make(self) -> None:
        """The tables, in one transaction: a crash leaves a database without tables, which is made anew."""
        self._db.execute("pragma journal_mode = wal")
        pragmas = f"pragma application_id = {APPLICATION}; pragma user_version = {FORMAT}"
        self._db.executescript(f"begin immediate; {SCHEMA} {pragmas}; commit;")

    def _check_format(self) -> None:
        if self._one("pragma application_id") != APPLICATION:
            raise CollectionError(f"{self.path}: not a collection (another program's database, or one never finished)")
        if (number := self._one("pragma user_version")) > FORMAT:
            raise CollectionError(f"{self.path}: format {number} is newer than {FORMAT}, which this release reads")

    def close(self) -> None:
        with self.lock:
            self._db.close()

    # -- transactions ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A consistent view: what is read within the block belongs to one generation."""
        with self.lock, _translated(self.path):
            if self.is_reading:
                yield
                return
            self._db.execute("begin")
            try:
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("rollback")

    @property
    def is_reading(self) -> bool:
        """Whether this thread, which holds the lock, is within `reading`."""
        return self._db.in_transaction

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """No other process writes within the block. What it did not commit is rolled back.

        Raises `CollectionLocked` at once when another process is writing; `CollectionError` when the folder is
        read-only or the disk is full.
        """
        with self.lock, _translated(self.path):
            self._db.execute("pragma busy_timeout = 0")
            try:
                self._db.execute("begin immediate")
            finally:
                self._db.execute("pragma busy_timeout = 5000")
            try:
                self._db.execute("update state set generation = generation")  # a read-only database says so here
                yield
            finally:
                if self._db.in_transaction:
                    self._db.execute("rollback")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Everything within the block is committed at its end, or nothing is. Raises what `exclusive` raises."""
        with self.exclusive():
            yield
            self._db.execute("update state set generation = generation + 1")
            self._db.execute("commit")

    def vacuum(self) -> None:
        """Give the space of deleted documents back to the disk."""
        with self.lock, _translated(self.path):
            self._db.execute("vacuum")
            self._db.execute("pragma wal_checkpoint(truncate)")

    def check(self) -> None:
        """Raise `CollectionError` if SQLite finds the database damaged."""
        found = self._one("pragma integrity_check")
        if found != "ok":
            raise CollectionError(f"{self.path}: damaged: {found}")

    @property
    def generation(self) -> int:
        """The number of commits so far."""
        return int(self._one("select generation from state"))

    # -- documents -------------------------------------------------------------------------------------------------

    def insert(self, documents: Iterable[Document], *, update: bool) -> Iterator[int]:
        """Insert documents in batches; yields how many are in after each. With `update` an id that is there is replaced
        (under a new key); without, it raises `DuplicateDocument`."""
        done, batch, fields = 0, [], set[str]()
        for document in documents:
            batch.append(document)
            fields.update(document.metadata)
            if len(batch) == BATCH:
                self._insert_batch(batch, update)
                done, batch = done + len(batch), []
                yield done
        self._insert_batch(batch, update)
        self._db.executemany("insert or ignore into fields values (?)", [(name,) for name in sorted(fields)])
        yield done + len(batch)

    def _insert_batch(self, batch: Sequence[Document], update: bool) -> None:
        sql = "insert into documents (id, title, text, metadata) values (?, ?, ?, ?)"
        for d in batch:
            try:
                metadata = json.dumps(d.metadata, ensure_ascii=False, allow_nan=False)
                if update:
                    self._db.execute("delete from documents where id = ?", (d.id,))
                self._db.execute(sql, (d.id, d.title, d.text, metadata))
            except (ValueError, TypeError) as problem:
                raise CollectionError(f"document {d.id!r} cannot be stored: {problem}") from problem
            except sqlite3.IntegrityError as problem:
                raise DuplicateDocument(
                    f"document id {d.id!r} is in the collection already, or twice among the new documents; "
                    "replace documents with update=True (--update)"
                ) from problem

    def delete(self, ids: Sequence[str]) -> int:
        """Delete by id; returns how many there were."""
        rows = [self._db.execute("delete from documents where id = ?", (id,)).rowcount for id in ids]
        return sum(rows)

    def __len__(self) -> int:
        return int(self._one("select count(*) from documents"))

    def keys(self, after: int = 0) -> np.ndarray:
        """int64: the keys above `after`, ascending."""
        rows = self._db.execute("select key from documents where key > ? order by key", (after,))
        return np.fromiter((key for (key,) in rows), np.int64)

    def last_key(self) -> int:
        """The largest key given out so far, that of a document since deleted included."""
        row = self._db.execute("select seq from sqlite_sequence where name = 'documents'").fetchone()
        return int(row[0]) if row else 0

    def contents(self, after: int = 0) -> Iterator[str]:
        """What is indexed of the documents with keys above `after`, in the order of keys: title and text."""
        for title, text in self._db.execute("select title, text from documents where key > ? order by key", (after,)):
            yield f"{title} {text}".strip()

    def documents(self, keys: Sequence[int]) -> dict[int, Document]:
        """Documents by key."""
        found = self._by("select key, id, text, title, metadata from documents where key in", keys)
        return {key: Document(id, text, title, json.loads(metadata)) for key, id, text, title, metadata in found}

    def ids(self, keys: Sequence[int]) -> dict[int, str]:
        """External ids by key."""
        return dict(self._by("select key, id from documents where key in", keys))

    def document(self, id: str) -> Document | None:
        """The document with this id, if there is one."""
        row = self._db.execute("select id, text, title, metadata from documents where id = ?", (id,)).fetchone()
        return Document(row[0], row[1], row[2], json.loads(row[3])) if row else None

    def matching(self, where: str) -> np.ndarray:
        """int64: the keys of the documents that a filter accepts, ascending.

        Raises `WhereError`, also for a field that no document ever had.
        """
        condition = parse_where(where)
        known = self.fields()
        for field in sorted(condition.fields - {"id"}):
            if field.partition(".")[0] not in known and field not in known:
                raise CollectionError(
                    f"where: no document has a field {field!r}; the fields are: {', '.join(sorted(known)) or 'none'}"
                )
        sql = f"select key from documents where ({condition.sql}) order by key"
        return np.fromiter((key for (key,) in self._db.execute(sql, condition.parameters)), np.int64)

    def fields(self) -> set[str]:
        """The names of metadata fields."""
        return {name for (name,) in self._db.execute("select name from fields")}

    # -- indexes ---------------------------------------------------------------------------------------------------

    def folders(self) -> dict[str, str]:
        """Index name -> its folder, in the order in which the indexes were given."""
        return dict(self._db.execute("select name, folder from indexes order by position"))

    def set_folders(self, folders: dict[str, str]) -> None:
        self._db.execute("delete from indexes")
        rows = [(name, folder, place) for place, (name, folder) in enumerate(folders.items())]
        self._db.executemany("insert into indexes values (?, ?, ?)", rows)

    def _one(self, sql: str) -> Any:
        return self._db.execute(sql).fetchone()[0]

    def _by(self, sql: str, keys: Sequence[int]) -> Iterator[Any]:
        for start in range(0, len(keys), BATCH):
            part = [int(key) for key in keys[start : start + BATCH]]
            yield from self._db.execute(f"{sql} ({', '.join('?' * len(part))})", part)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.DatabaseError as problem:
        reason = str(problem)
        if "locked" in reason or "busy" in reason:
            raise CollectionLocked(
                f"{path}: another process is writing to this collection; try again later"
            ) from problem
        if "readonly" in reason or "unable to open" in reason:
            raise CollectionError(f"{path}: cannot be written (read-only folder?): {reason}") from problem
        if "full" in reason or "disk I/O" in reason:
            raise CollectionError(f"{path}: the disk is full or fails ({reason}); nothing was changed") from problem
        raise CollectionError(f"{path}: {reason}") from problem
