"""A dense model's configuration keeps what a family has too, and is refused where a value cannot be kept."""

import pytest

from moe_hf import CheckpointError
from moe_hf.config.translation import renamed, require_value


def test_only_fields_that_the_family_has_are_kept_by_its_own_names() -> None:
    dense = {"n_embd": 8, "eos_token_id": 3, "dtype": "float16", "n_ctx": 7, "vocab_size": 9, "hidden_size": 5}
    kept = renamed(dense, {"n_embd": "width"}, same="vocab_size")
    assert kept == {"width": 8, "eos_token_id": 3, "dtype": "float16", "vocab_size": 9}


@pytest.mark.parametrize("dense", [{}, {"act": "silu"}, {"act": "swish"}])
def test_a_value_that_can_be_reproduced_passes_and_may_be_left_out(dense) -> None:
    require_value("Model", dense, "act", "silu", "swish")


def test_another_value_is_named_with_the_one_that_can() -> None:
    with pytest.raises(CheckpointError, match="the dense Model sets act='gelu'; only 'silu' can be carried over"):
        require_value("Model", {"act": "gelu"}, "act", "silu", "swish")
