"""Writes a run's report: report.md to read, report.json with every sample, and the pictures."""

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_hf.base.files import atomic_file
from moe_hf.bench.harness.cases import Goal
from moe_hf.bench.harness.goals import Verdict, judge
from moe_hf.bench.harness.results import Report, plain, to_json
from moe_hf.bench.harness.tables import goal_table, markdown_table

INTERRUPTED = "**Interrupted: this is what had been measured by then.**"


class Page(NamedTuple):
    """How a suite's report.md reads.

    Attributes:
        text: paragraphs of Markdown, made of the report, its verdicts and the names of its pictures.
        draw: writes the pictures into a folder and returns their paths.
        hidden: columns that a terminal leaves out of the tables of arms, so that they fit into 100.
    """

    text: Callable[[Report, Sequence[Verdict], Sequence[str]], Iterable[str]]
    draw: Callable[[Report, Path], list[Path]]
    hidden: tuple[str, ...] = ()


def write_report(report: Report, folder: Path, page: Page, goals: Sequence[Goal] = ()) -> list[Path]:
    """Write report.md, report.json and the pictures into `folder`; returns their paths, report.md first."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = page.draw(report, folder)
    data = write_report_json(report, folder, goals)
    # Last, so that whoever finds report.md finds all that it shows.
    with atomic_file(folder / "report.md") as aside:
        aside.write_text(report_text(report, page, goals, [picture.name for picture in pictures]))
    return [folder / "report.md", data, *pictures]


def write_report_json(report: Report, folder: Path, goals: Sequence[Goal] = ()) -> Path:
    """Write report.json alone, which is cheap enough to be done after every group; returns its path."""
    verdicts = [
        {
            "quantity": verdict.goal.quantity,
            "must": verdict.goal.must,
            "goal": verdict.goal.goal,
            "higher_is_better": verdict.goal.higher,
            "values": plain(verdict.values),
            "verdict": verdict.text,
        }
        for verdict in judge(goals, report.groups, report.further)
    ]
    return write_json({**to_json(report), "goals": verdicts}, folder / "report.json")


def write_json(data: Any, file: Path) -> Path:
    """Write the data as a JSON file, aside first, in a folder that is made if it is missing; returns its path."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as aside:
        aside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return file


def report_text(report: Report, page: Page, goals: Sequence[Goal] = (), pictures: Sequence[str] = ()) -> str:
    """The report as Markdown."""
    verdicts = judge(goals, report.groups, report.further)
    return "\n\n".join([f"# {report.title}", *page.text(report, verdicts, pictures)]) + "\n"


def goals_section(verdicts: Sequence[Verdict], *words: str) -> list[str]:
    """The table of numbers to reach under its heading; nothing where nothing is to be reached."""
    return ["## Numbers to reach", *words, markdown_table(*goal_table(verdicts))] if verdicts else []


def pictures_section(heading: str, pictures: Sequence[str]) -> list[str]:
    """The pictures one below the other, if there are any."""
    links = [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]
    return [f"## {heading}", *links] if pictures else []


def machine_table(report: Report) -> str:
    """What the run was measured on."""
    rows = [[name, _plain_text(value)] for name, value in report.machine.items() if value not in (None, {}, [])]
    return markdown_table(["machine", ""], rows) if rows else ""


def _plain_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={shlex.quote(str(item))}" for key, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
