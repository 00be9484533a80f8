"""Moves information along the sequence: recurrences and convolutions, under one contract."""
