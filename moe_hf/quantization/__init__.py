"""Experts stored in 8 or 4 bits: what says so, how transformers loads them, and how a folder of them is made."""
