"""Model cards: the README of a model, written by one hand wherever the model comes from."""
