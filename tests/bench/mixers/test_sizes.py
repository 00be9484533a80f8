"""Where a number of a mixer was measured, in a few words."""

from moe_hf.bench.harness.arms import DECODE, FORWARD
from moe_hf.bench.mixers.sizes import LayerSize


def test_a_decoded_token_comes_after_its_context_and_its_time_is_per_token():
    size = LayerSize(768, 8192)
    assert size.place("Hyena", DECODE) == "Hyena, decode, after 8,192 tokens, width 768"
    assert size.title("Hyena", DECODE) == "Hyena, decode, after 8,192 tokens, width 768, per token"
    assert size.title("Hyena", FORWARD) == size.place("Hyena", FORWARD) == "Hyena, forward, 8,192 tokens, width 768"
    assert size.threads == 1
