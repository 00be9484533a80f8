"""Turns the folder of a dense model into that of a Mixture of Experts, or of one into a larger or a dense one."""
