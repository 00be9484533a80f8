"""Choosing experts for tokens: weights, hashes, capacity, balance losses and statistics of load."""
