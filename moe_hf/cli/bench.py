"""`moe-hf bench`: measures experts and mixers against transformers, the dense layer and attention; writes reports."""

import argparse
import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.base.registry import Registry
from moe_hf.bench.harness.arms import Options, Skipped
from moe_hf.bench.harness.cases import Goal, goals_of
from moe_hf.bench.harness.goals import judge
from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.harness.report import write_report, write_report_json
from moe_hf.bench.harness.results import GroupResult, Report
from moe_hf.bench.harness.runner import run_cases
from moe_hf.bench.harness.suite import Suite
from moe_hf.bench.harness.tables import arm_table, goal_table
from moe_hf.bench.harness.timing import SamplingPlan, require_clock
from moe_hf.bench.mixers.suite import MIXERS_SUITE
from moe_hf.bench.speed.moe_vs_dense import VS_DENSE_ROUTERS, compare_with_dense
from moe_hf.bench.speed.opponents import require_backends
from moe_hf.bench.speed.report import SPEED_PAGE
from moe_hf.bench.speed.sizes import DTYPES, Size, sweep
from moe_hf.bench.speed.suites import CASES, MODES, SPEED_SUITES, case_of, sizes_of_mode, used_experts
from moe_hf.cli.measuring import chosen_device, report_folder, table_of, wide_console

SUITES: Registry[Suite] = Registry("bench suite", {**SPEED_SUITES, "mixers": MIXERS_SUITE})
VS_DENSE = "moe_vs_dense"
INTERRUPTED = 130
WRONG = 1
"""The exit code where a backend computed something else than the reference, or nothing could be measured."""

_MEMORY_LIMIT = 0.5
# What the comparison with a dense layer looks at, of all the flags.
_VS_DENSE_FLAGS = ("--threads", "--clock", "--seed", "--budget", "--samples", "--router", "--quick")

_SWEEPS: dict[str, tuple[str, Any, Any, str]] = {
    # flag: field of Size, type, default, meaning
    "tokens": ("tokens", int, 1024, "tokens T of a call"),
    "hidden_size": ("hidden_size", int, 256, "width D"),
    "expert_width": ("expert_width", int, 1024, "width F of one expert"),
    "num_experts": ("num_experts", int, 8, "experts E"),
    "top_k": ("k", int, 2, "experts per token"),
    "capacity_factor": ("capacity_factor", str, None, "slots of an expert over its fair share; none drops no token"),
    "dtype": ("dtype", str, "float32", f"one of {', '.join(DTYPES)}"),
    "activation": ("activation", str, "gelu", "a name of transformers' ACT2FN, such as gelu or gelu_new"),
    "threads": ("threads", int, 1, "PyTorch's threads"),
    "skew": ("skew", float, 0.0, "imbalance of the drawn routes: expert i in proportion to (i+1)^-skew; experts only"),
    "router_type": ("router_type", str, "top_k", "router of layer, block and model"),
}


