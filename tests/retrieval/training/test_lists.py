"""Inverted lists that are learned: the loss, the start, what is gained, and the index that comes of it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import indexes  # noqa: E402
from indexes import IVFIndex, ScanIndex  # noqa: E402
from indexes.codecs import Float32  # noqa: E402
from retrieval.training.data import TrainingData, nearest  # noqa: E402
from retrieval.training.distill_vq import DistillVQ  # noqa: E402
from retrieval.training.lists import Lists  # noqa: E402
from retrieval.training.loop import train  # noqa: E402

D, NLIST = 16, 100


def toy(nq: int = 600, n: int = 1500, seed: int = 0) -> TrainingData:
    """Queries that are like documents, but lie elsewhere: all are 1.5 farther in the first direction."""
    documents = np.random.default_rng(0).normal(size=(n, D)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    queries = documents[rng.choice(n, nq)] + rng.normal(size=(nq, D)).astype(np.float32) * np.float32(0.1)
    queries[:, 0] += 1.5
    return TrainingData(documents, queries / np.linalg.norm(queries, axis=1, keepdims=True))


def small() -> Lists:
    """Two lists, at (1, 0) and (0, 1), with shifts 0 and 0.5."""
    lists = Lists(np.eye(2, dtype=np.float32), 2, seed=0)
    with torch.no_grad():
        lists.size.fill_(2.0)
        lists.centroids.copy_(torch.eye(2) / 2)
        lists.shifts.copy_(torch.tensor([0.0, 0.25]))
    return lists


def test_how_near_a_list_is_and_the_loss_worked_by_hand():
    lists, query = small(), torch.tensor([[3.0, 4.0]])
    np.testing.assert_allclose(lists(query).tolist(), [[3.0, 4.0 - 0.5 * 5]])
    # the teacher scores three documents 1, 1 and 0; the first and the last are in list 1, the other one in list 0
    shares = np.exp([1, 1, 0]) / np.exp([1, 1, 0]).sum()
    wanted = np.array([shares[1], shares[0] + shares[2]])
    given = np.exp([3.0, 1.5]) / np.exp([3.0, 1.5]).sum()
    loss = lists.loss(query, np.array([[1, 0, 1]]), torch.tensor([[1.0, 1.0, 0.0]]), 1.0)
    assert loss.item() == pytest.approx(float((wanted * np.log(wanted / given)).sum()), rel=1e-5)


def test_gradients_are_those_of_finite_differences_also_where_a_list_has_no_document():
    lists = Lists(toy().documents, 5, seed=0).double()
    queries = torch.from_numpy(toy().queries[:3].astype(np.float64))
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4)))
    of = np.array([[0, 1, 1, 4], [2, 2, 2, 2], [3, 0, 4, 1]])

    def loss(centroids, shifts):
        held = {"lists.centroids": centroids, "lists.shifts": shifts}
        return torch.func.functional_call(_Loss(lists), held, (queries, of, scores))

    given = [value.detach().clone().requires_grad_() for value in (lists.centroids, lists.shifts)]
    assert torch.autograd.gradcheck(loss, given)


class _Loss(torch.nn.Module):
    def __init__(self, lists):
        super().__init__()
        self.lists = lists

    def forward(self, queries, of, scores):
        return self.lists.loss(queries, of, scores, 0.7)


def test_the_start_is_what_k_means_gives_an_index():
    data = toy()
    lists = Lists(data.documents, NLIST, seed=3)
    index = IVFIndex(nlist=NLIST, seed=3).fit(data.documents)
    np.testing.assert_allclose(lists.learned("ip").vectors, index._centroids.vectors, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(lists.learned("ip").shifts, index._centroids.shifts, rtol=1e-5, atol=1e-7)
    visited = lists.visited(data.queries)
    assert (visited.sum(axis=1) == 64).all()  # as many as an index visits
    found = index._centroids.nearest(data.queries, 64, None, 1)  # by codes of 8 bits
    assert np.take_along_axis(visited, found, axis=1).mean() > 0.98


@pytest.fixture(scope="module")
def trained():
    data = toy(nq=1200)
    method = DistillVQ(bytes=4, temperature=0.05, nlist=NLIST)
    return data, train(method, data, epochs=5, patience=9, threads=1)


def test_learned_lists_hold_more_of_what_queries_want(trained):
    data, result = trained
    unseen = toy(nq=300, seed=1).queries
    exact = nearest(unseen, data.documents, 10)
    recalls = []
    for centroids in (result.method.lists.learned("ip"), None):  # those of k-means
        index = IVFIndex(nlist=NLIST, codec=Float32(), rerank=None).fit(data.documents, centroids=centroids)
        found = index.add(data.documents).search(unseen, 10, nprobe=4).ids
        recalls.append(np.mean([np.isin(some, best).mean() for some, best in zip(found, exact, strict=True)]))
    assert recalls[0] > recalls[1] + 0.04


def test_the_index_finds_what_validation_saw_and_keeps_its_lists(trained, tmp_path):
    data, result = trained
    index = result.method.index(result.codec, "cosine").add(data.documents)
    assert isinstance(index, IVFIndex) and index.trained and index.describe()["nlist"] == NLIST
    asked = data.queries[:50]
    seen = result.method.search(result.codec, result.codes, data, asked, 10)
    np.testing.assert_allclose((index.search(asked, 10).ids == seen).mean(), 1, atol=0.05)
    index.save(tmp_path / "i")
    loaded = indexes.load(tmp_path / "i")
    np.testing.assert_array_equal(loaded.search(asked, 10).ids, index.search(asked, 10).ids)
    again = loaded.emptied().fit(data.documents[:100]).add(data.documents)
    np.testing.assert_array_equal(again.search(asked, 10).ids, index.search(asked, 10).ids)


def test_codes_are_those_that_are_learned_without_lists(trained):
    data, _ = trained
    alone = train(DistillVQ(bytes=4, temperature=0.05), data, epochs=1, patience=9, threads=1)
    beside = train(DistillVQ(bytes=4, temperature=0.05, nlist=NLIST), data, epochs=1, patience=9, threads=1)
    assert alone.best == beside.best == 1
    np.testing.assert_array_equal(alone.codes, beside.codes)
    assert isinstance(alone.method.index(alone.codec, "ip"), ScanIndex)
