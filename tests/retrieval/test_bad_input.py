"""Bad input and bad surroundings: each has a test, and each test says what the user is told."""

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import retrieval
from eval.errors import FormatError
from indexes import FlatIndex
from indexes.errors import IndexFileError, InvalidVectors, NewerIndex
from retrieval import Collection, Document, Retriever, bm25, dense
from retrieval.documents import EmptyCorpus
from retrieval.encoders import base
from retrieval.errors import CollectionError, DuplicateDocument, EncoderError

ROOT = Path(__file__).resolve().parents[2]
GOOD = '{"_id": "1", "text": "wings and flow"}\n{"_id": "2", "text": "heat and flow"}\n'


@pytest.fixture
def collection(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense()}) as made:
        made.add([Document(f"d{i}", f"wing flow number{i}") for i in range(10)])
        yield made


def ids(results):
    return [result.id for result in results]


def corpus(folder, content):
    path = folder / "corpus.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -- records of a corpus ----------------------------------------------------------------------------------------------

BAD_RECORDS = {
    "malformed JSON": ('{"_id": "3", "text": \n', "malformed JSON"),
    "missing id": ('{"text": "no id"}\n', "id"),
    "missing text": ('{"_id": "3"}\n', "text"),
    "text that is no string": ('{"_id": "3", "text": 5}\n', "text"),
    "not UTF-8": ('{"_id": "3", "text": "caf\xe9"}\n', "not UTF-8"),
    "no object": ("[1, 2]\n", "object"),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
def test_a_bad_record_names_file_and_line_and_the_collection_stays_empty_or_it_is_skipped(tmp_path, kind):
    record, problem = BAD_RECORDS[kind]
    path = corpus(tmp_path, GOOD.encode() + record.encode("latin-1"))
    with pytest.raises(FormatError, match=problem) as caught:
        retrieval.index(path, tmp_path / "c", {"bm25": bm25()})
    assert str(caught.value).startswith(f"{path}:3: ")
    with Collection.open(tmp_path / "c") as collection:
        assert len(collection) == 0
    with retrieval.index(path, tmp_path / "c", {"bm25": bm25()}, on_error="skip") as collection:
        assert len(collection) == 2 and ids(collection.search("heat")) == ["2"]


def test_an_id_twice_in_one_file(tmp_path):
    with pytest.raises(DuplicateDocument, match="'1' is in the collection already, or twice"):
        retrieval.index(corpus(tmp_path, GOOD + GOOD), tmp_path / "c", {"bm25": bm25()})
    with Collection.open(tmp_path / "c") as collection:
        assert len(collection) == 0


def test_an_id_that_the_collection_has(collection):
    with pytest.raises(DuplicateDocument, match=r"'d4'.*update=True"):
        collection.add([Document("new", "x"), Document("d4", "y")])
    assert "new" not in collection


def test_an_empty_corpus(tmp_path):
    for content in ("", "\n\n"):
        with pytest.raises(EmptyCorpus, match="no documents"):
            retrieval.index(corpus(tmp_path, content), tmp_path / "c", {"bm25": bm25()})
    with retrieval.index(corpus(tmp_path, GOOD), tmp_path / "c") as collection:  # the same folder, once there are some
        assert len(collection) == 2


def test_documents_with_an_empty_text_are_kept_and_found_by_nothing(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense()}) as collection:
        collection.add([Document("empty", ""), Document("blank", " \n\t"), Document("stop", "the of and"),
                        Document("wing", "wing"), Document("wings", "two wings")])  # fmt: skip
        assert len(collection) == 5 and collection.get("empty").text == ""
        assert set(ids(collection["bm25"].search("wing the of"))) == {"wing", "wings"}
        assert ids(collection.search("wing"))[:2] == ["wing", "wings"]
        collection.verify()


def test_only_empty_documents(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense()}) as collection:
        collection.add([Document("a", ""), Document("b", "")])
        assert collection["bm25"].search("wing") == []
        collection.compact()
        collection.add([Document("c", "wing"), Document("d", "wing"), Document("e", "flow")])
        assert ids(collection["bm25"].search("wing")) == ["c", "d"]


