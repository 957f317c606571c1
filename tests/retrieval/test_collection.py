"""Collections: any sequence of changes equals a plain dict, and what several readers and writers see of each other."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexes.errors import IndexFileError
from retrieval import Collection, Document, Retriever, bm25, dense
from retrieval.encoders import base
from retrieval.errors import CollectionError, CollectionLocked, DuplicateDocument

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["wing", "flow", "heat", "shock", "plate", "layer", "jet", "nozzle"]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """These tests end no machine, so nothing needs to outlive one. SQLite still syncs."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def documents(n, start=0):
    """Like-sounding documents: number i has word i % 8 and the next one, so that LSA has something to learn."""
    return [
        Document(f"d{i}", f"{WORDS[i % 8]} {WORDS[(i + 1) % 8]} number{i}", metadata={"year": 1950 + i % 10})
        for i in range(start, start + n)
    ]


def ids(results):
    return [result.id for result in results]


def answers(collection, queries, index="bm25"):
    return [[(r.id, r.score) for r in results] for results in collection[index].search(queries, k=100)]


# -- any sequence of changes ------------------------------------------------------------------------------------------

some_ids = st.lists(st.integers(0, 7).map(str), max_size=4, unique=True)
texts = st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join)
written = st.dictionaries(st.integers(0, 7).map(str), texts, max_size=4)
steps = st.one_of(
    st.tuples(st.just("add"), written),
    st.tuples(st.just("update"), written),
    st.tuples(st.just("delete"), some_ids),
    st.tuples(st.just("compact"), st.none()),
    st.tuples(st.just("reopen"), st.none()),
)


def apply(collection, model, step, value):
    """Do a step to both; the model is a dict from id to document, in the order of keys. Returns the collection."""
    if step in ("add", "update"):
        new = [Document(id, text, metadata={"length": len(text)}) for id, text in value.items()]
        if step == "add" and model.keys() & value.keys():
            with pytest.raises(DuplicateDocument):
                collection.add(new)
            return collection
        assert collection.add(new, update=step == "update") == len(new)
        for document in new:
            model.pop(document.id, None)
            model[document.id] = document
    elif step == "delete":
        assert collection.delete(value) == len([model.pop(id) for id in value if id in model])
    elif step == "compact":
        collection.compact()
    else:
        collection.close()
        return Collection.open(collection.folder)
    return collection


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(sequence=st.lists(steps, max_size=8), compacted=st.booleans())
def test_any_sequence_of_changes_equals_a_dict_and_a_rebuild(tmp_path_factory, sequence, compacted):
    folder = tmp_path_factory.mktemp("sequence")
    collection, model = Collection.create(folder / "changed", {"bm25": bm25()}), {}
    for step, value in sequence:
        collection = apply(collection, model, step, value)
        assert len(collection) == len(model)
    assert {id: collection.get(id) for id in map(str, range(8))} == {id: model.get(id) for id in map(str, range(8))}
    collection.verify()

    with Collection.create(folder / "rebuilt", {"bm25": bm25()}) as rebuilt:
        rebuilt.add(model.values())
        short = [*WORDS, "wing flow", "heat shock", "jet jet plate", "unknown"]
        assert answers(collection, short) == answers(rebuilt, short)  # to the last bit
        long = [" ".join(WORDS), "wing flow heat unknown shock"]
        if compacted:
            collection.compact()
            assert answers(collection, long) == answers(rebuilt, long)
        else:  # terms are added up in the order in which they were first seen, which is not the rebuilt one's
            for got, expected in zip(answers(collection, long), answers(rebuilt, long), strict=True):
                assert dict(got) == pytest.approx(dict(expected), rel=1e-6)
        if model:
            kept = ids(collection.search(" ".join(WORDS), 100, where="length > 12"))
            assert set(kept) == {id for id, d in model.items() if len(d.text) > 12}
    collection.close()
    shutil.rmtree(folder)


