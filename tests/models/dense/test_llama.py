"""Dense models built like Llama give their own function, experts or not, in every way of reading a sequence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from moe_hf import CheckpointError, LlamaWithMoE, LlamaWithMoEConfig, LlamaWithMoEForSequenceClassification
from moe_hf.models.auto import FAMILIES
from moe_hf.models.upcycling.directory import upcycle_directory

# Odd on purpose: heads do not fill the width, three queries share a key, and nothing is a power of two.
SHAPE: dict[str, Any] = {
    "vocab_size": 67,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
THETA = {"rope_theta": 1000.0}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"long_factor": [1.0, 2.0, 3.5, 4.0, 6.0], "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4]}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", **THETA},
    "linear": {"rope_type": "linear", "factor": 3.0, **THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 3.3, **THETA},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **THETA},
    "yarn-mscale": {
        **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0},
        **{"mscale": 0.9, "mscale_all_dim": 0.7, "truncate": False, **THETA},
    },
    "longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 16, **LONG, **THETA},
    "longrope-by-limit": {"rope_type": "longrope", "original_max_position_embeddings": 16, **LONG, **THETA},
    "llama3": {"rope_type": "llama3", **LLAMA3, **THETA},
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.5, **THETA},
}
# A name -> (model_type, fields).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral-whole": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"head_dim": 6}),
    "qwen2-window": (
        "qwen2",
        {"head_dim": 6, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "granite": (
        "granite",
        {
            **{"head_dim": 6, "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "mlp_bias": True},
            **{"attention_multiplier": 0.3, "logits_scaling": 2.5, "tie_word_embeddings": True},
        },
    ),
    "smollm3": ("smollm3", {"head_dim": 6, "no_rope_layers": [1, 0, 1]}),
    "olmo2": ("olmo2", {"head_dim": 6}),
    "phi3": ("phi3", {"head_dim": 6, "num_key_value_heads": 3}),
    "phi3-parts": (
        "phi3",
        {
            **{"head_dim": 6, "sliding_window": 5, "original_max_position_embeddings": 32, "tie_word_embeddings": True},
            "rope_parameters": {
                **{"rope_type": "longrope", "partial_rotary_factor": 0.7, **THETA},
                **{"long_factor": [2.0, 3.5], "short_factor": [1.0, 1.2]},
            },
        },
    ),
    # transformers' class obeys none of them.
    "phi3-ignored": ("phi3", {"attention_bias": True, "mlp_bias": True, "no_rope_layers": [1, 0, 1]}),
    "olmo2-biases": ("olmo2", {"head_dim": 6, "attention_bias": True}),
    "qwen3-window": (
        "qwen3",
        {
            **{"attention_bias": True, "use_sliding_window": True, "sliding_window": 4},
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "mlp_layer_types": ["sparse", "dense", "sparse"]}


def dense_model(name: str, **fields: Any) -> PreTrainedModel:
    """A small model of transformers' own, none of whose parameters is still the zero or one that it starts at."""
    kind, own = MODELS[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SHAPE, **own, **fields})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def ids_of(*shape: int) -> torch.Tensor:
    return torch.randint(3, 67, shape, generator=torch.Generator().manual_seed(1))


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative, of the whole."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A dense model, and the Mixture of Experts made of it."""
    folder = tmp_path_factory.mktemp(request.param)
    dense = dense_model(request.param)
    dense.save_pretrained(folder)
    return dense, LlamaWithMoE.from_pretrained(folder, **SPARSE).eval()


@torch.no_grad()
def test_logits_are_those_of_the_dense_model(pair) -> None:
    dense, ours = pair
    assert ours.config.sparse_layers == [0, 2]
    assert error(ours(ids_of(2, 23)).logits, dense(ids_of(2, 23)).logits) < 1e-5


