"""Files of faiss, read and written: `read_faiss(path)` and `write_faiss(index, path)`.

    IndexFlat                              FlatIndex
    IndexIVFFlat                           IVFIndex(codec=Float32(), rerank=None)
    IndexHNSWFlat                          HNSWIndex
    IndexIVFPQ, with OPQ in front or not   IVFPQIndex
    IndexPQ, with OPQ in front or not      ScanIndex(codec=PQ(...) or Chain(OPQ(...), PQ(...)), rerank=None)
    IndexBinaryFlat                        HammingIndex

What training gave, ScanIndex(codec=Chain(Learned(...), Retrained(PQ(...))), rerank=None), is written as IndexPQ behind
a LinearTransform of queries, for searching only: its centroids are not those that choose codes.
Each also within IndexIDMap or IndexIDMap2, which holds ids that are not 0 to n - 1. faiss knows inner products and L2:
"cosine" is written as inner product of the normalised vectors, read as "ip", and needs normalised queries then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from indexes.base import Index
from indexes.binary.hamming import HammingIndex
from indexes.codecs import OPQ, PQ, Chain, Codec, Float32, Learned, Retrained
from indexes.dense.faiss_base import faiss_copy, faiss_metric
from indexes.dense.flat import FlatIndex
from indexes.dense.hnsw import HNSWIndex
from indexes.dense.ivf import IVFIndex
from indexes.dense.ivfpq import IVFPQIndex
from indexes.dense.scan import ScanIndex
from indexes.errors import CorruptIndex, InvalidIds, InvalidParameter, WrongKind

if TYPE_CHECKING:
    import faiss

READ = "IndexFlat, IndexIVFFlat, IndexHNSWFlat, IndexIVFPQ, IndexPQ (these two also behind an OPQMatrix), "
READ += "IndexBinaryFlat, and each of them in an IndexIDMap"
WRITTEN = "FlatIndex, IVFIndex that holds float32, HNSWIndex, IVFPQIndex, HammingIndex, and ScanIndex(rerank=None) "
WRITTEN += "with PQ, Chain(OPQ, PQ) or Chain(Learned, Retrained(PQ))"


def read_faiss(path: str | Path) -> Index:
    """The index in a file of faiss, as one of ours: the same answers, but for ties.

    Raises `FileNotFoundError`, `CorruptIndex` (faiss cannot read it: truncated, or no such file), `WrongKind` (another
    kind or metric; the message says which, and which can be read), `InvalidIds`, `InvalidVectors`.
    """
    import faiss

    with open(path, "rb") as file:
        binary = file.read(2) == b"IB"
    try:
        held: Any = faiss.read_index_binary(str(path)) if binary else faiss.read_index(str(path))
    except (RuntimeError, MemoryError) as problem:
        reason = str(problem).splitlines()[-1] if str(problem) else "it asks for too much memory"
        raise CorruptIndex(f"{path}: faiss cannot read it ({reason})") from problem
    ids, inner = None, held
    if isinstance(held, (faiss.IndexIDMap, faiss.IndexIDMap2, faiss.IndexBinaryIDMap, faiss.IndexBinaryIDMap2)):
        ids = faiss.vector_to_array(held.id_map)
        inner = faiss.downcast_IndexBinary(held.index) if binary else faiss.downcast_index(held.index)
    read = _readers().get(type(inner))
    if read is None:
        inside = ""
        if isinstance(inner, faiss.IndexPreTransform):
            inside = f" of {type(faiss.downcast_index(inner.index)).__name__}"
        raise WrongKind(f"{path}: holds {type(inner).__name__}{inside}; what can be read: {READ}")
    if not binary and inner.metric_type not in (faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2):
        raise WrongKind(
            f"{path}: holds metric {inner.metric_type} of faiss's MetricType; those that can be read are "
            f"{faiss.METRIC_INNER_PRODUCT} (inner product) and {faiss.METRIC_L2} (L2)"
        )
    try:
        return read(inner, ids)
    except (WrongKind, InvalidIds) as problem:
        raise type(problem)(f"{path}: {problem}") from problem


def write_faiss(index: Index, path: str | Path) -> None:
    """Write an index into a file of faiss, atomically. Ids that are not 0 to n - 1 take an IndexIDMap2.

    faiss visits the lists of an inverted file in another order than `IVFIndex` for inner products, and so finds others
    at the same nprobe. Raises `WrongKind` where faiss has no such index (the message says which have one),
    `InvalidParameter` for one that is empty.
    """
    import faiss

    if not len(index):
        raise InvalidParameter(f"{type(index).__name__} is empty; only an index with vectors can be written")
    writer = _writers().get(type(index))
    if writer is None:
        raise WrongKind(f"{type(index).__name__} has no counterpart in faiss; what can be written: {WRITTEN}")
    made = writer(index)
    binary = isinstance(index, HammingIndex)
    wrapped = made
    if not np.array_equal(index.ids, np.arange(len(index))):
        empty = faiss.IndexBinaryFlat(made.d) if binary else faiss.IndexFlat(made.d, made.metric_type)
        wrapped = (faiss.IndexBinaryIDMap2 if binary else faiss.IndexIDMap2)(empty)  # takes no index that holds vectors
        wrapped.index, wrapped.ntotal = made, made.ntotal
        faiss.copy_array_to_vector(np.ascontiguousarray(index.ids), wrapped.id_map)
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        # through a Python file: faiss's own writer says nothing when closing the file fails on a full disk
        with open(temporary, "wb") as out:
            (faiss.write_index_binary if binary else faiss.write_index)(wrapped, faiss.PyCallbackIOWriter(out.write))
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# -- reading -----------------------------------------------------------------------------------------------------------


def _readers() -> dict[type, Callable[[Any, np.ndarray | None], Index]]:
    import faiss

    return {
        faiss.IndexFlat: _read_flat, faiss.IndexFlatIP: _read_flat, faiss.IndexFlatL2: _read_flat,
        faiss.IndexIVFFlat: _read_ivf_flat, faiss.IndexHNSWFlat: _read_hnsw, faiss.IndexIVFPQ: _read_ivfpq,
        faiss.IndexPQ: _read_pq, faiss.IndexPreTransform: _read_pre_transform,
        faiss.IndexBinaryFlat: _read_binary,
    }  # fmt: skip


def _metric(held: faiss.Index) -> str:
    import faiss

    return "l2" if held.metric_type == faiss.METRIC_L2 else "ip"


def _read_flat(held: faiss.IndexFlat, ids: np.ndarray | None) -> FlatIndex:
    vectors = held.reconstruct_n(0, held.ntotal) if held.ntotal else np.empty((0, held.d), np.float32)
    return FlatIndex(metric=_metric(held)).add(vectors, ids)


def _read_binary(held: faiss.IndexBinaryFlat, ids: np.ndarray | None) -> HammingIndex:
    import faiss

    return HammingIndex().add(faiss.vector_to_array(held.xb).reshape(held.ntotal, held.d // 8), ids)


def _read_hnsw(held: faiss.IndexHNSWFlat, ids: np.ndarray | None) -> HNSWIndex:
    hnsw = held.hnsw
    index = HNSWIndex(
        metric=_metric(held), M=max(2, hnsw.nb_neighbors(1)), ef_construction=hnsw.efConstruction,
        ef_search=hnsw.efSearch,
    )  # fmt: skip
    return _held(index, held, ids)


def _read_ivfpq(held: faiss.Index, ids: np.ndarray | None) -> IVFPQIndex:
    import faiss

    copy = faiss_copy(held)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(copy))
    index = IVFPQIndex(
        metric=_metric(held), bytes=ivf.pq.M, nlist=ivf.nlist, nprobe=ivf.nprobe,
        opq=isinstance(held, faiss.IndexPreTransform),
    )  # fmt: skip
    own, _ = _in_lists(ivf)
    own.sort()
    if not np.array_equal(own, np.arange(len(own))):  # ids of the caller, in the lists themselves
        if len(np.unique(own)) < len(own) or ids is not None:
            raise InvalidIds("ids are in the lists more than once, or in an IndexIDMap as well")
        ids = own
        for i in range(ivf.nlist):
            size = ivf.invlists.list_size(i)
            if size:
                numbers = faiss.rev_swig_ptr(ivf.invlists.get_ids(i), size)
                numbers[:] = np.searchsorted(own, numbers)
    return _held(index, copy, ids)


def _held(index: Any, held: faiss.Index, ids: np.ndarray | None) -> Any:
    """A `FaissIndex` around an index of faiss, whose slots are its rows."""
    index._ids = index._check_ids(ids, held.ntotal)
    index._faiss, index.d, index._slots = faiss_copy(held), held.d, np.arange(held.ntotal)
    return index


def _read_ivf_flat(held: faiss.IndexIVFFlat, ids: np.ndarray | None) -> IVFIndex:
    import faiss

    own, lists = _in_lists(held)
    codes = [
        faiss.rev_swig_ptr(held.invlists.get_codes(i), held.invlists.list_size(i) * held.code_size)
        for i in range(held.nlist) if held.invlists.list_size(i)
    ]  # fmt: skip
    vectors = np.concatenate([np.empty(0, np.uint8), *codes]).view(np.float32).reshape(len(own), held.d)
    order = np.argsort(own, kind="stable")
    if ids is not None:
        if not np.array_equal(own[order], np.arange(len(ids))):
            raise InvalidIds("an IndexIDMap is around lists that have ids of their own")
    else:
        ids = own[order]
    index = IVFIndex(
        nlist=held.nlist, codec=Float32(), metric=_metric(held), rerank=None, balance=None,
        nprobe=min(held.nprobe, held.nlist),
    )  # fmt: skip
    centroids = held.quantizer.reconstruct_n(0, held.nlist)
    return index.hold(centroids, vectors[order], lists[order], ids)


def _in_lists(ivf: faiss.IndexIVF) -> tuple[np.ndarray, np.ndarray]:
    """The ids in the lists one after the other, int64 (n,), and the list of each, int64 (n,)."""
    import faiss

    sizes = [ivf.invlists.list_size(i) for i in range(ivf.nlist)]
    ids = [faiss.rev_swig_ptr(ivf.invlists.get_ids(i), size) for i, size in enumerate(sizes) if size]
    return np.concatenate([np.empty(0, np.int64), *ids]), np.repeat(np.arange(ivf.nlist), sizes)


def _read_pre_transform(held: faiss.IndexPreTransform, ids: np.ndarray | None) -> Index:
    import faiss

    inner = faiss.downcast_index(held.index)
    maps = [faiss.downcast_VectorTransform(held.chain.at(i)) for i in range(held.chain.size())]
    names = [type(part).__name__ for part in maps]
    rotations = (faiss.OPQMatrix, faiss.RandomRotationMatrix, faiss.LinearTransform)
    if type(inner) not in (faiss.IndexIVFPQ, faiss.IndexPQ) or len(maps) != 1 or type(maps[0]) not in rotations:
        raise WrongKind(f"it holds {', '.join(names)} before {type(inner).__name__}; what can be read: {READ}")
    if isinstance(inner, faiss.IndexIVFPQ):
        return _read_ivfpq(held, ids)
    projection = faiss.vector_to_array(maps[0].A).reshape(inner.d, held.d)
    turned = np.abs(projection @ projection.T - np.eye(inner.d)).max()  # faiss says orthonormal of others, too
    if maps[0].have_bias or turned > 1e-3:
        raise WrongKind(f"its {names[0]} is not a rotation alone; what can be read: {READ}")
    quantizer = _codec_of(inner)
    opq = OPQ(M=quantizer.M, bits=quantizer.bits, dimensions=inner.d)
    header = {"kind": "chain", "d": held.d, "parameters": {"parts": [opq.header() | {"d": held.d}, quantizer.header()]}}
    learned = {"0.mean": np.zeros(held.d, np.float32), "0.projection": projection, "1.centroids": quantizer.centroids}
    return _scanned(Codec.restore(header, learned), inner, ids)


def _read_pq(held: faiss.IndexPQ, ids: np.ndarray | None) -> ScanIndex:
    return _scanned(_codec_of(held), held, ids)


def _codec_of(held: faiss.IndexPQ) -> PQ:
    import faiss

    pq = held.pq
    if pq.nbits not in (4, 8):
        raise WrongKind(f"it holds IndexPQ of {pq.nbits} bits; those that can be read have 4 or 8")
    header = {"kind": "pq", "d": held.d, "parameters": PQ(M=pq.M, bits=pq.nbits).parameters()}
    centroids = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)
    made = Codec.restore(header, {"centroids": centroids})
    assert isinstance(made, PQ)
    return made


def _scanned(codec: Codec, held: faiss.IndexPQ, ids: np.ndarray | None) -> ScanIndex:
    import faiss

    index = ScanIndex(codec=codec, metric=_metric(held), rerank=None)
    if held.ntotal:
        index._ids = index._check_ids(ids, held.ntotal)
        index._coded().add(faiss.vector_to_array(held.codes).reshape(held.ntotal, codec.bytes_per_vector))
    return index


# -- writing -----------------------------------------------------------------------------------------------------------


def _writers() -> dict[type, Callable[[Any], Any]]:
    return {
        FlatIndex: _flat, IVFIndex: _ivf_flat, HNSWIndex: _hnsw, IVFPQIndex: _ivfpq, ScanIndex: _pq,
        HammingIndex: _binary,
    }  # fmt: skip


def _flat(index: FlatIndex) -> faiss.IndexFlat:
    import faiss

    made = faiss.IndexFlat(index.d, faiss_metric(index.metric))
    made.add(index.vectors.astype(np.float32, copy=False))
    return made


def _binary(index: HammingIndex) -> faiss.IndexBinaryFlat:
    import faiss

    assert index.nbytes is not None
    made = faiss.IndexBinaryFlat(8 * index.nbytes)
    made.add(index.codes)
    return made


def _hnsw(index: HNSWIndex) -> faiss.Index:
    assert index._faiss is not None
    if len(index) < index._faiss.ntotal:  # a file has no place for those removed
        fresh = HNSWIndex(metric=index.metric, M=index.M, ef_construction=index.ef_construction).add(index.vectors)
        assert fresh._faiss is not None
        held = faiss_copy(fresh._faiss)
    else:
        held = faiss_copy(index._faiss)
    held.hnsw.efSearch = index._ef(index.ef_search)
    return held


def _ivfpq(index: IVFPQIndex) -> faiss.Index:
    import faiss

    held = faiss_copy(index._faiss)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(held))
    ivf.nprobe = index._probes(index.nprobe)
    if len(index) < ivf.ntotal:
        kept = faiss.IDSelectorBatch(index._slots)
        held.remove_ids(faiss.IDSelectorNot(kept))
        for i in range(ivf.nlist):
            size = ivf.invlists.list_size(i)
            if size:
                numbers = faiss.rev_swig_ptr(ivf.invlists.get_ids(i), size)
                numbers[:] = np.searchsorted(index._slots, numbers)
    return held


def _ivf_flat(index: IVFIndex) -> faiss.IndexIVFFlat:
    import faiss

    try:
        centroids, vectors, lists = index.held()
    except InvalidParameter as problem:
        raise WrongKind(f"{problem}; what can be written: {WRITTEN}") from problem
    nlist, d = centroids.shape
    quantizer = faiss.IndexFlat(d, faiss_metric(index.metric))
    quantizer.add(centroids)
    made = faiss.IndexIVFFlat(quantizer, d, nlist, faiss_metric(index.metric))
    made.own_fields = True
    quantizer.this.disown()
    made.is_trained, made.nprobe = True, index._probes(index.nprobe)
    rows = np.arange(len(vectors))
    made.add_core(len(vectors), faiss.swig_ptr(vectors), faiss.swig_ptr(rows), faiss.swig_ptr(lists))
    return made


def _pq(index: ScanIndex) -> faiss.Index:
    import faiss

    codec = index.codec
    parts: tuple[Any, ...] = codec.parts if isinstance(codec, Chain) else (codec,)
    *maps, quantizer = parts
    trained = isinstance(quantizer, Retrained) and index.metric != "l2"
    pq = quantizer.codec if trained else quantizer
    known = [type(part) for part in maps] in ([], [Learned] if trained else [OPQ]) and isinstance(pq, PQ)
    if index.rerank is not None or not known or quantizer.centroids.shape[2] * pq.M != quantizer.d:
        seen = f"ScanIndex(codec={codec!r}, metric={index.metric!r}, rerank={index.rerank!r})"
        raise WrongKind(f"{seen}; what can be written: {WRITTEN}")
    assert index.d is not None
    centroids = quantizer.centroids
    if maps:  # without their mean, which centroids take up: faiss would subtract it from queries too
        asking = maps[0].query_projection
        # what gives a query so turned the product that the query has with the mean; as near as there is
        mean = np.linalg.lstsq(asking.T.astype(np.float64), maps[0].mean.astype(np.float64), rcond=None)[0]
        centroids = centroids + mean.reshape(pq.M, 1, -1)
    made = faiss.IndexPQ(quantizer.d, pq.M, pq.bits, faiss_metric(index.metric))
    faiss.copy_array_to_vector(np.ascontiguousarray(centroids, np.float32).reshape(-1), made.pq.centroids)
    faiss.copy_array_to_vector(index._coded().at(np.arange(len(index))).reshape(-1), made.codes)
    made.is_trained, made.ntotal = True, len(index)
    if not maps:
        return made
    rotation = faiss.LinearTransform(index.d, quantizer.d) if trained else faiss.OPQMatrix(index.d, pq.M, quantizer.d)
    faiss.copy_array_to_vector(np.ascontiguousarray(asking).reshape(-1), rotation.A)
    rotation.is_trained, rotation.is_orthonormal = True, not trained
    whole = faiss.IndexPreTransform(rotation, made)
    rotation.this.disown()
    made.this.disown()
    whole.own_fields = True
    return whole
