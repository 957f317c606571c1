"""Snippets: the part of a text that answers a query best, and where the query's words stand in it."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass

from retrieval.analysis.base import Analyzer

LOOKED_AT = 100_000


@dataclass(frozen=True)
class Snippet:
    """A part of a text; `highlights` are (start, end) positions in `text`; `cut` tells which ends were cut off."""

    text: str
    highlights: tuple[tuple[int, int], ...]
    cut: tuple[bool, bool]

    def marked(self, before: str = "**", after: str = "**") -> str:
        """The text with every highlight between `before` and `after`, and ... where it was cut."""
        parts, last = [], 0
        for start, end in self.highlights:
            parts += [self.text[last:start], before, self.text[start:end], after]
            last = end
        parts.append(self.text[last:])
        return ("... " if self.cut[0] else "") + "".join(parts) + (" ..." if self.cut[1] else "")


def snippet(text: str, terms: Set[str], analyzer: Analyzer, width: int = 240) -> Snippet:
    """The window of about `width` characters that holds most different `terms` (then most of them in all).

    Of a longer text only the first 100,000 characters are looked at, so that a book takes no longer than a report.
    """
    longer, text = len(text) > LOOKED_AT, " ".join(text[:LOOKED_AT].split())
    spans = list(analyzer.spans(text))
    found = [(start, end, own & terms) for start, end, own in ((a, b, set(t)) for a, b, t in spans) if own & terms]
    best, score, first = 0, (0, 0), 0
    inside: Counter[str] = Counter()
    for last, (_, end, own) in enumerate(found):
        inside.update(own)
        while first <= last and found[first][0] + width < end:
            inside.subtract(found[first][2])
            inside = +inside
            first += 1
        value = (len(inside), last - first + 1)
        if value > score:
            best, score = found[first][0], value
    # a little of what comes before, from the beginning of a word
    starts = [start for start, _, _ in spans]
    begin = starts[bisect_left(starts, max(0, best - width // 6))] if best and starts else 0
    end = max((stop for _, stop, _ in spans if stop <= begin + width), default=min(len(text), begin + width))
    if len(text) - end < 20:
        end = len(text)
    marks = tuple((a - begin, b - begin) for a, b, _ in found if a >= begin and b <= end)
    return Snippet(text[begin:end], marks, (begin > 0, longer or end < len(text)))
