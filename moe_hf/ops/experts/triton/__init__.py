"""Triton twins of the experts; nothing imports them where Triton is absent."""
