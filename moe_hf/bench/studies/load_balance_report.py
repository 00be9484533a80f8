"""Reports on the load balance of a model: Markdown tables for its page, and pictures.

Shapes: L sparse layers, E experts.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from moe_hf.bench.harness.drawing import INK, QUIET, load_axes, load_bar, load_norm, look_number, picture
from moe_hf.bench.harness.tables import markdown_table

_LABELLED_EXPERTS = 16
_DRAWS = ("independent", "different")


def layer_table(result: Mapping[str, Any]) -> str:
    """Every statistic of each sparse layer, over all text, as a Markdown table."""
    columns = "layer|router|relative std|its floor|chi-square p|largest / mean|entropy|dead|dropped".split("|")
    rows = [
        [
            str(layer["layer"]),
            layer["router"],
            f"{layer['relative_std']:.3f}",
            f"{layer['sampling_floor']:.3f}",
            _probability(layer["p_value"]),
            f"{layer['max_over_mean']:.2f}",
            f"{layer['entropy']:.3f}",
            f"{layer['dead_experts']} of {len(layer['load'])}",
            "" if layer["dropped"] is None else f"{layer['dropped']:.1%}",
        ]
        for layer in result["layers"]
    ]
    model = result["model"]
    words = (
        f"Model `{model['folder']}`: `{model['router_type']}`, {model['num_experts_per_tok']} of "
        f"{model['num_experts']} experts; {result['conversations']:,} held-out conversations, "
        f"{result['tokens']:,} tokens."
    )
    return f"{markdown_table(columns, rows)}\n\n{words}"


def domain_table(result: Mapping[str, Any]) -> str:
    """Each sort of skill, then the skills that differ most from all text, as a Markdown table."""
    columns = ["domain", "tokens"]
    for layer in result["layers"]:
        columns += [f"layer {layer['layer']}: std (floor)", "busiest", "distance (by chance)"]
    sorts = [domain for domain in result["domains"] if domain["kind"] == "sort"]
    skills = [domain for domain in result["domains"] if domain["kind"] == "skill"]
    skills.sort(key=lambda domain: -max(layer["distance"] for layer in domain["layers"]))
    rows = []
    for domain in [*sorts, *skills[:5]]:
        name = f"**{domain['name']}**" if domain["kind"] == "sort" else domain["name"]
        cells = [name, f"{domain['tokens']:,}"]
        for layer in domain["layers"]:
            busiest = max(range(len(layer["load"])), key=layer["load"].__getitem__)
            cells += [
                f"{layer['relative_std']:.2f} ({layer['sampling_floor']:.2f})",
                f"{busiest} ({layer['load'][busiest]:.0%})",
                f"{layer['distance']:.2f} ({layer['chance_distance']:.2f})",
            ]
        rows.append(cells)
    return markdown_table(columns, rows)


def floor_table(result: Mapping[str, Any]) -> str:
    """The sampling floor's formula beside its simulation, as a Markdown table."""
    columns = ["tokens", "k", "E", "slots drawn one by one: formula", "simulated"]
    columns += ["k different experts: formula", "simulated"]
    rows = []
    for check in result["floor_check"]:
        numbers = [f"{check[name][value]:.4f}" for name in _DRAWS for value in ("formula", "simulated")]
        rows.append([f"{check['tokens']:,}", str(check["k"]), str(check["num_experts"]), *numbers])
    return markdown_table(columns, rows)


