"""Codecs: vectors as short codes that compressed dense indexes share; queries stay float32.

    codec = Chain(PCA(dimensions=192), Float8()).fit(vectors)
    codes = codec.encode(vectors)          # uint8 (n, 192)
    scores = codec.scores(queries, codes)  # float32 (nq, n), near queries @ vectors.T
"""

from __future__ import annotations

from indexes.codecs.additive import RQ
from indexes.codecs.autoencoder import BinaryAutoencoder
from indexes.codecs.base import Codec, ScoreError
from indexes.codecs.binary import RaBitQ, SignBits
from indexes.codecs.compose import Chain, Residual
from indexes.codecs.floats import BFloat16, Float8, Float16, Float32
from indexes.codecs.learned import Learned, Retrained
from indexes.codecs.linear import PCA, LeanVec, LinearMap, RandomRotation
from indexes.codecs.product import OPQ, PQ
from indexes.codecs.recurrent import Recurrent
from indexes.codecs.scalar import LVQ, SQ

__all__ = [
    "LVQ", "OPQ", "PCA", "PQ", "RQ", "SQ", "BFloat16", "BinaryAutoencoder", "Chain", "Codec", "Float8", "Float16",
    "Float32", "LeanVec", "Learned", "LinearMap", "RaBitQ", "RandomRotation", "Recurrent", "Residual", "Retrained",
    "ScoreError", "SignBits",
]  # fmt: skip
