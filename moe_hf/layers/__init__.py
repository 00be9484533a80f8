"""Modules from which the skeleton builds a decoder layer."""

# First, while no module of this room is half imported: with transformers comes `moe_hf.public`, which needs them all.
import transformers  # noqa: F401
