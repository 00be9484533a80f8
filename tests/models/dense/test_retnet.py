"""Dense RetNets: checkpoints in flash-linear-attention's layout give their own function, experts or not."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from moe_hf import (
    CheckpointError,
    RetNetWithMoE,
    RetNetWithMoEForSequenceClassification,
    RetNetWithMoEModel,
)
from moe_hf.models.upcycling.directory import upcycle_directory

VOCAB, D, H, K, V, F_, LAYERS = 31, 16, 2, 8, 12, 20, 3
CONFIG = {
    "model_type": "retnet",
    "vocab_size": VOCAB,
    "hidden_size": D,
    "num_heads": H,
    "expand_k": 1.0,
    "expand_v": 1.5,
    "intermediate_size": F_,
    "num_hidden_layers": LAYERS,
    "norm_eps": 1e-5,
    "max_position_embeddings": 64,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def dense_tensors() -> dict[str, torch.Tensor]:
    """The tensors of a small RetNet by flash-linear-attention's names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)

    tensors = {
        "model.embeddings.weight": draw(VOCAB, D),
        "model.norm.weight": draw(D),
        "lm_head.weight": draw(VOCAB, D),
    }
    for layer in range(LAYERS):
        parts = {"attn_norm": draw(D), "mlp_norm": draw(D), "attn.g_norm_swish_gate": draw(V)}
        parts |= {"attn.q_proj": draw(H * K, D), "attn.k_proj": draw(H * K, D)}
        parts |= {"attn.v_proj": draw(H * V, D), "attn.g_proj": draw(H * V, D), "attn.o_proj": draw(D, H * V)}
        parts |= {"mlp.gate_proj": draw(F_, D), "mlp.up_proj": draw(F_, D), "mlp.down_proj": draw(D, F_)}
        tensors |= {f"model.layers.{layer}.{name}.weight": value for name, value in parts.items()}
    return tensors


def dense_logits(tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """What flash-linear-attention's RetNet computes, in its parallel form."""

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    n = torch.arange(ids.shape[1])
    angle = n[:, None] * 10000.0 ** (-2 * torch.arange(K // 2) / K)
    gamma = (1 - 2.0 ** (-5.0 - torch.arange(H)))[:, None, None]
    decay = torch.where(n[:, None] >= n, gamma ** (n[:, None] - n), 0.0)

    def turned(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], -1)

    x = F.embedding(ids, tensors["model.embeddings.weight"])
    for layer in range(LAYERS):
        part = {
            name.split(f"layers.{layer}.")[-1]: value for name, value in tensors.items() if f"layers.{layer}." in name
        }
        y = normed(x, part["attn_norm.weight"])
        query, key, value, gate = (
            (y @ part[f"attn.{name}_proj.weight"].T).unflatten(-1, (H, -1)).transpose(1, 2) for name in "qkvg"
        )
        out = (turned(query) @ turned(key).mT * K**-0.5 * decay) @ value
        out = normed(out, part["attn.g_norm_swish_gate.weight"]) * F.silu(gate)
        x = x + out.transpose(1, 2).flatten(2) @ part["attn.o_proj.weight"].T
        y = normed(x, part["mlp_norm.weight"])
        inner = F.silu(y @ part["mlp.gate_proj.weight"].T) * (y @ part["mlp.up_proj.weight"].T)
        x = x + inner @ part["mlp.down_proj.weight"].T
    return normed(x, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T


def write(folder: Path, tensors: dict[str, torch.Tensor], **changes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return dense_tensors()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, VOCAB, (2, 19), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "overrides",
    [
        {"mlp_layer_types": ["dense"] * LAYERS},
        {"num_experts": 4, "num_experts_per_tok": 2},
        {"mlp_layer_types": ["sparse"] * LAYERS, "num_experts": 3, "shared_expert_intermediate_size": 6},
    ],
)
def test_a_dense_retnet_loads_as_the_same_function(tmp_path, tensors, ids, overrides) -> None:
    folder = write(tmp_path, tensors)
    model, report = RetNetWithMoE.from_pretrained(folder, output_loading_info=True, **overrides)
    assert not any(report.values())
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, dense_logits(tensors, ids), **CLOSE)


def test_a_saved_mixture_is_read_back_by_the_auto_class(tmp_path, tensors, ids) -> None:
    RetNetWithMoE.from_pretrained(write(tmp_path, tensors)).save_pretrained(tmp_path / "moe")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "moe").eval()
    assert type(loaded) is RetNetWithMoE
    assert sum("experts" in name for name, _ in loaded.named_parameters()) > 0
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, dense_logits(tensors, ids), **CLOSE)


