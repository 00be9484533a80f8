"""Sparse attention: the top-k keys of each query, and the top-k blocks."""
