"""Search: one index, several fused, the best reranked, and what each of them tells of its scores."""

import math
from itertools import pairwise

import numpy as np
import pytest

from retrieval import Collection, Document, Fusion, Rerank, bm25, dense
from retrieval.encoders.lsa import LSA
from retrieval.errors import CollectionError
from retrieval.fusion import fuse
from retrieval.search import FUSION_DEPTH
from retrieval.where import WhereError

WORDS = ["wing", "flow", "heat", "shock", "plate", "layer", "jet", "nozzle"]
QUERIES = {"q1": "wing flow", "q2": "heat of the shock wave", "q3": "jet nozzle layer plate", "q4": "unheard"}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """150 documents of three of eight words; every index hands over fewer than it has."""
    rng = np.random.default_rng(3)
    documents = [
        Document(
            f"d{i}",
            " ".join(rng.choice(WORDS, size=3 + i % 5)),
            title=str(rng.choice(WORDS)) if i % 3 else "",
            metadata={"year": 1950 + i % 20} | ({"lang": "en"} if i % 2 else {}),
        )
        for i in range(150)
    ]
    folder = tmp_path_factory.mktemp("search") / "c"
    with Collection.create(folder, {"bm25": bm25(), "plus": bm25(method="bm25+"), "dense": dense()}) as made:
        made.add(documents)
        yield made


class ByLength:
    """A scorer in place of a cross-encoder: short texts first, and texts with the query's first word before others."""

    def __init__(self):
        self.seen = []

    def score(self, query, texts):
        self.seen.append((query, list(texts)))
        return np.array([100 * (query.split()[0] in text) - len(text) for text in texts], np.float32)


def stages(collection):
    bm, de = collection["bm25"], collection["dense"]
    return {
        "one": bm,
        "hybrid": collection.hybrid,
        "rrf": bm.fuse(de, method="rrf", depth=20),
        "zscore weighted": bm.fuse(de, method="zscore", weights=[2, 0.5]),
        "rerank": bm.rerank(ByLength(), top=10),
        "rerank of hybrid": collection.hybrid.rerank(ByLength(), top=120),
        "fusion of fusion": bm.fuse(de, depth=5).fuse(collection["plus"], depth=30),
        "fusion of rerank": bm.rerank(ByLength(), top=20).fuse(bm, de),
        "twice the same": bm.fuse(bm),
    }


STAGES = ["one", "hybrid", "rrf", "zscore weighted", "rerank", "rerank of hybrid", "fusion of fusion",
          "fusion of rerank", "twice the same"]  # fmt: skip


def pairs(results):
    return [(result.id, result.score) for result in results]


@pytest.mark.parametrize("name", STAGES)
def test_one_and_many_and_run_agree(collection, name):
    stage = stages(collection)[name]
    many = stage.search(list(QUERIES.values()), k=20)
    for query, results in zip(QUERIES.values(), many, strict=True):
        alone = stage.search(query, 20)  # BLAS adds up in another order for one query: the last bits may differ
        assert [result.score for result in alone] == pytest.approx([result.score for result in results], abs=1e-5)
        swapped = [(a.score, b.score) for a, b in zip(alone, results, strict=True) if a.id != b.id]
        assert all(a == pytest.approx(b, abs=1e-5) for a, b in swapped) and len(swapped) < 4
    assert stage.run(QUERIES, k=20) == {id: dict(pairs(results)) for id, results in zip(QUERIES, many, strict=True)}
    assert list(stage.run(QUERIES, k=20)["q1"]) == [result.id for result in many[0]]
    assert len(many[0]) == 20 and len({result.id for result in many[0]}) == 20


@pytest.mark.parametrize("name", STAGES)
def test_scores_fall_ranks_count_from_one_and_more_is_a_longer_list(collection, name):
    stage = stages(collection)[name]
    results = stage.search("wing flow", 15)
    assert [result.rank for result in results] == list(range(1, 16))
    assert all(a.score >= b.score for a, b in pairwise(results))
    assert pairs(stage.search("wing flow", 5)) == pairs(results)[:5]