def test_a_compacted_collection_equals_one_built_from_scratch_also_where_encoders_learn(tmp_path):
    with Collection.create(tmp_path / "a", {"bm25": bm25(), "dense": dense()}) as changed:
        changed.add(documents(30))
        changed.delete(f"d{i}" for i in range(0, 30, 3))
        changed.add(documents(5, start=40))
        changed.compact()
        left = [changed.get(f"d{i}") for i in [*(i for i in range(30) if i % 3), *range(40, 45)]]
        with Collection.create(tmp_path / "b", {"bm25": bm25(), "dense": dense()}) as fresh:
            fresh.add(left)
            for index in ("bm25", "dense", "hybrid"):
                queries = ["wing flow", "heat", "number7"]
                a, b = (c.stage(index).run(dict(zip("123", queries, strict=True))) for c in (changed, fresh))
                assert a == b and a["1"]


# -- create and open --------------------------------------------------------------------------------------------------


def test_three_lines_of_python(tmp_path):
    import retrieval

    (tmp_path / "corpus.jsonl").write_text('{"_id": "1", "text": "wings"}\n{"_id": "2", "text": "heat"}\n')
    with retrieval.index(tmp_path / "corpus.jsonl", tmp_path / "my.idx") as collection:
        assert collection.indexes == ["bm25", "dense"]
        assert ids(collection.search("wing"))[0] == "1"
    with retrieval.open(tmp_path / "my.idx") as collection:
        assert ids(collection.search("wing"))[0] == "1"


def test_documents_may_be_mappings_whose_other_entries_are_metadata(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25()}) as collection:
        metadata = {"year": 1, "lang": "en"}
        collection.add([{"id": "a", "text": "wings", "title": "Of", "year": 1950, "metadata": metadata}])
        assert collection.get("a") == Document("a", "wings", "Of", {"year": 1950, "lang": "en"})
        assert "a" in collection and "b" not in collection and collection.get("b") is None


def test_create_refuses_what_is_there_already(tmp_path):
    made = Collection.create(tmp_path / "c", {"bm25": bm25()})
    made.add(documents(1))
    with pytest.raises(CollectionError, match="holds a collection already"):
        Collection.create(tmp_path / "c", {"bm25": bm25()})
    made.delete("d0")  # a collection that has become empty is still one
    with pytest.raises(CollectionError, match="holds a collection already"):
        Collection.create(tmp_path / "c", {"bm25": bm25()})
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    for name in ("file", "full"):
        with pytest.raises(CollectionError, match="exists and is no collection"):
            Collection.create(tmp_path / name, {"bm25": bm25()})
    assert os.listdir(tmp_path / "full") == ["letter.txt"]


def test_create_takes_over_an_empty_folder_and_an_interrupted_build(tmp_path):
    (tmp_path / "c").mkdir()
    Collection.create(tmp_path / "c", {"bm25": bm25()}).close()
    with Collection.create(tmp_path / "c", {"other": bm25(k1=1.5)}) as collection:
        assert collection.indexes == ["other"]
        collection.add(documents(3))
        assert len(list((tmp_path / "c" / "indexes").iterdir())) == 1


@pytest.mark.parametrize("name", ["hybrid", "a/b", "..", "", "a b", "a.b"])
def test_index_names_that_are_refused(tmp_path, name):
    with pytest.raises(CollectionError, match="index name"):
        Collection.create(tmp_path / "c", {name: bm25()})
    with pytest.raises(CollectionError, match="at least one index"):
        Collection.create(tmp_path / "c", {})
    assert not (tmp_path / "c").exists()


def test_several_indexes_side_by_side_keep_names_order_and_settings(tmp_path):
    made = {"sharp": bm25(k1=2.0, b=0.9), "plain": bm25(method="bm25+"), "dense": dense(ann="hnsw", M=8)}
    Collection.create(tmp_path / "c", made).add(documents(20))
    with Collection.open(tmp_path / "c") as collection:
        assert collection.indexes == ["sharp", "plain", "dense"]
        told = collection.info()["indexes"]
        assert told["sharp"]["index"]["weighting"]["k1"] == 2.0
        assert told["plain"]["index"]["weighting"]["method"] == "bm25+"
        assert told["dense"]["index"]["M"] == 8
        collection.compact()
        assert collection.info()["indexes"] == told


