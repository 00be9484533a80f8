"""Asks on real text whether experts buy anything per CPU second, against the best dense model of the same budget."""
