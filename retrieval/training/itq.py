"""Hashes that are not trained by steps: random hyperplanes, and iterative quantisation, where the others start."""

from __future__ import annotations

import numpy as np

ITERATIONS = 50  # as in the paper


def itq(documents: np.ndarray, bits: int, *, seed: int = 0, iterations: int = ITERATIONS) -> np.ndarray:
    d = documents.shape[1]
    centred = documents - documents.mean(axis=0, dtype=np.float64).astype(np.float32)
    moment = centred.T.astype(np.float64) @ centred
    components = np.linalg.eigh(moment)[1].T[::-1][: min(bits, d)].astype(np.float32)
    reduced = centred @ components.T
    rotation = random_rows(bits, len(components), seed)
    for _ in range(iterations):
        signs = np.where(reduced @ rotation.T >= 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd((signs.T @ reduced).astype(np.float64), full_matrices=False)
        rotation = (left @ right).astype(np.float32)
    return rotation @ components


def random_rows(bits: int, d: int, seed: int) -> np.ndarray:
    """float32 (bits, d): rows of random rotations, as many as it takes, shortened so that lengths are kept."""
    random = np.random.default_rng([seed, bits, d])
    rotations = [np.linalg.qr(random.normal(size=(d, d)))[0] for _ in range(-(-bits // d))]
    return (np.concatenate(rotations)[:bits] / max(1.0, bits / d) ** 0.5).astype(np.float32)