def test_a_document_of_10_mb(tmp_path):
    text = "wing flow " * 900_000 + " ".join(f"w{i}" for i in range(100_000)) + " " + "long" * 250_000 + " needle"
    assert len(text) > 10_000_000
    path = corpus(tmp_path, json.dumps({"_id": "large", "text": text}) + "\n" + GOOD)
    with retrieval.index(path, tmp_path / "c", {"bm25": bm25()}) as collection:
        assert ids(collection.search("needle")) == ["large"]
        assert collection.search("needle")[0].text.startswith("wing flow")
        assert set(ids(collection.search("flow"))) == {"1", "2", "large"}


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"id": "x"}, "lacks 'text'"),
        ({"text": "x"}, "lacks 'id'"),
        ({"id": 7, "text": "x"}, "document 7: id, text and title must be strings"),
        ({"id": "x", "text": None}, "must be strings"),
        ({"id": "x", "text": "y", "title": None}, "must be strings"),
        ({"id": "x", "text": "y", "metadata": ["year"]}, "metadata must be a dict"),
        ({"id": "x", "text": "y", "metadata": {1: 2}}, "metadata must be a dict with strings as keys"),
        ({"id": "x", "text": "y", "year": float("nan")}, "document 'x' cannot be stored"),
        ({"id": "x", "text": "y", "year": {1, 2}}, "document 'x' cannot be stored"),
        ({"id": "x", "text": "half \ud800"}, "document 'x' cannot be stored"),
        ("corpus.jsonl", "a document is 'corpus.jsonl'; expected a Document or a mapping"),
        (None, "a document is None"),
        (Document("x", None), "must be strings"),  # type: ignore[arg-type]
        (Document(7, "x"), "must be strings"),  # type: ignore[arg-type]
    ],
)
def test_documents_that_are_refused(collection, document, problem):
    with pytest.raises(CollectionError, match=problem):
        collection.add([Document("before", "x"), document])
    assert len(collection) == 10 and "before" not in collection


@pytest.mark.parametrize("documents", ["corpus.jsonl", {"id": "x", "text": "y"}, Document("x", "y")])
def test_one_document_or_a_path_in_place_of_several_documents(collection, documents):
    with pytest.raises(TypeError, match=f"documents is one {type(documents).__name__}; expected several"):
        collection.add(documents)


@pytest.mark.parametrize("retrievers", [bm25(), {"bm25": "bm25"}, ["bm25"]])
def test_what_is_no_mapping_of_retrievers_is_refused_before_anything_is_made(tmp_path, retrievers):
    with pytest.raises(TypeError, match=r"retrievers are .*expected index names with retrievers"):
        Collection.create(tmp_path / "new", retrievers)
    assert not (tmp_path / "new").exists()


# -- encoders that misbehave ------------------------------------------------------------------------------------------


class Broken(base.Encoder):
    """Gives what it is told to, whatever the text."""

    kind, similarity = "broken-test", "ip"

    def __init__(self, *, vector):
        self.vector = vector

    def encode_documents(self, texts):
        return np.array([self.vector] * len(texts), np.float32)

    encode_queries = encode_documents

    def settings(self):
        return {"vector": self.vector}


@pytest.fixture
def broken(tmp_path, monkeypatch):
    monkeypatch.setitem(base.KINDS, Broken.kind, f"{__name__}:Broken")
    made = Collection.create(tmp_path / "broken", {"vectors": Retriever(Broken(vector=[1, 2]), FlatIndex(metric="ip"))})
    made.add([Document("a", "x")])
    return made


@pytest.mark.parametrize(
    ("vector", "problem"),
    [([1, float("nan")], "NaN"), ([float("inf"), 1], "infinity"), ([1, 2, 3], "3 dimensions; this index has 2"),
     (1.0, "dimensions")],
)  # fmt: skip
def test_vectors_that_are_nan_infinite_or_of_another_size(broken, monkeypatch, vector, problem):
    monkeypatch.setattr(Broken, "__init__", lambda self, **settings: setattr(self, "vector", vector))
    with pytest.raises(InvalidVectors, match=problem):
        broken.add([Document("b", "y")])
    with pytest.raises(InvalidVectors, match=problem), Collection.open(broken.folder) as opened:
        opened.search("y")
    monkeypatch.undo()
    monkeypatch.setitem(base.KINDS, Broken.kind, f"{__name__}:Broken")
    broken.verify()
    assert len(broken) == 1 and ids(broken.search("y")) == ["a"]


def test_too_few_vectors_shift_no_row(broken, monkeypatch):
    monkeypatch.setattr(Broken, "encode_documents", lambda self, texts: np.ones((len(texts) - 1, 2), np.float32))
    broken.add([])
    with pytest.raises(EncoderError, match="gave 1 vectors for 2 texts"):
        broken.add([Document("b", "y"), Document("c", "y")])
    assert len(broken) == 1