def test_the_upcycled_folder_gives_the_dense_logits(tmp_path, tensors, ids) -> None:
    write(tmp_path / "dense", tensors)
    upcycle_directory(str(tmp_path / "dense"), tmp_path / "moe", num_experts=3)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "moe").eval()(ids).logits
    torch.testing.assert_close(logits, dense_logits(tensors, ids), **CLOSE)


def test_a_tied_head_is_copied_or_shared(tmp_path, tensors, ids) -> None:
    tied = {**tensors, "lm_head.weight": tensors["model.embeddings.weight"]}
    expected = dense_logits(tied, ids)
    del tied["lm_head.weight"]
    folder = write(tmp_path, tied, tie_word_embeddings=True)
    for tie in (True, False):
        model = RetNetWithMoE.from_pretrained(folder, tie_word_embeddings=tie).eval()
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tie
        with torch.no_grad():
            torch.testing.assert_close(model(ids).logits, expected, **CLOSE)


def test_norm_and_prefix_may_have_the_other_names_in_use(tmp_path, tensors, ids) -> None:
    # The norm as it is called without the fused kernel; and the body alone, saved without its prefix.
    renamed = {name.replace("g_norm_swish_gate", "g_norm").removeprefix("model."): x for name, x in tensors.items()}
    model = RetNetWithMoE.from_pretrained(write(tmp_path, renamed)).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, dense_logits(tensors, ids), **CLOSE)


@pytest.mark.parametrize("model_class", [RetNetWithMoEModel, RetNetWithMoEForSequenceClassification])
def test_the_body_loads_into_the_other_classes(tmp_path, tensors, ids, model_class) -> None:
    folder = write(tmp_path, tensors)
    model, report = model_class.from_pretrained(folder, output_loading_info=True)
    assert set(report["missing_keys"]) <= {"score.weight"}
    body = model if model_class is RetNetWithMoEModel else model.model
    with torch.no_grad():
        logits = body.eval()(ids).last_hidden_state @ tensors["lm_head.weight"].T
    torch.testing.assert_close(logits, dense_logits(tensors, ids), **CLOSE)


def test_a_retnet_without_gate_and_norm_weights_loads(tmp_path, tensors, ids) -> None:
    bare = {name: x for name, x in tensors.items() if "g_proj" not in name and "g_norm" not in name}
    folder = write(tmp_path, bare, use_output_gate=False, elementwise_affine=False)
    model, report = RetNetWithMoE.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert model.model.layers[0].mixer.g_proj is None
    assert torch.isfinite(model(ids).logits).all()


@pytest.mark.parametrize(
    ("change", "overrides", "text"),
    [
        (lambda t: t.pop("model.layers.1.attn.g_proj.weight"), {}, "lacks 1 that are needed: layers.1.attn.g_proj"),
        (lambda t: None, {"num_hidden_layers": 2}, "3 layers, but num_hidden_layers=2"),
        (lambda t: None, {"expand_v": 2}, "layers.0.attn.v_proj.weight of shape"),
        (lambda t: None, {"moe_intermediate_size": 8}, "FFNs of width 20"),
        (lambda t: None, {"mixer": "retention,retention,attention"}, "retention in every layer"),
        (lambda t: None, {"norm_type": "layer"}, "norm_type='rms'"),
        (lambda t: None, {"retention_bias": True}, "retention_bias=False"),
        (lambda t: None, {"position_embedding_type": "learned"}, "no learned positions"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, tensors, change, overrides, text) -> None:
    tensors = dict(tensors)
    change(tensors)
    with pytest.raises(CheckpointError, match=text):
        RetNetWithMoE.from_pretrained(write(tmp_path, tensors), **overrides)


def test_pickled_weights_in_that_layout_are_refused(tmp_path, tensors) -> None:
    folder = write(tmp_path, tensors)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        RetNetWithMoE.from_pretrained(folder)