def test_info_is_json_and_true(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense()}) as collection:
        collection.add(documents(12))
        info = json.loads(json.dumps(collection.info()))
        assert (info["documents"], info["generation"], info["fields"]) == (12, 2, ["year"])
        files = [path for path in (tmp_path / "c").rglob("*") if path.is_file()]
        assert info["bytes_on_disk"] == sum(path.stat().st_size for path in files)
        assert {name: part["index"]["n"] for name, part in info["indexes"].items()} == {"bm25": 12, "dense": 12}
        assert info["indexes"]["dense"]["encoder"]["kind"] == "lsa"


# -- changes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def collection(tmp_path):
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense()}) as made:
        made.add(documents(20))
        yield made


def test_a_failed_change_changes_nothing(collection):
    def broken():
        yield from documents(3, start=100)
        raise OSError("the source went away")

    before, generation = collection.info(), collection.store.generation
    with pytest.raises(OSError, match="went away"):
        collection.add(broken())
    with pytest.raises(DuplicateDocument, match="'d5'"):
        collection.add([*documents(3, start=100), *documents(1, start=5)])
    with pytest.raises(CollectionError, match="lacks 'text'"):
        collection.add([{"id": "x", "body": "y"}])
    assert collection.store.generation == generation and "d100" not in collection
    assert collection.info() == before
    assert len(list((collection.folder / "indexes").iterdir())) == 2
    collection.verify()


def test_an_update_replaces_text_metadata_and_place_in_every_index(collection):
    changed = Document("d3", "supersonic", metadata={"new": 1})
    assert collection.add([changed, *documents(1, start=99)], update=True) == 2
    assert len(collection) == 21
    assert ids(collection["bm25"].search("supersonic")) == ["d3"]
    assert "d3" not in ids(collection["bm25"].search("number3"))
    assert ids(collection.search("supersonic", where="new = 1")) == ["d3"]
    collection.verify()


def test_the_last_of_several_updates_of_one_document_counts(collection):
    collection.add([Document("d3", "first"), Document("d3", "second")], update=True)
    assert len(collection) == 20 and collection.get("d3").text == "second"
    assert ids(collection["bm25"].search("first second")) == ["d3"]
    collection.verify()


def test_delete_takes_one_id_or_several_and_ignores_others(collection):
    assert collection.delete("d1") == 1
    assert collection.delete(["d1", "d2", "nothing"]) == 1
    assert len(collection) == 18
    assert not {"d1", "d2"} & set(ids(collection.search("flow heat", 100)))


def test_a_collection_may_lose_all_its_documents_and_get_new_ones(collection):
    collection.delete(f"d{i}" for i in range(20))
    assert collection.search("wing") == [] and len(collection) == 0
    collection.compact()
    collection.verify()
    collection.add(documents(4, start=50))
    assert ids(collection.search("number51"))[0] == "d51"


def test_compact_gives_disk_space_back(collection):
    collection.add([Document("large", "word " * 200_000)])
    collection.delete("large")
    before = collection.info()["bytes_on_disk"]
    collection.compact()
    assert collection.info()["bytes_on_disk"] < before - 900_000
    collection.verify()


def test_only_the_live_index_folders_are_left_after_a_change(collection):
    (collection.folder / "indexes" / "bm25.77").mkdir()  # as a crash leaves it
    collection.add(documents(1, start=60))
    assert sorted(os.listdir(collection.folder / "indexes")) == ["bm25.3", "dense.3"]


def test_lsa_is_fitted_again_once_the_collection_has_outgrown_it(collection):
    def fitted_on():
        with collection.reading() as retrievers:
            return retrievers["dense"].encoder.fitted_on

    collection.add(documents(15, start=100))
    assert fitted_on() == 20  # 35 documents: folded in
    assert ids(collection["dense"].search("number102 wing"))
    collection.add(documents(6, start=200))
    assert fitted_on() == 41
    collection.verify()


