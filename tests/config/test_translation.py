"""A dense model's configuration keeps what a family has too, and is refused where a value cannot be kept."""

import json

import pytest

from moe_hf import CheckpointError, GPT2WithMoEConfig, MambaWithMoEConfig
from moe_hf.config.translation import model_type_in, renamed, require_value


def test_only_fields_that_the_family_has_are_kept_by_its_own_names() -> None:
    dense = {"n_embd": 8, "eos_token_id": 3, "dtype": "float16", "n_ctx": 7, "vocab_size": 9, "hidden_size": 5}
    kept = renamed(dense, {"n_embd": "width"}, same="vocab_size")
    assert kept == {"width": 8, "eos_token_id": 3, "dtype": "float16", "vocab_size": 9}


@pytest.mark.parametrize("dense", [{}, {"act": "silu"}, {"act": "swish"}])
def test_a_value_that_can_be_reproduced_passes_and_may_be_left_out(dense) -> None:
    require_value("Model", dense, "act", "silu", "swish")


def test_another_value_is_named_with_the_one_that_can() -> None:
    with pytest.raises(CheckpointError, match="the dense Model sets act='gelu'; only 'silu' can be carried over"):
        require_value("Model", {"act": "gelu"}, "act", "silu", "swish")


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
