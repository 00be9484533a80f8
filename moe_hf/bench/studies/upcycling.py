"""Asks whether an upcycled Mixture of Experts beats going on with the dense model, per step and per CPU second.

Komatsuzaki et al. 2023, Sparse Upcycling, on the embedded corpus: one dense GPT-2, then the same tokens in the same
order for the dense model and for the Mixture of Experts made of it. Run: `python -m moe_hf.bench.studies.upcycling`.
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from moe_hf.base.errors import CheckpointError
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.harness.results import plain
from moe_hf.bench.harness.training import dense_gpt2, with_loss
from moe_hf.bench.studies.language_data import (
    HeldOut,
    corpus_tokenizer,
    fresh_conversations,
    heldout_answers,
    training_blocks,
)
from moe_hf.bench.studies.script import parsed, run_study
from moe_hf.bench.studies.timed_training import Point, Recipe, seconds_per_step, side_by_side, train
from moe_hf.bench.studies.upcycling_report import plot_upcycling, summarise
from moe_hf.models.gpt2_moe import GPT2WithMoE

MODULE = "moe_hf.bench.studies.upcycling"
logger = logging.getLogger(__name__)

DENSE, DENSE_LONGER, MOE = "dense", "dense, as many CPU seconds as the MoE", "MoE"
# The learning rates are chosen by the first, so that the second, which is the result, has no say in them.
TUNING_SET, RESULT_SET = "fresh conversations", "held-out answers"
# What the copy's logits may differ by: this many times float32's rounding of the largest logit.
_MOST_ROUNDINGS = 32
# The longer dense arm has at most this many times the steps of the others.
_LONGEST = 3


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment; a step is `batch_size` x `context_length` tokens."""

    seeds: int = 3
    vocab_size: int = 768
    context_length: int = 128
    hidden_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    batch_size: int = 16
    pretrain_steps: int = 600
    pretrain_learning_rate: float = 8e-3
    steps: int = 300
    warmup_steps: int = 20
    points: int = 10
    learning_rates: list[float] = field(default_factory=lambda: [4e-3, 8e-3, 1.6e-2, 3.2e-2])
    num_experts: int = 8
    num_experts_per_tok: int = 2
    questions_per_skill: int = 12
    fresh_blocks: int = 64
    extra_arms: bool = True


class Stage(NamedTuple):
    """One seed's dense checkpoint and the token blocks that every arm goes on with."""

    dense_dir: Path
    blocks_NS: torch.Tensor
    pretraining: list[Point]


class LogitDifference(NamedTuple):
    """The largest absolute difference between two models' logits, and the first model's largest absolute logit."""

    largest_difference: float
    largest_logit: float


def extra_arms(num_layers: int) -> dict[str, dict[str, Any]]:
    """The further ways of upcycling that the first seed tries, by name: fields of the configuration."""
    return {
        "MoE, expert_init=noise": {"expert_init": "noise"},
        "MoE, expert_init=drop": {"expert_init": "drop"},
        "MoE, router_init=zero": {"router_init": "zero"},
        "MoE, every layer sparse": {"mlp_layer_types": ["sparse"] * num_layers},
        "MoE, top-1": {"num_experts_per_tok": 1},
        "MoE, top-1, norm_topk_prob=False": {"num_experts_per_tok": 1, "norm_topk_prob": False},
    }


