"""The dense FFN equals GPT-2's own."""

import torch
from transformers import GPT2Config
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from moe_hf.layers.ffn.dense import DenseFFN


def test_equals_gpt2_s_ffn(tiny_config) -> None:
    torch.manual_seed(0)
    ours = DenseFFN(tiny_config()).eval()
    theirs = GPT2MLP(48, GPT2Config(n_embd=32)).eval()
    with torch.no_grad():
        theirs.c_fc.weight.copy_(ours.up_proj.weight.T)
        theirs.c_fc.bias.copy_(ours.up_proj.bias)
        theirs.c_proj.weight.copy_(ours.down_proj.weight.T)
        theirs.c_proj.bias.copy_(ours.down_proj.bias)
    x = torch.randn(3, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)


def test_width_is_the_ffn_s_unless_given(tiny_config) -> None:
    assert DenseFFN(tiny_config()).up_proj.weight.shape == (48, 32)
    assert DenseFFN(tiny_config(), width=20).down_proj.weight.shape == (32, 20)
