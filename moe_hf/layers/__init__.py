"""Modules from which the skeleton builds a decoder layer."""
