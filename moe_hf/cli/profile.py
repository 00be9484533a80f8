"""`moe-hf profile`: says in words and numbers where the time of router, layer, block and training step goes."""

import argparse
import shlex
from collections.abc import Sequence

from rich.console import Console
from transformers.utils import logging

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.arms import Options
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.speed.opponents import require_backends
from moe_hf.bench.speed.profile_report import hot_spots, write_profile_reports
from moe_hf.bench.speed.profiles import Profile
from moe_hf.bench.speed.profiling import PARTS, default_profiles
from moe_hf.bench.speed.sizes import Size
from moe_hf.cli.measuring import chosen_device, report_folder, table_of, wide_console

_SIZE_FLAGS: dict[str, tuple[str, int | str]] = {
    # flag: field of Size, default
    "tokens": ("tokens", 2048),
    "hidden_size": ("hidden_size", 256),
    "expert_width": ("expert_width", 1024),
    "num_experts": ("num_experts", 8),
    "top_k": ("k", 2),
    "dtype": ("dtype", "float32"),
    "activation": ("activation", "gelu_new"),
    "threads": ("threads", 1),
    "router_type": ("router_type", "top_k"),
}


def main(argv: Sequence[str] | None = None, prog: str = "moe-hf profile") -> int:
    """Profile, print the hot spots and write the reports; returns the exit code."""
    words = list(argv or [])
    args = _parser(prog).parse_args(words)
    logging.set_verbosity_error()
    require_backends((args.backend, args.against), packed=False)
    for part in args.parts:
        # Looked up for the error of an unknown name.
        PARTS[part]
    size = Size(**{field: getattr(args, flag) for flag, (field, _) in _SIZE_FLAGS.items()}).require_possible()
    if args.steps < 1:
        raise ConfigError(f"steps={args.steps} is not allowed; it must be an integer >= 1")
    device = chosen_device(args.device)
    folder = report_folder(args.report)
    console, machine = wide_console(), describe_machine()
    with console.status("profiling") as status:
        profiles = default_profiles(
            size,
            Options(device, args.seed),
            args.backend,
            args.against,
            args.steps,
            folder,
            tuple(args.parts or PARTS),
            lambda part: status.update(f"profiling {part}"),
        )
    for part, of in profiles.items():
        _show(console, part, of)
    if folder is not None:
        command = shlex.join(["moe-hf", "profile", *words])
        written = write_profile_reports(profiles, machine, command, folder)
        console.print("wrote " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Profile forward and backward of router, MoE layer and block, and a training step of a small "
        "model, with one experts backend and another beside it.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--report", metavar="DIR", help="write reports, profile.json and Chrome traces there")
    parser.add_argument("--backend", default="auto", help="the experts backend to profile (default: auto)")
    parser.add_argument("--against", default="grouped_mm", help="the one beside it (default: grouped_mm)")
    parser.add_argument("--steps", type=int, default=3, help="profiled steps (default: 3)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and tokens (default: 0)")
    group = parser.add_argument_group("size")
    for flag, (_, default) in _SIZE_FLAGS.items():
        group.add_argument(
            f"--{flag}", type=type(default), default=default, metavar="VALUE", help=f"default: {default}"
        )
    return parser


def _show(console: Console, part: str, profiles: Sequence[Profile]) -> None:
    console.print(f"\n{part.replace('_', ' ')}", style="bold")
    for line in hot_spots(profiles):
        console.print(f"- {line}", markup=False)
    for profile in profiles:
        rows = [
            [
                operator.name,
                operator.kind,
                f"{operator.calls / profile.steps:g}",
                f"{operator.milliseconds / profile.steps:.2f}",
                f"{profile.share_of(operator):.1%}",
            ]
            for operator in profile.operators[:6]
        ]
        table = table_of([f"{profile.arm}: top operators", "kind", "calls", "ms", "share"], rows, words=["kind"])
        table.columns[0].max_width, table.columns[0].no_wrap = 55, True
        console.print(table)
