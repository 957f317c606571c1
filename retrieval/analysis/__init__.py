"""Analyzers: text to index terms, for lexical search.

``analyzer("english")`` is Lucene's EnglishAnalyzer token for token; other names give a Unicode analyzer for every other
language, or a Hugging Face tokenizer. An index keeps the `Analyzer.settings` of the analyzer that it was built with.
"""

from retrieval.analysis.base import Analyzer, UnknownAnalyzer, analyzer, load_analyzer

__all__ = ["Analyzer", "UnknownAnalyzer", "analyzer", "load_analyzer"]