def test_a_model_that_does_not_exist(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(EncoderError, match="no/such-model"):
        retrieval.index(corpus(tmp_path, GOOD), tmp_path / "c", {"dense": dense("no/such-model")})
    with pytest.raises(EncoderError, match="nowhere"):
        retrieval.index(corpus(tmp_path, GOOD), tmp_path / "d", {"dense": dense(str(tmp_path / "nowhere"))})


def test_parameters_that_are_refused_before_anything_is_made():
    with pytest.raises(ValueError, match="ann is 'lsh'; it must be one of flat, scan, graph, ivf, hnsw, ivfpq"):
        dense(ann="lsh")
    with pytest.raises(ValueError, match="bm26"):
        bm25(method="bm26")
    with pytest.raises(ValueError, match="k1"):
        bm25(k1=-1)
    with pytest.raises(ValueError, match="name=''"):
        bm25("")


# -- queries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "   ", "the of and", "zeppelin unheard", "?!", "\x00", "日本"])
def test_queries_that_no_term_is_left_of_find_nothing_by_words(collection, query):
    assert collection["bm25"].search(query) == []
    assert collection["bm25"].search(query, explain=True) == []
    assert collection["bm25"].run({"q": query}) == {"q": {}}
    for index in ("dense", "hybrid"):  # not all documents with one score, in the order in which they were added
        assert collection.search(query, index=index, explain=True) == []


def test_a_word_of_one_document_brings_no_others_along(collection):
    collection.add([Document("rare", "zeppelin")])
    assert ids(collection.search("zeppelin")) == ["rare"]
    found = collection.search(["zeppelin", "wing", ""], index="dense")
    assert [len(results) for results in found] == [0, 10, 0]


def test_k_larger_than_the_collection(collection):
    for index in ("bm25", "dense", "hybrid"):
        assert sorted(ids(collection.search("wing", 10**6, index=index))) == [f"d{i}" for i in range(10)]


def test_an_empty_collection_has_no_answers(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense(), "ann": dense(ann="ivfpq")}) as empty:
        for index in ("bm25", "dense", "ann", "hybrid"):
            assert empty.search("wing", index=index) == []
        assert empty.info()["documents"] == 0
        empty.verify()
        empty.compact()
        with pytest.raises(CollectionError, match="no document has a field 'year'; the fields are: none"):
            empty.search("wing", where="year > 3")


# -- files ------------------------------------------------------------------------------------------------------------


def header(collection, name, part="index"):
    (folder,) = (collection.folder / "indexes").glob(f"{name}.*")
    return folder / part / f"{part}.json"


def change_header(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("part", ["index", "encoder"])
@pytest.mark.parametrize("name", ["bm25", "dense"])
def test_a_newer_a_truncated_and_a_foreign_header(collection, name, part):
    path = header(collection, name, part)
    whole = path.read_text()
    change_header(path, format=99)
    with pytest.raises(NewerIndex, match="format 99 is newer"):
        Collection.open(collection.folder)
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(IndexFileError, match="not a readable header"):
        Collection.open(collection.folder)
    path.write_text(whole)
    change_header(path, kind="hologram")
    with pytest.raises((IndexFileError, EncoderError), match="kind 'hologram'; this release knows"):
        Collection.open(collection.folder)
    path.write_text(whole)
    change_header(path, **{"settings" if part == "encoder" else "parameters": {"nonsense": 1}})
    with pytest.raises((IndexFileError, EncoderError), match=str(path.parent)):
        Collection.open(collection.folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="nothing saved here"):
        Collection.open(collection.folder)
    path.write_text(whole)
    Collection.open(collection.folder).verify()


def test_a_truncated_and_a_tampered_data_file(collection):
    for path in sorted((collection.folder / "indexes").rglob("*.npy")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(IndexFileError, match=f"{path.name}: has {len(whole) - 1} bytes"):
            Collection.open(collection.folder, verify=False)
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x55]))
        with pytest.raises(IndexFileError, match=f"{path.name}: its SHA-256 differs"):
            Collection.open(collection.folder)
        path.write_bytes(whole)
    Collection.open(collection.folder).close()


def alter(collection, sql):
    collection.close()
    with sqlite3.connect(collection.folder / "collection.sqlite") as db:
        db.execute(sql)
    db.close()


def test_a_collection_of_a_newer_release(collection):
    alter(collection, "pragma user_version = 7")
    with pytest.raises(CollectionError, match="format 7 is newer than 1"):
        Collection.open(collection.folder)


def test_no_collection_and_a_folder_that_is_not_there(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CollectionError, match="no collection here"):
            Collection.open(folder)
    assert not (tmp_path / "nothing").exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("application", [0, 4711])
def test_the_database_of_another_program_is_refused_and_left_as_it_was(tmp_path, application):
    path = tmp_path / "collection.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("create table letters (a)")
        db.execute(f"pragma application_id = {application}")
    db.close()
    content = path.read_bytes()
    for action in (Collection.open, lambda folder: Collection.create(folder, {"bm25": bm25()})):
        with pytest.raises(CollectionError, match="not a collection"):
            action(tmp_path)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "collection.sqlite").write_bytes(b"letters " * 1000)
    for action in (Collection.open, lambda folder: Collection.create(folder, {"bm25": bm25()})):
        with pytest.raises(CollectionError, match="file is not a database"):
            action(tmp_path)


