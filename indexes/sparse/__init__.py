"""Indexes over sparse vectors (scipy CSR, (n, V)): lexical counts and learned sparse weights."""
