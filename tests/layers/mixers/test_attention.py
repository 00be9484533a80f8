"""Attention: the kernels agree, and the reference is torch's own."""

import pytest
import torch

from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.attention import CausalAttention, eager_attention


def causal(length: int) -> torch.Tensor:
    return torch.full((length, length), float("-inf")).triu(1)[None, None]


def test_the_reference_equals_torch_s_attention() -> None:
    query, key, value = torch.randn(3, 2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    out, weight = eager_attention(torch.nn.Module().eval(), query, key, value, causal(5), scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.5)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    torch.testing.assert_close(weight.sum(-1), torch.ones(2, 3, 5))
    assert weight.triu(1).abs().max() == 0


def test_the_reference_drops_weights_in_training_only() -> None:
    query, key, value = torch.randn(3, 2, 3, 50, 4, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Module()
    for training in (True, False):
        module.train(training)
        weight = eager_attention(module, query, key, value, None, scaling=0.5, dropout=0.5)[1]
        assert ((weight == 0).float().mean() > 0.4).item() == training


@pytest.mark.parametrize(("by_layer", "divisor"), [(False, 1), (True, 3)])
def test_scores_may_be_divided_by_the_layer_s_number(tiny_config, by_layer: bool, divisor: int) -> None:
    attention = MIXERS["attention"](tiny_config(scale_attn_by_inverse_layer_idx=by_layer), layer_idx=2)
    assert isinstance(attention, CausalAttention)
    assert attention.scaling == pytest.approx(8**-0.5 / divisor)


def assert_equals_eager(tiny_model, token_ids: torch.Tensor, kernel: str, padded: bool, position: str) -> None:
    # FlexAttention on CPU has no backward and refuses inputs that need one.
    reference = tiny_model(attn_implementation="eager", position_embedding_type=position).requires_grad_(False)
    model = tiny_model(attn_implementation=kernel, position_embedding_type=position).requires_grad_(False)
    mask = torch.ones_like(token_ids)
    mask[0, :3] = 0
    mask[1, 5:] = 0
    given = {"attention_mask": mask} if padded else {}
    out, expected = model(token_ids, **given).logits, reference(token_ids, **given).logits
    shown = mask.bool() if padded else slice(None)
    torch.testing.assert_close(out[shown], expected[shown], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_sdpa_equals_eager(tiny_model, token_ids: torch.Tensor, padded: bool, position: str) -> None:
    assert_equals_eager(tiny_model, token_ids, "sdpa", padded, position)


# FlexAttention goes through parts of torch that torch itself calls outdated, and says that uncompiled it is slow.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("stance", ["force_eager", pytest.param("default", marks=pytest.mark.slow)])
def test_flex_attention_equals_eager(tiny_model, token_ids: torch.Tensor, padded: bool, stance: str) -> None:
    with torch.compiler.set_stance(stance):
        assert_equals_eager(tiny_model, token_ids, "flex_attention", padded, "learned")


def test_sdpa_and_eager_agree_in_gradient(tiny_model, token_ids: torch.Tensor) -> None:
    gradients = []
    for kernel in ("eager", "sdpa"):
        model = tiny_model(attn_implementation=kernel)
        model(token_ids, labels=token_ids).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-4, msg=name)


def test_switching_the_kernel_really_switches(tiny_model, token_ids: torch.Tensor) -> None:
    model = tiny_model(attn_implementation="eager")
    model.set_attn_implementation("sdpa")
    assert all(layer.mixer.config._attn_implementation == "sdpa" for layer in model.model.layers)
    assert not model(token_ids, output_attentions=True).attentions
    model.set_attn_implementation("eager")
    attentions = model(token_ids, output_attentions=True).attentions
    assert [tuple(weight.shape) for weight in attentions] == [(3, 4, 7, 7)] * 4


def test_a_registered_kernel_with_its_mask_is_called(tiny_model, token_ids: torch.Tensor) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    calls = []

    def counted(module, *args, **kwargs):
        calls.append(module.layer_idx)
        return eager_attention(module, *args, **kwargs)

    AttentionInterface.register("counted", counted)
    AttentionMaskInterface.register("counted", eager_mask)
    expected = tiny_model(attn_implementation="eager")(token_ids).logits
    assert tiny_model(attn_implementation="counted")(token_ids).logits.equal(expected)
    assert calls == [0, 1, 2, 3]


def test_two_models_of_one_configuration_share_kernels_and_a_copy_does_not(tiny_config) -> None:
    import copy

    from moe_hf import GPT2WithMoE

    config = tiny_config(attn_implementation="sdpa")
    # transformers keeps the choice on the configuration, so whoever shares one shares the other.
    one, shared, own = GPT2WithMoE(config), GPT2WithMoE(config), GPT2WithMoE(copy.deepcopy(config))
    one.set_attn_implementation("eager")
    one.set_experts_implementation("batched_mm")
    assert (shared.config._attn_implementation, shared.config._experts_implementation) == ("eager", "batched_mm")
    assert (own.config._attn_implementation, own.config._experts_implementation) == ("sdpa", "auto")
