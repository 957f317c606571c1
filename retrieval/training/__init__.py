"""Learning to compress: methods by name, which the command line and `Collection.train` take.

The modules here need torch (the extra "encoders"), and are imported when they are asked for.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from retrieval.errors import MissingExtra, TrainingError

if TYPE_CHECKING:
    from retrieval.training.method import Method

# name -> where the class lives
METHODS = {
    "jpq": "retrieval.training.jpq:JPQ",
    "distill-vq": "retrieval.training.distill_vq:DistillVQ",
    "repconc": "retrieval.training.repconc:RepCONC",
    "bidr": "retrieval.training.bidr:BiDR",
    "opq": "retrieval.training.unsupervised:OPQ",
    "rq": "retrieval.training.unsupervised:RQ",
    "binary-autoencoder": "retrieval.training.unsupervised:BinaryAutoencoder",
    "lsh": "retrieval.training.itq:LSH",
    "itq": "retrieval.training.itq:ITQ",
    "bpr": "retrieval.training.bpr:BPR",
    "bebr": "retrieval.training.bebr:BEBR",
    "orthohash": "retrieval.training.orthohash:OrthoHash",
    "dpsh": "retrieval.training.dpsh:DPSH",
    "similarity-calibration": "retrieval.training.similarity_calibration:SimilarityCalibration",
}


def by_name(name: str, **parameters: Any) -> Method:
    """The method called `name`, with parameters of its constructor. Raises `TrainingError`, `MissingExtra`."""
    if name not in METHODS:
        raise TrainingError(f"method is {name!r}; it must be one of {', '.join(METHODS)}")
    module, _, kind = METHODS[name].partition(":")
    try:
        made: type[Method] = getattr(importlib.import_module(module), kind)
    except ModuleNotFoundError as problem:
        if problem.name != "torch":
            raise
        raise MissingExtra("torch", "encoders", f"training by {name}") from problem
    known = [name for name in inspect.signature(made.__init__).parameters if name != "self"]
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise TrainingError(f"{', '.join(unknown)}: no parameter of {name}; it has: {', '.join(known)}")
    return made(**parameters)
