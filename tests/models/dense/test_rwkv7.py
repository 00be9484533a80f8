"""A dense RWKV-7 in flash-linear-attention's layout as a Mixture of Experts: its equations give the same logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from moe_hf import CheckpointError, RWKVWithMoE, RWKVWithMoEConfig
from moe_hf.models.dense.checkpoint_files import open_slices
from moe_hf.models.dense.rwkv7 import DenseRWKV7

V, D, C, L, INNER = 61, 32, 8, 3, 64
RANKS = {"w_lora": 8, "a_lora": 6, "v_lora": 4, "g_lora": 10}
CONFIG = {
    "model_type": "rwkv7",
    "vocab_size": V,
    "hidden_size": D,
    "head_dim": C,
    "num_heads": None,
    "num_hidden_layers": L,
    "hidden_ratio": 2.0,
    "intermediate_size": None,
    "decay_low_rank_dim": 8,
    "a_low_rank_dim": 6,
    "v_low_rank_dim": 4,
    "gate_low_rank_dim": 10,
    "hidden_act": "sqrelu",
    "value_dim": [D] * L,
    "attn": None,
    "max_position_embeddings": 64,
}


def dense_tensors() -> dict[str, torch.Tensor]:
    """Random weights by flash-linear-attention's names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(shape, generator=generator)

    def norm(name: str) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": 1 + draw(D), f"{name}.bias": draw(D)}

    tensors = {"model.embeddings.weight": draw(V, D), "lm_head.weight": draw(V, D), **norm("model.norm")}
    for layer in range(L):
        block = f"model.layers.{layer}"
        names = ["attn_norm", "ffn_norm", "attn.g_norm", *(["pre_norm"] if layer == 0 else [])]
        for name in names:
            tensors |= norm(f"{block}.{name}")
        tensors |= {f"{block}.attn.x_{name}": draw(1, 1, D) for name in "rwkvag"}
        tensors |= {f"{block}.attn.{name}_proj.weight": draw(D, D) for name in "rkvo"}
        tensors |= {f"{block}.attn.k_k": draw(D), f"{block}.attn.k_a": draw(D), f"{block}.attn.r_k": draw(D // C, C)}
        for name, rank in RANKS.items():
            if (name, layer) == ("v_lora", 0):
                continue
            tensors[f"{block}.attn.{name}.lora.0.weight"] = draw(rank, D)
            tensors[f"{block}.attn.{name}.lora.2.weight"] = draw(D, rank)
            if name != "g_lora":
                tensors[f"{block}.attn.{name}.lora.2.bias"] = draw(D)
        tensors |= {f"{block}.ffn.x_k": draw(D), f"{block}.ffn.key.weight": draw(INNER, D)}
        tensors[f"{block}.ffn.value.weight"] = draw(D, INNER)
    return tensors


def dense_logits(tensors: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """The model of one row of ids, (S,), written from the paper's equations and the names of the layout."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (D,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def shifted(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, 0, 1, -1)) - x

    x = norm("model.layers.0.pre_norm", tensors["model.embeddings.weight"][ids])
    first_value = torch.empty(0)
    for layer in range(L):
        part = {
            name.removeprefix(f"model.layers.{layer}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.layers.{layer}.")
        }

        def lora(name: str, z: torch.Tensor, middle=lambda z: z, part=part) -> torch.Tensor:
            out = middle(z @ part[f"attn.{name}.lora.0.weight"].T) @ part[f"attn.{name}.lora.2.weight"].T
            return out + part.get(f"attn.{name}.lora.2.bias", torch.zeros(D))

        h = norm(f"model.layers.{layer}.attn_norm", x)
        mixed = {name: h + shifted(h) * part[f"attn.x_{name}"][0] for name in "rwkvag"}
        r, k, v = (mixed[name] @ part[f"attn.{name}_proj.weight"].T for name in "rkv")
        if layer == 0:
            first_value = v
        else:
            v = v + (first_value - v) * lora("v_lora", mixed["v"]).sigmoid()
        w = (-0.606531 * lora("w_lora", mixed["w"], torch.tanh).sigmoid()).exp()
        a, g = lora("a_lora", mixed["a"]).sigmoid(), lora("g_lora", mixed["g"], torch.sigmoid)
        unit = F.normalize((k * part["attn.k_k"]).view(-1, D // C, C), dim=-1)
        k = k * (1 + (a - 1) * part["attn.k_a"])
        r, k, v, w, a = (z.view(-1, D // C, C) for z in (r, k, v, w, a))
        state, reads = torch.zeros(D // C, C, C), []
        for t in range(len(ids)):
            correction = torch.einsum("hvk,hk->hv", state, unit[t])[:, :, None] * (unit[t] * a[t])[:, None]
            state = state * w[t][:, None] - correction + v[t][:, :, None] * k[t][:, None]
            reads.append(torch.einsum("hvk,hk->hv", state, r[t]))
        weight, bias = part["attn.g_norm.weight"], part["attn.g_norm.bias"]
        read = F.group_norm(torch.stack(reads).flatten(1), D // C, weight, bias, eps=C * 1e-5)
        bonus = ((r * k * part["attn.r_k"]).sum(-1, keepdim=True) * v).flatten(1)
        x = x + ((read + bonus) * g) @ part["attn.o_proj.weight"].T
        h = norm(f"model.layers.{layer}.ffn_norm", x)
        key = (h + shifted(h) * part["ffn.x_k"]) @ part["ffn.key.weight"].T
        x = x + key.relu().square() @ part["ffn.value.weight"].T
    return norm("model.norm", x) @ tensors["lm_head.weight"].T


def save(folder: Path, tensors: dict[str, torch.Tensor], **overrides) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**CONFIG, **overrides}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("rwkv7"), dense_tensors())


def test_the_logits_are_those_of_the_dense_model(folder) -> None:
    model = RWKVWithMoE.from_pretrained(folder, num_experts=3, num_experts_per_tok=2)
    ids = torch.randint(0, V, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(ids).logits
    expected = torch.stack([dense_logits(dense_tensors(), row) for row in ids])
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("overrides", [{}, {"mlp_layer_types": ["dense", "sparse", "sparse"]}])
def test_has_every_tensor_of_the_model_in_its_shape(folder, overrides) -> None:
    config = RWKVWithMoEConfig.from_pretrained(folder, **overrides)
    state = DenseRWKV7().state_dict(open_slices([str(folder / "model.safetensors")]), config)
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in RWKVWithMoE(config).state_dict().items()}
    assert {name: value.get_shape() for name, value in state.items()} == expected
    assert {name: list(value.read().shape) for name, value in state.items()} == expected


def test_ranks_that_the_configuration_leaves_out_are_the_paper_s(tmp_path) -> None:
    ranks = dict.fromkeys(("decay_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim", "gate_low_rank_dim"))
    save(tmp_path, dense_tensors(), hidden_size=768, head_dim=64, value_dim=None, **ranks)
    config = RWKVWithMoEConfig.from_pretrained(tmp_path)
    assert [config.rwkv_rank(what) for what in ("decay", "rate", "value", "gate")] == [64, 64, 32, 128]
    assert (config.num_attention_heads, config.intermediate_size, config.tie_word_embeddings) == (12, 1536, False)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"attn": {"layers": [1], "num_heads": 4}}, "attn="),
        ({"norm_bias": False}, "norm_bias=False"),
        ({"value_dim": [D, D, 2 * D]}, "value_dim=64"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"num_hidden_layers": 2}, "3 layers"),
        ({"decay_low_rank_dim": 7}, r"of shape \(8, 32\)"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(tmp_path, overrides, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        RWKVWithMoE.from_pretrained(save(tmp_path, dense_tensors(), **overrides))


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"mlp_layer_types": ["none", "sparse", "sparse"]}, r"would drop \(model\.layers\.0\.mlp\.inner"),
        ({"embedding_norm": False}, r"no place for 2 of them: model\.layers\.0\.pre_norm\.bias"),
        ({"position_embedding_type": "learned"}, r"cannot give 1 of the model's tensors \(model\.embed_positions"),
        ({"hidden_act": "relu"}, "hidden_act='relu2', but 'relu'"),
        ({"layer_norm_epsilon": 1e-3}, "layer_norm_epsilon=1e-05, but 0.001"),
        ({"tie_word_embeddings": True}, "a head that is not its embedding"),
    ],
)
def test_an_override_that_would_not_keep_the_logits_is_refused(folder, overrides, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        RWKVWithMoE.from_pretrained(folder, **overrides)


def test_the_first_layer_s_values_have_nothing_to_be_mixed_with(tmp_path) -> None:
    tensors = dense_tensors()
    tensors["model.layers.0.attn.v_lora.lora.0.weight"] = torch.ones(4, D)
    model = RWKVWithMoE.from_pretrained(save(tmp_path, tensors))
    assert not [name for name in model.state_dict() if "layers.0.mixer.v_lora" in name]