@torch.no_grad()
def test_a_cache_filled_in_pieces_gives_the_same(pair) -> None:
    dense, ours = pair
    ids, cache, logits = ids_of(2, 23), ours.model.new_cache(), []
    for part in ids.split([9, 1, 1, 7, 1, 4], dim=1):
        logits.append(ours(part, past_key_values=cache, use_cache=True).logits)
    assert error(torch.cat(logits, dim=1), dense(ids).logits) < 1e-5


@torch.no_grad()
def test_left_padding_gives_the_same(pair) -> None:
    dense, ours = pair
    ids, mask = ids_of(3, 19), torch.ones(3, 19, dtype=torch.long)
    mask[1, :4] = mask[2, :11] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    theirs = dense(ids * mask, attention_mask=mask, position_ids=positions).logits
    assert error(ours(ids * mask, attention_mask=mask).logits[mask == 1], theirs[mask == 1]) < 1e-5


@torch.no_grad()
def test_packed_documents_give_the_same(pair) -> None:
    dense, ours = pair
    ids, positions = ids_of(1, 20), torch.cat([torch.arange(7), torch.arange(13)])[None]
    packed = ours(ids, position_ids=positions, use_cache=False).logits
    alone = torch.cat([dense(part).logits for part in ids.split([7, 13], dim=1)], dim=1)
    assert error(packed, alone) < 1e-5


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_generation_is_the_same(pair, how: dict[str, Any]) -> None:
    dense, ours = pair
    ids, mask = ids_of(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    given = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    # transformers' own static caches are compiled, which the plain way is to agree with.
    expected = dense.generate(ids * mask, **given, **({"num_beams": 3} if "num_beams" in how else {}))
    assert ours.generate(ids * mask, **given, **how).equal(expected)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["eager", "sdpa", "topk_sparse"])
def test_every_kernel_knows_grouped_queries(pair, kernel: str) -> None:
    dense, ours = pair
    ids, before = ids_of(2, 23), ours.config._attn_implementation
    # As many keys as there are: nothing is left out.
    ours.config.attn_topk = 64
    ours.set_attn_implementation(kernel)
    try:
        assert error(ours(ids).logits, dense(ids).logits) < 1e-5
    finally:
        ours.set_attn_implementation(before)


@torch.no_grad()
@pytest.mark.parametrize("rope", list(ROPES))
@pytest.mark.parametrize("length", [12, 50, 90])
def test_every_rope_type_turns_by_the_same_angles(tmp_path: Path, rope: str, length: int) -> None:
    dense = dense_model("llama", rope_parameters=dict(ROPES[rope]))
    dense.save_pretrained(tmp_path)
    ours = LlamaWithMoE.from_pretrained(tmp_path, **SPARSE).eval()
    ids = ids_of(1, length)
    assert error(ours(ids).logits, dense(ids).logits) < 1e-5
    # A limit that grows later changes no angle.
    longer = LlamaWithMoE.from_pretrained(tmp_path, max_position_embeddings=640, **SPARSE).eval()
    assert error(longer(ids).logits, dense(ids).logits) < 1e-5
    # Saved and read again it is the same.
    ours.save_pretrained(tmp_path / "moe")
    again = LlamaWithMoE.from_pretrained(tmp_path / "moe").eval()
    assert again(ids).logits.equal(ours(ids).logits)


