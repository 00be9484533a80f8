"""This package's experts look into a table of their own before transformers' global one."""

from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_hf.layers.experts.backends import EXPERTS_BACKENDS, register_experts_backends
from moe_hf.layers.experts.interface import OWN_EXPERTS_FUNCTIONS


def test_the_table_holds_our_backends_first_and_then_those_of_transformers() -> None:
    register_experts_backends()
    assert all(OWN_EXPERTS_FUNCTIONS[name] is backend for name, backend in EXPERTS_BACKENDS.items())
    assert OWN_EXPERTS_FUNCTIONS["grouped_mm"] is ALL_EXPERTS_FUNCTIONS["grouped_mm"]
    # Entered locally: other models' experts see what `register` gave them.
    assert "sorted" not in ALL_EXPERTS_FUNCTIONS._local_mapping
