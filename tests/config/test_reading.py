"""Configurations from files: overrides go in first, unknown keys pass, misspelt ones and other models do not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.mamba_moe import MambaWithMoEConfig
from moe_hf.config.reading import model_type_in

MakeConfig = Callable[..., GPT2WithMoEConfig]


@pytest.mark.parametrize(
    ("given", "meant"), [("num_expert", "num_experts"), ("router_aux_loss_coeff", "router_aux_loss_coef")]
)
def test_a_misspelt_field_names_the_nearest(tiny_config: MakeConfig, given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown field '{given}'; did you mean '{meant}'"):
        tiny_config(**{given: 1})


@pytest.mark.parametrize("name", ["auto_map", "_name_or_path", "transformers_version", "something_else"])
def test_foreign_keys_of_a_hub_config_are_kept(tiny_config: MakeConfig, name: str) -> None:
    assert getattr(tiny_config(**{name: "x"}), name) == "x"


def test_code_beside_a_model_is_that_of_a_copy_of_the_class(tiny_config: MakeConfig) -> None:
    found = {**tiny_config().to_dict(), "auto_map": {"AutoConfig": "modeling_gpt2_moe.GPT2WithMoEConfig"}}
    assert not hasattr(GPT2WithMoEConfig.from_dict(found), "auto_map")
    copy = type(
        "GPT2WithMoEConfig", (GPT2WithMoEConfig,), {"__module__": "transformers_modules.mine.modeling_gpt2_moe"}
    )
    assert copy.from_dict(found).auto_map == found["auto_map"]


def test_overrides_of_a_saved_configuration_are_validated(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="num_experts_per_tok=9"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, num_experts_per_tok=9)
    with pytest.raises(ConfigError, match="mlp_layer_types"):
        GPT2WithMoEConfig.from_pretrained(tmp_path, mlp_layer_types=["sparse"] * 2)


def test_a_saved_configuration_is_read_by_transformers_base_class_and_from_older_files(
    tiny_config: MakeConfig, tmp_path: Path
) -> None:
    # Trainer resumes through the base class, which refuses names of layer types that it does not know.
    tiny_config(mixer_short_conv=3).save_pretrained(tmp_path)
    PreTrainedConfig.from_json_file(tmp_path / "config.json")
    old = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**old, "layer_types": ["hybrid"] * 4}))
    assert GPT2WithMoEConfig.from_pretrained(tmp_path).layer_types == ["attention_with_state"] * 4


def test_an_override_under_an_alias_wins_over_the_saved_value(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config = GPT2WithMoEConfig.from_pretrained(tmp_path, num_local_experts=7, n_positions=99)
    assert (config.num_experts, config.max_position_embeddings) == (7, 99)


def test_unused_overrides_come_back(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    config, unused = GPT2WithMoEConfig.from_pretrained(
        tmp_path, num_experts=6, device_map="cpu", return_unused_kwargs=True
    )
    assert config.num_experts == 6
    assert unused == {"device_map": "cpu"}


def test_labels_are_set_by_their_number(tiny_config: MakeConfig, tmp_path: Path) -> None:
    tiny_config().save_pretrained(tmp_path)
    assert len(GPT2WithMoEConfig.from_pretrained(tmp_path, num_labels=5).id2label) == 5


@pytest.mark.parametrize(
    ("found", "model_type"),
    [({"model_type": "llama"}, "llama"), ({"n_embd": 8, "n_layer": 2, "n_head": 2, "model_type": None}, "gpt2")],
)
def test_a_type_is_said_or_known_by_the_fields(found, model_type: str) -> None:
    assert model_type_in(found, "it") == model_type


MAMBA_SSM = {"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": True}


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (MAMBA_SSM, "in mamba-ssm's own layout, .* take the converted repository, such as state-spaces/mamba-130m-hf"),
        ({"hidden_size": 8}, r"has no model_type \(it has hidden_size\)"),
        ({}, r"has no model_type \(it has no field\)"),
    ],
)
def test_a_configuration_of_nobody_is_never_taken_for_ours(tmp_path, found, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        model_type_in(found, "it")
    (tmp_path / "config.json").write_text(json.dumps({**found, "architectures": []}))
    for reader in (MambaWithMoEConfig, GPT2WithMoEConfig):
        with pytest.raises(CheckpointError, match=r"mamba-ssm|has no model_type"):
            reader.from_pretrained(tmp_path)
