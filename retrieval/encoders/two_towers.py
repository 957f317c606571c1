"""Two towers: documents by a model as it is, queries by the same model with weights that training changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retrieval.encoders.tuned import Tuned


class TwoTowers(Tuned):
    """Document vectors of `base`, query vectors of its model with other `weights`.

    What JPQ does to an encoder: documents' codes stay, and only the query tower is trained. Else as `Tuned`.
    """

    kind = "two-towers"
    parts = ("documents", "queries")

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        return self.base.encode_documents(texts)
