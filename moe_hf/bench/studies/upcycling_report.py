"""Reports on the upcycling experiment: final losses and their differences per seed, and the picture of the curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


class _Look(NamedTuple):
    color: str
    line: str
    marker: str


# Okabe and Ito's palette, told apart by colour-blind readers; line and marker say the same once more.
_LOOKS = (_Look("#0072B2", "-", "o"), _Look("#56B4E9", "--", "s"), _Look("#D55E00", "-", "^"))
_GRID, _TEXT = "#dddddd", "#333333"
_SHOWN_SET = "held-out answers"


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """Means and ranges over the seeds, from the curves of `run_experiment`'s result.

    Returns:
        `arms`: for each arm its steps, tokens, CPU seconds, tokens per CPU second and final loss on each held-out set.
        `moe_minus`: for each dense arm and held-out set, the final loss of the MoE less that of the arm with the same
        seed; negative where the MoE is better. `tokens_per_cpu_second_moe_over_dense`: from steps timed in turns.
    """
    curves, settings = result["curves"], result["settings"]
    ends = {arm: [points[-1] for points in of_seed] for arm, of_seed in curves.items()}
    tokens_per_step = settings["batch_size"] * settings["context_length"]
    sets = list(ends["MoE"][0]["losses"])
    per_step = result["cpu_seconds_per_step"]
    arms = {}
    for arm, points in ends.items():
        tokens = points[0]["step"] * tokens_per_step
        arms[arm] = {
            "steps": points[0]["step"],
            "tokens": tokens,
            "cpu_seconds": _spread([point["cpu_seconds"] for point in points]),
            "tokens_per_cpu_second": _spread([tokens / point["cpu_seconds"] for point in points]),
            "final_loss": {name: _spread([point["losses"][name] for point in points]) for name in sets},
        }
    differences = {
        arm: {
            name: _spread(
                [moe["losses"][name] - other["losses"][name] for moe, other in zip(ends["MoE"], points, strict=True)]
            )
            for name in sets
        }
        for arm, points in ends.items()
        if arm != "MoE"
    }
    return {
        "arms": arms,
        "moe_minus": differences,
        "tokens_per_cpu_second_moe_over_dense": per_step["dense"] / per_step["MoE"],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}


def plot_upcycling(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture of `run_experiment`'s result, as a PNG.

    Two panels of curves (lines are means over the seeds, bands reach from the lowest seed to the highest) and one of
    the final difference between the MoE and each dense arm, a mark per seed.
    """
    figure = Figure(figsize=(13, 5.4), layout="constrained")
    by_step, by_seconds, gaps = figure.subplots(1, 3, width_ratios=[4, 4, 2.4])
    by_seconds.sharey(by_step)
    _draw_curves(by_step, by_seconds, result)
    _draw_differences(gaps, result["curves"])
    for axes in (by_step, by_seconds, gaps):
        axes.grid(color=_GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    handles, texts = by_step.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=len(texts), frameon=False)
    figure.suptitle(
        "Going on with a dense GPT-2, or with the mixture of experts (MoE) upcycled from it "
        f"(line: mean of {result['settings']['seeds']} seeds; band: lowest to highest)"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_curves(by_step: Axes, by_seconds: Axes, result: Mapping[str, Any]) -> None:
    settings = result["settings"]
    labels = {
        "dense": "dense",
        "dense, as many CPU seconds as the MoE": "dense, more steps: as many CPU seconds as the MoE",
        "MoE": f"MoE, {settings['num_experts']} experts, top-{settings['num_experts_per_tok']}",
    }
    for (arm, of_seed), look in zip(result["curves"].items(), _LOOKS, strict=True):
        loss = np.array([[point["losses"][_SHOWN_SET] for point in points] for points in of_seed])
        label = f"{labels[arm]} (ends at {loss[:, -1].mean():.3f})"
        _draw_curve(by_step, np.array([point["step"] for point in of_seed[0]]), loss, look, label)
        # The seeds' clocks differ by a few per cent, so the x of a point is their mean.
        seconds = np.array([[point["cpu_seconds"] for point in points] for points in of_seed]).mean(axis=0)
        _draw_curve(by_seconds, seconds, loss, look, label)
    tokens = settings["batch_size"] * settings["context_length"]
    by_step.set_title("Against steps", loc="left", fontweight="bold")
    by_step.set_xlabel(f"steps after the dense checkpoint ({tokens:,} tokens each)")
    by_step.set_ylabel("held-out loss (nats per answer token), lower is better")
    by_step.set_xlim(left=0)
    by_seconds.set_title("Against CPU time", loc="left", fontweight="bold")
    by_seconds.set_xlabel("CPU seconds of training after the dense checkpoint")
    by_seconds.set_xlim(left=0)
    by_seconds.tick_params(labelleft=False)


def _draw_curve(axes: Axes, x: np.ndarray, loss: np.ndarray, look: _Look, label: str) -> None:
    axes.plot(
        x, loss.mean(axis=0), color=look.color, linestyle=look.line, marker=look.marker, markersize=5, label=label
    )
    axes.fill_between(x, loss.min(axis=0), loss.max(axis=0), color=look.color, alpha=0.18, linewidth=0)


def _draw_differences(axes: Axes, curves: Mapping[str, Any]) -> None:
    columns = {"dense": "same\nsteps", "dense, as many CPU seconds as the MoE": "same\nCPU time"}
    for x, arm in enumerate(columns):
        pairs = zip(curves["MoE"], curves[arm], strict=True)
        gaps = [moe[-1]["losses"][_SHOWN_SET] - dense[-1]["losses"][_SHOWN_SET] for moe, dense in pairs]
        axes.plot([x] * len(gaps), gaps, linestyle="", marker="^", markersize=7, color=_LOOKS[2].color, alpha=0.6)
        mean = sum(gaps) / len(gaps)
        axes.hlines(mean, x - 0.25, x + 0.25, color=_TEXT)
        axes.annotate(f"{mean:+.3f}", (x + 0.3, mean), va="center", color=_TEXT)
    axes.axhline(0, color=_TEXT, linewidth=1)
    axes.set_xticks(range(len(columns)), list(columns.values()))
    axes.set_xlim(-0.5, 1.9)
    # The zero line in the middle, so that its two sides compare.
    widest = 1.4 * max(abs(limit) for limit in axes.get_ylim())
    axes.set_ylim(-widest, widest)
    axes.set_title("MoE minus dense, at the end", loc="left", fontweight="bold")
    axes.set_ylabel("difference in held-out loss, a mark per seed")
    axes.text(0.98, 0.97, "dense is better", transform=axes.transAxes, ha="right", va="top", color=_TEXT)
    axes.text(0.98, 0.03, "MoE is better", transform=axes.transAxes, ha="right", va="bottom", color=_TEXT)
