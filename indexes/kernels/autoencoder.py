"""Codes of a binary autoencoder: the signs whose sum of signed vectors is nearest to a given one, searched for."""

from __future__ import annotations

import numpy as np
from numba import njit

from indexes.kernels.exact import FAST, product

LEAST = 0.01  # smaller changes of a mean wait: late in annealing most bits are settled


@njit(nogil=True, cache=True, fastmath=FAST)
def improve(vectors, centroids, gram, signs, rounds):
    """Turn single signs around while it brings the sum nearer, in at most `rounds` rounds over all bits.

    `vectors` float32 (n, d); `centroids` float32 (b, d), `gram` float32 (b, b) their products with one another;
    `signs` float32 (n, b), 1 and -1, overwritten.
    """
    rest = np.empty(centroids.shape[0], np.float32)
    for i in range(vectors.shape[0]):
        _left_over(vectors[i], centroids, gram, signs[i], rest)
        _turn(gram, signs[i], rest, rounds)


@njit(nogil=True, cache=True, fastmath=FAST)
def anneal(vectors, centroids, gram, sharpness, signs, rounds):
    """Signs from nothing: means between -1 and 1, made ever sharper, and then `improve`.

    The mean of each bit in turn is set to tanh(s * what the others leave of it), for each s of `sharpness`, float32:
    the mean-field equations of signs at falling temperature. `signs` float32 (n, b) is overwritten; else as `improve`.
    """
    b = centroids.shape[0]
    rest = np.empty(b, np.float32)
    for i in range(vectors.shape[0]):
        means = signs[i]
        means[:] = 0
        _left_over(vectors[i], centroids, gram, means, rest)
        for s in sharpness:
            for j in range(b):
                size = gram[j, j]
                wanted = rest[j] / size + means[j] if size > 0 else np.float32(0)
                mean = np.tanh(s * wanted)
                if abs(mean - means[j]) > LEAST:
                    _move(gram, means, rest, j, mean)
        for j in range(b):
            _move(gram, means, rest, j, np.float32(1) if means[j] >= 0 else np.float32(-1))
        _turn(gram, means, rest, rounds)


@njit(nogil=True, fastmath=FAST)
def _left_over(vector, centroids, gram, weights, rest):
    """`rest[j]` = the product of centroid j with what the weighted sum leaves of the vector."""
    for j in range(centroids.shape[0]):
        rest[j] = product(vector, centroids[j])
    for j in range(centroids.shape[0]):
        if weights[j] != 0:
            _move_rest(gram[j], rest, weights[j])


@njit(nogil=True, fastmath=FAST)
def _turn(gram, signs, rest, rounds):
    for _ in range(rounds):
        turned = False
        for j in range(signs.shape[0]):
            if (rest[j] + gram[j, j] * signs[j]) * signs[j] < 0:
                _move(gram, signs, rest, j, -signs[j])
                turned = True
        if not turned:
            return


@njit(nogil=True, fastmath=FAST)
def _move(gram, weights, rest, j, value):
    """Give weight j another value, and what is left with it."""
    _move_rest(gram[j], rest, value - weights[j])
    weights[j] = value


@njit(nogil=True, fastmath=FAST)
def _move_rest(products, rest, step):
    for k in range(rest.shape[0]):
        rest[k] -= step * products[k]
