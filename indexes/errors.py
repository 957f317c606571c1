"""The named errors of `indexes`. Each message names the argument, the value seen and the values allowed."""

from __future__ import annotations


class InvalidVectors(ValueError):
    """Vectors of the wrong shape, width or dtype, or holding NaN or infinity."""


class InvalidIds(ValueError):
    """Ids that are negative, repeated, already present, or not one per vector."""


class InvalidAllow(ValueError):
    """An `allow` bitmap that is not boolean or not one entry per row of the index."""


class InvalidParameter(ValueError):
    """A constructor or search parameter outside its allowed values."""


class UnknownParameter(TypeError):
    """A search parameter that the index does not have; the message lists those it has."""


class NotFitted(RuntimeError):
    """An index that must learn (centroids, a rotation) was used before `fit`."""


class MissingLibrary(ImportError):
    """An index that another library builds is used where that library is not installed; the message says how to."""


class IndexFileError(ValueError):
    """A saved index that cannot be used; the message says which file and what is wrong with it."""


class CorruptIndex(IndexFileError):
    """A file of a saved index is missing, truncated, altered or not what its header says."""


class NewerIndex(IndexFileError):
    """The index was saved by a newer release, in a format that this one does not know."""


class WrongKind(IndexFileError):
    """The folder holds another kind of index than the one asked for."""
