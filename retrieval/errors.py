"""Errors that several parts of `retrieval` raise."""

from __future__ import annotations


class MissingExtra(ImportError):
    """An optional package is not installed: `package`, and the `extra` that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package {package} is not installed: pip install 'retrieval[{extra}]'", name=package)
        self.package = package
        self.extra = extra


class EncoderError(ValueError):
    """An encoder that does not exist, cannot be loaded, or is not the one that an index was built with."""


class CollectionError(RuntimeError):
    """A collection that cannot be opened or changed; the message says why. Nothing was changed."""


class CollectionLocked(CollectionError):
    """Another process is writing to the collection."""


class DuplicateDocument(CollectionError):
    """An id that the collection has already, or that the documents to be added hold twice."""
