"""What a `quantization_config` may say."""

import json

import pytest
from transformers.quantizers.auto import AutoQuantizationConfig

from moe_hf import ConfigError, MoEQuantizationConfig


@pytest.mark.parametrize(
    ("given", "group_size"), [({}, None), ({"bits": 8}, None), ({"bits": 4}, 32), ({"bits": 4, "group_size": 128}, 128)]
)
def test_it_comes_back_from_a_file(given, group_size) -> None:
    config = MoEQuantizationConfig(**given)
    assert (config.bits, config.group_size) == (given.get("bits", 8), group_size)
    read = AutoQuantizationConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert type(read) is MoEQuantizationConfig
    assert (
        read.to_dict() == config.to_dict() == {"quant_method": "moe_hf", "bits": config.bits, "group_size": group_size}
    )


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"bits": 5}, "bits=5 is not allowed"),
        ({"bits": "8"}, "bits='8' is not allowed"),
        ({"bits": 8, "group_size": 32}, "no meaning with bits=8"),
        ({"bits": 4, "group_size": 33}, "group_size=33 is not allowed"),
        ({"quant_method": "awq"}, "quant_method='awq' is not allowed"),
        ({"bit": 4}, "bit: no field of MoEQuantizationConfig; it has bits, group_size"),
    ],
)
def test_anything_else_is_refused(given, text) -> None:
    with pytest.raises(ConfigError, match=text):
        MoEQuantizationConfig(**given)
