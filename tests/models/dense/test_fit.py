"""A dense checkpoint becomes a model with its own logits or is refused: no weight is lost, none is fresh."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from moe_hf import CheckpointError, GPT2WithMoE, MambaWithMoE, RetNetWithMoE, RWKVWithMoE
from moe_hf.models.dense import fit as dense_fit
from moe_hf.models.dense.source import DenseSource
from moe_hf.models.upcycling.directory import upcycle_directory

D, LAYERS = 32, 2
SHAPE: dict[str, Any] = {"vocab_size": 53, "hidden_size": D, "num_hidden_layers": LAYERS}


def gpt2(**fields: Any) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=53, n_embd=D, n_layer=LAYERS, n_head=4, n_positions=40, **fields))


DENSE: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": lambda: gpt2(bos_token_id=0, eos_token_id=0),
    "gpt2-untied": lambda: gpt2(bos_token_id=0, eos_token_id=0, tie_word_embeddings=False),
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SHAPE, state_size=5, use_bias=True)),
    "mamba2": lambda: Mamba2ForCausalLM(
        Mamba2Config(**SHAPE, num_heads=8, head_dim=8, n_groups=1, state_size=6, chunk_size=8, pad_token_id=0)
    ),
    "falcon": lambda: FalconMambaForCausalLM(FalconMambaConfig(**SHAPE, state_size=5)),
    "rwkv4": lambda: RwkvForCausalLM(RwkvConfig(**SHAPE, intermediate_size=48, context_length=64, rescale_every=0)),
}


def retnet_tensors() -> dict[str, torch.Tensor]:
    """By flash-linear-attention's names: 2 heads, values twice as wide as keys."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (D,), "mlp_norm": (D,), "attn.g_norm_swish_gate": (D,)}
    shapes |= {"attn.q_proj": (D, D), "attn.k_proj": (D, D), "attn.v_proj": (2 * D, D), "attn.g_proj": (2 * D, D)}
    shapes |= {"attn.o_proj": (D, 2 * D), "mlp.gate_proj": (40, D), "mlp.up_proj": (40, D), "mlp.down_proj": (D, 40)}
    names = {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in shapes.items()}
    names |= {"model.embeddings.weight": (53, D), "model.norm.weight": (D,), "lm_head.weight": (53, D)}
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in names.items()}


RETNET = {**SHAPE, "model_type": "retnet", "num_heads": 2, "expand_v": 2, "intermediate_size": 40}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, make in DENSE.items():
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        make().save_pretrained(made[name])
    for name, changes in {
        "retnet": {},
        "retnet-ungated": {"use_output_gate": False},
        "retnet-plain": {"elementwise_affine": False},
    }.items():
        made[name] = tmp_path_factory.mktemp(name)
        (made[name] / "config.json").write_text(json.dumps({**RETNET, **changes}))
        save_file(retnet_tensors(), made[name] / "model.safetensors", metadata={"format": "pt"})
    return made


CLASSES = {"gpt2": GPT2WithMoE, "mamba": MambaWithMoE, "falcon": MambaWithMoE, "mamba2": MambaWithMoE}
CLASSES |= {"rwkv4": RWKVWithMoE, "retnet": RetNetWithMoE}


