"""Indexes over packed binary codes (uint8, (n, nbytes)), and over dense vectors that are kept as such codes."""
