"""Asks whether MegaByte reads bytes faster than a flat byte model, and predicts as well for the same CPU seconds.

Both are decoders of this package with attention and experts, trained on the bytes of the embedded corpus. Run it with
`python -m moe_hf.bench.studies.megabyte --output FILE`.

Shapes: N blocks, B blocks of one step, S bytes of one block.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.harness.tables import markdown_table
from moe_hf.bench.harness.training import cpu_seconds
from moe_hf.bench.studies.language_data import fresh_conversations, training_blocks
from moe_hf.bench.studies.script import parsed, run_study
from moe_hf.bench.studies.timed_training import Recipe, seconds_per_step, side_by_side, train
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.models.gpt2_moe import GPT2WithMoE
from moe_hf.models.megabyte.model import MegaByteWithMoE
from moe_hf.text.tokenizers import byte_tokenizer

MODULE = "moe_hf.bench.studies.megabyte"
logger = logging.getLogger(__name__)

FLAT, MEGABYTE = "flat", "MegaByte"
_HELDOUT = "fresh conversations"
_GENERATED = 64


@dataclass(frozen=True)
class Settings:
    """Sizes of the experiment; a step is `batch_size` x `context_length` bytes.

    Each arm is trained once per seed and learning rate for about `cpu_seconds`; its best rate counts.
    """

    context_length: int = 2048
    batch_size: int = 1
    patch_size: int = 8
    local_lookback: int = 2
    flat_layers: int = 4
    flat_width: int = 128
    global_layers: int = 2
    global_width: int = 256
    local_layers: int = 2
    local_width: int = 128
    cpu_seconds: float = 40.0
    seeds: int = 1
    warmup_steps: int = 20
    points: int = 3
    heldout_blocks: int = 8
    speed_turns: int = 5
    flat_learning_rates: list[float] = field(default_factory=lambda: [4e-3])
    megabyte_learning_rates: list[float] = field(default_factory=lambda: [2e-3])


def byte_models(settings: Settings) -> dict[str, Callable[[], PreTrainedModel]]:
    """Makes a fresh model of each arm, from torch's current seed."""
    flat = GPT2WithMoEConfig(**_fields(settings, settings.flat_width), num_hidden_layers=settings.flat_layers)
    megabyte = MegaByteWithMoEConfig(
        **_fields(settings, settings.global_width),
        num_hidden_layers=settings.global_layers,
        patch_size=settings.patch_size,
        local_lookback=settings.local_lookback,
        local_config={
            **_widths(settings.local_width),
            "num_hidden_layers": settings.local_layers,
            "mixer_short_conv": 3,
        },
    )
    return {FLAT: lambda: GPT2WithMoE(flat), MEGABYTE: lambda: MegaByteWithMoE(megabyte)}


def bits_per_byte(nats: float) -> float:
    """The same loss in bits: a byte tokenizer's tokens are bytes, but for the few marks between messages.

    >>> round(bits_per_byte(math.log(256)), 6)
    8.0
    """
    return nats / math.log(2)


def compare_speed(settings: Settings) -> dict[str, dict[str, float]]:
    """Bytes per CPU second of each arm in `training`, `scoring` and `generation`, and how many times the flat model's.

    The arms take turns; medians. Generation adds bytes to a prompt of `context_length` minus as many, one row.
    """
    models = {name: make() for name, make in byte_models(settings).items()}
    batch_BS = torch.randint(5, 261, (settings.batch_size, settings.context_length))
    new = min(_GENERATED, settings.context_length // 2)
    prompt = batch_BS[:1, :-new]
    # As many bytes of both, whatever they would say: neither may stop early.
    generated = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 1}
    seconds = {"training": seconds_per_step(models, batch_BS, settings.speed_turns)}

    def of(call: Callable[[Any], Any]) -> dict[str, float]:
        with torch.no_grad():
            return cpu_seconds({name: partial(call, model) for name, model in models.items()}, settings.speed_turns)

    seconds["scoring"] = of(lambda model: model(batch_BS, use_cache=False))
    # generate reads the prompt as well, and that is taken off below.
    prefill = of(lambda model: model(prompt, use_cache=True))
    whole = of(lambda model: model.generate(prompt, **generated))
    # At least a clock tick, should noise make the prompt alone look slower than prompt and answer.
    seconds["generation"] = {name: max(whole[name] - prefill[name], 1e-6) for name in models}
    count = {"training": batch_BS.numel(), "scoring": batch_BS.numel(), "generation": new}
    return {
        kind: {
            **{f"{name} bytes/s": count[kind] / of_arm[name] for name in models},
            "ratio": of_arm[FLAT] / of_arm[MEGABYTE],
        }
        for kind, of_arm in seconds.items()
    }


