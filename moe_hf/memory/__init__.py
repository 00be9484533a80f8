"""What outlives a context: facts of a conversation, and where they are kept."""
