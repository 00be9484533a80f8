"""No value passes a configuration and then breaks the model: it is refused by name, or logits are finite."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from transformers import PreTrainedConfig

from moe_hf import ConfigError
from moe_hf.models.auto import FAMILIES
from tests.models.families import KINDS, TINY

ODD = (math.inf, math.nan, 0, -1, 0.3, "x", [], {}, True, 1e308, 10**30)
# Transformers' own, which every model of it has; those that say what a model is made of are looked at here too.
HOSTS = {field.name for field in dataclasses.fields(PreTrainedConfig)} - {"dtype", "id2label", "label2id"}
MIXERS = {"mamba1": "mamba_", "mamba2": "mamba_", "hyena-order3": "hyena_", "retnet": "retention_", "rwkv7": "rwkv_"}
OWN = {
    **MIXERS,
    "rwkv4": "rwkv_",
    "llama": ("num_key", "attention_", "sliding_", "rope_"),
    "megabyte": ("patch_", "local_", "max_position", "hidden_size"),
}


def fields_of(kind: str) -> list[str]:
    names = [field.name for field in dataclasses.fields(FAMILIES[KINDS[kind][0]].config) if field.name not in HOSTS]
    if kind == "gpt2":
        return [name for name in names if not name.startswith(tuple(MIXERS.values()))]
    return [name for name in names if name.startswith(OWN[kind])]


def is_refused_by_name_or_works(kind: str, name: str, value: Any) -> str | None:
    model_type, own = KINDS[kind]
    family = FAMILIES[model_type]
    small = {**TINY, **own, "num_hidden_layers": 2, "max_position_embeddings": 16, name: value}
    ids = torch.arange(3, 12)[None]
    try:
        config = family.config(**small)
        model = family.causal_lm(config)
        loss = model.train()(ids % config.vocab_size, labels=ids % config.vocab_size).loss
        logits = model.eval()(ids % config.vocab_size).logits
        return None if loss.isfinite() and logits.isfinite().all() else "is not finite"
    except ConfigError as error:
        return None if name in str(error) else f"is refused without its name: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("value", ["x", "float33", [], 7])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_wrong_word_for_the_type_of_the_weights_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        FAMILIES["gpt2_moe"].config(**{**TINY, name: value})


@pytest.mark.parametrize("value", [-1, "x", True, 2.5])
def test_a_wrong_number_of_labels_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="num_labels="):
        FAMILIES["gpt2_moe"].config(**{**TINY, "num_labels": value})


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in ("gpt2", *OWN) for name in fields_of(kind)])
def test_an_odd_value_is_refused_by_name_or_gives_finite_logits(kind: str, name: str) -> None:
    found = {repr(value): is_refused_by_name_or_works(kind, name, value) for value in ODD}
    assert {value: fault for value, fault in found.items() if fault} == {}