def test_an_index_is_added_and_dropped_later(collection):
    with Collection.open(collection.folder) as other:
        plain = other["bm25"]
        collection.add_index("plus", bm25(method="bm25+"))
        assert collection.indexes == other.indexes == ["bm25", "dense", "plus"]
        assert ids(other["plus"].search("number7")) == ["d7"]  # seen at once where it was made by another
        collection.add(documents(2, start=90))
        collection.verify()
        with pytest.raises(CollectionError, match="index 'plus' is there already"):
            collection.add_index("plus", bm25())
        with pytest.raises(CollectionError, match="index name 'hybrid'"):
            collection.add_index("hybrid", bm25())
        for name in ("bm25", "dense"):
            collection.drop_index(name)
        assert other.indexes == ["plus"] and ids(other.search("number91 unheard", 1)) == ["d91"]
        for ask in (lambda: plain.search("wing"), lambda: plain.run({"q": "wing"}), lambda: other["bm25"]):
            with pytest.raises(CollectionError, match="no index 'bm25'; this collection has: plus, hybrid"):
                ask()
        for name in ("plus", "bm25"):  # the last one, and none
            with pytest.raises(CollectionError, match=f"cannot drop '{name}'; the indexes are: plus"):
                collection.drop_index(name)
    assert os.listdir(collection.folder / "indexes") == ["plus.6"]
    collection.verify()


ANNS = [("flat", {}), ("scan", {}), ("graph", {"R": 8}), ("ivf", {}), ("hnsw", {"M": 8}), ("ivfpq", {})]


@pytest.mark.parametrize(("ann", "parameters"), ANNS)
def test_dense_indexes_of_every_kind_live_in_a_collection(tmp_path, ann, parameters):
    with Collection.create(tmp_path / "c", {"dense": dense(ann=ann, **parameters)}) as made:
        made.add(documents(300))
        made.delete(f"d{i}" for i in range(0, 300, 4))
        made.add(documents(20, start=400))
    with Collection.open(tmp_path / "c") as collection:
        collection.verify()
        found = ids(collection.search("wing flow", 50, where="year = 1951"))
        wanted = {f"d{i}" for i in [*range(300), *range(400, 420)] if i % 10 == 1 and (i >= 300 or i % 4)}
        assert set(found) == (set(found) & wanted) and len(found) == min(50, len(wanted))
        assert WORDS[0] in collection.search("wing flow", 1)[0].text


class Costly(base.Encoder):
    """Vectors of letter counts, with the same care as those of a model."""

    kind = "costly-test"
    costly = True
    similarity = "ip"

    def encode_documents(self, texts):
        return np.array([[text.count(letter) for letter in "etaoins"] for text in texts], np.float32)

    encode_queries = encode_documents

    def settings(self):
        return {}