def run_experiment(settings: Settings, work_dir: Path) -> dict[str, Any]:
    """Everything measured, as what a JSON file can hold.

    Args:
        settings: sizes.
        work_dir: the dense checkpoints are written here.

    Raises:
        CheckpointError: the upcycled copy does not give the dense model's logits.
    """
    tokenizer = corpus_tokenizer(settings.vocab_size)
    heldout = {
        RESULT_SET: heldout_answers(tokenizer, settings.questions_per_skill, settings.context_length),
        TUNING_SET: fresh_conversations(tokenizer, settings.fresh_blocks, settings.context_length),
    }
    stages = [_pretrain(settings, tokenizer, heldout, seed, work_dir) for seed in range(settings.seeds)]
    differences = [step0_difference(stage.dense_dir, _moe(stage, settings, seed)) for seed, stage in enumerate(stages)]
    logger.info("logits at step 0: %s", differences)
    require_same_logits(differences)

    per_step = _step_costs(stages[0], settings)
    longer = round(settings.steps * per_step[MOE] / per_step[DENSE])
    longer = max(settings.steps, min(longer, _LONGEST * settings.steps))
    logger.info("CPU seconds per step: %s; the longer dense arm has %d steps", per_step, longer)

    tuned = _tune(stages[0], settings, heldout)
    rates = {arm: min(of_rate, key=lambda rate: of_rate[rate][-1].losses[TUNING_SET]) for arm, of_rate in tuned.items()}
    logger.info("learning rates: %s", rates)

    curves = _curves(stages, settings, rates, heldout, longer)
    return {
        "settings": asdict(settings),
        "machine": describe_machine(),
        "parameters": _parameter_counts(stages[0], settings),
        "pretraining": plain([stage.pretraining for stage in stages]),
        "step_0": plain(differences),
        "cpu_seconds_per_step": per_step,
        "tuning": {arm: {str(rate): plain(points[-1]) for rate, points in of.items()} for arm, of in tuned.items()},
        "learning_rates": rates,
        "curves": plain(curves),
        "extra_arms": _extra_arms(stages[0], settings, rates[MOE], heldout) if settings.extra_arms else {},
    }


def _curves(
    stages: Sequence[Stage],
    settings: Settings,
    rates: Mapping[str, float],
    heldout: Mapping[str, HeldOut],
    longer: int,
) -> dict[str, list[list[Point]]]:
    """The points of every seed, by arm; `longer` steps cost the dense model what the MoE's cost it."""
    curves: dict[str, list[list[Point]]] = {DENSE: [], DENSE_LONGER: [], MOE: []}
    for seed, stage in enumerate(stages):
        # The first seed runs again, for its clock: the arms of one seed must share whatever else the machine does.
        points = side_by_side(
            {
                DENSE: _continue_dense(stage, settings, rates[DENSE], heldout, settings.steps),
                DENSE_LONGER: _continue_dense(stage, settings, rates[DENSE], heldout, longer),
                MOE: _continue(_moe(stage, settings, seed), stage, settings, rates[MOE], heldout),
            }
        )
        for arm, of_seed in curves.items():
            of_seed.append(points[arm])
            logger.info("seed %d, %s: %s", seed, arm, points[arm][-1])
    return curves


