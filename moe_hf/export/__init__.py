"""Users of a finished model that write it as other programs read it."""
