"""Reports on the upcycling experiment: final losses and their differences per seed, and the picture of the curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from moe_hf.bench.harness.drawing import INK, Look, legend_below, look_of, picture

# As in `upcycling`, which imports this file and so cannot be imported here.
_DENSE, _LONGER, _MOE = "dense", "dense, as many CPU seconds as the MoE", "MoE"
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
    sets = list(ends[_MOE][0]["losses"])
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
                [moe["losses"][name] - other["losses"][name] for moe, other in zip(ends[_MOE], points, strict=True)]
            )
            for name in sets
        }
        for arm, points in ends.items()
        if arm != _MOE
    }
    return {
        "arms": arms,
        "moe_minus": differences,
        "tokens_per_cpu_second_moe_over_dense": per_step["dense"] / per_step[_MOE],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}


def plot_upcycling(result: Mapping[str, Any], path: Path) -> None:
    """Write the picture of `run_experiment`'s result, as a PNG.

    Two panels of curves (lines are means over the seeds, bands reach from the lowest seed to the highest) and one of
    the final difference between the MoE and each dense arm, a mark per seed.
    """
    settings = result["settings"]
    title = (
        "Going on with a dense GPT-2, or with the mixture of experts (MoE) upcycled from it "
        f"(line: mean of {settings['seeds']} seeds; band: lowest to highest)"
    )
    labels = {
        _DENSE: "dense",
        _LONGER: "dense, more steps: as many CPU seconds as the MoE",
        _MOE: f"MoE, {settings['num_experts']} experts, top-{settings['num_experts_per_tok']}",
    }
    with picture(path, 1, 3, (4.0, 4.5), title, width_ratios=[4, 4, 2.4]) as (figure, panels):
        by_step, by_seconds, gaps = panels[0]
        by_seconds.sharey(by_step)
        for arm, of_seed in result["curves"].items():
            loss = np.array([[point["losses"][_SHOWN_SET] for point in points] for points in of_seed])
            labels[arm] += f" (ends at {loss[:, -1].mean():.3f})"
            _draw_curve(by_step, np.array([point["step"] for point in of_seed[0]]), loss, look_of(arm))
            # The seeds' clocks differ by a few per cent, so the x of a point is their mean.
            seconds = np.array([[point["cpu_seconds"] for point in points] for points in of_seed]).mean(axis=0)
            _draw_curve(by_seconds, seconds, loss, look_of(arm))
        tokens = settings["batch_size"] * settings["context_length"]
        by_step.set(title="Against steps", xlabel=f"steps after the dense checkpoint ({tokens:,} tokens each)")
        by_step.set_ylabel("held-out loss (nats per answer token), lower is better")
        by_seconds.set(title="Against CPU time", xlabel="CPU seconds of training after the dense checkpoint")
        by_seconds.tick_params(labelleft=False)
        for axes in (by_step, by_seconds):
            axes.set_xlim(left=0)
        _draw_differences(gaps, result["curves"])
        legend_below(figure, result["curves"], labels)


def _draw_curve(axes: Axes, x: np.ndarray, loss: np.ndarray, look: Look) -> None:
    axes.plot(x, loss.mean(axis=0), color=look.color, linestyle=look.line, marker=look.marker)
    axes.fill_between(x, loss.min(axis=0), loss.max(axis=0), color=look.color, alpha=0.18, linewidth=0)


def _draw_differences(axes: Axes, curves: Mapping[str, Any]) -> None:
    columns = {_DENSE: "same\nsteps", _LONGER: "same\nCPU time"}
    for x, arm in enumerate(columns):
        pairs = zip(curves[_MOE], curves[arm], strict=True)
        gaps = [moe[-1]["losses"][_SHOWN_SET] - dense[-1]["losses"][_SHOWN_SET] for moe, dense in pairs]
        axes.plot([x] * len(gaps), gaps, linestyle="", marker="^", color=look_of(_MOE).color, alpha=0.6)
        mean = sum(gaps) / len(gaps)
        axes.hlines(mean, x - 0.25, x + 0.25, color=INK)
        axes.annotate(f"{mean:+.3f}", (x + 0.3, mean), va="center")
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_xticks(range(len(columns)), list(columns.values()))
    axes.set_xlim(-0.5, 1.9)
    # The zero line in the middle, so that its two sides compare.
    widest = 1.4 * max(abs(limit) for limit in axes.get_ylim())
    axes.set_ylim(-widest, widest)
    axes.set(title="MoE minus dense, at the end", ylabel="difference in held-out loss, a mark per seed")
    axes.text(0.98, 0.97, "dense is better", transform=axes.transAxes, ha="right", va="top")
    axes.text(0.98, 0.03, "MoE is better", transform=axes.transAxes, ha="right", va="bottom")
