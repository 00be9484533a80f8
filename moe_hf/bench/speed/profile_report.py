"""Writes what profiles say, one file per part: hot spots in words and numbers, shares by kind of work, operators."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_hf.base.files import atomic_file
from moe_hf.bench.harness.tables import markdown_table, milliseconds
from moe_hf.bench.speed.profiles import GLUE, KINDS, REST, Profile

CONSOLIDATED = "consolidated_profiling_report"

_WORDS = {
    "gemm": "matrix multiplication",
    "activation": "the activation",
    "attention": "attention",
    "index": "gather, scatter and sorting",
    "copies": "copies and fills",
    "optimizer": "the optimizer",
    "loss": "the loss",
    "norms": "norms",
    "elementwise": "other elementwise work and sums",
    GLUE: "Python and autograd between operators",
    REST: "views and the rest",
}
# Work that another arrangement of the experts cannot save.
_NEEDED = ("gemm", "attention", "optimizer", "loss")


def write_profile_reports(
    profiles: Mapping[str, Sequence[Profile]], machine: Mapping[str, Any], command: str, folder: Path
) -> list[Path]:
    """Write a Markdown report per part, the consolidated one, and profile.json; returns their paths, that one first.

    Args:
        profiles: of `default_profiles`, by part; in each the backend first, then the one it is held against.
        machine: of `describe_machine`.
        command: the words that repeat the run.
        folder: where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {_file_name(part): part_text(part, of, command) for part, of in profiles.items()}
    texts = {f"{CONSOLIDATED}.md": consolidated_text(profiles, machine, command), **files}
    data = {
        "command": command,
        "machine": dict(machine),
        "profiles": [
            {
                **{name: value for name, value in profile._asdict().items() if name not in ("operators", "size")},
                "size": profile.size._asdict(),
                "milliseconds": profile.milliseconds,
                "shares": profile.shares,
                "operators": [operator._asdict() for operator in profile.operators],
            }
            for of in profiles.values()
            for profile in of
        ],
    }
    texts["profile.json"] = json.dumps(data, indent=1) + "\n"
    for name, text in texts.items():
        with atomic_file(folder / name) as aside:
            aside.write_text(text)
    return [folder / name for name in texts]


def part_text(part: str, profiles: Sequence[Profile], command: str) -> str:
    """One part's report as Markdown."""
    parts = [f"# Profile: {part.replace('_', ' ')}", f"Repeat it with `{command}`."]
    if not profiles:
        return "\n\n".join([*parts, "None of the arms can run here."]) + "\n"
    first = profiles[0]
    parts.append(f"{first.size.label}, {first.size.setting}; {first.mode}, {first.steps} steps after 2 to warm up.")
    parts += ["## Hot spots", _bullets(hot_spots(profiles))]
    parts += ["## Shares by kind of work", markdown_table(*_share_table(profiles))]
    for profile in profiles:
        parts += [f"## {profile.arm}: top operators", markdown_table(*_operator_table(profile, 15))]
        if profile.trace:
            parts.append(f"Trace for chrome://tracing or Perfetto: [{profile.trace}]({profile.trace})")
        parts.append(f"<details><summary>torch.profiler</summary>\n\n```text\n{profile.table}\n```\n\n</details>")
    return "\n\n".join(parts) + "\n"


def consolidated_text(profiles: Mapping[str, Sequence[Profile]], machine: Mapping[str, Any], command: str) -> str:
    """All parts in one report as Markdown."""
    on = ", ".join(str(machine[name]) for name in ("processor", "gpu") if machine.get(name))
    on += "".join(f", {name} {machine[name]}" for name in ("torch", "transformers") if machine.get(name))
    parts = [
        "# Where the time goes",
        f"Repeat it with `{command}`. Measured on: {on}.",
        "Times are the operators' own, per step, with the profiler on: read the shares; `moe-hf bench` has the times.",
        "## All parts",
        markdown_table(*_share_table([profile for of in profiles.values() for profile in of], with_part=True)),
    ]
    for part, of in profiles.items():
        parts += [f"## {part.replace('_', ' ')}", _bullets(hot_spots(of))]
        parts.append(f"Details: [{_file_name(part)}]({_file_name(part)})")
    return "\n\n".join(parts) + "\n"


