"""Which parameters are not decayed, and which stay in float32, in every kind of model."""

import pytest
import torch

from moe_hf.models.parameter_kinds import IN_FLOAT32, NOT_DECAYED
from tests.models.families import tiny_family


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("gpt2", set()),
        ("mamba1", {"A_log", "D"}),
        ("mamba2", {"A_log", "D", "dt_bias"}),
        ("rwkv4", {"time_decay", "time_first", "time_mix_key", "time_mix_value", "time_mix_receptance"}),
    ],
)
def test_rates_and_mixes_are_not_decayed(kind: str, kept: set[str]) -> None:
    model = tiny_family(kind, num_hidden_layers=1)
    assert {name.rpartition(".")[2] for name in model.no_weight_decay()} == kept


def test_the_whole_filter_of_hyena_is_not_decayed() -> None:
    model = tiny_family("hyena", num_hidden_layers=1)
    filters = {name for name, _ in model.named_parameters() if ".mixer.filter." in name}
    assert len(filters) > 4
    assert model.no_weight_decay() == filters


def test_names_that_merely_look_alike_are_decayed() -> None:
    assert not NOT_DECAYED.search("model.layers.0.mixer.A_log_proj")
    assert not NOT_DECAYED.search("model.layers.0.mixer.x_proj.weight")
    assert NOT_DECAYED.search("model.layers.0.mixer.x_r")


def test_fresh_weights_of_a_half_precision_model_keep_exponents_in_float32() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = tiny_family("mamba2", num_hidden_layers=1)
    finally:
        torch.set_default_dtype(torch.float32)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert {kinds[name] for name in kinds if any(part in name for part in IN_FLOAT32)} == {torch.float32}
    assert kinds["model.layers.0.mixer.in_proj.weight"] == torch.bfloat16
