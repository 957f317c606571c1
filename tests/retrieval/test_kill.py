"""kill -9 at any moment: the collection opens, verifies and holds exactly the last committed generation.

A worker does the steps of `operation` one after the other; step g makes generation g, so what a generation holds is
known without asking the collection (`expected`). It is killed at random moments, and at the worst ones.
"""

import multiprocessing
import os
import random
import signal
import sys
import time

import pytest

from retrieval import Collection, Document, Retriever, bm25, dense
from retrieval import collection as module
from retrieval.errors import CollectionError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
KILLS = 50
WORDS = ["wing", "flow", "heat", "shock", "plate", "layer"]


def document(i, generation):
    text = f"{WORDS[i % 6]} {WORDS[(i + generation) % 6]} own{i}g{generation}"
    return Document(f"d{i}", text, metadata={"generation": generation})


def operation(generation, held):
    """What makes this generation of the one before, which holds the ids `held`: a name and its documents or ids."""
    draw = random.Random(generation)
    kind = "add" if generation == 2 or not held else draw.choice(["add", "add", "update", "delete", "compact"])
    if kind == "add":
        return kind, [document(100 * generation + i, generation) for i in range(draw.randint(1, 12))]
    if kind == "update":
        return kind, [document(int(id[1:]), generation) for id in draw.sample(sorted(held), min(3, len(held)))]
    return kind, draw.sample(sorted(held), min(4, len(held))) if kind == "delete" else []


def expected(generation):
    """Id -> document, of the collection at this generation; the first is that of an empty collection."""
    held = {}
    for g in range(2, generation + 1):
        kind, value = operation(g, held)
        if kind == "delete":
            held = {id: d for id, d in held.items() if id not in value}
        else:
            held |= {d.id: d for d in value}
    return held


def step(folder, generation):
    if generation == 1:
        Collection.create(folder, {"bm25": bm25(), "dense": dense()}).close()
        return
    kind, value = operation(generation, expected(generation - 1))
    with Collection.open(folder) as collection:
        if kind == "delete":
            collection.delete(value)
        elif kind == "compact":
            collection.compact()
        else:
            collection.add(value, update=kind == "update")


def generation_of(folder):
    """0 when there is no finished collection yet."""
    try:
        with Collection.open(folder) as collection:
            return collection.store.generation
    except CollectionError as error:
        assert any(told in str(error) for told in ("no collection here", "never finished", "interrupted")), error
        return 0


def work(folder, reports):
    """Step after step, from where the collection stands; every generation reached is a line of the file `reports`."""
    generation = generation_of(folder)
    with open(reports, "w", buffering=1) as out:
        while True:
            print(generation, file=out)
            generation += 1
            step(folder, generation)


def end_at(folder, generation, moment):
    """One step that ends, without any tidying, at a moment between two of its parts."""
    save_all, save, tidy = module._save_all, Retriever.save, Collection._tidy

    def after_save_all(*arguments):
        save_all(*arguments)
        os._exit(9)

    def after_one_save(*arguments):
        save(*arguments)
        os._exit(9)

    def after_tidy(*arguments):
        tidy(*arguments)
        os._exit(9)

    if moment == "first index written":
        Retriever.save = after_one_save
    elif moment == "indexes written, not committed":
        module._save_all = after_save_all
    elif moment == "committed, not tidied":
        Collection._tidy = lambda *_: os._exit(9)
    elif moment == "tidied":
        Collection._tidy = after_tidy
    step(folder, generation)
    os._exit(0)


def fork_on_demand(orders, scratch):
    """A process that has everything loaded and forks itself for each order; says the child's pid, then how it ended."""
    for generation in range(1, 5):
        step(scratch, generation)
    orders.send("ready")
    while order := orders.recv():
        function, *arguments = order
        pid = os.fork()
        if not pid:
            try:
                function(*arguments)
            finally:  # after an error of its own
                os._exit(1)
        orders.send(pid)
        orders.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """What `fork_on_demand` takes orders from. Imports are paid for once, not with every kill."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    scratch = tmp_path_factory.mktemp("kill") / "scratch"
    process = context.Process(target=fork_on_demand, args=(theirs, scratch), daemon=True)
    process.start()
    assert ours.recv() == "ready"
    yield ours
    ours.send(None)
    process.join()


def run(forks, *order):
    """The exit code of a function in a process of its own."""
    forks.send(order)
    forks.recv()
    return forks.recv()


def lines(path):
    """The whole lines of a file that may not be there yet."""
    return path.read_text().splitlines() if path.exists() else []


def check(folder, generation):
    """That the collection holds this generation, whole, in the documents and in both indexes."""
    held = expected(generation)
    with Collection.open(folder) as collection:
        assert collection.store.generation == generation
        collection.verify()
        assert {id for (id,) in collection.store._db.execute("select id from documents")} == set(held)
        assert all(collection.get(id) == document for id, document in held.items())
        for id, document in list(held.items())[:3]:
            assert [result.id for result in collection["bm25"].search(document.text.split()[-1])] == [id]
        assert {result.id for result in collection["dense"].search(" ".join(WORDS), 1000)} == set(held)


def test_killed_at_random_moments(tmp_path, forks):
    draw = random.Random(7)
    started = time.perf_counter()
    for generation in (1, 2, 3, 4):
        step(tmp_path / "timed", generation)
    one_step = (time.perf_counter() - started) / 4
    folder, reached = tmp_path / "c0", []
    for kill in range(KILLS):
        if kill % 10 == 9:  # making a collection is interrupted as well
            folder = tmp_path / f"c{kill}"
        reports = tmp_path / f"reports{kill}"
        forks.send((work, folder, reports))
        pid = forks.recv()
        while not lines(reports):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 2 * one_step))
        os.kill(pid, signal.SIGKILL)
        assert forks.recv() == -signal.SIGKILL  # it did not end by an error of its own
        reported = [int(line) for line in lines(reports)]
        first, last = reported[0], reported[-1]
        found = generation_of(folder)
        assert found in (last, last + 1)  # committed, and perhaps not reported any more
        if found:
            check(folder, found)
        reached.append((first, found))
    assert sum(found > first for first, found in reached) >= KILLS / 5  # else the kills came before any work


MOMENTS = ["first index written", "indexes written, not committed", "committed, not tidied", "tidied"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_between_two_parts_of_a_change(tmp_path, forks, moment):
    folder = tmp_path / "c"
    for generation in (1, 2):
        step(folder, generation)
    for generation in range(3, 7):
        assert run(forks, end_at, folder, generation, moment) == 9
        done = moment in ("committed, not tidied", "tidied")
        check(folder, generation if done else generation - 1)
        folders = len(list((folder / "indexes").iterdir()))
        assert folders == {"first index written": 3, "tidied": 2}.get(moment, 4)  # what the crash left
        if not done:
            step(folder, generation)
            check(folder, generation)
            assert len(list((folder / "indexes").iterdir())) == 2


@pytest.mark.parametrize("moment", MOMENTS[:2])
def test_killed_while_a_collection_is_made(tmp_path, forks, moment):
    folder = tmp_path / "c"
    assert run(forks, end_at, folder, 1, moment) == 9
    assert generation_of(folder) == 0
    for generation in (1, 2):
        step(folder, generation)
        check(folder, generation)
    assert len(list((folder / "indexes").iterdir())) == 2
