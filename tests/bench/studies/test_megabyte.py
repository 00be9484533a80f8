"""The comparison of MegaByte with a flat byte model: what is measured, and how the result is put together."""

import json
import math
from typing import Any

import pytest
import torch

from moe_hf.bench.studies.megabyte import (
    FLAT,
    MEGABYTE,
    Settings,
    bits_per_byte,
    byte_models,
    compare_quality,
    compare_speed,
    main,
    report,
)

TINY: dict[str, Any] = {
    "context_length": 64,
    "flat_layers": 1,
    "flat_width": 16,
    "global_layers": 1,
    "global_width": 32,
    "local_layers": 1,
    "local_width": 16,
    "patch_size": 4,
    "heldout_blocks": 2,
    "speed_turns": 1,
    "points": 2,
}


def test_a_guess_among_all_bytes_costs_eight_bits() -> None:
    assert bits_per_byte(math.log(256)) == pytest.approx(8)


def test_both_arms_are_byte_models_with_experts() -> None:
    models = {name: make() for name, make in byte_models(Settings()).items()}
    ids = torch.randint(261, (1, 20))
    for model in models.values():
        assert model(ids).logits.shape == (1, 20, 264)
        assert model.config.router_of_sparse_layer
    assert models[MEGABYTE].config.local_config.mixer_short_conv == 3
    assert models[FLAT].config.mixer_of_layer == ["attention"] * 4


def test_speed_is_told_for_training_scoring_and_generation() -> None:
    speed = compare_speed(Settings(**TINY))
    assert set(speed) == {"training", "scoring", "generation"}
    for of_arm in speed.values():
        assert of_arm["ratio"] == pytest.approx(of_arm[f"{MEGABYTE} bytes/s"] / of_arm[f"{FLAT} bytes/s"])


def test_the_faster_arm_gets_more_steps_and_the_best_rate_counts() -> None:
    settings = Settings(**TINY, cpu_seconds=1.0, megabyte_learning_rates=[0.0, 1e-2])
    quality = compare_quality(settings, {FLAT: 2 * 64.0, MEGABYTE: 6 * 64.0})
    steps = {curve["arm"]: curve["steps"] for curve in quality["curves"]}
    assert steps == {FLAT: 2, MEGABYTE: 6}
    still, moving = (curve["bits_per_byte"] for curve in quality["curves"] if curve["arm"] == MEGABYTE)
    assert still[0] == pytest.approx(still[-1])
    assert moving[-1] < still[-1]
    assert quality["bits_per_byte"][MEGABYTE] == moving[-1]
    assert quality["difference"] == moving[-1] - quality["bits_per_byte"][FLAT]


def test_the_result_is_written_as_data_and_as_a_table(tmp_path) -> None:
    output = tmp_path / "new" / "megabyte.json"
    given = [f"--{name}={value}" for name, value in TINY.items()]
    main([f"--output={output}", "--cpu_seconds=0.01", *given])
    result = json.loads(output.read_text())
    table = output.with_suffix(".md").read_text()
    assert table == report(result) + "\n"
    assert f"{result['quality']['difference']:+.3f}" in table
    assert table.count("\n") == 7
