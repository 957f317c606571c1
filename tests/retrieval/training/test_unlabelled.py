"""Queries made from documents: where they come from, by seed, and without labels."""

import numpy as np
import pytest

from retrieval import Document
from retrieval.errors import TrainingError
from retrieval.training import unlabelled
from retrieval.training.unlabelled import KINDS, inverse_cloze, key_phrases, leading, mixed, titles

SENTENCES = ["Panels flutter at speed.", "The boundary layer separates early!", "Is it so?", "Nobody knows."]
DOCUMENTS = [
    Document("a", " ".join(SENTENCES), "Flutter of panels"),
    Document("b", "One sentence about heat only", ""),
    Document("c", "", "Empty text here"),
    Document("d", "Short. Wings stall when the angle grows too large.", "Wings"),
]


def by_source(made):
    return dict(zip(made.sources.tolist(), made.texts, strict=True))


def test_titles_and_leading_sentences_are_taken_where_there_are_some_of_two_words():
    assert by_source(titles(DOCUMENTS)) == {0: "Flutter of panels", 2: "Empty text here"}
    assert by_source(leading(DOCUMENTS)) == {
        0: "Panels flutter at speed.",
        1: "One sentence about heat only",
        3: "Wings stall when the angle grows too large.",
    }


def test_long_texts_are_cut_at_32_words_and_put_on_one_line():
    text = "\n".join(f"word{i}" for i in range(50))
    assert titles([Document("a", "", text)]).texts == [" ".join(f"word{i}" for i in range(32))]


def test_sentences_of_chinese_end_without_a_space():
    assert by_source(leading([Document("a", "机翼失速很危险。然后是别的。")])) == {0: "机翼失速很危险。"}


def test_key_phrases_of_chinese_are_pairs_of_letters():
    (text,) = key_phrases([Document("a", "机翼失速"), Document("b", "?")]).texts
    assert text.split() == ["失速", "机翼", "翼失"]


def test_a_cloze_is_a_sentence_and_what_is_left_lacks_it():
    seen = set()
    for seed in range(30):
        made = inverse_cloze(DOCUMENTS, seed=seed)
        assert made.sources.tolist() == [0]  # the others have one sentence or none, of two words or more
        (text,), (rest,) = made.texts, made.rests
        assert text in SENTENCES and rest == " ".join(s for s in SENTENCES if s != text)
        seen.add(text)
    assert len(seen) == 4


def test_key_phrases_are_the_words_that_others_lack():
    common = [Document(str(i), f"the wing of the plane number {i}") for i in range(20)]
    special = Document("s", "the wing, laminar flow of the plane; laminar flow again. 1234 x")
    made = key_phrases([*common, special], phrases=1)
    assert by_source(made)[20] == "laminar flow"
    # "flow of" would cross a common word, and "wing, laminar" a comma; numbers and letters say nothing
    assert by_source(key_phrases([*common, special], phrases=9))[20] == "laminar flow again"
    assert set(by_source(made)) == {20}  # the others have common words and numbers


def test_no_word_is_in_two_phrases_of_a_query():
    made = key_phrases([Document("a", "red green. green blue. red blue yellow.")])
    (text,) = made.texts
    assert len(text.split()) == len(set(text.split()))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_the_same_for_the_same_seed_and_names_its_source(kind):
    texts = [f"Number{i} is here today. It was there{i} before." for i in range(30)]
    documents = [Document(str(i), text, f"Title of{i}") for i, text in enumerate(texts)]
    one, two = (KINDS[kind](documents, 7) for _ in range(2))
    assert one.texts == two.texts and np.array_equal(one.sources, two.sources) and len(one) == 30
    for text, source in zip(one.texts, one.sources.tolist(), strict=True):
        assert str(source) in text


def test_a_mix_has_each_text_once_and_no_more_than_asked_for():
    made = mixed(DOCUMENTS, count=100)
    assert len(set(made.texts)) == len(made.texts) and set(titles(DOCUMENTS).texts) < set(made.texts)
    assert np.array_equal(made.sources, np.sort(made.sources))
    few = mixed(DOCUMENTS, count=3, seed=1)
    assert len(few) == 3 and set(few.texts) < set(made.texts) | set(inverse_cloze(DOCUMENTS, seed=1).texts)
    assert mixed(DOCUMENTS, count=3, seed=1).texts == few.texts
    assert {tuple(mixed(DOCUMENTS, count=3, seed=s).texts) for s in range(9)} != {tuple(few.texts)}
    assert mixed(DOCUMENTS, ["title"]).texts == titles(DOCUMENTS).texts


@pytest.mark.parametrize("kind", ["titles", "genq", "genq:", "x:y"])
def test_unknown_kinds_are_named(kind):
    with pytest.raises(TrainingError, match=f"'{kind}'.*auto, title, leading, phrases, cloze, genq:MODEL"):
        mixed(DOCUMENTS, [kind])


def test_nothing_to_make_a_query_of_is_an_error():
    with pytest.raises(TrainingError, match="no query can be made from 1 documents by title"):
        mixed([Document("a", "text without a title")], ["title"])


# -- GenQ ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A small T5 with random weights and a tokenizer of our own words: real code, no download."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = str(tmp_path_factory.mktemp("t5"))
    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(40))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = transformers.T5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_model_writes_queries_that_know_their_document(writer):
    documents = [Document(str(i), f"w{i} w{i + 1} w{i + 2}") for i in range(20)]
    told = []
    made = unlabelled.generated(documents, writer, each=2, seed=3, progress=lambda *now: told.append(now[1:]))
    counts = np.bincount(made.sources, minlength=20)
    assert counts.max() == 2 and len(made) > 20 and told == [(16, 20), (20, 20)]
    assert all(word.startswith("w") or word == "<unk>" for text in made.texts for word in text.split())
    again = unlabelled.generated(documents, writer, each=2, seed=3)
    assert again.texts == made.texts and np.array_equal(again.sources, made.sources)
    assert unlabelled.generated(documents, writer, each=2, seed=4).texts != made.texts
    assert set(mixed(documents, [f"genq:{writer}"], seed=3).sources) <= set(range(20))


def test_writing_draws_nothing_from_the_callers_random_numbers(writer):
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    unlabelled.generated(DOCUMENTS, writer)
    assert torch.equal(torch.rand(3), expected)


def test_a_model_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(TrainingError, match=r"nothing-here.*sequence-to-sequence"):
        unlabelled.generated(DOCUMENTS, str(tmp_path / "nothing-here"))
