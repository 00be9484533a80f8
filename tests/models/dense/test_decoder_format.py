"""A dense format says what is its own, and the template reads the rest: any decoder of equal layers."""

from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from moe_hf import CheckpointError, GPT2WithMoEConfig
from moe_hf.models.dense.checkpoint_files import open_slices
from moe_hf.models.dense.decoder_format import DecoderFormat

ROWS, D, LAYERS = 7, 6, 2


class Plain(DecoderFormat):
    """A decoder without FFNs whose mixers are one matrix each."""

    name = "dense Plain"
    model_types = ("plain",)
    has_ffn = False
    prefix = "body."
    marks = ("mix.weight",)
    may_untie_head = True
    mixer = "attention"
    mixing = "attention in every layer"
    positions = ("none",)
    needs: ClassVar[dict] = {"norm_type": "rms"}

    def layer(self, source, config, layer):
        return {"mixer.weight": source.sliced(f"layers.{layer}.mix.weight", (D, D))}


@pytest.fixture
def slices(tmp_path):
    names = {"embeddings.weight": (ROWS, D), "norm.weight": (D,)}
    names |= {f"layers.{layer}.mix.weight": (D, D) for layer in range(LAYERS)}
    tensors = {f"body.{name}": torch.arange(len(name) + 1.0).sum() + torch.rand(shape) for name, shape in names.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return open_slices([str(tmp_path / "model.safetensors")])


def config(**changes) -> GPT2WithMoEConfig:
    fields = {"vocab_size": ROWS, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    fields |= {"norm_type": "rms", "position_embedding_type": "none", "mlp_layer_types": ["none"] * LAYERS}
    return GPT2WithMoEConfig(**{**fields, **changes})


def test_embedding_norm_layers_and_head_get_their_names(slices) -> None:
    state = Plain().state_dict(slices, config(tie_word_embeddings=False), head_was_tied=True)
    assert set(state) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.mixer.weight",
        "model.layers.1.mixer.weight",
        "lm_head.weight",
    }
    assert state["lm_head.weight"].read().equal(slices["body.embeddings.weight"][:])
    assert state["model.layers.1.mixer.weight"].read().equal(slices["body.layers.1.mix.weight"][:])


def test_a_layer_without_an_ffn_gets_a_silent_one_where_the_model_has_one(slices) -> None:
    state = Plain().state_dict(slices, config(mlp_layer_types=["none", "sparse"], num_experts=3))
    fresh = {name.removeprefix("model.layers.1.") for name in state if ".mlp." in name or "post" in name}
    assert "mlp.experts.down_proj" in fresh
    assert not any(name.startswith("model.layers.0.mlp") for name in state)
    assert state["model.layers.1.mlp.experts.down_proj"].read().abs().max() == 0
    assert state["model.layers.1.post_attention_layernorm.weight"].read().equal(torch.ones(D))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"norm_type": "layer"}, "what norm_type='rms' describes, but norm_type='layer'"),
        ({"position_embedding_type": "rotary", "hidden_size": D}, "no positions, but position_embedding_type is"),
        ({"num_hidden_layers": 1, "mlp_layer_types": None}, "2 layers, but num_hidden_layers=1"),
        ({"mixer": "retention", "retention_expand_v": 1}, "attention in every layer, but mixer='retention'"),
        ({"vocab_size": 8}, r"embeddings.weight of shape \(7, 6\), but the configuration asks for \(8, 6\)"),
    ],
)
def test_what_the_weights_do_not_fit_is_named(slices, changes, text) -> None:
    if changes.get("position_embedding_type") == "rotary":
        changes = {**changes, "num_attention_heads": 3}
    if changes.get("mixer") == "retention":
        changes = {**changes, "retention_rotation": "none"}
    with pytest.raises(CheckpointError, match=text):
        Plain().state_dict(slices, config(**changes))


def test_a_tensor_that_no_layer_reads_is_named(slices) -> None:
    with pytest.raises(CheckpointError, match=r"no place for 1 of them: body\.layers\.1\.extra"):
        Plain().state_dict({**slices, "body.layers.1.extra": slices["body.norm.weight"]}, config())


def test_all_marks_have_to_be_found_within_a_layer() -> None:
    class Two(Plain):
        marks = ("a.weight", "b")

    assert Two().recognises(["x.layers.0.a.weight", "x.layers.3.b"])
    assert not Two().recognises(["x.layers.0.a.weight", "players.3.b"])
    assert not Two().recognises(["x.layers.0.a.weight", "b"])