def compare_quality(settings: Settings, bytes_per_second: dict[str, float]) -> dict[str, Any]:
    """Held-out bits per byte of both arms after as many CPU seconds of training.

    Args:
        settings: sizes.
        bytes_per_second: of training, by arm: it says how many steps fit into the seconds.
    """
    tokenizer = byte_tokenizer()
    heldout = {_HELDOUT: fresh_conversations(tokenizer, settings.heldout_blocks, settings.context_length)}
    rates = {FLAT: settings.flat_learning_rates, MEGABYTE: settings.megabyte_learning_rates}
    arms = byte_models(settings)
    runs, curves = {}, []
    for seed in range(settings.seeds):
        for name, make in arms.items():
            num_bytes = settings.cpu_seconds * bytes_per_second[name]
            steps = max(1, round(num_bytes / (settings.batch_size * settings.context_length)))
            blocks_NS = training_blocks(tokenizer, steps * settings.batch_size, settings.context_length, seed)
            for rate in rates[name]:
                # The weights are drawn here; the runs themselves begin later, in turns.
                torch.manual_seed(seed)
                every = max(1, -(-steps // settings.points))
                recipe = Recipe(rate, settings.batch_size, min(settings.warmup_steps, steps), every)
                runs[f"{name} {rate} {seed}"] = train(make(), blocks_NS, recipe, heldout)
                curves.append({"arm": name, "learning_rate": rate, "seed": seed, "steps": steps})
    # Both stand in the order in which the runs were made.
    for curve, points in zip(curves, side_by_side(runs).values(), strict=True):
        curve["cpu_seconds"] = [point.cpu_seconds for point in points]
        curve["bits_per_byte"] = [bits_per_byte(point.losses[_HELDOUT]) for point in points]
        logger.info("%s", curve)
    best = {name: _best(curves, name) for name in arms}
    return {"curves": curves, "bits_per_byte": best, "difference": best[MEGABYTE] - best[FLAT]}


def compare(settings: Settings) -> dict[str, Any]:
    """Speed and quality of both arms, as what a JSON file can hold.

    `speed` is what `compare_speed` returns, `quality` what `compare_quality` does; `parameters` counts each arm's.
    """
    torch.manual_seed(0)
    speed = compare_speed(settings)
    logger.info("%s", speed)
    arms = byte_models(settings)
    quality = compare_quality(settings, {name: speed["training"][f"{name} bytes/s"] for name in arms})
    parameters = {name: sum(parameter.numel() for parameter in make().parameters()) for name, make in arms.items()}
    return {
        "machine": describe_machine(),
        "settings": asdict(settings),
        "parameters": parameters,
        "speed": speed,
        "quality": quality,
    }


def report(result: dict[str, Any]) -> str:
    """The result of `compare` as a table in Markdown."""
    rows = []
    for kind, of_arm in result["speed"].items():
        flat, megabyte = (of_arm[f"{name} bytes/s"] for name in (FLAT, MEGABYTE))
        rows.append([f"{kind}, bytes per CPU second", f"{flat:,.0f}", f"{megabyte:,.0f}", f"{of_arm['ratio']:.2f}x"])
    best, difference = result["quality"]["bits_per_byte"], result["quality"]["difference"]
    label = f"bits per byte after {result['settings']['cpu_seconds']:g} CPU seconds"
    rows.append([label, f"{best[FLAT]:.3f}", f"{best[MEGABYTE]:.3f}", f"{difference:+.3f}"])
    rows.append(["parameters", *[f"{result['parameters'][name] / 1e6:.2f}M" for name in (FLAT, MEGABYTE)], ""])
    return markdown_table(["", FLAT, MEGABYTE, f"{MEGABYTE} / {FLAT}"], rows)


def _fields(settings: Settings, width: int) -> dict[str, Any]:
    return {
        # The byte tokenizer's 261 ids, rounded up.
        "vocab_size": 264,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "max_position_embeddings": settings.context_length,
        "position_embedding_type": "rotary",
        "rope_theta": 1000.0,
        "mixer_short_conv": 3,
        "num_experts": 8,
        "num_experts_per_tok": 1,
        "norm_topk_prob": False,
        "initializer_range": 0.04,
        **_widths(width),
    }


def _widths(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_attention_heads": max(1, width // 64),
        "intermediate_size": 4 * width,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": 3 * width,
    }


def _best(curves: list[dict[str, Any]], arm: str) -> float:
    """The mean over seeds of the last bits per byte, at the learning rate where it is least."""
    of_rate: dict[float, list[float]] = {}
    for curve in curves:
        if curve["arm"] == arm:
            of_rate.setdefault(curve["learning_rate"], []).append(curve["bits_per_byte"][-1])
    return min(sum(values) / len(values) for values in of_rate.values())


@dataclass
class Arguments:
    """Where the numbers go."""

    output: Path = field(metadata={"help": "JSON file to write; the table stands beside it (.md)"})


def main(words: Sequence[str] | None = None) -> None:
    """Run the experiment; write `--output` (JSON) and the table beside it (`.md`)."""
    arguments, settings = parsed((Arguments, Settings), words, MODULE, __doc__)
    result = compare(settings)
    write_json(result, arguments.output)
    arguments.output.with_suffix(".md").write_text(report(result) + "\n")


if __name__ == "__main__":
    run_study(main, MODULE)
