"""Reports on what was measured: tables for the page, and three pictures.

Shapes: D domains, E experts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy
from matplotlib.axes import Axes

from moe_hf.bench.harness.drawing import (
    PANEL,
    legend_below,
    load_axes,
    load_bar,
    load_norm,
    look_of,
    one_two_five,
    picture,
)
from moe_hf.bench.harness.tables import fill_page, markdown_table
from moe_hf.bench.studies.worth.candidates import CANDIDATES, TWIN
from moe_hf.bench.studies.worth.records import Key, Records

PAGE = "worth.md"
DENSE, MOE = "dense", "MoE"


class Score(NamedTuple):
    """A candidate at a budget: the runs of all seeds, in the seeds' order."""

    name: str
    minutes: float
    runs: list[dict[str, Any]]

    @property
    def bits(self) -> float:
        """Bits per byte, the mean over the seeds."""
        return fmean(run["bits_per_byte"] for run in self.runs)

    @property
    def dense(self) -> bool:
        """Whether the candidate is; one that the table no longer knows counts by the loads that it left."""
        known = CANDIDATES.get(self.name)
        return not any(self.runs[0]["load_of_domain"].values()) if known is None else known.dense


def scores(runs: Mapping[Key, dict[str, Any]]) -> list[Score]:
    """Every candidate at every budget that it ran for, by budget, the best first."""
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for key in sorted(runs, key=lambda key: key.seed):
        found.setdefault((key.candidate, key.minutes), []).append(runs[key])
    made = [Score(name, minutes, of_key) for (name, minutes), of_key in found.items()]
    return sorted(made, key=lambda score: (score.minutes, score.bits))


def best(all_scores: Sequence[Score], minutes: float, dense: bool) -> Score | None:
    """The best dense model, or the best Mixture of Experts, of a budget."""
    return next((each for each in all_scores if each.minutes == minutes and each.dense == dense), None)


def write_report(records: Records, folder: Path) -> None:
    """Fill the tables of the page and draw the pictures, of whatever there is."""
    page, images, found = folder / PAGE, folder / "images", scores(records.runs())
    fill_page(page, "costs", cost_table(records.costs()))
    if not found:
        return
    budgets = sorted({score.minutes for score in found})
    fill_page(page, "leaders", leader_table(found, budgets))
    for minutes in budgets:
        fill_page(page, f"{minutes:g} minutes", budget_table([each for each in found if each.minutes == minutes]))
    draw_frontier(found, budgets, images / "worth_frontier.png")
    pairs = [(best(found, minutes, True), best(found, minutes, False)) for minutes in budgets]
    both = [(dense, moe) for dense, moe in pairs if dense is not None and moe is not None]
    if both:
        dense, moe = both[-1]
        fill_page(page, "domains", domain_table(dense, moe))
        draw_domains(dense, moe, images / "worth_domains.png")
        draw_experts(moe, images / "worth_experts.png")


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """What a step of each candidate costs beside the twin's, the cheapest first."""
    rows = [
        [
            name,
            f"{cost['seconds']:.3f}",
            "" if name == TWIN else f"{cost['ratio']:.2f} ({cost['low']:.2f} to {cost['high']:.2f})",
        ]
        for name, cost in sorted(costs.items(), key=lambda item: item[1]["seconds"])
    ]
    return markdown_table(["candidate", "CPU seconds per step", "over the twin's (quartiles)"], rows)


def leader_table(found: Sequence[Score], budgets: Sequence[float]) -> str:
    """The twin, the best dense model and the best Mixture of Experts of each budget."""
    rows = []
    for minutes in budgets:
        twin = next((each for each in found if (each.name, each.minutes) == (TWIN, minutes)), None)
        dense, moe = best(found, minutes, True), best(found, minutes, False)
        cells = [_cell(twin), _cell(dense, named=True), _cell(moe, named=True)]
        rows.append([f"{minutes:g}", *cells, f"{dense.bits - moe.bits:+.4f}" if dense and moe else ""])
    columns = ["CPU minutes", "dense twin", "best dense model", "best MoE", "MoE's lead, bits per byte"]
    return markdown_table(columns, rows)


def _cell(score: Score | None, named: bool = False) -> str:
    if score is None:
        return ""
    return f"{_spread(score)}, {score.name}" if named else _spread(score)


def _spread(score: Score) -> str:
    bits = [run["bits_per_byte"] for run in score.runs]
    if len(bits) == 1:
        return f"{bits[0]:.4f}"
    return f"{score.bits:.4f} ({min(bits):.4f} to {max(bits):.4f}, {len(bits)} seeds)"


