"""Packed experts give the reference's values, and say what cannot be packed."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.experts.activations import GATES, Activation
from moe_hf.ops.experts.cpu_gemm import onednn_available
from moe_hf.ops.experts.packed import pack_stack, packed_experts
from moe_hf.ops.experts.reference import reference_experts
from tests.ops.experts.problems import routes, stack_for, tokens_for

needs_onednn = pytest.mark.skipif(not onednn_available(torch.float32), reason="this PyTorch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("kind", ["random", "skips", "nothing"])
@pytest.mark.parametrize("biased", [True, False])
def test_packed_weights_give_the_reference_s_values(gate: str, kind: str, biased: bool) -> None:
    activation = Activation("silu", gate)
    x, (expert, weight), stack = tokens_for(), routes(kind), stack_for(activation, biased, transposed=biased)
    found = packed_experts(x, expert, weight, pack_stack(stack), activation)
    torch.testing.assert_close(found, reference_experts(x, expert, weight, stack, activation))


@needs_onednn
def test_no_chunk_is_larger_than_its_bytes_and_the_rest_is_the_stack_s() -> None:
    stack = stack_for(Activation("gelu"))
    packed = pack_stack(stack)
    assert packed.up_bias_EF is stack.up_bias_EF
    found = packed_experts(tokens_for(), *routes(), packed._replace(rows_per_chunk=2), Activation("gelu"))
    torch.testing.assert_close(found, packed_experts(tokens_for(), *routes(), packed, Activation("gelu")))


def test_a_type_that_cannot_be_packed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"got torch\.float64 on 'cpu'"):
        pack_stack(stack_for(Activation("gelu"), dtype=torch.float64))
