"""Experiments that train models and report on them, each a script of its own."""
