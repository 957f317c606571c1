"""Quantisers that take no steps: where the trained ones start, and what they are compared with."""

from __future__ import annotations

from retrieval.training.quantizer import QuantizerMethod


class OPQ(QuantizerMethod):
    """Product quantisation behind a rotation: Ge, He, Ke and Sun, "Optimized Product Quantization", CVPR 2013.

    `bytes`: of a code, one for each of as many sub-spaces of 256 centroids.
    """

    name = "opq"
    epochs = 0

    def __init__(self, *, bytes: int = 48, seed: int = 0) -> None:
        self.bytes, self.seed = bytes, seed


class RQ(OPQ):
    """Residual quantisation: each byte names one of 256 vectors of all dimensions, of which a document is the sum.

    Chen, Guan and Wang, "Approximate nearest neighbor search by residual vector quantization", Sensors 2010. At equal
    bytes nearer to the vectors than `OPQ`, and slower to encode, as codes are searched for.
    """

    name = "rq"
    codebooks = "additive"


class BinaryAutoencoder(OPQ):
    """Bits that each add a vector or take it away: `indexes.codecs.BinaryAutoencoder`.

    Carreira-Perpinan and Raziperchikolaei, "Hashing with Binary Autoencoders", CVPR 2015. `bytes`: of a code, 8 bits
    each but for the last, which is the length.
    """

    name = "binary-autoencoder"
    codebooks = "binary"
