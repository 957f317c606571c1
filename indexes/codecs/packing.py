"""Half bytes, quarters and bits in rows of bytes, and the tables that score them without unpacking."""

from __future__ import annotations

import numpy as np

from indexes.codecs.base import Scorer


def pack_nibbles(values: np.ndarray) -> np.ndarray:
    """Numbers below 16, uint8 (n, d), two to a byte: uint8 (n, ceil(d / 2)), the first in the lower half."""
    return _paired(values, 4)


def unpack_nibbles(codes: np.ndarray, d: int) -> np.ndarray:
    """The inverse of `pack_nibbles`: uint8 (n, d)."""
    return _parted(codes, d, 4)


def pack_quarters(values: np.ndarray) -> np.ndarray:
    """Numbers below 4, uint8 (n, d), four to a byte: uint8 (n, ceil(d / 4)), the first in the lowest bits."""
    return _paired(_paired(values, 2), 4)


def unpack_quarters(codes: np.ndarray, d: int) -> np.ndarray:
    """The inverse of `pack_quarters`: uint8 (n, d)."""
    return _parted(_parted(codes, -(-d // 2), 4), d, 2)


def _paired(values: np.ndarray, bits: int) -> np.ndarray:
    """Of each two numbers one: the first, and the second moved up by `bits`."""
    pairs = values[:, ::2].copy()
    pairs[:, : values.shape[1] // 2] |= values[:, 1::2] << np.uint8(bits)
    return pairs


def _parted(pairs: np.ndarray, d: int, bits: int) -> np.ndarray:
    """The inverse of `_paired`, of d numbers."""
    values = np.empty((len(pairs), 2 * pairs.shape[1]), np.uint8)
    values[:, ::2], values[:, 1::2] = pairs & np.uint8(2**bits - 1), pairs >> np.uint8(bits)
    return values[:, :d]


def pack_signs(vectors: np.ndarray) -> np.ndarray:
    """One bit per number of (n, d), 1 where it is not negative: uint8 (n, ceil(d / 8)), the first bit the lowest."""
    return np.packbits(vectors >= 0, axis=1, bitorder="little")


def unpack_signs(codes: np.ndarray, d: int) -> np.ndarray:
    """The inverse of `pack_signs`: float32 (n, d), each 1 or -1."""
    bits = np.unpackbits(codes, axis=1, count=d, bitorder="little")
    return 2 * bits.astype(np.float32) - 1


def sign_tables(queries: np.ndarray) -> np.ndarray:
    """float32 (nq, ceil(d / 8), 256): the inner product of every 8 numbers of a query with each byte's signs."""
    nq, d = queries.shape
    padded = np.zeros((nq, -(-d // 8) * 8), np.float32)  # bits beyond d count nothing
    padded[:, :d] = queries
    signs = unpack_signs(np.arange(256, dtype=np.uint8)[:, None], 8)
    return padded.reshape(nq, -(-d // 8), 8) @ signs.T


def nibble_tables(tables: np.ndarray) -> np.ndarray:
    """Of tables for half bytes (nq, M, 16), those for the bytes that hold two of them: (nq, ceil(M / 2), 256)."""
    nq, M, _ = tables.shape
    upper = np.zeros((nq, -(-M // 2), 16, 1), np.float32)
    upper[:, : M // 2, :, 0] = tables[:, 1::2]
    return (upper + tables[:, ::2, None, :]).reshape(nq, -(-M // 2), 256)


def look_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`table[codes]`, float32 (n, m), of a table of 256 numbers and codes (n, m); several times as fast as numpy."""
    from indexes.kernels import codecs

    out = np.empty(codes.shape, np.float32)
    codecs.look_up(table, np.require(codes, requirements=["C", "W"]).reshape(-1), out.reshape(-1))
    return out


def by_tables(tables: np.ndarray) -> Scorer:
    """The scorer that adds up, for each code, what the tables float32 (nq, M, 256) hold for its first M bytes."""
    from indexes.kernels import codecs

    tables = np.require(tables, np.float32, ["C", "W"])

    def score(codes: np.ndarray) -> np.ndarray:
        scores = np.empty((len(tables), len(codes)), np.float32)
        codecs.add_tables(tables, np.require(codes, requirements=["C", "W"]), scores)
        return scores

    return score
