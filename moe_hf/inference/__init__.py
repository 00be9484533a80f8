"""Users of a finished model that talk with it: finding it, answering, keeping the conversation, showing the routing."""
