"""transformers' own Mixtures of Experts compute what the dense model did, and what can't be kept is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.models.upcycling.directory import upcycle_directory
from moe_hf.models.upcycling.native_formats import NATIVE_FORMATS
from tests.models.upcycling.conftest import CONFIGS, MakeDense, difference, logits

ROPES = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 500000.0,
    },
}


def upcycled(source: Path, **choices) -> Path:
    return upcycle_directory(str(source), source.parent / "moe", **{"num_experts": 4, **choices}).folder


@pytest.mark.parametrize("kind", list(NATIVE_FORMATS))
@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_the_dense_model_s(dense: MakeDense, kind: str, tied: bool) -> None:
    source = dense(kind, tie_word_embeddings=tied, shard="20KB")
    assert (source / "model.safetensors.index.json").is_file()
    moe = upcycled(source, max_shard_size="30KB")
    assert difference(logits(moe), logits(source)) <= 1e-5
    config = AutoConfig.from_pretrained(moe)
    assert config.model_type == NATIVE_FORMATS[kind].moe_type
    assert type(AutoModelForCausalLM.from_pretrained(moe)).__name__ == config.architectures[0]


@pytest.mark.parametrize("kind", list(NATIVE_FORMATS))
def test_nothing_of_the_files_is_missing_or_left_over(dense: MakeDense, kind: str) -> None:
    moe = upcycled(dense(kind))
    _, report = AutoModelForCausalLM.from_pretrained(moe, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    # transformers writes the same names.
    AutoModelForCausalLM.from_pretrained(moe).save_pretrained(moe.parent / "again")
    again = load_file(moe.parent / "again" / "model.safetensors")
    ours = load_file(moe / "model.safetensors")
    assert {name: value.shape for name, value in again.items()} == {name: x.shape for name, x in ours.items()}
    assert all(value.equal(ours[name]) for name, value in again.items())


@pytest.mark.parametrize("kind", list(NATIVE_FORMATS))
def test_slices_of_ffns_are_chosen_together(dense: MakeDense, kind: str) -> None:
    source = dense(kind)
    moe = upcycled(source, granularity=3, num_experts=12, num_experts_per_tok=6)
    assert difference(logits(moe), logits(source)) <= 1e-5
    config = AutoConfig.from_pretrained(moe)
    assert getattr(config, "moe_intermediate_size", config.intermediate_size) == 20


@pytest.mark.parametrize("kind", ["llama", "qwen2", "granite"])
def test_half_precision_stays_and_is_as_close_as_it_can_be(dense: MakeDense, kind: str) -> None:
    source = dense(kind, dtype=torch.bfloat16)
    moe = upcycled(source)
    assert all(value.dtype == torch.bfloat16 for value in load_file(moe / "model.safetensors").values())
    # The grouped product that transformers takes by default needs strides of 16 bytes.
    assert logits(moe, experts_implementation="eager").dtype == torch.bfloat16
    # The same numbers: in single precision both compute the same.
    single = {"dtype": torch.float32}
    assert difference(logits(moe, **single), logits(source, **single)) <= 1e-5


@pytest.mark.parametrize("name", list(ROPES))
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_rotations_of_every_kind_are_kept(dense: MakeDense, kind: str, name: str) -> None:
    source = dense(kind, rope_parameters=ROPES[name])
    moe = upcycled(source)
    # Beyond the length that the rotations were made for, too.
    assert difference(logits(moe, length=60), logits(source, length=60)) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
        ("qwen3", {"attention_bias": True}),
        ("granite", {"attention_bias": True}),
        ("llama", {"hidden_act": "gelu", "rms_norm_eps": 1e-2}),
    ],
)
def test_what_both_classes_have_is_kept(dense: MakeDense, kind: str, fields: dict) -> None:
    source = dense(kind, **fields)
    assert difference(logits(upcycled(source)), logits(source)) <= 1e-5


@pytest.mark.parametrize(
    ("kind", "fields", "text"),
    [
        ("llama", {"attention_bias": True}, "llama sets attention_bias=True, for which transformers' mixtral"),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("granite", {"mlp_bias": True}, "mlp_bias=True"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4}, "use_sliding_window=True"),
    ],
)
def test_what_cannot_be_kept_is_refused(dense: MakeDense, kind: str, fields: dict, text: str) -> None:
    source = dense(kind, **fields)
    with pytest.raises(CheckpointError, match=text):
        upcycled(source)
    assert not (source.parent / "moe").exists()


def test_layers_may_stay_dense_where_the_class_has_both(dense: MakeDense) -> None:
    source = dense("qwen3")
    moe = upcycled(source, mlp_layer_types=["dense", "sparse", "dense"])
    assert AutoConfig.from_pretrained(moe).mlp_only_layers == [0, 2]
    assert difference(logits(moe), logits(source)) <= 1e-5
    with pytest.raises(ConfigError, match="every layer of a mixtral is sparse"):
        upcycled(dense("llama"), mlp_layer_types=["dense", "sparse", "dense"], overwrite=True)


@pytest.mark.parametrize("kind", ["noise", "drop"])
def test_experts_may_start_apart(dense: MakeDense, kind: str) -> None:
    source = dense("llama")
    moe = upcycled(source, expert_init=kind)
    state = load_file(moe / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    assert not state[name.format(0)].equal(state[name.format(1)])
    assert 1e-4 < difference(logits(moe), logits(source)) < 2
    assert f'expert_init="{kind}" changes the experts' in (moe / "README.md").read_text()


def test_counts_are_those_of_the_model(dense: MakeDense) -> None:
    source = dense("qwen2", tie_word_embeddings=True)
    report = upcycle_directory(str(source), source.parent / "moe", num_experts=4, num_experts_per_tok=1)
    model = AutoModelForCausalLM.from_pretrained(report.folder)
    assert report.counts.total == sum(x.numel() for x in model.parameters())
    assert report.counts.source == sum(x.numel() for x in AutoModelForCausalLM.from_pretrained(source).parameters())
    experts = sum(x.numel() for name, x in model.named_parameters() if ".experts." in name)
    assert report.counts.active == report.counts.total - experts * 3 // 4


@pytest.mark.parametrize(
    ("choices", "error", "text"),
    [
        ({"router_type": "hash"}, ConfigError, "router_type='hash' has no meaning for transformers' mixtral"),
        ({"num_experts_per_tok": 9}, ConfigError, "num_experts_per_tok=9"),
        ({"granularity": 7}, ConfigError, "granularity=7 .* divides the FFNs' width=60"),
        ({"granularity": 4}, ConfigError, "granularity=4 .* divides num_experts_per_tok=2"),
        ({"granularity": 0}, ConfigError, "granularity=0"),
        ({"expert_init": "split"}, ConfigError, "expert_init='split'"),
        ({"target": "mine"}, ConfigError, "target='mine' is not allowed; it must be native or moe_hf or dense"),
    ],
)
def test_wrong_choices(dense: MakeDense, choices: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        upcycled(dense("llama"), **choices)


def test_damaged_weights_are_named(dense: MakeDense) -> None:
    source = dense("llama")
    state = load_file(source / "model.safetensors")
    for change, text in (
        ({"model.norm.weight": None}, r"lacks 1 tensors \(model.norm.weight\)"),
        ({"model.layers.0.extra": torch.ones(1)}, r"holds 1 that its class has no place for \(model.layers.0.extra\)"),
        ({"model.norm.weight": torch.ones(5)}, r"holds 1 of other shapes than its config.json says"),
    ):
        changed = {name: value for name, value in {**state, **change}.items() if value is not None}
        save_file(changed, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=text):
            upcycled(source)


def test_a_model_saved_without_its_head_keeps_its_tied_one(dense: MakeDense) -> None:
    source = dense("llama", tie_word_embeddings=True)
    state = load_file(source / "model.safetensors")
    expected = logits(source)
    # As its own body writes it, and with the rotations that old versions stored.
    bare = {name.removeprefix("model."): value for name, value in state.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(bare, source / "model.safetensors", metadata={"format": "pt"})
    assert difference(logits(upcycled(source)), expected) <= 1e-5


def test_a_head_that_is_not_the_embedding_is_not_lost(dense: MakeDense) -> None:
    source = dense("llama", tie_word_embeddings=False)
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match=r"holds lm_head.weight, which is not its embedding"):
        upcycled(source)


LOAD = """
import sys
sys.modules["moe_hf"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=5, do_sample=False).tolist())
"""


def test_the_folder_needs_nothing_of_this_package(dense: MakeDense) -> None:
    source = dense("llama")
    answers = []
    for folder in (source, upcycled(source)):
        run = subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True)
        answers.append(run.stdout)
    assert answers[0] == answers[1]
    assert "import moe_hf" not in (source.parent / "moe" / "README.md").read_text()


def test_every_format_is_tried() -> None:
    assert CONFIGS.keys() == NATIVE_FORMATS.keys()


class TestFilesOfOthers:
    """What people's folders hold beside what transformers writes today."""

    @pytest.mark.parametrize(
        ("kind", "foreign"),
        [("qwen2", {"qkv_bias": False}), ("llama", {"sliding_window": 5}), ("llama", {"router_jitter_noise": 0.3})],
    )
    def test_a_key_that_the_dense_class_ignores_does_not_begin_to_act(self, dense: MakeDense, kind, foreign) -> None:
        source = dense(kind)
        path = source / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **foreign}))
        assert difference(logits(upcycled(source)), logits(source)) <= 1e-5
        assert not getattr(AutoConfig.from_pretrained(source.parent / "moe"), "router_jitter_noise", 0)

    def test_an_index_left_beside_a_whole_file_says_nothing(self, dense: MakeDense) -> None:
        source = dense("llama")
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00009.safetensors"}}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        assert difference(logits(upcycled(source)), logits(source)) <= 1e-5

    def test_no_tensor_is_cut_to_the_type_of_another(self, dense: MakeDense) -> None:
        source = dense("llama")
        state = load_file(source / "model.safetensors")
        state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].bfloat16()
        save_file(state, source / "model.safetensors", metadata={"format": "pt"})
        single = {"dtype": torch.float32}
        assert difference(logits(upcycled(source), **single), logits(source, **single)) <= 1e-5

    def test_a_tied_matrix_may_be_stored_under_its_other_name(self, dense: MakeDense) -> None:
        source = dense("llama", tie_word_embeddings=True)
        expected = logits(source)
        state = load_file(source / "model.safetensors")
        state["lm_head.weight"] = state.pop("model.embed_tokens.weight")
        save_file(state, source / "model.safetensors", metadata={"format": "pt"})
        assert difference(logits(upcycled(source)), expected) <= 1e-5

    def test_a_width_that_transformers_product_does_not_take_is_said(self, dense: MakeDense, caplog) -> None:
        source = dense("llama", intermediate_size=62)
        moe = upcycled(source)
        assert "Widths of 62 in float32 are no multiples of 16 bytes" in caplog.text
        assert "Widths of 62 in float32" in (moe / "README.md").read_text()
        assert difference(logits(moe, experts_implementation="eager"), logits(source)) <= 1e-5

    @pytest.mark.parametrize(
        ("choices", "text"),
        [({"max_shard_size": "10XB"}, "max_shard_size='10XB'"), ({"num_experts": 10**7}, "at most")],
    )
    def test_sizes_out_of_reach(self, dense: MakeDense, choices, text: str) -> None:
        with pytest.raises(ConfigError, match=text):
            upcycled(dense("llama"), **choices)
