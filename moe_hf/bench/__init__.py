"""Experiments that measure finished models and write what they find to files."""