def hot_spots(profiles: Sequence[Profile]) -> list[str]:
    """What takes the time, in sentences computed from the profiles; the second is held against the first."""
    lines = []
    for profile in profiles:
        lines.append(f"{profile.arm}, {_ms(profile.milliseconds)} per step: {_largest_kinds(profile)}.")
    if profiles:
        lines += _room(profiles[0])
    if len(profiles) > 1:
        lines.append(_difference(profiles[0], profiles[1]))
    return lines


def _largest_kinds(profile: Profile) -> str:
    pieces = []
    for kind, share in profile.shares.items():
        if share < 0.02:
            continue
        top = [operator for operator in profile.operators if operator.kind == kind][:2]
        names = ", ".join(f"`{operator.name}` {profile.share_of(operator):.0%}" for operator in top)
        pieces.append(f"{share:.0%} is {_WORDS[kind]} ({names})")
    return "; ".join(pieces)


def _room(profile: Profile) -> list[str]:
    """The largest operator that is not needed work, and what would be gained if all of that cost nothing."""
    needed = sum(profile.shares[kind] for kind in _NEEDED)
    others = [operator for operator in profile.operators if operator.kind not in _NEEDED]
    if not others or needed <= 0:
        return []
    largest = others[0]
    return [
        f"The largest operator of {profile.arm} outside multiplication, attention, loss and optimizer is "
        f"`{largest.name}` with {profile.share_of(largest):.1%}. If all such work cost nothing, the step would be "
        f"{1 / needed:.2f} times faster."
    ]


def _difference(first: Profile, second: Profile) -> str:
    changes = []
    for kind in [*KINDS, GLUE, REST]:
        change = first.shares[kind] * first.milliseconds - second.shares[kind] * second.milliseconds
        changes.append((change, kind))
    changes.sort(key=lambda pair: abs(pair[0]), reverse=True)
    pieces = [f"{_WORDS[kind]} {'+' if change > 0 else '-'}{_ms(abs(change))}" for change, kind in changes[:4]]
    total = first.milliseconds - second.milliseconds
    word = "less" if total < 0 else "more"
    return f"{first.arm} takes {_ms(abs(total))} {word} than {second.arm}: {', '.join(pieces)}."


def _share_table(profiles: Sequence[Profile], with_part: bool = False) -> tuple[list[str], list[list[str]]]:
    kinds = [kind for kind in [*KINDS, GLUE, REST] if any(profile.shares[kind] >= 0.005 for profile in profiles)]
    rows = []
    for profile in profiles:
        name = f"{profile.part.replace('_', ' ')}: {profile.arm}" if with_part else profile.arm
        shares = [f"{profile.shares[kind]:.1%}" for kind in kinds]
        rows.append([name, milliseconds(profile.milliseconds / 1e3), *shares])
    return ["arm", "ms per step", *kinds], rows


def _operator_table(profile: Profile, most: int) -> tuple[list[str], list[list[str]]]:
    rows = []
    for operator in profile.operators[:most]:
        per_step = milliseconds(operator.milliseconds / profile.steps / 1e3)
        calls = f"{operator.calls / profile.steps:g}"
        rows.append([f"`{operator.name}`", operator.kind, calls, per_step, f"{profile.share_of(operator):.1%}"])
    return ["operator", "kind", "calls per step", "own ms per step", "share"], rows


def _file_name(part: str) -> str:
    return f"{part}_profiling_report.md"


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _ms(number: float) -> str:
    return f"{milliseconds(number / 1e3)} ms"