def test_an_empty_database_is_a_build_that_was_interrupted(tmp_path):
    (tmp_path / "collection.sqlite").touch()
    with pytest.raises(CollectionError, match="not a collection"):
        Collection.open(tmp_path)
    Collection.create(tmp_path, {"bm25": bm25()}).close()
    alter(Collection.open(tmp_path), "update state set generation = 0")
    with pytest.raises(CollectionError, match="was interrupted; make it again"):
        Collection.open(tmp_path)
    with Collection.create(tmp_path, {"bm25": bm25()}) as collection:
        assert collection.add([Document("a", "wing")]) == 1


# -- surroundings -----------------------------------------------------------------------------------------------------


@pytest.fixture
def open_to_all():
    """A folder that any user may enter; pytest's own are for the one who runs it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    shutil.rmtree(folder)


def run_script(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


READ_ONLY = """
import os, sys
from retrieval import Collection, Document
from retrieval.errors import CollectionError

def use(folder):
    with Collection.open(folder) as c:
        print(*[r.id for r in c.search("flow")])
        c.verify()
        for change in (lambda: c.add([Document("x", "y")]), lambda: c.delete("1"), c.compact):
            try:
                change()
            except CollectionError as error:
                print(error)

folder, copy = sys.argv[1:]
if os.geteuid() == 0:  # to whom nothing is read-only; the other user may lack the right to import
    use(copy)
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    print("---")
try:
    use(folder)
except CollectionError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
@pytest.mark.parametrize("log_left", [False, True])
def test_a_read_only_folder_is_searched_and_not_changed(open_to_all, log_left):
    folder, copy = open_to_all / "c", open_to_all / "copy"
    collection = retrieval.index(corpus(open_to_all, GOOD), folder, {"bm25": bm25()})
    if log_left:  # as a writer that was killed leaves them: the last commit is in the log
        collection.store._db.execute("pragma wal_autocheckpoint = 0")
        for name in ("collection.sqlite", "collection.sqlite-wal"):
            shutil.copy(folder / name, open_to_all / name)
        collection.close()
        for name in ("collection.sqlite", "collection.sqlite-wal"):
            shutil.move(open_to_all / name, folder / name)
        assert (folder / "collection.sqlite-wal").stat().st_size
    else:
        collection.close()
    shutil.copytree(folder, copy)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    done = run_script(READ_ONLY, folder, copy)
    assert done.stderr == ""
    told = done.stdout.rpartition("---\n")[2]
    if log_left:
        assert "open the collection once with the right to write" in told
    else:
        found, *errors = told.splitlines()
        assert set(found.split()) == {"1", "2"}
        assert len(errors) == 3 and all("cannot be written (read-only folder?)" in error for error in errors)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)
    with Collection.open(folder) as collection:
        assert len(collection) == 2


DISK_FULL = """
import resource, sys
from retrieval import Collection, Document
from retrieval.errors import CollectionError
with Collection.open(sys.argv[1]) as c:
    generation = c.store.generation
    resource.setrlimit(resource.RLIMIT_FSIZE, (180_000, 180_000))
    try:
        c.add([Document(f"new{i}", text) for i, text in enumerate([sys.argv[2]] * int(sys.argv[3]))])
    except CollectionError as error:
        print(error)
    assert c.store.generation == generation and [r.id for r in c["bm25"].search("number3")] == ["d3"]
    c.verify()
"""


SHORT_WORDS = product("bcdfghjklmnpqrtvwxz0123456789", repeat=3)  # a word takes fewer bytes as text than as a column


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE")
@pytest.mark.parametrize(("what", "text", "times"), [("database", "y" * 120_000, 8),
                                                     ("index", " ".join(map("".join, SHORT_WORDS)), 1)])  # fmt: skip
def test_a_full_disk_leaves_the_old_generation(collection, tmp_path, what, text, times):
    """The size of files is limited instead, which fails alike."""
    done = run_script(DISK_FULL, collection.folder, text, times)
    assert done.returncode == 0, done.stderr
    assert ("the disk is full or fails" if what == "database" else "an index cannot be written") in done.stdout
    assert "nothing was changed" in done.stdout
    assert len(list((collection.folder / "indexes").iterdir())) == 2  # what was half written is gone
    assert len(collection) == 10
    collection.add([Document("new0", "now there is room")])
    collection.verify()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CollectionError, match="cannot be made"):
        Collection.create(tmp_path / "file" / "c", {"bm25": bm25()})
