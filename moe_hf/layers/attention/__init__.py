"""Attention implementations, and the rows and positions that packed documents give them."""
