"""Teachers' scores of a positive and its negatives, and that they can be learned."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from retrieval.errors import TrainingError  # noqa: E402
from retrieval.training import losses  # noqa: E402
from retrieval.training.data import TrainingData  # noqa: E402
from retrieval.training.teachers import by_cross_encoder, taught  # noqa: E402

RANDOM = np.random.default_rng(0)
DOCUMENTS = RANDOM.normal(size=(12, 4)).astype(np.float32)
QUERIES = RANDOM.normal(size=(3, 4)).astype(np.float32)
POSITIVES = [np.array([1]), np.array([4, 5]), np.array([0])]
NEGATIVES = np.array([[2, 3, -1], [6, 7, 8], [-1, -1, -1]])
DATA = TrainingData(DOCUMENTS, QUERIES, POSITIVES, ["a", "bb", "ccc"], NEGATIVES)


def test_the_embedding_scores_the_first_positive_and_each_negative():
    made = taught(DATA)
    expected = np.full((3, 4), -np.inf, np.float32)
    for q, rows in enumerate([[1, 2, 3], [4, 6, 7, 8], [0]]):
        expected[q, : len(rows)] = [DOCUMENTS[row] @ QUERIES[q] for row in rows]
    np.testing.assert_allclose(made.teacher, expected, rtol=1e-6)
    assert made.teacher.dtype == np.float32 and made.positives is DATA.positives


def test_a_cross_encoder_reads_the_texts():
    class Scorer:
        def score(self, query, texts):
            return np.array([len(query) * int(text) for text in texts], np.float32)

    told = []
    teacher = by_cross_encoder(Scorer(), lambda rows: [str(row) for row in rows])
    made = taught(DATA, teacher, progress=lambda *now: told.append(now[1:]))
    expected = np.array([[1, 2, 3, -np.inf], [8, 12, 14, 16], [0, -np.inf, -np.inf, -np.inf]])
    ratio = made.teacher[1, 0] / 8
    np.testing.assert_allclose(made.teacher, ratio * expected, rtol=1e-6)  # its margins are as large as ...
    own = taught(DATA).teacher  # ... those of the vectors: 5 of them are there
    sizes = [np.square(s[:, :1] - s[:, 1:])[NEGATIVES >= 0].mean() for s in (made.teacher, own)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-5) and ratio != pytest.approx(1, rel=0.1)
    assert told[-1] == (3, 3)


def test_a_teacher_that_tells_nothing_apart_is_left_as_it_is():
    made = taught(DATA, lambda data, query, rows: np.full(len(rows), 7, np.float32))
    assert set(made.teacher[np.isfinite(made.teacher)].tolist()) == {7}


def test_the_loss_of_margins_is_of_these_scores_and_its_gradient_leads_to_them():
    made = taught(DATA)
    teacher = torch.from_numpy(made.teacher)
    scores = torch.zeros(3, 4).masked_fill(torch.isinf(teacher), -torch.inf)
    there = made.teacher[:2, 1:][NEGATIVES[:2] >= 0]
    margins = np.concatenate([np.repeat(made.teacher[0, 0], 2), np.repeat(made.teacher[1, 0], 3)]) - there
    assert losses.margin_mse(scores, teacher).item() == pytest.approx(np.square(margins).mean(), rel=1e-5)
    learned = torch.zeros(3, 4, requires_grad=True)
    optimizer = torch.optim.SGD([learned], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        loss = losses.margin_mse(learned.masked_fill(torch.isinf(teacher), -torch.inf), teacher)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-6


def test_parts_keep_negatives_and_scores_and_labels_can_be_left_out():
    made = taught(DATA)
    part = made.part(np.array([2, 0]))
    assert np.array_equal(part.negatives, NEGATIVES[[2, 0]]) and np.array_equal(part.teacher, made.teacher[[2, 0]])
    bare = made.without_labels()
    assert bare.positives is None and bare.negatives is None and bare.teacher is None
    assert len({DATA.fingerprint(), made.fingerprint(), bare.fingerprint()}) == 3


def test_bad_input_is_named():
    with pytest.raises(TrainingError, match="no positives"):
        taught(DATA.without_labels())
    with pytest.raises(TrainingError, match="no negatives"):
        taught(TrainingData(DOCUMENTS, QUERIES, POSITIVES))
    with pytest.raises(TrainingError, match="query 1 has no positive"):
        taught(TrainingData(DOCUMENTS, QUERIES, [POSITIVES[0], POSITIVES[0][:0], POSITIVES[2]], negatives=NEGATIVES))
    with pytest.raises(TrainingError, match="no texts"):
        taught(TrainingData(DOCUMENTS, QUERIES, POSITIVES, negatives=NEGATIVES), by_cross_encoder(None, str))
    for negatives, message in [
        (NEGATIVES[:2], r"int64 \(3, m\)"),
        (NEGATIVES.astype(float), "float64"),
        (NEGATIVES + 9, "beyond the 12 documents"),
    ]:
        with pytest.raises(TrainingError, match=message):
            TrainingData(DOCUMENTS, QUERIES, POSITIVES, negatives=negatives)
    with pytest.raises(TrainingError, match=r"teacher is float32 \(3, 3\), not float32 \(3, 4\)"):
        TrainingData(DOCUMENTS, QUERIES, POSITIVES, None, NEGATIVES, np.zeros((3, 3), np.float32))
    with pytest.raises(TrainingError, match="one of these is missing"):
        TrainingData(DOCUMENTS, QUERIES, None, None, NEGATIVES, np.zeros((3, 4), np.float32))
