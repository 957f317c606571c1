"""Search as stages that compose: one index, several fused, the best reranked.

    collection["bm25"].fuse(collection["dense"], method="rrf").rerank(cross_encoder, top=50).search("a question")

Every stage answers `search` (documents, with texts) and `run` (ids and scores of many queries, for evaluation).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from retrieval.errors import CollectionError
from retrieval.fusion import contributions, fuse

if TYPE_CHECKING:
    from retrieval.collection import Collection
    from retrieval.retriever import Retriever

# Documents that each index hands to a fusion, at least. With BM25 and MiniLM, on the dev queries of NFCorpus and the
# train queries of SciFact, min-max reached nDCG@10 0.330 and 0.733 at 100, 0.332 and 0.735 at 300, 0.332 and 0.736 at
# 1,000.
FUSION_DEPTH = 300


@dataclass(frozen=True)
class Result:
    """One answer. `rank` counts from 1. `explanation` is empty unless asked for (see `Stage.search`)."""

    id: str
    score: float
    rank: int
    text: str
    title: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    explanation: dict[str, Any] = field(default_factory=dict)


Results = list[Result]
Ranking = dict[int, float]  # key -> score, best first


class Scorer(Protocol):
    """A cross-encoder: scores of texts for a query, higher is better."""

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray: ...


class Stage(ABC):
    """A way to rank the documents of a collection."""

    collection: Collection

    @abstractmethod
    def rank(self, queries: Sequence[str], k: int, allowed: np.ndarray | None) -> list[Ranking]:
        """For each query the best `k` keys and their scores. `allowed`: the keys that a filter accepts, or None."""

    @abstractmethod
    def explain(self, query: str, ranking: Ranking, k: int, allowed: np.ndarray | None) -> dict[int, dict[str, Any]]:
        """What earned each score of a ranking, or of a part of one, that `rank` returned for this `k`."""

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self, queries: str, k: int = 10, *, where: str | None = None, explain: bool = False
    ) -> Results: ...
    @overload
    def search(
        self, queries: Sequence[str], k: int = 10, *, where: str | None = None, explain: bool = False
    ) -> list[Results]: ...
    def search(
        self, queries: str | Sequence[str], k: int = 10, *, where: str | None = None, explain: bool = False
    ) -> Results | list[Results]:
        """The `k` best documents for one query (a list of `Result`) or for each of several (a list of lists).

        `where`: a filter on metadata, see `retrieval.where`. With `explain` each result tells what earned its score:
        of one lexical index, its terms; of a fusion, what each index gave and contributed; of a reranking, both scores.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        if any(not isinstance(text, str) for text in texts):
            raise TypeError(
                f"queries must be strings, got {next(type(t).__name__ for t in texts if type(t) is not str)}"
            )
        _check_k(k)
        with self.collection.reading():
            allowed = None if where is None else self.collection.store.matching(where)
            rankings = self.rank(texts, k, allowed)
            documents = self.collection.store.documents([key for ranking in rankings for key in ranking])
            told = [
                self.explain(text, ranking, k, allowed) if explain else {}
                for text, ranking in zip(texts, rankings, strict=True)
            ]
        found = [
            [
                Result(d.id, score, place, d.text, d.title, d.metadata, why.get(key, {}))
                for place, (key, score) in enumerate(ranking.items(), 1)
                for d in [documents[key]]
            ]
            for ranking, why in zip(rankings, told, strict=True)
        ]
        return found[0] if isinstance(queries, str) else found

    def run(self, queries: Mapping[str, str], k: int = 1000) -> dict[str, dict[str, float]]:
        """A TREC run: query id -> document id -> score, `k` documents each, best first."""
        _check_k(k)
        with self.collection.reading():
            rankings = self.rank(list(queries.values()), k, None)
            ids = self.collection.store.ids(sorted({key for ranking in rankings for key in ranking}))
        named = ({ids[key]: score for key, score in ranking.items()} for ranking in rankings)
        return dict(zip(queries, named, strict=True))

    def fuse(
        self, *others: Stage, method: str = "minmax", weights: Sequence[float] | None = None, depth: int = FUSION_DEPTH
    ) -> Fusion:
        """This stage and others of the same collection, fused. See `Fusion`."""
        return Fusion([self, *others], method=method, weights=weights, depth=depth)

    def rerank(self, scorer: Scorer, top: int = 100) -> Rerank:
        """The first `top` documents of this stage in the order of a cross-encoder. See `Rerank`."""
        return Rerank(self, scorer, top=top)


class Single(Stage):
    """The search through one index of a collection, by its name. Raises `CollectionError` when there is none."""

    def __init__(self, collection: Collection, name: str) -> None:
        self.collection, self.name = collection, name
        with collection.reading() as retrievers:
            self._retriever(retrievers)

    def _retriever(self, retrievers: dict[str, Retriever]) -> Retriever:
        if self.name not in retrievers:  # it may have been dropped since
            raise CollectionError(f"no index {self.name!r}; this collection has: {', '.join(retrievers)}, hybrid")
        return retrievers[self.name]

    def rank(self, queries: Sequence[str], k: int, allowed: np.ndarray | None) -> list[Ranking]:
        with self.collection.reading() as retrievers:
            retriever = self._retriever(retrievers)
            if not len(retriever.index):  # its encoder may not even be fitted
                return [{} for _ in queries]
            allow = None if allowed is None else np.isin(retriever.index.ids, allowed)
            hits = retriever.search(queries, min(k, len(retriever.index)), allow)
        return [dict(pairs) for pairs in hits]

    def explain(self, query: str, ranking: Ranking, k: int, allowed: np.ndarray | None) -> dict[int, dict[str, Any]]:
        with self.collection.reading() as retrievers:
            told: dict[int, dict[str, Any]] = {}
            for key, score in ranking.items():
                terms = self._retriever(retrievers).explain(query, key)
                told[key] = {self.name: {"score": score} | ({"terms": terms} if terms else {})}
        return told


