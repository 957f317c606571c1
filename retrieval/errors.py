"""Errors that several parts of `retrieval` raise."""

from __future__ import annotations

from eval.errors import MissingExtra

__all__ = ["CollectionError", "CollectionLocked", "DuplicateDocument", "EncoderError", "MissingExtra", "TrainingError"]


class EncoderError(ValueError):
    """An encoder that does not exist, cannot be loaded, or is not the one that an index was built with."""


class CollectionError(RuntimeError):
    """A collection that cannot be opened or changed; the message says why. Nothing was changed."""


class CollectionLocked(CollectionError):
    """Another process is writing to the collection."""


class DuplicateDocument(CollectionError):
    """An id that the collection has already, or that the documents to be added hold twice."""


class TrainingError(ValueError):
    """Training data, a method or a checkpoint that does not fit; the message says what was expected."""