def test_the_words_of_older_files_are_understood(tmp_path: Path) -> None:
    dense_model("llama", rope_parameters=dict(ROPES["llama3"])).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    parameters = stored.pop("rope_parameters")
    older = {**stored, "rope_theta": parameters.pop("rope_theta"), "rope_scaling": parameters, "head_dim": None}
    older["hidden_size"], older["rope_scaling"]["type"] = 60, older["rope_scaling"].pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps(older))
    config = LlamaWithMoEConfig.from_pretrained(tmp_path)
    assert config.rope_theta == 1000.0
    assert config.rope_parameters == {"rope_type": "llama3", **LLAMA3}
    assert (config.head_dim, config.attention_width, config.key_value_width) == (10, 60, 20)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_types_and_tied_heads(tmp_path: Path, tied: bool, dtype: torch.dtype) -> None:
    dense_model("llama", tie_word_embeddings=tied).to(dtype).save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    assert len(list((tmp_path / "dense").glob("*.safetensors"))) > 1
    report = upcycle_directory(str(tmp_path / "dense"), tmp_path / "moe", target="moe_hf", **SPARSE)
    assert report.config.model_type == "llama_moe"
    dense, exact = (AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=x) for x in (dtype, torch.float32))
    ids = ids_of(4, 40)
    expected = exact(ids).logits
    loaded = [AutoModelForCausalLM.from_pretrained(tmp_path / "moe"), LlamaWithMoE.from_pretrained(tmp_path / "dense")]
    for ours in loaded:
        assert ours.dtype == dtype
        assert ours.config.tie_word_embeddings == tied
        # In half precision other places are rounded: it stays as near to the exact result as the dense model does.
        assert error(ours.eval()(ids).logits, expected) < max(1e-5, 1.5 * error(dense(ids).logits, expected))


@torch.no_grad()
def test_a_file_that_does_not_say_whether_its_head_is_tied_means_what_its_type_means(tmp_path: Path) -> None:
    for name, tied in (("smollm3", True), ("llama", False)):
        folder = tmp_path / name
        dense = dense_model(name, tie_word_embeddings=tied)
        dense.save_pretrained(folder)
        stored = json.loads((folder / "config.json").read_text())
        stored.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(stored))
        for fields in ({}, {"tie_word_embeddings": False}):
            ours = LlamaWithMoE.from_pretrained(folder, **SPARSE, **fields).eval()
            assert ours.config.tie_word_embeddings == (tied and not fields)
            assert error(ours(ids_of(2, 9)).logits, dense(ids_of(2, 9)).logits) < 1e-5


def test_a_head_of_another_task_starts_from_the_same_body(tmp_path: Path) -> None:
    dense_model("llama").save_pretrained(tmp_path)
    model = LlamaWithMoEForSequenceClassification.from_pretrained(tmp_path, num_labels=3, **SPARSE)
    assert model(ids_of(2, 5)).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"rope_theta": 500.0}, "rope_theta"),
        ({"sliding_window": 8}, "sliding_window"),
        ({"attention_multiplier": 0.5}, "attention_multiplier"),
        ({"logits_scaling": 2.0}, "logits_scaling"),
        ({"rotary_layers": [1]}, "rotary_layers"),
        ({"norm_placement": "behind"}, "norm_placement"),
        ({"position_embedding_type": "learned"}, "no learned positions"),
        ({"mixer": "retention"}, "attention in every layer"),
        ({"attention_qk_norm": "head"}, "q_norm"),
        ({"attention_bias": True}, "q_proj.bias"),
        ({"num_hidden_layers": 2, "mlp_layer_types": None}, "3 layers, but num_hidden_layers=2"),
    ],
)
def test_what_would_compute_something_else_is_refused(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    dense_model("llama").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=text):
        LlamaWithMoE.from_pretrained(tmp_path, **{**SPARSE, **fields})


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [
        {"router_type": "hash"},
        {"router_num_hash_layers": 1},
        {"router_type": "sigmoid_bias", "shared_expert_intermediate_size": 8},
        {"router_eval_capacity_factor": 8.0, "router_capacity_factor": 2.0},
        {"mixer_short_conv": 3},
        {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 22},
    ],
    ids=str,
)
def test_routers_capacity_and_what_starts_at_zero_keep_the_logits(tmp_path: Path, fields: dict[str, Any]) -> None:
    dense = dense_model("llama")
    dense.save_pretrained(tmp_path)
    ours = LlamaWithMoE.from_pretrained(tmp_path, **{**SPARSE, **fields}).eval()
    ids = ids_of(2, 23)
    assert error(ours(ids).logits, dense(ids).logits) < 1e-5


def test_every_dense_type_of_the_family_is_tried_here() -> None:
    assert {kind for kind, _ in MODELS.values()} == set(FAMILIES["llama_moe"].config.dense_model_types)