class Fusion(Stage):
    """Several stages over one collection, fused by `retrieval.fusion` (`method`, `weights`).

    Each stage hands over its best `depth` documents, or k where that is more.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        method: str = "minmax",
        weights: Sequence[float] | None = None,
        depth: int = FUSION_DEPTH,
    ) -> None:
        if len({id(stage.collection) for stage in stages}) != 1:
            raise ValueError(
                "a fusion needs stages of one collection; for runs of several see retrieval.fusion.fuse_runs"
            )
        if depth < 1:
            raise ValueError(f"depth is {depth}; it must be at least 1")
        contributions([{} for _ in stages], method=method, weights=weights)  # refuses what it does not know
        self.collection = stages[0].collection
        self.stages, self.method, self.weights, self.depth = list(stages), method, weights, depth

    def rank(self, queries: Sequence[str], k: int, allowed: np.ndarray | None) -> list[Ranking]:
        with self.collection.reading():
            lists = [stage.rank(queries, max(k, self.depth), allowed) for stage in self.stages]
        return [
            dict(fuse(rankings, method=self.method, weights=self.weights, k=k)) for rankings in zip(*lists, strict=True)
        ]

    def explain(self, query: str, ranking: Ranking, k: int, allowed: np.ndarray | None) -> dict[int, dict[str, Any]]:
        depth = max(k, self.depth)  # as `rank` does: a place beyond it had no part in the score
        with self.collection.reading():
            rankings = [stage.rank([query], depth, allowed)[0] for stage in self.stages]
            own = [
                stage.explain(query, {key: r[key] for key in ranking if key in r}, depth, allowed)
                for stage, r in zip(self.stages, rankings, strict=True)
            ]
        parts = contributions(rankings, method=self.method, weights=self.weights)
        told: dict[int, dict[str, Any]] = {key: {} for key in ranking}
        for place, (stage, label) in enumerate(zip(self.stages, _labels(self.stages), strict=True)):
            for key in ranking:
                why = own[place].get(key, {})
                if isinstance(stage, Single):
                    why = why.get(stage.name, {"score": None})
                told[key][label] = {**why, "contribution": parts[key][place]}
        return told


class Rerank(Stage):
    """The best `top` documents of a stage, ordered by a cross-encoder; those behind follow in the stage's order."""

    def __init__(self, stage: Stage, scorer: Scorer, *, top: int = 100) -> None:
        if top < 1:
            raise ValueError(f"top is {top}; it must be at least 1")
        self.collection, self.stage, self.scorer, self.top = stage.collection, stage, scorer, top

    def rank(self, queries: Sequence[str], k: int, allowed: np.ndarray | None) -> list[Ranking]:
        with self.collection.reading():
            rankings = self.stage.rank(queries, max(k, self.top), allowed)
            return [self._rerank(query, ranking, k) for query, ranking in zip(queries, rankings, strict=True)]

    def _rerank(self, query: str, ranking: Ranking, k: int) -> Ranking:
        head = list(ranking)[: self.top]
        documents = self.collection.store.documents(head)
        scores = self.scorer.score(query, [documents[key].contents for key in head]) if head else np.empty(0)
        order = sorted((-float(score), key) for key, score in zip(head, scores, strict=True))
        reranked = {key: -negative for negative, key in order}
        # below the last reranked score, so that the order by score is the order of the ranking
        floor = min(reranked.values(), default=0.0)
        tail = list(ranking)[self.top :]
        reranked.update({key: floor - place for place, key in enumerate(tail, 1)})
        return dict(list(reranked.items())[:k])

    def explain(self, query: str, ranking: Ranking, k: int, allowed: np.ndarray | None) -> dict[int, dict[str, Any]]:
        depth = max(k, self.top)
        with self.collection.reading():
            first = self.stage.rank([query], depth, allowed)[0]
            told = self.stage.explain(query, {key: first[key] for key in ranking if key in first}, depth, allowed)
        places = {key: place for place, key in enumerate(first, 1)}
        return {
            key: {**told.get(key, {}), "rerank": {"score": ranking[key], "was": places.get(key)}} for key in ranking
        }


def _check_k(k: Any) -> None:
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k is {k!r}; it must be an integer of at least 1")


def _labels(stages: Sequence[Stage]) -> list[str]:
    """What stages are called in an explanation: their index, "fusion" or "rerank"; numbered where that repeats."""
    names = [stage.name if isinstance(stage, Single) else type(stage).__name__.lower() for stage in stages]
    return [name if names.count(name) == 1 else f"{name} {place}" for place, name in enumerate(names, 1)]