@pytest.mark.parametrize("name", STAGES)
def test_where_holds_in_every_stage_and_k_are_found_where_k_exist(collection, name):
    results = stages(collection)[name].search("wing flow", 50, where="year = 1953")
    assert {result.metadata["year"] for result in results} == {1953}
    wing_or_flow = {d.id for i in range(150) if (d := collection.get(f"d{i}")).metadata["year"] == 1953
                    and {"wing", "flow"} & set(d.contents.split())}  # fmt: skip
    assert wing_or_flow <= {result.id for result in results}
    assert stages(collection)[name].search("wing", where="year > 2000") == []


def test_results_carry_the_whole_document(collection):
    for result in collection.search("wing flow heat", 30):
        document = collection.get(result.id)
        assert (result.text, result.title, result.metadata) == (document.text, document.title, document.metadata)
        assert result.explanation == {}


def test_k_beyond_the_collection_finds_what_there_is(collection):
    holding = sum(bool({"wing"} & set(collection.get(f"d{i}").contents.split())) for i in range(150))
    assert len(collection["bm25"].search("wing", 10_000)) == holding
    assert len(collection["dense"].search("wing", 10_000)) == 150
    assert len(collection.search("wing", 10_000)) == 150


def test_hybrid_is_the_fusion_of_all_indexes(collection):
    for query in QUERIES.values():
        lists = [dict(pairs(collection[name].search(query, FUSION_DEPTH))) for name in ("bm25", "plus", "dense")]
        numbers = {result: int(result[1:]) for one in lists for result in one}  # ties: by key, here the number
        expected = fuse(
            [{numbers[id]: score for id, score in one.items()} for one in lists],
            method="minmax", weights=[1, 1, LSA.fusion_weight], k=10,
        )  # fmt: skip
        assert pairs(collection.search(query)) == [(f"d{number}", score) for number, score in expected]
    assert collection.search("wing") == collection.hybrid.search("wing") == collection.search("wing", index="hybrid")


def test_an_index_by_its_name(collection):
    assert collection.search("wing", index="dense") == collection["dense"].search("wing")
    assert collection.search("wing", index="dense") != collection.search("wing", index="bm25")
    for ask in (lambda: collection["bm52"], lambda: collection.search("wing", index="bm52")):
        with pytest.raises(CollectionError, match="no index 'bm52'; this collection has: bm25, plus, dense, hybrid"):
            ask()


def test_a_collection_of_one_index_is_searched_through_it(tmp_path):
    with Collection.create(tmp_path / "c", {"words": bm25()}) as single:
        single.add([Document("a", "wings"), Document("b", "wings wings")])
        assert single.search("wing") == single["words"].search("wing") == single.search("wing", index="hybrid")
        assert [result.id for result in single.search("wing")] == ["b", "a"]
        (part,) = single.search("wing", 1, explain=True)[0].explanation.values()
        assert part["score"] == pytest.approx(sum(part["terms"].values()), rel=1e-6)


def test_rerank_orders_the_best_and_keeps_the_others_behind(collection):
    scorer = ByLength()
    first = collection["bm25"].search("wing flow", 30)
    results = collection["bm25"].rerank(scorer, top=10).search("wing flow", 30)
    ((query, texts),) = scorer.seen
    assert query == "wing flow"
    assert texts == [f"{r.title} {r.text}".strip() for r in first[:10]]
    assert {r.id for r in results[:10]} == {r.id for r in first[:10]}
    assert [r.score for r in results[:10]] == sorted(scorer.score("wing flow", texts).tolist(), reverse=True)
    assert [r.id for r in results[10:]] == [r.id for r in first[10:]]


def test_rerank_scores_nothing_when_nothing_was_found(collection):
    scorer = ByLength()
    assert collection["bm25"].rerank(scorer).search("unheard") == [] and scorer.seen == []


# -- explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bm25", "plus"])
def test_the_terms_of_a_lexical_index_add_up_to_its_score(collection, name):
    for result in collection[name].search("wing flow flow unheard", 40, explain=True):
        told = result.explanation[name]
        assert told["score"] == result.score
        assert math.fsum(told["terms"].values()) == pytest.approx(result.score, rel=1e-6)
        words = {term for term in told["terms"] if term != "(terms it lacks)"}
        assert words == {"wing", "flow"} & set(f"{result.title} {result.text}".split())


