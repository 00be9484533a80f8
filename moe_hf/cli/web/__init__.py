"""The web page of a chat: a second face of the same session as the terminal."""