def budget_table(of_budget: Sequence[Score]) -> str:
    """Every candidate of one budget, the best first."""
    rows = [
        [
            score.name,
            f"{score.runs[0]['parameters'] / 1e6:.2f}M",
            f"{score.runs[0]['steps']:,}",
            f"{score.runs[0]['tokens'] / 1e6:.2f}M",
            f"{fmean(run['nats'] for run in score.runs):.4f}",
            _spread(score),
        ]
        for score in of_budget
    ]
    columns = ["candidate", "parameters", "steps", "tokens", "nats per token", "bits per byte"]
    return markdown_table(columns, rows)


def domain_gains(dense: Score, moe: Score) -> dict[str, tuple[float, float]]:
    """Bits per byte of both, by domain, means over the seeds; the domain that gains most from experts first."""
    domains = dense.runs[0]["bits_per_byte_of_domain"]
    pairs = {
        domain: tuple(fmean(run["bits_per_byte_of_domain"][domain] for run in each.runs) for each in (dense, moe))
        for domain in domains
    }
    return dict(sorted(pairs.items(), key=lambda item: item[1][1] / item[1][0]))  # type: ignore[arg-type]


def domain_table(dense: Score, moe: Score) -> str:
    """Bits per byte by domain of a dense model and a Mixture of Experts."""
    rows = [
        [domain, f"{of_dense:.3f}", f"{of_moe:.3f}", f"{1 - of_moe / of_dense:+.1%}"]
        for domain, (of_dense, of_moe) in domain_gains(dense, moe).items()
    ]
    return markdown_table(["domain", dense.name, moe.name, "fewer bits"], rows)


def draw_frontier(found: Sequence[Score], budgets: Sequence[float], file: Path) -> None:
    """Bits per byte against CPU minutes: every run, and the best dense model and Mixture of Experts as lines."""
    with picture(file, panel=(PANEL[0] * 1.4, PANEL[1])) as (figure, panels):
        axes: Axes = panels[0, 0]
        for score in found:
            look = look_of(DENSE if score.dense else MOE)
            minutes = [score.minutes] * len(score.runs)
            bits = [run["bits_per_byte"] for run in score.runs]
            axes.plot(minutes, bits, marker=look.marker, color=look.color, linestyle="", alpha=0.35)
        for kind in (DENSE, MOE):
            line = [best(found, minutes, kind == DENSE) for minutes in budgets]
            places = [(score.minutes, score.bits) for score in line if score is not None]
            look = look_of(kind)
            axes.plot(*zip(*places, strict=True), marker=look.marker, color=look.color) if places else None
        axes.set_xscale("log")
        one_two_five(axes.xaxis)
        axes.set_xticks(budgets, [f"{minutes:g}" for minutes in budgets])
        axes.set(title="Held-out real text", xlabel="CPU minutes of training", ylabel="bits per byte")
        legend_below(figure, (DENSE, MOE), {DENSE: "dense (line: the best)", MOE: "MoE (line: the best)"})


def draw_domains(dense: Score, moe: Score, file: Path) -> None:
    """How many bits fewer the Mixture of Experts needs, by domain."""
    gains = domain_gains(dense, moe)
    share = [100 * (1 - of_moe / of_dense) for of_dense, of_moe in gains.values()]
    with picture(file, panel=(PANEL[0] * 1.3, PANEL[1])) as (_, panels):
        axes: Axes = panels[0, 0]
        axes.barh(list(gains)[::-1], share[::-1], color=look_of(MOE).color)
        axes.axvline(0, color=look_of(DENSE).color)
        axes.set(title=f"{moe.name}, against {dense.name}, {moe.minutes:g} CPU minutes", xlabel="fewer bits, percent")


def draw_experts(moe: Score, file: Path) -> None:
    """Which expert serves which domain: its load over the fair share, a panel for each sparse layer."""
    loads = moe.runs[0]["load_of_domain"]
    maps_DE = [numpy.array(of_layer) for of_layer in zip(*loads.values(), strict=True)]
    maps_DE = [of_layer * of_layer.shape[1] for of_layer in maps_DE]
    norm = load_norm(maps_DE, most=8.0)
    panel = (PANEL[0] * 1.3, PANEL[1] * 0.9)
    with picture(file, rows=len(maps_DE), panel=panel, title=moe.name, sharex=True) as (figure, panels):
        for layer, (axes, of_layer) in enumerate(zip(panels[:, 0], maps_DE, strict=True)):
            # Experts in the order of the domain that they serve most, so that what belongs together stands together.
            order = numpy.argsort(of_layer.argmax(axis=0), kind="stable")
            axes.imshow(of_layer[:, order], aspect="auto", cmap="RdBu_r", norm=norm)
            axes.set_yticks(range(len(loads)), list(loads))
            axes.set(title=f"sparse layer {layer}", xticks=[])
            load_axes(axes)
        panels[-1, 0].set_xlabel(f"{of_layer.shape[1]} experts, those of one domain together")
        load_bar(figure, list(panels[:, 0]), norm)
