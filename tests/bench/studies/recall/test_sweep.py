"""The sweep: runs are made once and remembered."""

from moe_hf.bench.studies.recall import sweep as sweep_module
from moe_hf.bench.studies.recall.results import Results
from moe_hf.bench.studies.recall.sweep import RATES, SEEDS, sweep
from tests.bench.studies.recall.runs import QUICK


def test_finished_runs_are_not_made_again(tmp_path, monkeypatch):
    results = Results(tmp_path / "data" / "recall.json", QUICK)
    sweep("mqar", "attention", results, QUICK)
    made = results.runs()
    assert len(made) == len(RATES) + len(SEEDS)
    monkeypatch.setattr(sweep_module, "learn", None)
    sweep("mqar", "attention", Results(tmp_path / "data" / "recall.json", QUICK), QUICK)
    assert results.runs() == made
