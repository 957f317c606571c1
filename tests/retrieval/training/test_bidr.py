"""BiDR: its two stages, what they are told from, neighbours, and an index that ranks as validation does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import retrieval  # noqa: E402
from indexes import ScanIndex  # noqa: E402
from indexes.dense.base import normalize  # noqa: E402
from retrieval import Collection, Retriever, bm25, dense  # noqa: E402
from retrieval.encoders.adapted import Adapted  # noqa: E402
from retrieval.encoders.lsa import LSA  # noqa: E402
from retrieval.errors import TrainingError  # noqa: E402
from retrieval.training.bidr import NEIGHBOURS, BiDR  # noqa: E402
from retrieval.training.data import TrainingData, nearest, quality  # noqa: E402
from retrieval.training.loop import train  # noqa: E402
from retrieval.training.method import search_codes  # noqa: E402
from retrieval.training.sources import Questions  # noqa: E402

D = 16


def toy(labels: bool = True, n: int = 1500, nq: int = 200, seed: int = 0) -> TrainingData:
    """Queries ask for half of the dimensions, each with its neighbour's sign: a map of rank 16 finds all."""
    rng = np.random.default_rng(seed)
    documents = (rng.normal(size=(n, D)) * np.repeat([0.5, 1.0], D // 2)).astype(np.float32)
    rows = rng.choice(n, nq, replace=False)
    noise = rng.normal(size=(nq, D)).astype(np.float32)
    queries = documents[rows] * np.repeat([2.0, 0.0], D // 2).astype(np.float32) + noise * np.repeat([0.1, 1.0], D // 2)
    return TrainingData(documents, queries.astype(np.float32), [np.array([row]) for row in rows] if labels else None)


def make(**parameters) -> BiDR:
    return BiDR(**{"bytes": 2, "lr": 0.02, "dense_lr": 0.02, "rank": 8, "first": 2, "temperature": 0.5} | parameters)


@pytest.fixture(scope="module")
def trained():
    data = toy()
    return data, train(make(), data, data, epochs=6, threads=1)


# -- stages ------------------------------------------------------------------------------------------------------------


def test_the_first_stage_finds_better_candidates_and_the_second_ranks_them_better():
    data, seen = toy(), {}

    class Watched(BiDR):
        def epoch(self, data, number):
            super().epoch(data, number)
            relevant = np.array([rows[0] for rows in data.positives])
            found = search_codes(self.codec(), self.coded, self.asked(data.queries, None), 100)
            seen[number] = (found == relevant[:, None]).any(axis=1).mean(), self.coded, self.dense.matrix()

    method = Watched(**make().parameters())
    result = train(method, data, data, epochs=6, patience=9)
    assert seen[3][0] > seen[1][0] + 0.02
    assert not np.array_equal(seen[1][1], seen[3][1])  # codes are chosen anew, and then stay
    np.testing.assert_array_equal(seen[3][1], seen[6][1])
    np.testing.assert_array_equal(seen[3][2], np.eye(D))  # until then dense queries are as they were
    assert seen[3][0] == pytest.approx(seen[6][0], abs=0.011)  # B is taken off: candidates stay
    assert np.abs(seen[6][2] - np.eye(D)).max() > 0.05
    dev = [row["dev"] for row in result.history]
    assert result.best > 2 and max(dev) > dev[2] + 0.03


def test_codes_are_asked_as_the_first_stage_left_queries(trained):
    data, result = trained
    method = result.method
    asked = method.asked(data.queries, None)
    np.testing.assert_allclose(asked, data.queries @ method.dense.matrix().T, rtol=1e-6)
    adapted = method.queries.embed(data.queries, None)
    expected = method.quantizer.scores(
        torch.from_numpy(adapted[:5]), result.codes, np.tile(np.arange(50), (5, 1))
    ).detach().numpy()  # fmt: skip
    shift = method.codec().scores(asked[:5], result.codes[:50]) - expected  # the mean's share, one number per query
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-4)


def test_an_index_in_two_stages_ranks_as_validation_does(trained, tmp_path):
    data, result = trained
    asked = result.method.asked(data.queries, None)
    ScanIndex(codec=result.codec, rerank="float16").add(data.documents).save(tmp_path / "index")
    found = ScanIndex.load(tmp_path / "index").search(asked, 10).ids
    assert quality(found, data) == pytest.approx(result.history[result.best]["dev"], abs=0.01)
    codes_only = search_codes(result.codec, result.codes, asked, 10)
    assert quality(found, data) > quality(codes_only, data) + 0.1


def test_search_ranks_by_the_vectors_what_the_codes_find(trained):
    data, result = trained
    asked = data.queries[:20]
    found = result.method.search(result.codec, result.codes, data, asked, 5)
    for query, rows in zip(asked, found, strict=True):
        candidates = np.sort(search_codes(result.codec, result.codes, query[None], 100)[0])
        order = np.argsort(-(data.documents[candidates] @ query), kind="stable")
        np.testing.assert_array_equal(rows, candidates[order[:5]])
    few = replace(data, documents=data.documents[:30], positives=None)
    assert result.method.search(result.codec, result.codes[:30], few, asked, 50).shape == (20, 30)


# -- what queries are told from ----------------------------------------------------------------------------------------


def started(data: TrainingData, number: int = 1, **parameters) -> BiDR:
    method = make(**parameters)
    method.start(data)
    method.epoch(data, number)
    return method


def test_relevant_documents_come_first_and_are_no_negatives_of_queries_they_answer():
    data = toy()
    shared = replace(data, positives=[np.array([7, 8])] * 3 + list(data.positives[3:]))
    method = started(shared, mined=4)
    rows = np.array([0, 1, 2, 50])
    pool, others = method.drawn(shared, rows, np.random.default_rng(0))
    assert pool.shape == (4 + 4 * 4,) and others.shape == (4, 20)
    for i, row in enumerate(rows):
        assert pool[i] in shared.positives[row] and not others[i, i]
        mine = pool[4 + 4 * i : 8 + 4 * i]
        assert len(set(mine)) == 4 and set(mine) <= set(method.negatives[row]) - set(shared.positives[row])
        wanted = np.isin(pool, shared.positives[row])
        wanted[i] = False
        np.testing.assert_array_equal(others[i], wanted)
    assert others[0, 1] and others[0, 2] and not others[0, 3]
    bare = started(shared, mined=0).drawn(shared, rows, np.random.default_rng(0))[0]
    assert len(bare) == 4


def test_negatives_that_come_with_the_data_are_drawn_too():
    data = toy()
    method = started(data, mined=500)
    own = np.setdiff1d(np.arange(len(data.documents)), method.negatives[0])[:1]
    given = np.full((len(data.queries), 2), -1)
    given[0, 0] = own[0]
    rows = np.array([0, 1])
    pool, _ = method.drawn(replace(data, negatives=given), rows, np.random.default_rng(0))
    assert own[0] in pool and pool.min() >= 0
    assert own[0] not in method.drawn(data, rows[:1], np.random.default_rng(0))[0][1:]
    found = next(row for row in range(200) if data.positives[row][0] in method.negatives[row])
    pool, _ = method.drawn(data, np.array([found]), np.random.default_rng(0))
    assert pool.tolist().count(data.positives[found][0]) == 1 and len(pool) == 200


@pytest.mark.parametrize("number", [1, 3])
def test_the_loss_is_the_cross_entropy_of_codes_then_of_vectors(number):
    data = toy()
    method = started(data, number, mined=3)
    rows = np.array([4, 9])
    drawn, others = method.drawn(data, rows, np.random.default_rng(5))
    if number == 1:
        books = method.quantizer.books.array()
        coded = books[np.arange(2), method.coded[drawn]].reshape(len(drawn), -1)
        scores = data.queries[rows] @ method.quantizer.rotation.T @ coded.T
    else:
        scores = data.queries[rows] @ data.documents[drawn].T
    weights = np.where(others, 0, np.exp(scores.astype(np.float64) / 0.5))
    expected = -np.mean([np.log(weights[i, i] / weights[i].sum()) for i in range(2)])
    loss = method.loss(data, rows, np.random.default_rng(5))
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    moved = {name for name, value in method.modules.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved == ({"books.weight", "queries.up"} if number == 1 else {"dense.up"})


def test_batches_of_the_second_stage_are_of_neighbours():
    data = toy(nq=1000)
    rng = np.random.default_rng(1)
    centres = 5 * rng.normal(size=(8, D))
    queries = (centres[rng.integers(0, 8, 1000)] + rng.normal(size=(1000, D))).astype(np.float32)
    data = replace(data, queries=queries)

    def apart(order):
        parts = [queries[order[i : i + NEIGHBOURS]] for i in range(0, 960, NEIGHBOURS)]
        return np.mean([np.var(part, axis=0).sum() for part in parts])

    orders = {}
    for name, number, local in (("first", 1, True), ("second", 3, True), ("not local", 3, False)):
        method = started(data, number, local=local)
        orders[name] = method.order(data, np.random.default_rng(2))
        np.testing.assert_array_equal(np.sort(orders[name]), np.arange(1000))
        again = method.order(data, np.random.default_rng(2))
        np.testing.assert_array_equal(orders[name], again)
        assert not np.array_equal(orders[name], method.order(data, np.random.default_rng(3)))
    assert apart(orders["second"]) < 0.5 * apart(orders["first"])
    np.testing.assert_array_equal(orders["first"], orders["not local"])


# -- runs --------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_another_does_not():
    data = toy()
    one, two, other = (train(make(seed=seed), data, data, epochs=4, threads=1) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.codes, two.codes)
    for name, array in one.codec.arrays().items():
        np.testing.assert_array_equal(array, two.codec.arrays()[name])
    np.testing.assert_array_equal(one.method.dense.matrix(), two.method.dense.matrix())
    assert not np.array_equal(one.codes, other.codes)


@pytest.mark.parametrize("epoch", [2, 3, 5])
def test_a_killed_run_goes_on_in_either_stage(epoch, tmp_path):
    data, parameters = toy(), {"epochs": 5, "patience": 9, "threads": 1}
    whole = train(make(), data, **parameters)

    class Killed(Exception):
        pass

    def kill(what, done, total):
        if what.startswith(f"epoch {epoch}"):
            raise Killed

    with pytest.raises(Killed):
        train(make(), data, checkpoint=tmp_path / "run", progress=kill, **parameters)
    again = train(make(), data, checkpoint=tmp_path / "run", **parameters)
    assert again.best == whole.best and again.history[1:] == whole.history[1:]
    np.testing.assert_array_equal(again.codes, whole.codes)
    np.testing.assert_array_equal(again.method.dense.matrix(), whole.method.dense.matrix())
    for name, array in whole.codec.arrays().items():
        np.testing.assert_array_equal(array, again.codec.arrays()[name])


def test_labels_are_needed():
    with pytest.raises(TrainingError, match="relevant documents"):
        train(make(), toy(labels=False))


# -- into a collection -------------------------------------------------------------------------------------------------


def test_a_collection_keeps_codes_vectors_and_the_map_and_finds_what_was_measured(tmp_path):
    source = retrieval.read_documents(Path(retrieval.__file__).parent / "cranfield")
    documents = [next(source) for _ in range(500)]
    with Collection.create(tmp_path / "c", {"bm25": bm25(), "dense": dense(LSA(d=32))}) as collection:
        collection.add(documents[:480])
        titles = Questions([document.title for document in documents[:300]], [[documents[7].id]] * 300)
        result = collection.train(
            "bidr", "small", queries=titles, bytes=4, first=1, dense_lr=0.02, tune="code", epochs=4, threads=1
        )
        assert result.trained.best > 1  # of the second stage
        rows = {row["vectors"]: row for row in result.rows}
        assert rows["bidr"]["bytes"] == rows["opq"]["bytes"] == 4
        assert rows["bidr"]["dev"] == max(row["dev"] for row in result.trained.history)
        collection.add(documents[480:])
    with Collection.open(tmp_path / "c") as collection:
        collection.verify()
        described = collection.info()["indexes"]["small"]
        assert described["encoder"]["kind"] == "adapted" and described["index"]["rerank"] == "float16"
        assert described["index"]["bytes_per_part"]["codes"] == 4 * 500
        with collection.reading() as retrievers:
            small, frozen = retrievers["small"], retrievers["dense"]
            assert isinstance(small, Retriever) and isinstance(small.encoder, Adapted)
            np.testing.assert_allclose(small.encoder.matrix, result.trained.method.dense.matrix())
            asked = small.encoder.encode_queries(["wing flutter"])
            vectors = normalize(np.concatenate(list(frozen.encoded((d.contents for d in documents), 500))))
            codec, told = small.index.codec, TrainingData(vectors, asked)
            best = result.trained.method.search(codec, codec.encode(vectors), told, asked, 10)[0]
            found = collection.search("wing flutter", k=10, index="small")
            assert len({hit.id for hit in found} & {documents[row].id for row in best}) >= 9
            plain = frozen.encoder.encode_queries(["wing flutter"])
            assert not np.array_equal(nearest(asked, vectors, 10), nearest(plain, vectors, 10))
