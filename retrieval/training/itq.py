"""Hashes that take no steps: random hyperplanes, and iterative quantisation, where the trained ones start."""

from __future__ import annotations

import numpy as np

from indexes.codecs import Chain, Codec, Learned, SignBits
from retrieval.errors import TrainingError
from retrieval.training.data import TrainingData
from retrieval.training.method import Method, sampled

ITERATIONS = 50  # as in the paper


class LSH(Method):
    """Signs of random projections: Charikar, "Similarity estimation techniques from rounding algorithms", STOC 2002.

    `bytes`: of a code, 8 bits each. Directions are those of random rotations, as many as it takes, which err less than
    independent ones (Ji et al., "Super-Bit Locality-Sensitive Hashing", 2012), around the mean of the documents.
    """

    name = "lsh"
    epochs = 0

    def __init__(self, *, bytes: int = 48, seed: int = 0) -> None:
        self.bytes, self.seed = bytes, seed

    def begin(self, data: TrainingData) -> None:
        sample = sampled(data.documents, self.seed)
        projection = self.projection(sample)
        mean, scale, _ = sizes(sample, projection)
        self.learned = hash_codec(projection, projection, mean, scale)

    def projection(self, documents: np.ndarray) -> np.ndarray:
        """float32 (8 bytes, d), of which the signs are taken."""
        d = documents.shape[1]
        return random_rows(bits(self.bytes, d), d, self.seed)

    def codec(self) -> Codec:
        return self.learned


class ITQ(LSH):
    """Principal components, turned so that the numbers are near their signs.

    Gong and Lazebnik, "Iterative Quantization: A Procrustean Approach to Learning Binary Codes", CVPR 2011.
    `bytes`: of a code, 8 bits each; with more bits than dimensions all of these are kept, and spread over more.
    """

    name = "itq"

    def projection(self, documents: np.ndarray) -> np.ndarray:
        return itq(documents, bits(self.bytes, documents.shape[1]), seed=self.seed)


def itq(documents: np.ndarray, count: int, *, seed: int = 0, iterations: int = ITERATIONS) -> np.ndarray:
    """The projection float32 (count, d) that ITQ finds for documents (n, d).

    In turn the best signs for a rotation, and the best rotation for the signs: that of Procrustes, by SVD.
    """
    components = principal(documents, min(count, documents.shape[1]))
    reduced = (documents - documents.mean(axis=0, dtype=np.float64).astype(np.float32)) @ components.T
    rotation = random_rows(count, len(components), seed)
    for _ in range(iterations):
        signs = np.where(reduced @ rotation.T >= 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd((signs.T @ reduced).astype(np.float64), full_matrices=False)
        rotation = (left @ right).astype(np.float32)
    return rotation @ components


def principal(documents: np.ndarray, count: int) -> np.ndarray:
    """The `count` directions float32 (count, d) in which documents (n, d) vary most."""
    centred = documents - documents.mean(axis=0, dtype=np.float64).astype(np.float32)
    columns = np.linalg.eigh((centred.T @ centred).astype(np.float64))[1]
    return np.ascontiguousarray(columns.T[::-1][:count].astype(np.float32))


def random_rows(count: int, d: int, seed: int) -> np.ndarray:
    """float32 (count, d): rows of random rotations, as many as it takes, shortened so that lengths are kept."""
    source = np.random.default_rng([seed, count, d])
    rotations = [np.linalg.qr(source.normal(size=(d, d)))[0] for _ in range(-(-count // d))]
    return (np.concatenate(rotations)[:count] / max(1.0, count / d) ** 0.5).astype(np.float32)


def bits(bytes: int, d: int) -> int:
    """8 bytes. Raises `TrainingError` unless there are 1 to d of them."""
    if not 1 <= bytes <= d:
        raise TrainingError(f"bytes is {bytes}; it must be from 1 to the number of dimensions, {d}")
    return 8 * bytes


def sizes(documents: np.ndarray, projection: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The mean float32 (d,) of documents, and the mean and the root mean square size of a projected number."""
    mean = documents.mean(axis=0, dtype=np.float64).astype(np.float32)
    projected = (documents - mean) @ projection.T
    root = float(np.sqrt(np.square(projected).mean(dtype=np.float64)))
    return mean, float(np.abs(projected).mean(dtype=np.float64)), max(root, 1e-12)


def hash_codec(projection: np.ndarray, asking: np.ndarray, mean: np.ndarray, scale: float) -> Codec:
    """Signs of P (x - mean), scored by scale * A q: `projection` and `asking` are P and A, float32 (b, d)."""
    header = {"kind": SignBits.kind, "d": len(projection), "parameters": {}}
    signs = SignBits.restore(header, {"scale": np.array([scale], np.float32)})
    return Chain.of(Learned.of(projection, asking, mean), signs)
