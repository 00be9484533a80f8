"""Words on a command line become one call; the only room that prints."""