@pytest.mark.parametrize(
    ("kind", "overrides", "text"),
    [
        ("gpt2", {"norm_type": "rms"}, "norm_type='layer' describes, but norm_type='rms'"),
        ("gpt2", {"mlp_bias": False}, "mlp_bias=True describes"),
        ("gpt2", {"attention_bias": False}, "attention_bias=True describes"),
        ("gpt2", {"mlp_placement": "interleaved"}, "mlp_placement='each' describes"),
        (
            "gpt2",
            {"mlp_layer_types": ["none", "sparse"]},
            r"gives 6 that the model would drop \(model.layers.0.mlp.down_proj.bias, ",
        ),
        ("gpt2", {"mlp_token_shift": "rwkv7"}, "mlp_token_shift='none' describes"),
        ("gpt2", {"mlp_gated": True}, "mlp_gated=False describes"),
        ("gpt2", {"embedding_norm": True}, "embedding_norm=False describes"),
        ("gpt2", {"mixer": "retention"}, "attention in every layer, but mixer='retention'"),
        ("gpt2", {"hidden_act": "relu"}, "hidden_act='gelu_new', but 'relu' is asked for"),
        ("gpt2", {"n_head": 2}, "num_attention_heads=4, but 2 is asked for"),
        ("gpt2", {"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon=1e-05, but 0.001"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=False, but True"),
        ("gpt2-untied", {"tie_word_embeddings": True}, "a head that is not its embedding, but tie_word_embeddings"),
        ("mamba", {"mlp_token_shift": "rwkv4"}, "mlp_token_shift='none' describes"),
        ("mamba2", {"embedding_norm": True}, "embedding_norm=False describes"),
        ("mamba2", {"tie_word_embeddings": True}, "a head that is not its embedding"),
        ("mamba", {"mamba_use_conv_bias": False}, "no place for 2 of them: .*layers.0.mixer.conv1d.bias"),
        ("mamba", {"mamba_use_bias": False}, r"no place for 4 of them: .*mixer.in_proj.bias"),
        ("falcon", {"mamba_bcdt_norm_eps": None}, "mamba_bcdt_norm_eps=1e-06, but None"),
        ("mamba", {"mamba_bcdt_norm_eps": 1e-6}, "mamba_bcdt_norm_eps=None, but 1e-06"),
        ("retnet", {"retention_gate": False}, "no place for 2 of them: model.layers.0.attn.g_proj.weight"),
        ("retnet", {"retention_norm_affine": False}, "no place for 2 of them: .*attn.g_norm_swish_gate"),
        ("retnet-ungated", {}, "no place for 2 of them: .*g_proj.* correct its config.json"),
        ("retnet-plain", {}, "no place for 2 of them: .*g_norm_swish_gate"),
        ("retnet", {"retention_rotation": "none"}, "retention_rotation='half', but 'none'"),
        ("retnet", {"retention_norm": "layer"}, "retention_norm='rms', but 'layer'"),
        ("retnet", {"retention_rope_theta": 5e4}, "retention_rope_theta=10000.0, but 50000.0"),
        ("retnet", {"hidden_act": "gelu"}, "hidden_act='silu', but 'gelu'"),
        ("retnet", {"num_heads": 4}, "retention_heads=2, but 4"),
        ("retnet", {"embedding_norm": True}, "embedding_norm=False describes"),
        ("retnet", {"tie_word_embeddings": True}, "a head that is not its embedding"),
        ("rwkv4", {"mlp_layer_types": ["none", "sparse"]}, r"that the model would drop \(model.layers.0.mlp"),
        ("rwkv4", {"embedding_norm": False}, r"that the model would drop \(model.embed_norm.bias"),
        ("rwkv4", {"hidden_act": "relu"}, "hidden_act='relu2', but 'relu'"),
        ("rwkv4", {"tie_word_embeddings": True}, "a head that is not its embedding"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value if "=" not in value else "",
)
def test_what_would_not_keep_the_logits_is_refused_on_both_paths(folders, tmp_path, kind, overrides, text) -> None:
    with pytest.raises(CheckpointError, match=text):
        CLASSES[kind.partition("-")[0]].from_pretrained(folders[kind], **overrides)
    with pytest.raises(CheckpointError, match=text):
        upcycle_directory(str(folders[kind]), tmp_path / "moe", **overrides)
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("gpt2", {"activation_function": "gelu_pytorch_tanh", "resid_dropout": 0.1, "mixer_short_conv": 3}),
        ("gpt2-untied", {"router_type": "sigmoid_bias", "num_experts": 4}),
        ("gpt2", {"tie_word_embeddings": False, "mlp_layer_types": ["dense"] * LAYERS}),
        ("mamba", {"mlp_placement": "interleaved", "num_hidden_layers": 2 * LAYERS, "hidden_act": "relu"}),
        ("mamba2", {"mamba_time_step_limit": [0.0, 1e9]}),
        ("rwkv4", {"shared_expert_intermediate_size": 8}),
    ],
)
def test_what_keeps_them_still_loads_on_both_paths(folders, tmp_path, kind, overrides) -> None:
    ids = torch.randint(1, 53, (2, 17), generator=torch.Generator().manual_seed(1))
    upcycle_directory(str(folders[kind]), tmp_path / "moe", **overrides)
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(folders[kind]).eval()(ids, use_cache=False).logits
        for model in (
            CLASSES[kind.partition("-")[0]].from_pretrained(folders[kind], **overrides),
            AutoModelForCausalLM.from_pretrained(tmp_path / "moe"),
        ):
            torch.testing.assert_close(model.eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_weights_that_no_part_of_the_model_reads_are_named_and_masks_are_not(folders, tmp_path) -> None:
    tensors = load_file(folders["gpt2"] / "model.safetensors")
    (tmp_path / "config.json").write_text((folders["gpt2"] / "config.json").read_text())
    tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 40, 40).tril()
    tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["multiple_choice_head.summary.weight"] = torch.ones(1, D)
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    GPT2WithMoE.from_pretrained(tmp_path)
    tensors["transformer.h.1.adapter.weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no place for 1 of them: transformer\.h\.1\.adapter\.weight; drop"):
        GPT2WithMoE.from_pretrained(tmp_path)


def test_a_head_under_its_own_name_that_is_the_embedding_may_be_tied(folders, tmp_path) -> None:
    tensors = load_file(folders["gpt2-untied"] / "model.safetensors")
    (tmp_path / "config.json").write_text((folders["gpt2-untied"] / "config.json").read_text())
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = GPT2WithMoE.from_pretrained(tmp_path, tie_word_embeddings=True)
    assert model.lm_head.weight.equal(tensors["lm_head.weight"])


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"mlp_gated": True}, r"cannot give 4 of the model's tensors \(model\.layers\.0\.mlp\.experts\.gate_up"),
        ({"mlp_bias": False}, r"gives 4 that the model would drop \(model\.layers\.0\.mlp\.experts\.down_proj_bias"),
        ({"mlp_token_shift": "rwkv4"}, r"model's tensors \(model\.layers\.0\.mlp\.inner\..* and gives .* would drop"),
        (
            {"mixer": "retention", "attention_bias": False},
            r"model's tensors \(.*g_proj\.weight.* and gives .* would drop",
        ),
    ],
    ids=str,
)
def test_the_comparison_of_tensors_alone_finds_what_a_format_forgets_to_check(
    folders, monkeypatch, overrides, text
) -> None:
    monkeypatch.setattr(DenseSource, "misfit", lambda *_: None)
    monkeypatch.setattr(dense_fit, "_require_fixed_fields", lambda *_: None)
    with pytest.raises(CheckpointError, match=text):
        GPT2WithMoE.from_pretrained(folders["gpt2"], **overrides)
