"""One run: a model learns until it has the task, the same each time."""

import torch

from moe_hf.bench.studies.recall.arms import make_model
from moe_hf.bench.studies.recall.learning import Recipe, learn
from moe_hf.bench.studies.recall.tasks import TASKS
from tests.bench.studies.recall.runs import QUICK


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
