"""Turns the folder of a dense model into the folder of a Mixture of Experts."""
