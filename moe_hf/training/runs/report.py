"""Writes what a finished run leaves beside the model: the model card and the pictures."""

import json
from pathlib import Path
from typing import Any

import yaml

from moe_hf.base.files import atomic_file
from moe_hf.models.auto import FAMILIES
from moe_hf.text.scoreboard import render_scoreboard
from moe_hf.training.data.sources import SOURCES
from moe_hf.training.metrics import METRICS_NAME, read_metrics
from moe_hf.training.runs.listeners import TrainingReport
from moe_hf.training.runs.plots import draw_expert_utilization, draw_loss
from moe_hf.training.runs.run_folder import RUN_FILE
from moe_hf.training.runs.settings import Settings

CARD_FILE = "README.md"
LOSS_PICTURE = "loss.png"
EXPERTS_PICTURE = "expert_utilization.png"

_BITS = "eval_bits_per_byte"

_FILES = (
    f"`{RUN_FILE}` repeats the run: `python train.py --config {RUN_FILE}`. `{METRICS_NAME}` holds what was logged, one "
    "JSON object per event.\n"
)


def write_report(report: TrainingReport, settings: Settings, folder: Path) -> list[Path]:
    """Write model card and pictures of the run in `report.plan.output_dir` into `folder`; returns their paths."""
    name = report.plan.output_dir.name
    events = read_metrics(str(report.plan.output_dir))
    written = []
    if draw_loss(events, f"{name}: loss", folder / LOSS_PICTURE):
        written.append(folder / LOSS_PICTURE)
    title = f"{name}: how evenly the experts are used"
    if draw_expert_utilization(events, report.plan.sparse_layers, title, folder / EXPERTS_PICTURE):
        written.append(folder / EXPERTS_PICTURE)
    config = folder / "config.json"
    is_own = not config.is_file() or json.loads(config.read_text(encoding="utf-8"))["model_type"] in FAMILIES
    with atomic_file(folder / CARD_FILE) as aside:
        bits = next((event[_BITS] for event in reversed(events) if _BITS in event), None)
        card = model_card(report, settings, [file.name for file in written], bits, is_own)
        aside.write_text(card, encoding="utf-8")
    return [folder / CARD_FILE, *written]


def model_card(
    report: TrainingReport,
    settings: Settings,
    pictures: list[str],
    bits_per_byte: float | None = None,
    is_own: bool = True,
) -> str:
    """The text of the model card, with the metadata that the hub reads at its head.

    Args:
        report: of the run.
        settings: of the run.
        pictures: names of the files beside it.
        bits_per_byte: of the held-out data; None where nothing was held out.
        is_own: whether the model's class is of this package, which must be imported before it is loaded.
    """
    name = report.plan.output_dir.name
    sections = [
        f"---\n{yaml.safe_dump(_metadata(settings), sort_keys=False)}---\n",
        f"# {name}\n",
        f"{report.plan.title}, trained with `moe_hf` on {report.plan.data}.\n",
        "## Numbers\n",
        _table(_numbers(report, bits_per_byte)),
    ]
    if report.scoreboard is not None:
        sections += [
            "## Held-out questions\n",
            "Exact match on questions that training never saw, answered greedily.\n",
            f"```text\n{render_scoreboard(report.scoreboard)}\n```\n",
        ]
    sections += ["## Use\n", _usage(settings.training.hub_model_id or f"YOUR-NAME/{name}", is_own)]
    sections += ["## Training\n", _FILES]
    sections += [f"![{picture.removesuffix('.png').replace('_', ' ')}]({picture})\n" for picture in pictures]
    if report.notices:
        sections += ["Notices of the run:\n", "".join(f"- {notice}\n" for notice in report.notices)]
    return "\n".join(sections)


def _metadata(settings: Settings) -> dict[str, Any]:
    model, data = settings.model, settings.data
    kind = ["dense"] if model.is_dense else ["mixture-of-experts", "moe"]
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if settings.run.license:
        metadata["license"] = settings.run.license
    metadata["tags"] = ["moe_hf", *kind, *(["upcycled"] if model.upcycle else [])]
    start = model.model or model.upcycle
    # Only names of the hub mean anything to a reader elsewhere.
    if start and not Path(start).exists():
        metadata["base_model"] = start
    names = [
        name for name in data.data if not (name in SOURCES or Path(name).exists() or any(s in name for s in "*?["))
    ]
    if names:
        metadata["datasets"] = names
    return metadata


def _numbers(report: TrainingReport, bits_per_byte: float | None) -> list[tuple[str, str]]:
    info, plan = report.plan.info, report.plan
    rows = [("parameters", f"{info['total_params']:,}")]
    if info["moe_layers"]:
        rows += [
            ("active per token", f"{info['active_params']:,} ({info['active_fraction']:.1%})"),
            ("experts per sparse layer", f"{info['num_experts']}, {info['num_experts_per_tok']} per token"),
            ("layers", f"{info['moe_layers']} sparse, {info['dense_layers']} dense"),
            ("dense twin", f"{info['dense_twin_params']:,}"),
        ]
    rows += [
        ("context", f"{info['context_length']:,} tokens"),
        ("steps", f"{report.steps:,} of {plan.tokens_per_step:,} tokens"),
    ]
    optional = [
        ("training loss", report.train_loss, "{:.4f} nats per label, cross-entropy alone"),
        ("held-out loss", report.eval_loss, "{:.4f} nats per label, cross-entropy alone"),
        ("held-out bits per byte", bits_per_byte, "{:.4f}, whatever the tokenizer"),
        ("held-out questions", report.scoreboard and report.scoreboard.mean, "{:.1%} exact match, mean over skills"),
        ("speed", report.tokens_per_second, "{:,.0f} tokens/s"),
    ]
    rows += [(name, form.format(value)) for name, value, form in optional if value is not None]
    span = "" if report.timed_steps == report.steps else f"the last {report.timed_steps:,} steps in "
    rows.append(("trained in", f"{span}{report.seconds / 60:.1f} minutes on {plan.device}"))
    rows.append(("peak memory", f"{report.peak_memory_bytes / 1e9:.2f} GB"))
    return rows


def _table(rows: list[tuple[str, str]]) -> str:
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _usage(name: str, is_own: bool) -> str:
    lines = [
        *(["import moe_hf  # registers the architecture with transformers"] if is_own else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
    ]
    return "```python\n" + "\n".join(lines) + f"\n```\n\nTo chat: `python chat.py --model {name}`\n"
