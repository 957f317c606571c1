"""Indexes over dense vectors (n, d)."""
