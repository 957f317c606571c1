from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.encoders.cross_encoder import CrossEncoder
from retrieval.errors import EncoderError

QUERY = "what lowers cholesterol"
TEXTS = ["Statins lower cholesterol.", "", "A cat sat on the mat. " * 20, "Zebras", "Oats lower it too."]


def make(folder: Path, tokenizer_of: str, labels: int = 1) -> str:
    """A small random cross-encoder: two layers of BERT and a linear head."""
    import torch
    from tiny_models import save_with_tokenizer, small_config
    from transformers import BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(small_config(32, num_labels=labels))
    save_with_tokenizer(model, tokenizer_of, str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def folder(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("reranker"), minilm)


def logits(folder: str, query: str, text: str, max_length: int = 64) -> float:
    """The slow definition: one pair through the plain transformer."""
    import torch
    from transformers import AutoTokenizer, BertForSequenceClassification

    tokens = AutoTokenizer.from_pretrained(folder)(
        [(query, text)], truncation="longest_first", max_length=max_length, return_tensors="pt"
    )
    with torch.no_grad():
        return float(BertForSequenceClassification.from_pretrained(folder).eval()(**tokens).logits[0, 0])


def test_scores_are_the_models_logits(folder: str) -> None:
    scores = CrossEncoder(folder, batch_size=2, device="cpu").score(QUERY, TEXTS)
    assert scores.dtype == np.float32 and scores.shape == (len(TEXTS),)
    expected = [logits(folder, QUERY, text) for text in TEXTS]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert len(set(scores.tolist())) == len(TEXTS), "all pairs score alike, so this test says nothing"


def test_texts_are_scored_apart(folder: str) -> None:
    encoder = CrossEncoder(folder, device="cpu")
    together = encoder.score(QUERY, TEXTS)
    np.testing.assert_allclose(encoder.score(QUERY, TEXTS[::-1])[::-1], together, rtol=1e-4, atol=1e-5)
    alone = np.concatenate([encoder.score(QUERY, [text]) for text in TEXTS])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)


def test_nothing_to_score_loads_nothing() -> None:
    scores = CrossEncoder("no-such-owner/no-such-model").score(QUERY, [])
    assert scores.shape == (0,) and scores.dtype == np.float32


def test_max_length_cuts(folder: str) -> None:
    scores = CrossEncoder(folder, max_length=12, device="cpu").score(QUERY, TEXTS[2:3])
    assert scores[0] == pytest.approx(logits(folder, QUERY, TEXTS[2], max_length=12), abs=1e-4)
    assert abs(scores[0] - logits(folder, QUERY, TEXTS[2])) > 1e-3
    with pytest.raises(EncoderError, match=r"max_length is 65; model .* reads at most 64 tokens"):
        CrossEncoder(folder, max_length=65).score(QUERY, TEXTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_smaller_dtypes_stay_close(folder: str, dtype: str) -> None:
    exact = CrossEncoder(folder, device="cpu").score(QUERY, TEXTS)
    scores = CrossEncoder(folder, dtype=dtype, device="cpu").score(QUERY, TEXTS)
    assert scores.dtype == np.float32 and not np.array_equal(scores, exact)
    np.testing.assert_allclose(scores, exact, atol=0.2 * np.abs(exact).max())


def test_bad_input_is_named(folder: str) -> None:
    encoder = CrossEncoder(folder)
    with pytest.raises(TypeError, match="query is of type bytes, expected str"):
        encoder.score(b"a", TEXTS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"texts\[1\] is of type int"):
        encoder.score(QUERY, ["a", 1])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="one string"):
        encoder.score(QUERY, "a")
    with pytest.raises(EncoderError, match=r"query\[0\] holds half a surrogate pair"):
        encoder.score("\udc00", ["a"])
    with pytest.raises(EncoderError, match="dtype 'float16'"):
        CrossEncoder(folder, dtype="float16")


def test_models_that_are_no_rerankers_are_named(minilm: str, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="is a BertModel: it has no trained head that scores pairs"):
        CrossEncoder(minilm).score(QUERY, TEXTS)
    with pytest.raises(EncoderError, match="gives 3 scores per pair, expected 1"):
        CrossEncoder(make(tmp_path / "nli", minilm, labels=3)).score(QUERY, TEXTS)
    with pytest.raises(EncoderError, match="Accepted: the folder of a CrossEncoder model"):
        CrossEncoder("no-such-owner/no-such-model").score(QUERY, TEXTS)


def test_quiet(folder: str, capfd: Any) -> None:
    capfd.readouterr()
    CrossEncoder(folder, device="cpu").score(QUERY, TEXTS)
    assert capfd.readouterr() == ("", "")


def test_threads_share_one_model(folder: str) -> None:
    encoder = CrossEncoder(folder, device="cpu")
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(encoder.score(QUERY, TEXTS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for scores in results:
        np.testing.assert_array_equal(scores, results[0])
