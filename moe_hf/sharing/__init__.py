"""Shares models: pushes folders to the Hub, and pulls them from it."""
