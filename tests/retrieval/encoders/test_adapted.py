"""Queries of an encoder turned by a matrix; the encoder is saved within."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.encoders.adapted import Adapted
from retrieval.encoders.base import load_encoder
from retrieval.encoders.lsa import LSA
from retrieval.errors import EncoderError

TEXTS = ["heat flow in a wing", "a wing in heat", "shock and flow", "nozzle shock", "heat of a nozzle"]
MATRIX = np.array([[1, 2], [0, -1]], np.float32)


@pytest.fixture
def lsa():
    return LSA(d=2).fit(lambda: TEXTS)


def test_queries_are_turned_documents_are_not_and_all_is_saved(lsa, tmp_path):
    adapted = Adapted(lsa, MATRIX)
    expected = np.stack([MATRIX @ vector for vector in lsa.encode_queries(TEXTS)])
    np.testing.assert_allclose(adapted.encode_queries(TEXTS), expected, rtol=1e-6)
    np.testing.assert_array_equal(adapted.encode_documents(TEXTS), lsa.encode_documents(TEXTS))
    assert not adapted.encode_queries(["xyzzy"]).any()
    assert (adapted.similarity, adapted.costly, adapted.fusion_weight) == ("cosine", lsa.costly, lsa.fusion_weight)
    Adapted(adapted, 2 * MATRIX).save(tmp_path / "saved")  # one within another
    again = load_encoder(tmp_path / "saved")
    assert isinstance(again, Adapted) and isinstance(again.encoder.encoder, LSA)
    np.testing.assert_allclose(again.encode_queries(TEXTS), expected @ (2 * MATRIX).T, rtol=1e-5)
    np.testing.assert_array_equal(again.encode_documents(TEXTS), lsa.encode_documents(TEXTS))


def test_bad_input_is_named(lsa):
    for matrix in (MATRIX[:1], np.full((2, 2), np.nan), MATRIX[0]):
        with pytest.raises(EncoderError, match="matrix is"):
            Adapted(lsa, matrix)
    with pytest.raises(EncoderError, match=r"matrix is \(3, 3\); the encoder gives 2"):
        Adapted(lsa, np.eye(3)).encode_queries(TEXTS)
    with pytest.raises(EncoderError, match="kind 'x'; this release knows"):
        Adapted.restore({"encoder": "x", "settings": {}}, {"matrix": MATRIX})
