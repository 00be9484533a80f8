"""Experts of any layout, and small models of others, for the tests of what computes them."""

import torch
from torch import nn
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PretrainedConfig,
)
from transformers.integrations.moe import use_experts_implementation

from moe_hf.layers.experts.activations import activation
from moe_hf.layers.experts.stack_of import stack_of
from moe_hf.ops.experts.reference import reference_experts

T, D, E, K, F = 11, 16, 4, 2, 8


class AnyExperts(nn.Module):
    """Experts of any layout that transformers' decorator knows; eager is the reference."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * 0.3)

        self.num_experts = E
        gated, transposed, biased = config.layout
        up, columns = ("gate_up_proj", 2 * F) if gated else ("up_proj", F)
        self.register_parameter(up, draw(E, D, columns) if transposed else draw(E, columns, D))
        self.down_proj = draw(E, F, D) if transposed else draw(E, D, F)
        if biased:
            self.register_parameter(f"{up}_bias", draw(E, columns))
            self.down_proj_bias = draw(E, D)
        self.act_fn = activation(config.hidden_act)

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        return reference_experts(x_TD, expert_TK, weight_TK, *stack_of(self))


def make(backend: str, act: str, dtype: torch.dtype, gated: bool, transposed: bool, biased: bool) -> nn.Module:
    # The decorator changes the class it is given.
    kind = type("Experts", (AnyExperts,), {})
    kind.__init__, kind.forward = AnyExperts.__init__, AnyExperts.forward
    kind = use_experts_implementation(has_gate=gated, is_transposed=transposed, has_bias=biased)(kind)
    config = PretrainedConfig(hidden_act=act, layout=(gated, transposed, biased))
    config._experts_implementation = backend
    return kind(config).to(dtype)


def routes(skips: bool, tokens: int = T) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    expert = torch.rand(tokens, E, generator=generator).topk(K).indices
    weight = torch.rand(tokens, K, generator=generator) + 0.1
    if skips:
        expert[::2, 1] = E
        # transformers' own backends want skipped slots to weigh nothing as well.
        weight[::2, 1] = 0
    return expert, weight


def tokens_for(dtype: torch.dtype = torch.float32, tokens: int = T) -> torch.Tensor:
    return torch.randn(tokens, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def value_and_gradients(experts: nn.Module, x, expert, weight) -> dict[str, torch.Tensor]:
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    out = experts(x, expert, weight)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    found = {name: parameter.grad for name, parameter in experts.named_parameters()}
    return {**found, "out": out.detach(), "x": x.grad, "weight": weight.grad}


def assert_equal_within(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name].float(),
            value.float(),
            # The floor is for what is zero in exact arithmetic, as the gradient of a key's bias.
            atol=tolerance * max(value.abs().max().item(), 1e-2),
            rtol=0,
            msg=lambda text, name=name: f"{name}: {text}",
        )


TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS = {
    "mixtral": (MixtralForCausalLM, lambda: MixtralConfig(num_local_experts=4, **TINY)),
    "olmoe": (OlmoeForCausalLM, lambda: OlmoeConfig(num_experts=4, **TINY)),
    "gpt_oss": (GptOssForCausalLM, lambda: GptOssConfig(num_local_experts=4, head_dim=8, **TINY)),
}
