"""Finished runs in one file of one recipe, and the best rate among them."""

import pytest

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.studies.recall.results import Key, Results, best_rate
from moe_hf.bench.studies.recall.sweep import RATES
from tests.bench.studies.recall.runs import QUICK, run


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
