"""The command makes what is missing and says which gate was missed."""

import json
from pathlib import Path

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.studies.recall.__main__ import main
from moe_hf.bench.studies.recall.sweep import RATES, SEEDS


def test_the_command_makes_the_missing_runs_and_reports_a_missed_gate(tmp_path: Path):
    steps = ["--steps", "2", "--sweep_steps", "1"]
    code = main(["--output_dir", str(tmp_path), "--mixers", "attention", "--tasks", "mqar", *steps])
    assert code == 1
    assert len(json.loads((tmp_path / "data" / "recall.json").read_text())["runs"]) == len(RATES) + len(SEEDS)
    with pytest.raises(ConfigError, match="'lstm' is not allowed"):
        main(["--output_dir", str(tmp_path), "--mixers", "lstm"])
