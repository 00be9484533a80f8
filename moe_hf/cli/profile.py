"""`moe-hf profile`: says in words and numbers where the time of router, layer, block and training step goes."""

import argparse
import shlex
from collections.abc import Sequence

from rich.console import Console
from transformers.activations import ACT2FN
from transformers.utils import logging

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import did_you_mean
from moe_hf.bench.harness.arms import Options
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.speed.opponents import PACKED, backend_names
from moe_hf.bench.speed.profile_report import hot_spots, write_profile_reports
from moe_hf.bench.speed.profiling import PARTS, Profile, default_profiles
from moe_hf.bench.speed.sizes import DTYPES, Size
from moe_hf.cli.measuring import chosen_device, report_folder, table_of, wide_console
from moe_hf.layers.ffn.routers import ROUTERS


def main(argv: Sequence[str] | None = None, prog: str = "moe-hf profile") -> int:
    """Profile, print the hot spots and write the reports; returns the exit code."""
    words = list(argv or [])
    args = _parser(prog).parse_args(words)
    logging.set_verbosity_error()
    for name in (args.backend, args.against):
        allowed = [known for known in backend_names() if known != PACKED]
        if name not in allowed:
            raise ConfigError(f"unknown backend {name!r}; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}")
    for part in args.parts:
        PARTS[part]
    DTYPES[args.dtype]
    ROUTERS[args.router_type]
    if args.activation not in ACT2FN:
        raise ConfigError(f"activation={args.activation!r} is not allowed; it must be a name of transformers' ACT2FN")
    size = Size(
        tokens=args.tokens,
        hidden_size=args.hidden_size,
        expert_width=args.expert_width,
        num_experts=args.num_experts,
        k=args.top_k,
        dtype=args.dtype,
        activation=args.activation,
        threads=args.threads,
        router_type=args.router_type,
    ).require_possible()
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
    for name, kind, default in (
        ("tokens", int, 2048),
        ("hidden_size", int, 256),
        ("expert_width", int, 1024),
        ("num_experts", int, 8),
        ("top_k", int, 2),
        ("dtype", str, "float32"),
        ("activation", str, "gelu_new"),
        ("threads", int, 1),
        ("router_type", str, "top_k"),
    ):
        group.add_argument(f"--{name}", type=kind, default=default, metavar="VALUE", help=f"default: {default}")
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
