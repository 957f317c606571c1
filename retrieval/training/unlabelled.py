"""Queries made from documents, for corpora without questions of their own: no label is ever looked at.

    titles          what the document is called
    leading         its first sentence
    key_phrases     the words that tell it from the others, as somebody types who knows what to look for
    inverse_cloze   one of its sentences, drawn at random
    generated       questions written by a sequence-to-sequence model (GenQ)

Each gives texts with the position of the document that they were made from, which is what they are to find; `mixed`
puts several together. The first four need no model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.analysis import analyzer
from retrieval.errors import MissingExtra, TrainingError

if TYPE_CHECKING:
    from retrieval.documents import Document
    from retrieval.retriever import Progress

COUNT = 10_000  # queries
WORDS = (2, 32)  # in a query: with fewer it says nothing; what is beyond is cut off
PHRASES = 3  # in a query
LENGTH = 3  # words in a phrase, at most
COMMON = 0.1  # a word in more documents than this share tells nothing of any
READ, WRITTEN = 384, 48  # tokens that a generator reads and writes
GENERATED_BATCH = 16

_SENTENCES = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n\s*\n")
_BETWEEN = re.compile(r"[\s\-]*")  # what may stand between the words of a phrase
_unicode = analyzer("unicode")


@dataclass(frozen=True)
class PseudoQueries:
    """`texts`, and for each the position of its document, `sources` int64 (m,).

    `rests`: of `inverse_cloze`, what is left of each document when its sentence is taken out, for who embeds that;
    None otherwise.
    """

    texts: list[str]
    sources: np.ndarray
    rests: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, places: np.ndarray) -> PseudoQueries:
        """Some of them, by place int64 (m,)."""
        rests = None if self.rests is None else [self.rests[i] for i in places]
        return PseudoQueries([self.texts[i] for i in places], self.sources[places], rests)


def titles(documents: Sequence[Document]) -> PseudoQueries:
    """The titles, of documents that have one."""
    return _gathered((i, _cut(document.title)) for i, document in enumerate(documents))


def leading(documents: Sequence[Document]) -> PseudoQueries:
    """The first sentence of each text."""
    return _gathered((i, next(map(_cut, _sentences(document.text)), "")) for i, document in enumerate(documents))


def key_phrases(documents: Sequence[Document], phrases: int = PHRASES) -> PseudoQueries:
    """The `phrases` best phrases of each document, of up to 3 words, that have no word in common, one after the other.

    The best: tf-idf, the number of times that it occurs in the document, times the sum over its words of log(n / df)
    among `documents`. No word of it is a number, a single letter or in more than a tenth of the documents, and no
    punctuation but hyphens lies within.
    """
    # of a stretch without spaces (Chinese, Thai) each pair of letters is a word, which joins no phrase
    spans = [[(a, b, term) for a, b, terms in _unicode.spans(d.contents) for term in terms] for d in documents]
    df = Counter(word for words in spans for word in {word for _, _, word in words})
    most = max(2.0, COMMON * len(documents))
    idf = {word: np.log((1 + len(documents)) / count) for word, count in df.items() if _tells(word) and count <= most}

    def best(document: Document, words: list[tuple[int, int, str]]) -> str:
        text, found, surface = document.contents, Counter[tuple[str, ...]](), dict[tuple[str, ...], str]()
        for first in range(len(words)):
            for last in range(first, min(first + LENGTH, len(words))):
                if words[last][2] not in idf:
                    break
                if last > first and not _BETWEEN.fullmatch(text, words[last - 1][1], words[last][0]):
                    break
                phrase = tuple(word for _, _, word in words[first : last + 1])
                found[phrase] += 1
                whole = text[words[first][0] : words[last][1]]
                surface.setdefault(phrase, whole if last > first or len(whole) == len(phrase[0]) else phrase[0])
        weights = {phrase: count * sum(idf[word] for word in phrase) for phrase, count in found.items()}
        taken: list[tuple[str, ...]] = []
        for phrase in sorted(weights, key=lambda phrase: (-weights[phrase], phrase)):
            if len(taken) < phrases and not {word for other in taken for word in other} & set(phrase):
                taken.append(phrase)
        return " ".join(" ".join(surface[phrase].split()) for phrase in taken)

    return _gathered((i, _cut(best(*both))) for i, both in enumerate(zip(documents, spans, strict=True)))


def inverse_cloze(documents: Sequence[Document], *, seed: int = 0) -> PseudoQueries:
    """A sentence of each text, drawn by `seed`, and in `rests` the text without it.

    Lee, Chang and Toutanova, "Latent Retrieval for Weakly Supervised Open Domain Question Answering", ACL 2019. Texts
    of one sentence are left out.
    """
    random = np.random.default_rng(seed)
    texts, sources, rests = [], [], []
    for i, document in enumerate(documents):
        sentences = list(_sentences(document.text))
        drawn = int(random.integers(max(1, len(sentences))))  # for each, so that one document changes no other's
        if len(sentences) > 1 and (text := _cut(sentences[drawn])):
            texts.append(text)
            sources.append(i)
            rests.append(" ".join([*sentences[:drawn], *sentences[drawn + 1 :]]))
    return PseudoQueries(texts, np.array(sources, np.int64), rests)


def generated(
    documents: Sequence[Document], model: str, *, each: int = 1, seed: int = 0, progress: Progress | None = None
) -> PseudoQueries:
    """`each` questions per document by a sequence-to-sequence model of transformers, by folder or hub name.

    GenQ of Thakur et al., "BEIR", 2021, for models trained to write the query of a document, such as those of
    docT5query (Nogueira and Lin, 2019). Drawn by `seed`, token by token, from the 25 likeliest that hold 95% of the
    probability, as GPL does; the first 384 tokens of title and text are read.
    Raises `TrainingError` (no such model), `MissingExtra`.
    """
    try:
        import torch
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
    except ModuleNotFoundError as problem:
        raise MissingExtra("transformers", "encoders", "writing queries by a model") from problem
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        writer: Any = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    except (OSError, ValueError, KeyError) as problem:
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise TrainingError(f"model {model!r} cannot be loaded as a sequence-to-sequence model: {reason}") from problem
    pairs: list[tuple[int, str]] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(documents), GENERATED_BATCH):
            texts = [document.contents for document in documents[start : start + GENERATED_BATCH]]
            read = tokenizer(texts, truncation=True, max_length=READ, padding=True, return_tensors="pt")
            read.pop("token_type_ids", None)  # of no use to encoder-decoders
            written = writer.generate(
                **read, do_sample=True, top_k=25, top_p=0.95, max_new_tokens=WRITTEN, num_return_sequences=each
            )
            lines = tokenizer.batch_decode(written, skip_special_tokens=True)
            pairs += [(start + i // each, _cut(line)) for i, line in enumerate(lines)]
            if progress:
                progress("writing queries", start + len(texts), len(documents))
    return _gathered(pairs)


# kind -> how queries of it are made from documents and a seed
KINDS: dict[str, Callable[[Sequence[Document], int], PseudoQueries]] = {
    "title": lambda documents, seed: titles(documents),
    "leading": lambda documents, seed: leading(documents),
    "phrases": lambda documents, seed: key_phrases(documents),
    "cloze": lambda documents, seed: inverse_cloze(documents, seed=seed),
}


def mixed(
    documents: Sequence[Document], kinds: Sequence[str] = ("auto",), *, count: int = COUNT, seed: int = 0,
    progress: Progress | None = None,
) -> PseudoQueries:  # fmt: skip
    """At most `count` queries of several kinds, each text once, in the order of documents; drawn by `seed`.

    `kinds`: "title", "leading", "phrases", "cloze" (see `KINDS`), "genq:MODEL", or "auto": the first four, of which
    each document gives those that it can. Raises `TrainingError`, also where nothing comes of it.
    """
    chosen = [kind for given in kinds for kind in (KINDS if given == "auto" else (given,))]
    made: dict[str, int] = {}
    for kind in dict.fromkeys(chosen):
        name, _, model = kind.partition(":")
        if kind in KINDS:
            found = KINDS[kind](documents, seed)
        elif name == "genq" and model:
            found = generated(documents, model, seed=seed, progress=progress)
        else:
            raise TrainingError(f"kind of queries {kind!r}: it must be one of auto, {', '.join(KINDS)}, genq:MODEL")
        for text, source in zip(found.texts, found.sources.tolist(), strict=True):
            made.setdefault(text, source)
    if not made:
        raise TrainingError(f"no query can be made from {len(documents)} documents by {', '.join(chosen)}")
    texts, sources = list(made), np.array(list(made.values()), np.int64)
    kept = np.random.default_rng(seed).permutation(len(texts))[:count]
    kept = kept[np.lexsort((kept, sources[kept]))]
    return PseudoQueries(texts, sources).part(kept)


def _gathered(pairs: Iterable[tuple[int, str]]) -> PseudoQueries:
    """Those that have a text."""
    kept = [(i, text) for i, text in pairs if text]
    return PseudoQueries([text for _, text in kept], np.array([i for i, _ in kept], np.int64))


def _sentences(text: str) -> Iterable[str]:
    """The sentences of a text that are long enough for a query."""
    return (sentence for sentence in map(str.strip, _SENTENCES.split(text)) if _cut(sentence))


def _cut(text: str) -> str:
    """The first words of a text, on one line; nothing where there are too few."""
    least, most = WORDS
    ends = [end for _, end, terms in _unicode.spans(text) for _ in terms]
    return " ".join(text[: ends[most - 1] if len(ends) > most else None].split()) if len(ends) >= least else ""


def _tells(word: str) -> bool:
    """Whether a word says something alone: an ideograph does, a letter or a number does not."""
    return ord(word) > 0x2E80 if len(word) == 1 else not word.isnumeric()