def runs_table(runs: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    columns = ["run", "router", "balance loss", "largest load / mean, per layer", "dead experts", "dropped"]
    columns += ["router entropy", "held-out answers", "held-out loss"]
    rows = []
    for run in runs:
        capacity = run["capacity_factor"]
        router = run["router"] + (f", capacity {capacity:g}" if capacity else "")
        rows.append(
            [
                f"{run['run']} ({run['step']:,} steps)",
                f"{router}, {run['num_experts_per_tok']} of {run['num_experts']}",
                run["balance_loss"] or "none",
                _listed(run["load_max"], "{:.2f}"),
                str(sum(run["dead_experts"])),
                _listed(run["dropped"], "{:.1%}") if run["dropped"] else "",
                _listed(run["entropy"], "{:.2f}"),
                "" if run["heldout_score"] is None else f"{run['heldout_score']:.1%}",
                "" if run["heldout_loss"] is None else f"{run['heldout_loss']:.3f}",
            ]
        )
    return markdown_table(columns, rows)


def _listed(values: Sequence[float], form: str) -> str:
    return ", ".join(form.format(value) for value in values)


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else "< 0.01" if value >= 1e-4 else "< 0.0001"


def draw_pictures(result: Mapping[str, Any], folder: Path) -> None:
    """Write `load_balance_layers.png`, `load_balance_domains.png` and `load_balance_std.png`.

    A field of the first two shows a load over its fair share: 1 is fair, 0 an expert that gets nothing. The third
    shows how the relative std changes with the number of tokens counted, beside its sampling floor.
    """
    _draw_layers(result, folder / "load_balance_layers.png")
    _draw_domains(result, folder / "load_balance_domains.png")
    _draw_growth(result, folder / "load_balance_std.png")


def _draw_layers(result: Mapping[str, Any], file: Path) -> None:
    load_LE = _fair_shares([layer["load"] for layer in result["layers"]])
    norm = load_norm([load_LE])
    size = (max(5.0, 0.6 * load_LE.shape[1] + 1.5), 0.7 + 0.5 * len(load_LE))
    with picture(file, panel=size) as (figure, panels):
        axes = panels[0, 0]
        _heat_map(axes, load_LE, _layer_names(result), norm)
        if load_LE.shape[1] <= _LABELLED_EXPERTS:
            for (row, column), load in numpy.ndenumerate(load_LE):
                color = "white" if abs(norm(load) - 0.5) > 0.35 else INK
                axes.text(column, row, f"{load:.2f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_title(f"Load of each expert over {result['tokens']:,} held-out tokens")
        load_bar(figure, [axes], norm)


def _draw_domains(result: Mapping[str, Any], file: Path) -> None:
    domains = result["domains"]
    loads = [_fair_shares([domain["layers"][i]["load"] for domain in domains]) for i in range(len(result["layers"]))]
    # Beyond four fair shares all is one colour, or else one skill would bleach all others.
    norm = load_norm(loads, most=4.0)
    size = (max(3.0, 0.42 * loads[0].shape[1]), 0.7 + 0.24 * len(domains))
    title = "Load of each expert by domain: sorts of skill in capitals, then their skills"
    names = [domain["name"].upper() if domain["kind"] == "sort" else domain["name"] for domain in domains]
    with picture(file, 1, len(loads), size, title, sharey=True) as (figure, panels):
        for axes, name, load in zip(panels[0], _layer_names(result), loads, strict=True):
            _heat_map(axes, load, names, norm)
            axes.set_title(name)
        load_bar(figure, list(panels[0]), norm)


def _draw_growth(result: Mapping[str, Any], file: Path) -> None:
    growth = result["growth"]
    std_PL, floor_PL = numpy.array(growth["relative_std"]), numpy.array(growth["sampling_floor"])
    with picture(file, panel=(6.5, 3.5)) as (_, panels):
        axes = panels[0, 0]
        for index, name in enumerate(_layer_names(result)):
            look = look_number(index)
            label = f"{name}, ends at {std_PL[-1, index]:.3f}"
            axes.plot(growth["tokens"], std_PL[:, index], color=look.color, marker=look.marker, label=label)
        label = f"sampling floor of uniform random routing, ends at {floor_PL[-1, 0]:.3f}"
        axes.plot(growth["tokens"], floor_PL[:, 0], color=QUIET, linestyle="--", label=label)
        axes.set(xscale="log", xlabel="tokens counted, conversation by conversation in random order")
        axes.set(yscale="log", ylabel="relative std of the loads")
        axes.set_title("How uneven the loads are, and how uneven chance alone would be")
        axes.grid(which="both")
        axes.legend()


def _layer_names(result: Mapping[str, Any]) -> list[str]:
    return [f"layer {layer['layer']} ({layer['router']})" for layer in result["layers"]]


def _fair_shares(loads: Sequence[Sequence[float]]) -> numpy.ndarray:
    array = numpy.array(loads)
    return array * array.shape[1]


def _heat_map(axes: Axes, load: numpy.ndarray, names: Sequence[str], norm: TwoSlopeNorm) -> None:
    load_axes(axes)
    axes.imshow(load, norm=norm, aspect="auto")
    axes.set_yticks(range(len(names)), list(names))
    axes.set_xticks(range(0, load.shape[1], max(1, load.shape[1] // _LABELLED_EXPERTS)))
    axes.set_xlabel("expert")
