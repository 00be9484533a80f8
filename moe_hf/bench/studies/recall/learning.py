"""One run: a model learns a task from freshly drawn examples until it has it or its steps are used up.

Shapes: N examples, S positions, V vocabulary.
"""

import time
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from moe_hf.bench.harness.training import update
from moe_hf.bench.studies.recall.tasks import IGNORED, Examples, Task

# Far from every seed of a run.
_TEST_SEED = 987654321


class Recipe(NamedTuple):
    """What is the same for every model: AdamW, a linear warm-up, then a linear decay to a tenth of the rate.

    Attributes:
        steps: at most, of a run that is reported.
        sweep_steps: at most, of a run that only helps to choose the learning rate.
        batch_size: new examples per step.
        warmup_steps: of the learning rate, from 0.
        weight_decay: of AdamW.
        eval_every: steps between two tests.
        test_examples: of each variant of the task.
        solved: accuracy in (0, 1] on the trained variant at which a run ends.
    """

    steps: int = 1500
    sweep_steps: int = 500
    batch_size: int = 32
    warmup_steps: int = 100
    weight_decay: float = 0.1
    eval_every: int = 50
    test_examples: int = 512
    solved: float = 0.995


class Learnt(NamedTuple):
    """The end of a run.

    Attributes:
        accuracy: share of right answers to each variant of the task.
        loss: mean nats per answer of the trained variant.
        steps: that were made.
        cpu_seconds: of forward, backward and update, over all threads; tests are not counted.
        curve: step, CPU seconds and accuracy on the trained variant, at each test.
    """

    accuracy: dict[str, float]
    loss: float
    steps: int
    cpu_seconds: float
    curve: list[tuple[int, float, float]]


def learn(
    model: PreTrainedModel, task: Task, learning_rate: float, seed: int, recipe: Recipe, max_steps: int
) -> Learnt:
    """Train the model on the task's trained variant; it is tested on all of them at the end.

    Args:
        model: predicts next tokens; it is changed.
        task: what to learn.
        learning_rate: the highest one, reached after the warm-up.
        seed: of the examples, which are never drawn twice.
        recipe: the rest of how to train.
        max_steps: steps at most.
    """
    generator = torch.Generator().manual_seed(seed)
    tests = {
        name: draw(recipe.test_examples, torch.Generator().manual_seed(_TEST_SEED))
        for name, draw in task.variants.items()
    }
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )
    spent, curve = 0.0, []
    for step in range(1, max_steps + 1):
        examples = task.variants[task.trained](recipe.batch_size, generator)
        # The examples are drawn before the clock starts: that is no training.
        begun = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _schedule(step, max_steps, recipe.warmup_steps)
        _train_step(model, optimizer, examples)
        spent += time.process_time() - begun
        if step % recipe.eval_every == 0 or step == max_steps:
            accuracy, _ = answers(model, tests[task.trained])
            curve.append((step, spent, accuracy))
            if accuracy >= recipe.solved:
                break
    results = {name: answers(model, examples) for name, examples in tests.items()}
    accuracies = {name: accuracy for name, (accuracy, _) in results.items()}
    return Learnt(accuracies, results[task.trained][1], step, spent, curve)


def _train_step(model: Any, optimizer: torch.optim.Optimizer, examples: Examples) -> None:
    model.train()
    asked_NS = examples.labels_NS != IGNORED
    logits_NSV = model(input_ids=examples.ids_NS, use_cache=False).logits
    cross_entropy(logits_NSV[asked_NS], examples.labels_NS[asked_NS]).backward()
    update(model, optimizer)


@torch.no_grad()
def answers(model: Any, examples: Examples) -> tuple[float, float]:
    """Share of right answers in [0, 1], and mean nats per answer."""
    model.eval()
    asked_NS = examples.labels_NS != IGNORED
    logits = model(input_ids=examples.ids_NS, use_cache=False).logits[asked_NS]
    labels = examples.labels_NS[asked_NS]
    return (logits.argmax(dim=-1) == labels).float().mean().item(), cross_entropy(logits, labels).item()


def _schedule(step: int, max_steps: int, warmup_steps: int) -> float:
    return min(step / max(warmup_steps, 1), 1.0 - 0.9 * step / max_steps)