@pytest.mark.parametrize("k", [3, 60])
@pytest.mark.parametrize("name", ["hybrid", "rrf", "zscore weighted", "fusion of fusion", "fusion of rerank",
                                  "twice the same"])  # fmt: skip
def test_the_contributions_of_a_fusion_add_up_to_its_score(collection, name, k):
    stage = stages(collection)[name]
    results = stage.search("wing flow", k, explain=True)
    assert len(results) == k
    for result in results:
        assert len(result.explanation) == len(stage.stages)
        contributions = [part["contribution"] for part in result.explanation.values()]
        assert math.fsum(contributions) == result.score


def test_a_fusion_tells_the_score_of_each_index_and_none_where_it_did_not_find_the_document(collection):
    stage = collection["bm25"].fuse(collection["dense"], method="rrf", depth=7)
    own = {name: dict(pairs(collection[name].search("wing flow", 7))) for name in ("bm25", "dense")}
    results = stage.search("wing flow", 7, explain=True)
    for result in results:
        assert {name: part["score"] for name, part in result.explanation.items()} == {
            name: own[name].get(result.id) for name in own
        }
    assert any(part["score"] is None for result in results for part in result.explanation.values())


@pytest.mark.parametrize("k", [3, 130])
def test_a_reranking_tells_both_scores_and_the_place_before(collection, k):
    stage = collection.hybrid.rerank(ByLength(), top=120)  # deeper than a fusion goes by itself
    before = {result.id: result for result in collection.hybrid.search("wing flow", 130)}
    for result in stage.search("wing flow", k, explain=True):
        told = result.explanation
        assert told["rerank"] == {"score": result.score, "was": before[result.id].rank}
        gains = [told[name]["contribution"] for name in ("bm25", "plus", "dense")]
        assert math.fsum(gains) == pytest.approx(before[result.id].score)


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, -1, 2.0, "3", None])
def test_k_must_be_a_positive_integer(collection, k):
    with pytest.raises(ValueError, match=f"k is {k!r}"):
        collection.search("wing", k)


@pytest.mark.parametrize("k", [0, -1, 2.0])
def test_k_of_a_run_must_be_a_positive_integer(collection, k):
    for name in STAGES:
        with pytest.raises(ValueError, match=f"k is {k!r}"):
            stages(collection)[name].run(QUERIES, k)


@pytest.mark.parametrize("queries", [[None], [b"wing"], ["wing", 3], 7])
def test_queries_must_be_strings(collection, queries):
    with pytest.raises(TypeError):
        collection.search(queries)


def test_no_queries_have_no_answers(collection):
    assert collection.search([]) == []
    assert collection.hybrid.run({}) == {}


def test_where_on_a_field_that_no_document_has_names_those_that_exist(collection):
    with pytest.raises(CollectionError, match="no document has a field 'yaer'; the fields are: lang, year"):
        collection.search("wing", where="yaer > 3")
    assert collection.search("wing", where="lang = 'fr'") == []
    assert [r.id for r in collection.search("wing", where="id = 'd7'")] == ["d7"]
    with pytest.raises(WhereError):
        collection.search("wing", where="year >")


def test_stages_that_do_not_fit_are_refused_when_they_are_made(collection, tmp_path):
    bm, de = collection["bm25"], collection["dense"]
    with pytest.raises(ValueError, match="method='max'"):
        bm.fuse(de, method="max")
    with pytest.raises(ValueError, match="weights"):
        bm.fuse(de, weights=[1])
    with pytest.raises(ValueError, match="depth is 0"):
        Fusion([bm, de], depth=0)
    with pytest.raises(ValueError, match="top is 0"):
        Rerank(bm, ByLength(), top=0)
    other = Collection.create(tmp_path / "c", {"bm25": bm25()})
    with other, pytest.raises(ValueError, match="stages of one collection"):
        bm.fuse(other["bm25"])
