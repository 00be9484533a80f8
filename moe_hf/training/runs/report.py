"""Writes what a finished run leaves beside the model: the model card and the pictures."""

import json
from pathlib import Path
from typing import Any

from moe_hf.base.files import atomic_file
from moe_hf.base.tokenizer_source import TOKENIZER_FILES
from moe_hf.models.auto import FAMILIES
from moe_hf.models.cards.card import (
    CARD_FILE,
    PICTURES,
    is_unedited,
    metadata_of,
    placeholder,
    shown,
    table,
    written_card,
)
from moe_hf.models.cards.described import sizes_of
from moe_hf.models.cards.loading import Loading, how_to_load
from moe_hf.text.scoreboard import render_scoreboard
from moe_hf.training.data.sources import SOURCES
from moe_hf.training.metrics import METRICS_NAME, read_metrics
from moe_hf.training.runs.listeners import TrainingReport
from moe_hf.training.runs.plots import draw_expert_utilization, draw_loss
from moe_hf.training.runs.run_folder import RUN_FILE
from moe_hf.training.runs.settings import Settings

LOSS_PICTURE, EXPERTS_PICTURE = PICTURES

_BITS = "eval_bits_per_byte"

_LIKE_GPT2 = Loading("gpt2_moe", is_own=True)

_FILES = (
    f"`{RUN_FILE}` repeats the run: `python train.py --config {RUN_FILE}`. `{METRICS_NAME}` holds what was logged, one "
    "JSON object per event.\n"
)


def write_report(report: TrainingReport, settings: Settings, folder: Path) -> list[Path]:
    """Write model card and pictures of the run in `report.plan.output_dir` into `folder`; returns their paths.

    A card in the folder of the run that somebody wrote or changed stays, and none is written.
    """
    name = report.plan.output_dir.name
    events = read_metrics(str(report.plan.output_dir))
    written = []
    if draw_loss(events, f"{name}: loss", folder / LOSS_PICTURE):
        written.append(folder / LOSS_PICTURE)
    title = f"{name}: how evenly the experts are used"
    if draw_expert_utilization(events, report.plan.sparse_layers, title, folder / EXPERTS_PICTURE):
        written.append(folder / EXPERTS_PICTURE)
    own = report.plan.output_dir / CARD_FILE
    if own.is_file() and not is_unedited(own.read_text(encoding="utf-8", errors="replace")):
        return written
    bits = next((event[_BITS] for event in reversed(events) if _BITS in event), None)
    loading = _loading(folder)
    with atomic_file(folder / CARD_FILE) as aside:
        card = model_card(report, settings, [file.name for file in written], bits, loading)
        aside.write_text(card, encoding="utf-8")
    return [folder / CARD_FILE, *written]


def model_card(
    report: TrainingReport,
    settings: Settings,
    pictures: list[str],
    bits_per_byte: float | None = None,
    loading: Loading = _LIKE_GPT2,
) -> str:
    """The text of the model card, with the metadata that the hub reads at its head.

    Args:
        report: of the run.
        settings: of the run.
        pictures: names of the files beside it.
        bits_per_byte: of the held-out data; None where nothing was held out.
        loading: how the model is loaded.
    """
    name = report.plan.output_dir.name
    hub_id = settings.training.hub_model_id or placeholder(name)
    sections = [
        f"# {name}\n",
        f"{report.plan.title}, trained with `moe_hf` on {report.plan.data}.\n",
        "## Numbers\n",
        table(_numbers(report, bits_per_byte)),
    ]
    if report.scoreboard is not None:
        sections += [
            "## Held-out questions\n",
            "Exact match on questions that training never saw, answered greedily.\n",
            f"```text\n{render_scoreboard(report.scoreboard)}\n```\n",
        ]
    sections += [how_to_load(hub_id, loading)]
    sections += ["## Training\n", _FILES]
    sections += [shown(pictures)] if pictures else []
    if report.notices:
        sections += ["Notices of the run:\n", "".join(f"- {notice}\n" for notice in report.notices)]
    return written_card(hub_id, _metadata(settings), sections)


def _loading(folder: Path) -> Loading:
    config = folder / "config.json"
    # Adapters have none.
    model_type = json.loads(config.read_text(encoding="utf-8"))["model_type"] if config.is_file() else "gpt2_moe"
    has_tokenizer = any((folder / name).is_file() for name in TOKENIZER_FILES)
    return Loading(model_type, model_type in FAMILIES, has_tokenizer=has_tokenizer)


def _metadata(settings: Settings) -> dict[str, Any]:
    model, data = settings.model, settings.data
    # Only names of the hub mean anything to a reader elsewhere.
    names = [
        name for name in data.data if not (name in SOURCES or Path(name).exists() or any(s in name for s in "*?["))
    ]
    return metadata_of(
        ["upcycled"] if model.upcycle else [],
        not model.is_dense,
        license=settings.run.license,
        base_model=model.model or model.upcycle,
        datasets=names,
    )


def _numbers(report: TrainingReport, bits_per_byte: float | None) -> list[tuple[str, str]]:
    info, plan = report.plan.info, report.plan
    rows = sizes_of(info)
    if info["moe_layers"]:
        rows.append(("dense twin", f"{info['dense_twin_params']:,}"))
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
