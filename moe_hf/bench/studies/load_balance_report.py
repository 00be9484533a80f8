"""Reports on the load balance of a model: Markdown tables for its page, and pictures.

Shapes: L sparse layers, E experts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

_INK, _QUIET, _GRID = "#222222", "#8a8a8a", "#dddddd"
# Okabe and Ito's palette, told apart by colour-blind readers; the marker says the same once more.
_LOOKS = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"))
_LABELLED_EXPERTS = 16
_DRAWS = ("independent", "different")


def layer_table(result: Mapping[str, Any]) -> str:
    """Every statistic of each sparse layer, over all text, as a Markdown table."""
    lines = [
        "| layer | router | relative std | its floor | chi-square p | largest / mean | entropy | dead | dropped |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for layer in result["layers"]:
        dropped = "" if layer["dropped"] is None else f"{layer['dropped']:.1%}"
        lines.append(
            f"| {layer['layer']} | {layer['router']} | {layer['relative_std']:.3f} | {layer['sampling_floor']:.3f} | "
            f"{_probability(layer['p_value'])} | {layer['max_over_mean']:.2f} | {layer['entropy']:.3f} | "
            f"{layer['dead_experts']} of {len(layer['load'])} | {dropped} |"
        )
    model = result["model"]
    lines += [
        "",
        f"Model `{model['folder']}`: `{model['router_type']}`, {model['num_experts_per_tok']} of "
        f"{model['num_experts']} experts; {result['conversations']:,} held-out conversations, "
        f"{result['tokens']:,} tokens.",
    ]
    return "\n".join(lines)


def domain_table(result: Mapping[str, Any]) -> str:
    """Each sort of skill, then the skills that differ most from all text, as a Markdown table."""
    numbers = [layer["layer"] for layer in result["layers"]]
    lines = [
        "| domain | tokens | "
        + " | ".join(f"layer {n}: std (floor) | busiest | distance (by chance)" for n in numbers)
        + " |",
        "| --- | --- |" + " --- | --- | --- |" * len(numbers),
    ]
    sorts = [domain for domain in result["domains"] if domain["kind"] == "sort"]
    skills = [domain for domain in result["domains"] if domain["kind"] == "skill"]
    skills.sort(key=lambda domain: -max(layer["distance"] for layer in domain["layers"]))
    for domain in [*sorts, *skills[:5]]:
        name = f"**{domain['name']}**" if domain["kind"] == "sort" else domain["name"]
        cells = [name, f"{domain['tokens']:,}"]
        for layer in domain["layers"]:
            busiest = max(range(len(layer["load"])), key=layer["load"].__getitem__)
            cells.append(f"{layer['relative_std']:.2f} ({layer['sampling_floor']:.2f})")
            cells += [
                f"{busiest} ({layer['load'][busiest]:.0%})",
                f"{layer['distance']:.2f} ({layer['chance_distance']:.2f})",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def floor_table(result: Mapping[str, Any]) -> str:
    """The sampling floor's formula beside its simulation, as a Markdown table."""
    lines = [
        "| tokens | k | E | slots drawn one by one: formula | simulated | k different experts: formula | simulated |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for check in result["floor_check"]:
        numbers = [f"{check[name][value]:.4f}" for name in _DRAWS for value in ("formula", "simulated")]
        lines.append(f"| {check['tokens']:,} | {check['k']} | {check['num_experts']} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def runs_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| run | router | balance loss | largest load / mean, per layer | dead experts | dropped | router entropy | "
        "held-out answers | held-out loss |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        capacity = row["capacity_factor"]
        router = row["router"] + (f", capacity {capacity:g}" if capacity else "")
        cells = [
            f"{row['run']} ({row['step']:,} steps)",
            f"{router}, {row['num_experts_per_tok']} of {row['num_experts']}",
            row["balance_loss"] or "none",
            _listed(row["load_max"], "{:.2f}"),
            str(sum(row["dead_experts"])),
            _listed(row["dropped"], "{:.1%}") if row["dropped"] else "",
            _listed(row["entropy"], "{:.2f}"),
            "" if row["heldout_score"] is None else f"{row['heldout_score']:.1%}",
            "" if row["heldout_loss"] is None else f"{row['heldout_loss']:.3f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _listed(values: Sequence[float], form: str) -> str:
    return ", ".join(form.format(value) for value in values)


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else "< 0.01" if value >= 1e-4 else "< 0.0001"


def fill_page(page: Path, name: str, text: str) -> bool:
    """Put `text` between the page's marks `<!-- measured: NAME -->` and `<!-- end of NAME -->`.

    Returns:
        Whether the page exists and has the marks; otherwise nothing is written.
    """
    if not page.is_file():
        return False
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of {name} -->"
    old = page.read_text(encoding="utf-8")
    new, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{text}\n\n{end}", old, flags=re.DOTALL
    )
    page.write_text(new, encoding="utf-8")
    return count > 0


def draw_pictures(result: Mapping[str, Any], folder: Path) -> None:
    """Write `load_balance_layers.png`, `load_balance_domains.png` and `load_balance_std.png`.

    A field of the first two shows a load over its fair share: 1 is fair, 0 an expert that gets nothing. The third
    shows how the relative std changes with the number of tokens counted, beside its sampling floor.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _draw_layers(result).savefig(folder / "load_balance_layers.png", dpi=110)
    _draw_domains(result).savefig(folder / "load_balance_domains.png", dpi=110)
    _draw_growth(result).savefig(folder / "load_balance_std.png", dpi=110)


def _draw_layers(result: Mapping[str, Any]) -> Figure:
    load_LE = _fair_shares([layer["load"] for layer in result["layers"]])
    figure = Figure(figsize=(max(6.0, 0.6 * load_LE.shape[1] + 2.5), 1.6 + 0.5 * len(load_LE)), layout="constrained")
    axes = figure.add_subplot()
    norm = _norm(load_LE)
    names = [f"layer {layer['layer']} ({layer['router']})" for layer in result["layers"]]
    _heat_map(axes, load_LE, names, norm)
    axes.set_title(f"Load of each expert over {result['tokens']:,} held-out tokens", loc="left", fontsize=11)
    _colour_bar(figure, [axes], norm)
    return figure


def _draw_domains(result: Mapping[str, Any]) -> Figure:
    domains = result["domains"]
    loads = [_fair_shares([domain["layers"][i]["load"] for domain in domains]) for i in range(len(result["layers"]))]
    # Twice over the fair share and more is one colour, or else one skill would bleach all others.
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=max(2.0, min(4.0, max(float(load.max()) for load in loads))))
    width = 2.5 + len(loads) * max(3.0, 0.42 * loads[0].shape[1])
    figure = Figure(figsize=(width, 1.6 + 0.24 * len(domains)), layout="constrained")
    panels = figure.subplots(1, len(loads), squeeze=False, sharey=True)[0]
    names = [domain["name"].upper() if domain["kind"] == "sort" else domain["name"] for domain in domains]
    for axes, layer, load in zip(panels, result["layers"], loads, strict=True):
        _heat_map(axes, load, names, norm, labelled=False)
        axes.set_title(f"layer {layer['layer']} ({layer['router']})", loc="left", fontsize=10)
    figure.suptitle("Load of each expert by domain: sorts of skill in capitals, then their skills", fontsize=11)
    _colour_bar(figure, list(panels), norm)
    return figure


def _draw_growth(result: Mapping[str, Any]) -> Figure:
    growth = result["growth"]
    std_PL, floor_PL = numpy.array(growth["relative_std"]), numpy.array(growth["sampling_floor"])
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for index, layer in enumerate(result["layers"]):
        color, marker = _LOOKS[index % len(_LOOKS)]
        label = f"layer {layer['layer']} ({layer['router']}), ends at {std_PL[-1, index]:.3f}"
        axes.plot(growth["tokens"], std_PL[:, index], color=color, marker=marker, markersize=5, label=label)
    label = f"sampling floor of uniform random routing, ends at {floor_PL[-1, 0]:.3f}"
    axes.plot(growth["tokens"], floor_PL[:, 0], color=_QUIET, linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("tokens counted, conversation by conversation in random order")
    axes.set_ylabel("relative std of the loads")
    axes.set_title("How uneven the loads are, and how uneven chance alone would be", loc="left", fontsize=11)
    axes.grid(color=_GRID, linewidth=0.8, which="both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, labelcolor=_INK)
    return figure


def _fair_shares(loads: Sequence[Sequence[float]]) -> numpy.ndarray:
    array = numpy.array(loads)
    return array * array.shape[1]


def _norm(load_LE: numpy.ndarray) -> TwoSlopeNorm:
    return TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=max(2.0, float(load_LE.max())))


def _heat_map(axes: Axes, load: numpy.ndarray, names: Sequence[str], norm: TwoSlopeNorm, labelled: bool = True) -> None:
    axes.imshow(load, cmap="RdBu_r", norm=norm, aspect="auto")
    axes.set_yticks(range(len(names)), list(names), fontsize=8)
    step = max(1, load.shape[1] // _LABELLED_EXPERTS)
    axes.set_xticks(range(0, load.shape[1], step))
    axes.set_xlabel("expert", fontsize=9)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
    if labelled and load.shape[1] <= _LABELLED_EXPERTS:
        for row in range(load.shape[0]):
            for column in range(load.shape[1]):
                value = float(load[row, column])
                color = "white" if abs(norm(value) - 0.5) > 0.35 else _INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=color)


def _colour_bar(figure: Figure, axes: Sequence[Axes], norm: TwoSlopeNorm) -> None:
    mappable = ScalarMappable(norm=norm, cmap="RdBu_r")
    bar = figure.colorbar(
        mappable, ax=list(axes), label="load / fair share", ticks=[0, 0.5, 1, norm.vmax], format="{x:.1f}"
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)
