"""Measures how much memory and time it takes to read a dense GPT-2 as a Mixture of Experts.

Run it with `python -m moe_hf.bench.studies.load_memory --output FILE`. The load happens in a process of its own, whose
highest resident memory Linux keeps.
"""

import logging
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moe_hf.base.errors import BackendUnavailableError
from moe_hf.bench.harness.report import write_json
from moe_hf.bench.harness.training import dense_gpt2
from moe_hf.bench.studies.script import parsed, run_study
from moe_hf.models.gpt2_moe import GPT2WithMoE

MODULE = "moe_hf.bench.studies.load_memory"
logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class LoadSizes:
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
        shape = {"n_embd": sizes.hidden_size, "n_layer": sizes.num_hidden_layers, "n_head": sizes.num_attention_heads}
        dense_gpt2(**shape, vocab_size=sizes.vocab_size, bos_token_id=0, eos_token_id=0).save_pretrained(directory)
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


@dataclass
class Arguments:
    """Where the numbers go."""

    output: Path = field(metadata={"help": "the JSON file to write"})


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write one JSON file."""
    arguments, sizes = parsed((Arguments, LoadSizes), words, MODULE, __doc__)
    result = {"sizes": asdict(sizes), **measure_load(sizes)}
    write_json(result, arguments.output)
    logger.info("%s", result)


if __name__ == "__main__":
    run_study(main, MODULE)
