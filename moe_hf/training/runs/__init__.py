"""One training run: from the words of its settings to the report it leaves on disk."""