def main(argv: Sequence[str] | None = None, prog: str = "moe-hf bench") -> int:
    """Measure, print and write; returns the exit code."""
    words = list(argv or [])
    args = _parser(prog).parse_args(words)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console = wide_console()
    if VS_DENSE in args.cases:
        return _vs_dense(args, console)
    if args.router is not None:
        raise ConfigError(f"--router belongs to {VS_DENSE}; the router of other cases is --router_type")
    suite = _chosen(args)
    cases = suite.cases(args.quick)
    backends = None if args.backends is None else require_backends(args.backends)
    options = Options(_device(args), args.seed, backends, _memory_limit(args.memory_limit))
    plan = suite.plans[args.quick] if suite.plans else _plan(args)
    clock = suite.clock or args.clock
    goals = [*goals_of(cases), *suite.goals]
    folder = report_folder(args.report)
    title = f"moe-hf bench: {suite.meaning}" if args.suite is None else f"moe-hf bench: suite {args.suite}"
    title += ", quick: smaller sizes, a first look" if args.suite is not None and args.quick else ""
    report = Report(title, shlex.join(["moe-hf", "bench", *words]), args.seed, describe_machine(), [])
    told: set[Skipped] = set()
    with _progress(console) as progress:
        task = progress.add_task("", total=len(cases))

        def on_group(group: GroupResult) -> None:
            progress.advance(task)
            _show(progress.console, group, suite.page.hidden, told)
            report.groups.append(group)
            if folder is not None:
                write_report_json(report._replace(interrupted=True), folder)

        def on_progress(what: str) -> None:
            progress.update(task, description=what)

        measured = run_cases(
            cases, options, plan, clock, on_group, lambda case, what: on_progress(f"{case.place}, {case.mode}: {what}")
        )
        if measured.interrupted and not measured.groups:
            raise KeyboardInterrupt
        report = report._replace(groups=measured.groups, interrupted=measured.interrupted)
        if not report.interrupted:
            report = _with_further(report, suite, args.quick, options, on_progress, folder is not None)
    if goals:
        _show_goals(console, goals, report)
    if folder is not None:
        written = write_report(report, folder, suite.page, goals)
        console.print("wrote " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
    return _exit_code(console, report)


def _exit_code(console: Console, report: Report) -> int:
    if report.wrong:
        names = ", ".join(report.wrong)
        console.print(f"computed something else than the reference: {names}", style="red", soft_wrap=True)
    if report.interrupted:
        console.print("interrupted: the tables hold what was measured by then", style="yellow")
        return INTERRUPTED
    return WRONG if report.wrong or not any(group.arms for group in report.groups) else 0


def _parser(prog: str) -> argparse.ArgumentParser:
    cases = "\n".join(f"  {name:<13}{case.meaning}" for name, case in CASES.items())
    suites = "\n".join(f"  {name:<13}{suite.meaning}" for name, suite in SUITES.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Measure the mixture of experts against transformers' backends, the dense layer of equal active "
        "FLOPs and a plain GEMM, interleaved in one run; or, by its suite, the mixers of tokens.",
        epilog=f"cases:\n{cases}\n  {VS_DENSE:<13}parameters, FLOPs and time of a small mixture beside a dense FFN\n\n"
        f"suites:\n{suites}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="what to measure (default: all but moe_vs_dense)")
    parser.add_argument("--suite", help=f"a named set of cases and sizes instead: {', '.join(SUITES)}")
    parser.add_argument("--report", metavar="DIR", help="write report.md, report.json and pictures into this folder")
    parser.add_argument("--quick", action="store_true", help="fewer samples (and sizes, of a suite) for a first look")
    group = parser.add_argument_group("sweeps", "one or more values each; every combination is measured")
    for flag, (_, kind, default, meaning) in _SWEEPS.items():
        group.add_argument(
            f"--{flag}", nargs="+", type=kind, metavar="VALUE", help=f"{meaning} (default: {str(default).lower()})"
        )
    parser.add_argument("--modes", nargs="+", metavar="MODE", help=f"of {', '.join(MODES)} (default: all of a case)")
    parser.add_argument("--backends", nargs="+", metavar="NAME", help="experts backends to measure (default: all)")
    parser.add_argument("--clock", default="wall", help="wall; or cpu, for machines that others use too")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, tokens, routes and order (default: 0)")
    parser.add_argument("--budget", type=float, help="seconds of sampling per table (default: 3; quick: 0.3)")
    parser.add_argument("--samples", type=int, help="samples per arm at least (default: 5; quick: 3)")
    parser.add_argument("--memory_limit", type=float, help="GiB a backend may gather (default: 0.5)")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory out, which saves a call per arm")
    parser.add_argument("--router", help=f"of {VS_DENSE}: {' or '.join(VS_DENSE_ROUTERS)} (default: hash)")
    return parser


def _vs_dense(args: argparse.Namespace, console: Console) -> int:
    if args.cases != [VS_DENSE]:
        raise ConfigError(f"{VS_DENSE} prints lines instead of tables; give it alone, not with other cases")
    ignored = [flag for flag in _given(args) if flag not in _VS_DENSE_FLAGS]
    if ignored:
        allowed = ", ".join(_VS_DENSE_FLAGS)
        raise ConfigError(f"{VS_DENSE} has one size and no report; leave out {' '.join(ignored)} (allowed: {allowed})")
    require_clock(args.clock, threads=1)
    chosen = args.threads or [1]
    if len(chosen) > 1 or chosen[0] < 1:
        raise ConfigError(f"threads={chosen} is not allowed with {VS_DENSE}; it must be one integer >= 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen[0])
    try:
        found = compare_with_dense(args.router or "hash", args.clock, args.seed, _plan(args))
    finally:
        torch.set_num_threads(threads)
    for line in found.quoted_lines:
        console.print(line, markup=False)
    console.print()
    for line in found.true_lines:
        console.print(line, markup=False, soft_wrap=True)
    return 0


def _given(args: argparse.Namespace) -> list[str]:
    """The flags that were given, as they were written; those with a default of their own only where they differ."""
    single = ("suite", "report", "modes", "backends", "device", "memory_limit", "router")
    given = [f"--{flag}" for flag in (*_SWEEPS, *single) if getattr(args, flag) is not None]
    return given + (["--no-memory"] if args.no_memory else [])


def _chosen(args: argparse.Namespace) -> Suite:
    """What to measure: the suite of that name, or one made of the cases, sizes and modes that were given."""
    require_clock(args.clock, threads=1)
    if args.suite is not None:
        suite = SUITES[args.suite]
        extra = [flag for flag in _given(args) if flag not in ("--suite", "--report", "--device", "--memory_limit")]
        extra += args.cases
        if extra:
            raise ConfigError(
                f"suite={args.suite!r} measures its own cases, sizes and backends; leave out {' '.join(extra)}"
            )
        return suite
    names = args.cases or list(CASES)
    for name in names:
        if name not in CASES:
            allowed = [*CASES, VS_DENSE]
            raise ConfigError(f"unknown case {name!r}; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}")
    for mode in args.modes or []:
        if mode not in MODES:
            raise ConfigError(f"mode={mode!r} is not allowed; it must be one of {', '.join(MODES)}")
    sizes = _sizes({flag: getattr(args, flag) for flag in _SWEEPS if getattr(args, flag) is not None})
    wanted = [
        (name, size, mode)
        for name in names
        for mode in CASES[name].modes
        if args.modes is None or mode in args.modes
        for size in sizes_of_mode(sizes, mode)
    ]
    if not wanted:
        raise ConfigError(f"none of {', '.join(names)} has a mode {' or '.join(args.modes)}; leave --modes out")
    cases = [case_of(*one, memory=not args.no_memory) for one in wanted]
    # A router with fewer tokens than experts says nothing about how it uses them.
    used = used_experts([size for _, size, _ in wanted if size.tokens >= size.num_experts])
    return Suite(", ".join(names), "", lambda quick: cases, SPEED_PAGE, further=used)


def _device(args: argparse.Namespace) -> torch.device:
    needed = None if args.suite is None else SUITES[args.suite].device
    word = args.device or ("cpu" if needed == "cpu" else None)
    if needed is not None and (word or chosen_device(None).type) != needed:
        raise ConfigError(f"suite={args.suite!r} needs device {needed!r}, got {word or chosen_device(None).type!r}")
    return chosen_device(word)


def _sizes(given: dict[str, list[Any]]) -> list[Size]:
    values: dict[str, list[Any]] = {}
    for flag, (field, _, default, _) in _SWEEPS.items():
        values[field] = list(dict.fromkeys(given.get(flag, [default])))
    values["capacity_factor"] = [_capacity_factor(word) for word in values["capacity_factor"]]
    return sweep(**values)


def _capacity_factor(word: str | None) -> float | None:
    if word is None or word.lower() == "none":
        return None
    try:
        return float(word)
    except ValueError:
        raise ConfigError(f"capacity_factor={word!r} is not allowed; it must be a number > 0, or none") from None


def _plan(args: argparse.Namespace) -> SamplingPlan:
    budget = args.budget if args.budget is not None else (0.3 if args.quick else 3.0)
    rounds = args.samples if args.samples is not None else (3 if args.quick else 5)
    if not 0 <= budget < math.inf or rounds < 1:
        raise ConfigError(f"budget={budget} and samples={rounds} are not allowed; they must be >= 0 and >= 1, finite")
    return SamplingPlan(budget=budget, min_rounds=rounds, max_rounds=max(31, rounds))


def _memory_limit(gibibytes: float | None) -> int:
    if gibibytes is None:
        gibibytes = _MEMORY_LIMIT
    if not 0 <= gibibytes < math.inf:
        raise ConfigError(f"memory_limit={gibibytes} is not allowed; it must be a number of GiB >= 0, and finite")
    return int(gibibytes * 2**30)


def _with_further(
    report: Report, suite: Suite, quick: bool, options: Options, on_progress: Callable[[str], None], whole: bool
) -> Report:
    """The report with what the suite measures besides its cases, as far as it comes before Ctrl-C."""
    further = {}
    try:
        for name, found in suite.further(quick, options, whole, on_progress):
            further[name] = found
    except KeyboardInterrupt:
        report = report._replace(interrupted=True)
    return report._replace(further=further)


def _progress(console: Console) -> Progress:
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _show(console: Console, group: GroupResult, hidden: Sequence[str], told: set[Skipped]) -> None:
    console.print(group.title, style="bold", markup=False, soft_wrap=True)
    columns, rows = arm_table(group)
    kept = [index for index, column in enumerate(columns) if column not in hidden]
    if rows:
        console.print(table_of([columns[index] for index in kept], [[row[index] for index in kept] for row in rows]))
    for skipped in group.skipped:
        # Once per run is enough; the report says it for each table.
        if skipped not in told:
            console.print(f"  not measured: {skipped.name}: {skipped.reason}\n", style="dim", markup=False)
    told.update(group.skipped)


def _show_goals(console: Console, goals: Sequence[Goal], report: Report) -> None:
    console.print("Numbers to reach", style="bold")
    verdicts = judge(goals, report.groups, report.further)
    columns, rows = goal_table(verdicts, with_place=False)
    styles = ["" if not verdict.values else ("green" if verdict.met else "red") for verdict in verdicts]
    console.print(table_of(columns, rows, styles, words=columns))