def test_kept_encodings_are_removed_by_a_commit_and_only_then(tmp_path, monkeypatch):
    from indexes import FlatIndex

    monkeypatch.setitem(base.KINDS, Costly.kind, f"{__name__}:Costly")
    made = Collection.create(tmp_path / "c", {"letters": Retriever(Costly(), FlatIndex(metric="ip")), "bm25": bm25()})
    kept = tmp_path / "c" / "encodings" / "letters"
    with monkeypatch.context() as patched:
        patched.setattr(Retriever, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(CollectionError, match="disk full"):
            made.add(documents(9))
    assert len(list(kept.iterdir())) == 1
    with monkeypatch.context() as patched:  # the vectors are there: nothing is encoded again
        patched.setattr(Costly, "encode_documents", None)
        made.add(documents(9))
    assert not kept.parent.exists()
    made.verify()


# -- several at once --------------------------------------------------------------------------------------------------


def test_a_change_is_seen_by_another_open_collection(collection):
    with Collection.open(collection.folder) as other:
        assert other.search("number777") == [] or ids(other["bm25"].search("number777")) == []
        collection.add([Document("late", "number777")])
        assert ids(other["bm25"].search("number777")) == ["late"]
        other.delete("late")
        assert ids(collection["bm25"].search("number777")) == []


def test_a_change_of_another_process_is_seen(collection):
    script = (
        "import sys; from retrieval import Collection\n"
        "with Collection.open(sys.argv[1]) as c:\n"
        "    c.add([{'id': 'late', 'text': 'number777'}]); print(c.store.generation)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, collection.folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == collection.store.generation
    assert ids(collection["bm25"].search("number777")) == ["late"]


def test_two_writers_at_once(collection):
    with Collection.open(collection.folder) as other, collection._changing():
        for change in (lambda: other.add(documents(1, start=90)), lambda: other.delete("d1"), other.compact):
            with pytest.raises(CollectionLocked, match="another process is writing"):
                change()
        assert ids(other.search("number5"))  # reading goes on
    collection.add(documents(1, start=90))
    collection.verify()


def test_tidying_up_spares_the_folders_that_another_writer_has_just_begun(collection):
    """Between a commit and the removal of old folders another process may write folders that have no name yet."""
    tidy = Collection._tidy
    with Collection.open(collection.folder) as other:
        begun = other._changing()

        def interposed(self, store, *unneeded):
            Collection._tidy = tidy
            begun.__enter__()
            (self.folder / "indexes" / "bm25.4").mkdir()
            tidy(self, store, *unneeded)

        Collection._tidy = interposed
        try:
            collection.add(documents(1, start=90))
        finally:
            Collection._tidy = tidy
        assert (collection.folder / "indexes" / "bm25.4").exists()
        begun.__exit__(None, None, None)
    assert sorted(os.listdir(collection.folder / "indexes")) == ["bm25.4", "dense.4"]
    collection.verify()


def test_a_reader_that_loses_the_race_against_a_commit_looks_again(collection, monkeypatch):
    """The generation that it saw is replaced and its files are gone before they are opened."""
    with Collection.open(collection.folder) as other:
        collection.add(documents(1, start=90))
        load, raced = Retriever.load, []

        def slow(folder, **options):
            if not raced:
                raced.append(folder)
                monkeypatch.setattr(Retriever, "load", load)
                collection.add([Document("late", "number777")])
            return load(folder, **options)

        monkeypatch.setattr(Retriever, "load", slow)
        assert ids(other["bm25"].search("number777")) == ["late"]
        assert raced and not raced[0].exists()


def test_searching_in_threads_while_another_adds_and_deletes(collection):
    """Each answer belongs to one generation: generation g has the documents common0 ... common(g - 3)."""
    errors, stop = [], threading.Event()

    def search():
        try:
            seen = 0
            while not stop.is_set():
                found = ids(collection["bm25"].search("common", 100))
                assert sorted(found) == sorted(f"common{i}" for i in range(len(found))) and len(found) >= seen
                seen = len(found)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(8):
        collection.add([Document(f"common{i}", "common")])
        collection.delete(f"d{i}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(collection["bm25"].search("common", 100)) == 8


# -- damage -----------------------------------------------------------------------------------------------------------


def data_file(collection, name, pattern):
    (folder,) = (collection.folder / "indexes").glob(f"{name}.*")
    return sorted(folder.glob(pattern))[0]


def test_verify_is_content_with_what_is_whole(collection):
    collection.verify()


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ("bm25", "index/scores-*"),
        ("bm25", "encoder/terms-*"),
        ("dense", "index/vectors-*"),
        ("dense", "encoder/components-*"),
    ],
)
def test_verify_finds_a_deleted_and_an_altered_file(collection, index, part):
    path = data_file(collection, index, part)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(IndexFileError, match=f"{path.name}.*altered"):
        collection.verify()
    with pytest.raises(IndexFileError, match=f"{path.name}.*altered"):
        Collection.open(collection.folder)
    Collection.open(collection.folder, verify=False).close()
    path.unlink()
    with pytest.raises(IndexFileError, match=f"{path.name}.*missing"):
        collection.verify()


def test_verify_finds_an_index_that_does_not_hold_the_documents(collection):
    collection.store._db.execute("delete from documents where id = 'd7'")
    with pytest.raises(CollectionError, match="'bm25' does not hold the collection's documents"):
        collection.verify()


def test_verify_finds_a_damaged_database(collection):
    collection.close()
    path = collection.folder / "collection.sqlite"
    content = bytearray(path.read_bytes())
    content[4096 + 100 : 8192] = b"\x55" * (4096 - 100)
    path.write_bytes(content)
    damage = pytest.raises(CollectionError, match=r"damaged|malformed|corrupt")
    with damage, Collection.open(collection.folder) as damaged:
        damaged.verify()
