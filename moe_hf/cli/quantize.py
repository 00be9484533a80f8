"""`moe-hf quantize`: writes a model with its experts in 8 or 4 bits."""

import argparse
import shlex

from transformers.utils import logging

from moe_hf.cli.screen import Screen, in_bytes
from moe_hf.ops.experts.quantized_weights import BITS, GROUP_SIZES
from moe_hf.quantization.directory import quantize_directory
from moe_hf.quantization.quantization_config import GROUP_SIZE, MoEQuantizationConfig


def main(argv: list[str] | None = None, prog: str = "moe-hf quantize") -> int:
    """Write the folder; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Store the weights of a model's experts in 8 or 4 bits. Router, attention, norms and embeddings "
        "stay as they are. It takes the families of this package and transformers' own classes with stacked experts.",
    )
    parser.add_argument("source", metavar="MODEL", help="folder or Hub id of a Mixture of Experts")
    parser.add_argument("destination", metavar="DIR", help="folder to create")
    parser.add_argument("--bits", type=int, choices=BITS, default=8, help="of a weight (default: %(default)s)")
    parser.add_argument(
        "--group_size",
        type=int,
        choices=GROUP_SIZES,
        help=f"with --bits 4: weights of a row that share a scale and a zero (default: {GROUP_SIZE})",
    )
    parser.add_argument("--max_shard_size", default="5GB", help="largest weights file (default: %(default)s)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the model in DIR when the new one is complete"
    )
    args = parser.parse_args(argv)
    config = MoEQuantizationConfig(args.bits, args.group_size)

    # Progress goes to stderr: stdout holds the result alone.
    logging.disable_progress_bar()
    with Screen(stderr=True, soft_wrap=True).status(f"rounding the experts to {args.bits} bits"):
        report = quantize_directory(args.source, args.destination, config, args.max_shard_size, args.overwrite)
    grouped = "" if config.group_size is None else f", groups of {config.group_size}"
    Screen(soft_wrap=True).print(
        f"{report.folder}: {report.parameters / 1e6:.1f}M parameters, {report.expert_weights / 1e6:.1f}M of them in "
        f"{config.bits} bits{grouped}\n"
        f"experts:      {in_bytes(report.expert_bytes)}, {report.share_of_float32:.3f} of float32\n"
        f"on disk:      {in_bytes(report.weight_bytes)}\n"
        f"carried over: {', '.join(report.carried) or 'nothing'}\n"
        f"talk to it:   moe-hf chat --model {shlex.quote(str(report.folder))}"
    )
    return 0
