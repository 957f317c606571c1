"""OPQ, RQ and binary autoencoders as methods: the codes and scores of the codecs they stand for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
from indexes.codecs import OPQ, PQ, RQ, BinaryAutoencoder, Chain
from retrieval.errors import TrainingError
from retrieval.training import by_name
from retrieval.training.data import TrainingData
from retrieval.training.loop import train

CODECS = {"opq": lambda: Chain(OPQ(M=4, seed=3), PQ(M=4, seed=3)), "rq": lambda: RQ(M=4, seed=3),
          "binary-autoencoder": lambda: BinaryAutoencoder(bytes=4, seed=3)}  # fmt: skip


def clustered(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(30, d)) * 2
    return (centres[rng.integers(0, 30, n)] + rng.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("name", CODECS)
def test_codes_are_those_of_the_codec(name):
    documents, queries = clustered(600), clustered(40, seed=1)
    trained = train(by_name(name, bytes=4, seed=3), TrainingData(documents, queries))
    codec = CODECS[name]()
    centred = documents - documents.mean(axis=0, dtype=np.float64).astype(np.float32) if name != "opq" else documents
    np.testing.assert_array_equal(trained.codes, codec.fit(centred).encode(centred))
    scores = codec.scores(queries, trained.codes)  # up to what is equal for all documents of a query
    apart = trained.codec.scores(queries, trained.codes) - scores
    np.testing.assert_allclose(apart, apart[:, :1].repeat(600, axis=1), atol=2e-3)


@pytest.mark.parametrize("name", CODECS)
def test_bad_input(name):
    """Bytes beyond the dimensions, and too few; fewer documents than centroids; epochs, of which there are none."""
    documents, queries = clustered(600), clustered(40, seed=1)
    with pytest.raises(TrainingError, match="bytes is"):
        train(by_name(name, bytes=int(name == "binary-autoencoder")), TrainingData(documents, queries))
    with pytest.raises(TrainingError, match="bytes is 17"):
        train(by_name(name, bytes=17), TrainingData(documents, queries))
    with pytest.raises(TrainingError, match="200 documents are too few"):
        train(by_name(name, bytes=4), TrainingData(documents[:200], queries))
    with pytest.raises(TrainingError, match="takes no steps"):
        train(by_name(name, bytes=4), TrainingData(documents, queries), epochs=1)