@torch.no_grad()
def step0_difference(dense_dir: Path, moe: PreTrainedModel) -> LogitDifference:
    """How far `moe` is from the dense model, on 4 full contexts of random tokens."""
    dense = _dense(dense_dir).eval()
    shape = (4, dense.config.n_positions)
    ids_BS = torch.randint(dense.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    logits = dense(input_ids=ids_BS).logits
    largest_difference = (moe.eval()(input_ids=ids_BS).logits - logits).abs().max().item()
    return LogitDifference(largest_difference, logits.abs().max().item())


def require_same_logits(differences: Sequence[LogitDifference]) -> None:
    """Pass differences that are no more than float32 rounding.

    Raises:
        CheckpointError: one is larger.
    """
    for largest_difference, largest_logit in differences:
        allowed = _MOST_ROUNDINGS * torch.finfo(torch.float32).eps * largest_logit
        if largest_difference > allowed:
            raise CheckpointError(
                f"the upcycled copy's logits differ from the dense model's by {largest_difference}; rounding explains "
                f"no more than {allowed}: upcycling is broken"
            )


def _pretrain(
    settings: Settings, tokenizer: PreTrainedTokenizerFast, heldout: Mapping[str, HeldOut], seed: int, work_dir: Path
) -> Stage:
    num_steps = settings.pretrain_steps + _LONGEST * settings.steps
    # One stream, long enough for the longest arm: all go on where the pretraining ended.
    blocks = training_blocks(tokenizer, num_steps * settings.batch_size, settings.context_length, seed)
    split = settings.pretrain_steps * settings.batch_size
    torch.manual_seed(seed)
    model = dense_gpt2(
        vocab_size=len(tokenizer),
        n_positions=settings.context_length,
        n_embd=settings.hidden_size,
        n_layer=settings.num_hidden_layers,
        n_head=settings.num_attention_heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    eval_every = max(settings.pretrain_steps // settings.points, 1)
    recipe = Recipe(settings.pretrain_learning_rate, settings.batch_size, settings.warmup_steps, eval_every)
    points = list(train(model, blocks[:split], recipe, heldout))
    logger.info("seed %d, dense pretraining: %s", seed, points[-1])
    dense_dir = work_dir / f"dense-{seed}"
    model.save_pretrained(dense_dir)
    return Stage(dense_dir, blocks[split:], points)


def _dense(dense_dir: Path) -> GPT2LMHeadModel:
    return with_loss(GPT2LMHeadModel.from_pretrained(dense_dir))


def _moe(stage: Stage, settings: Settings, seed: int, **overrides: Any) -> GPT2WithMoE:
    fields = {
        "num_experts": settings.num_experts,
        "num_experts_per_tok": settings.num_experts_per_tok,
        "expert_init_seed": seed,
        **overrides,
    }
    return GPT2WithMoE.from_pretrained(stage.dense_dir, **fields)


def _continue(
    model: PreTrainedModel,
    stage: Stage,
    settings: Settings,
    learning_rate: float,
    heldout: Mapping[str, HeldOut],
    num_steps: int | None = None,
) -> Iterator[Point]:
    num_steps = num_steps or settings.steps
    recipe = Recipe(learning_rate, settings.batch_size, settings.warmup_steps, max(num_steps // settings.points, 1))
    return train(model, stage.blocks_NS[: num_steps * settings.batch_size], recipe, heldout)


def _continue_dense(
    stage: Stage, settings: Settings, learning_rate: float, heldout: Mapping[str, HeldOut], num_steps: int
) -> Iterator[Point]:
    return _continue(_dense(stage.dense_dir), stage, settings, learning_rate, heldout, num_steps)


def _step_costs(stage: Stage, settings: Settings) -> dict[str, float]:
    models = {DENSE: _dense(stage.dense_dir), MOE: _moe(stage, settings, 0)}
    if settings.extra_arms:
        models["MoE, top-1"] = _moe(stage, settings, 0, num_experts_per_tok=1)
    batch = stage.blocks_NS[: settings.batch_size]
    return seconds_per_step(models, batch, turns=min(30, settings.steps))


def _tune(stage: Stage, settings: Settings, heldout: Mapping[str, HeldOut]) -> dict[str, dict[float, list[Point]]]:
    """Both arms at every learning rate of the grid, on the first seed, at full length."""
    runs = {}
    for rate in settings.learning_rates:
        runs[f"{DENSE} {rate}"] = _continue_dense(stage, settings, rate, heldout, settings.steps)
        runs[f"{MOE} {rate}"] = _continue(_moe(stage, settings, 0), stage, settings, rate, heldout)
    points = side_by_side(runs)
    return {arm: {rate: points[f"{arm} {rate}"] for rate in settings.learning_rates} for arm in (DENSE, MOE)}


def _extra_arms(
    stage: Stage, settings: Settings, learning_rate: float, heldout: Mapping[str, HeldOut]
) -> dict[str, dict[str, Any]]:
    models = {
        name: _moe(stage, settings, 0, **fields) for name, fields in extra_arms(settings.num_hidden_layers).items()
    }
    differences = {name: step0_difference(stage.dense_dir, model) for name, model in models.items()}
    points = side_by_side(
        {name: _continue(model, stage, settings, learning_rate, heldout) for name, model in models.items()}
    )
    return {name: plain({"step_0": differences[name], "curve": points[name]}) for name in models}


def _parameter_counts(stage: Stage, settings: Settings) -> dict[str, int]:
    models: dict[str, PreTrainedModel] = {DENSE: _dense(stage.dense_dir), MOE: _moe(stage, settings, 0)}
    return {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in models.items()}


@dataclass
class Arguments:
    """Where the numbers go."""

    output_dir: Path = field(metadata={"help": "folder to write data/ and images/ into"})
    report_only: bool = field(default=False, metadata={"help": "sum up and draw the data that is already there"})


def main(words: Sequence[str] | None = None) -> None:
    """Run the experiment and write `data/upcycling.json` and `images/upcycling.png` under `--output_dir`."""
    arguments, settings = parsed((Arguments, Settings), words, MODULE, __doc__)
    data_file = arguments.output_dir / "data" / "upcycling.json"
    if arguments.report_only:
        result = json.loads(data_file.read_text())
    else:
        with tempfile.TemporaryDirectory() as work_dir:
            result = run_experiment(settings, Path(work_dir))
    write_json({**result, "summary": summarise(result)}, data_file)
    plot_upcycling(result, arguments.output_dir / "images" / "upcycling.png")


if __name__ == "__main__":
    run_study(main, MODULE)
