"""Measures how much memory and time it takes to read a dense GPT-2 as a Mixture of Experts.

Run it with `python -m moe_hf.bench.studies.load_memory --output FILE`. The load happens in a process of its own, whose
highest resident memory Linux keeps.
"""

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from transformers import GPT2Config, GPT2LMHeadModel

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.base.exit_code import exit_code
from moe_hf.models.gpt2_moe import GPT2WithMoE

logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")


class LoadSizes(NamedTuple):
    """The dense model, GPT-2 small's shape by default, and the experts to make of it."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    vocab_size: int = 50257
    num_experts: int = 8
    num_experts_per_tok: int = 2


def measure_load(sizes: LoadSizes) -> dict[str, Any]:
    """Peak resident bytes and seconds of `GPT2WithMoE.from_pretrained` on a dense GPT-2 with random weights.

    Returns:
        Of the loading process: `resident_bytes_before` (after the imports), `peak_bytes` (highest until the model is
        there; the source file's mapped pages count), their difference `extra_bytes`, `seconds` of wall clock and
        `cpu_seconds`. Of the model: `moe_parameters`, `moe_bytes`, and `extra_over_moe_bytes`. `dense_bytes` is the
        size of the source file.

    Raises:
        BackendUnavailableError: the system is not Linux.
    """
    if not _STATUS.exists():
        raise BackendUnavailableError(f"peak memory is read from {_STATUS}, which only Linux has; run this on Linux")
    with tempfile.TemporaryDirectory() as directory:
        _save_dense(directory, sizes)
        # "spawn": a forked process would begin with this one's memory.
        with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as executor:
            measured = executor.submit(_load, directory, sizes).result()
        dense_bytes = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    extra = measured["peak_bytes"] - measured["resident_bytes_before"]
    return {
        **measured,
        "dense_bytes": dense_bytes,
        "extra_bytes": extra,
        "extra_over_moe_bytes": extra / measured["moe_bytes"],
    }


def _save_dense(directory: str, sizes: LoadSizes) -> None:
    config = GPT2Config(
        n_embd=sizes.hidden_size,
        n_layer=sizes.num_hidden_layers,
        n_head=sizes.num_attention_heads,
        vocab_size=sizes.vocab_size,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)


def _load(directory: str, sizes: LoadSizes) -> dict[str, Any]:
    before, begun, begun_cpu = _resident_bytes("VmRSS"), time.perf_counter(), time.process_time()
    model = GPT2WithMoE.from_pretrained(
        directory, num_experts=sizes.num_experts, num_experts_per_tok=sizes.num_experts_per_tok
    )
    return {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": time.process_time() - begun_cpu,
        "resident_bytes_before": before,
        "peak_bytes": _resident_bytes("VmHWM"),
        "moe_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "moe_bytes": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
    }


def _resident_bytes(field: str) -> int:
    # getrusage's ru_maxrss would not do: a new process inherits the peak of the one that started it.
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m moe_hf.bench.studies.load_memory", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    for name, default in LoadSizes()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = vars(parser.parse_args(arguments))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output: Path = given.pop("output")
    sizes = LoadSizes(**given)
    result = {"sizes": sizes._asdict(), **measure_load(sizes)}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    logger.info("%s", result)


if __name__ == "__main__":
    raise SystemExit(exit_code(main, "python -m moe_hf.bench.studies.load_memory"))
