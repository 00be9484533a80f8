"""The sweep: runs are made once and remembered, the best rate is chosen, tables and gates say what was found."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.bench.studies.recall import sweep as sweep_module
from moe_hf.bench.studies.recall.__main__ import main
from moe_hf.bench.studies.recall.arms import ARMS, make_model
from moe_hf.bench.studies.recall.learning import Recipe, answers, learn
from moe_hf.bench.studies.recall.report import missed_gates, summarise, table, write_report
from moe_hf.bench.studies.recall.sweep import RATES, SEEDS, Key, Results, best_rate, sweep
from moe_hf.bench.studies.recall.tasks import TASKS

QUICK = Recipe(steps=3, sweep_steps=2, batch_size=4, warmup_steps=1, eval_every=1, test_examples=8)
FIXED = Recipe(steps=1500, sweep_steps=500)


def run(key: Key, accuracy: float, steps: int = 400, loss: float = 1.0) -> dict[str, Any]:
    found = {"accuracy": dict.fromkeys(TASKS[key.task].variants, accuracy), "loss": loss, "steps": steps}
    curve = [[steps // 2, 1.0, accuracy / 2], [steps, 2.0, accuracy]]
    return {**key._asdict(), **found, "cpu_seconds": 2.0, "num_parameters": 71232, "curve": curve}


def whole_sweep(arm: str, accuracy: float) -> dict[Key, dict[str, Any]]:
    """All runs of one mixer, the middle rate being the best."""
    keys = [Key("mqar", arm, rate, 0, FIXED.sweep_steps) for rate in RATES]
    runs = {key: run(key, accuracy) if key.learning_rate == RATES[1] else run(key, 0.1, loss=2.0) for key in keys}
    for task in TASKS:
        for seed in SEEDS:
            key = Key(task, arm, RATES[1], seed, FIXED.steps)
            runs[key] = run(key, accuracy)
    return runs


@pytest.mark.parametrize("arm", list(ARMS))
def test_every_mixer_is_of_about_the_same_size_and_answers(arm):
    task = TASKS["mqar"]
    model = make_model(arm, task, seed=0)
    assert 65_000 <= model.num_parameters() <= 112_000
    assert model.config.num_hidden_layers == 2
    accuracy, loss = answers(model, task.variants["4 pairs"](8, torch.Generator().manual_seed(0)))
    assert 0 <= accuracy < 0.6
    assert 1 < loss < 20


def test_an_unknown_mixer_is_an_error_that_says_what_there_is():
    with pytest.raises(ConfigError, match=r"unknown mixer 'atention'.*attention"):
        make_model("atention", TASKS["mqar"], seed=0)


def test_a_model_learns_and_stops_when_it_has_it():
    torch.manual_seed(0)
    task = TASKS["copying"]
    recipe = Recipe(batch_size=16, warmup_steps=5, eval_every=5, test_examples=16, solved=0.2)
    learnt = learn(make_model("attention", task, 0), task, 1e-2, seed=1, recipe=recipe, max_steps=200)
    assert learnt.accuracy["copied"] >= 0.2
    assert learnt.steps < 200
    assert [step for step, _, _ in learnt.curve] == list(range(5, learnt.steps + 1, 5))
    assert 0 < learnt.cpu_seconds == learnt.curve[-1][1]


def test_a_seed_gives_the_same_run_again():
    task = TASKS["mqar"]
    first, again = (learn(make_model("attention", task, 3), task, 1e-3, 3, QUICK, 3) for _ in range(2))
    assert (first.loss, first.accuracy) == (again.loss, again.accuracy)


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    results = Results(tmp_path / "data" / "recall.json", QUICK)
    sweep("mqar", "attention", results, QUICK)
    made = results.runs()
    assert len(made) == len(RATES) + len(SEEDS)
    monkeypatch.setattr(sweep_module, "learn", None)
    sweep("mqar", "attention", Results(tmp_path / "data" / "recall.json", QUICK), QUICK)
    assert results.runs() == made


def test_results_of_another_recipe_are_refused(tmp_path):
    file = tmp_path / "recall.json"
    Results(file, QUICK).add(Key("mqar", "attention", 1e-3, 0, 2), {"steps": 2})
    with pytest.raises(CheckpointError, match="another recipe"):
        Results(file, QUICK._replace(batch_size=5))
    file.write_text("[]")
    with pytest.raises(CheckpointError, match="no results of recall"):
        Results(file, QUICK)


@pytest.mark.parametrize(
    ("found", "best"),
    [
        # Accuracy, steps and loss of each rate.
        (((1.0, 300, 0.1), (0.999, 200, 0.3), (0.9, 500, 0.2)), RATES[1]),
        (((0.35, 500, 1.2), (0.36, 500, 1.3), (0.34, 500, 1.4)), RATES[0]),
        (((0.9, 500, 0.1), (0.9, 500, 0.2), (0.998, 500, 0.3)), RATES[2]),
    ],
    ids=["fastest", "least-loss", "solved-beats-loss"],
)
def test_the_best_rate_solves_the_task_soonest_or_has_the_least_loss(found, best):
    tried = [run(Key("mqar", "attention", rate, 0, 500), *one) for rate, one in zip(RATES, found, strict=True)]
    assert best_rate(tried, solved=0.998) == best


def test_the_table_has_a_line_per_mixer_and_says_which_gate_was_missed():
    rows = summarise({**whole_sweep("attention", 1.0), **whole_sweep("mamba 1", 0.5)}, FIXED)
    assert {(row.arm, row.learning_rate) for row in rows} == {("attention", RATES[1]), ("mamba 1", RATES[1])}
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| attention | 71,232 | 0.005 | 1.00 | 1.00 | 1.00 | 0.97 | 400 | 2 | 1.00 | 1.00 |"
    assert "| 0.8 missed |" in lines[3]
    assert lines[3].endswith("| 0.50 missed | 0.50 missed |")
    assert missed_gates(rows) == [
        f"mamba 1 reaches 0.500 on {task}, below its gate of {gate}"
        for task, gate in (("mqar", 0.8), ("copying", 0.97), ("induction", 0.97))
    ]


def test_what_is_half_done_has_no_line_yet():
    runs = whole_sweep("attention", 1.0)
    assert summarise({key: one for key, one in runs.items() if key.seed == 0}, FIXED) == []


def test_the_report_fills_the_page_and_draws(tmp_path):
    page = tmp_path / "mixers.md"
    page.write_text("before\n<!-- measured: recall -->\nold\n<!-- end of recall -->\nafter\n")
    write_report(summarise(whole_sweep("rwkv 7", 0.99), FIXED), tmp_path)
    assert "rwkv 7" in page.read_text()
    assert "old" not in page.read_text()
    assert (tmp_path / "data" / "recall.md").read_text().startswith("| mixer |")
    assert (tmp_path / "images" / "recall.png").stat().st_size > 1000


def test_the_command_makes_the_missing_runs_and_reports_a_missed_gate(tmp_path: Path):
    steps = ["--steps", "2", "--sweep_steps", "1"]
    code = main(["--output_dir", str(tmp_path), "--mixers", "attention", "--tasks", "mqar", *steps])
    assert code == 1
    assert len(json.loads((tmp_path / "data" / "recall.json").read_text())["runs"]) == len(RATES) + len(SEEDS)
    with pytest.raises(ConfigError, match="'lstm' is not allowed"):
        main(["--output_dir", str(tmp_path), "--mixers", "lstm"])
