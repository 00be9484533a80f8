"""Measures the mixers against transformers, attention and other forms of themselves: time, memory and decoding."""
