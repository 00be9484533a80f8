"""Triton twins of the routing ops; nothing imports them where Triton is absent."""
