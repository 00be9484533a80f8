"""Shows a routing trace: each token in the colour of its expert, and how the load fell on the experts of each layer."""

import colorsys
import itertools

from moe_hf.inference.console import Span
from moe_hf.inference.routing_recorder import RoutingTrace

BAR_WIDTH = 48
MOST_COLOURS = 24
"""Of more experts some have colours that a terminal of 256 colours shows alike: numbers stand there as well."""

SYMBOLS = "0123456789abcdefghijklmnopqrstuvwxyz"


def routing_lines(trace: RoutingTrace, layer: int, colour: bool) -> list[list[Span]]:
    """The answer with the expert of each token in one layer, a legend, and a bar of the load for every sparse layer.

    Args:
        trace: of one answer.
        layer: the decoder layer whose experts mark the tokens; one of `trace.layers`.
        colour: mark experts by background; if false, by `{expert}` behind the token.
    """
    row = trace.layers.index(layer)
    num_chosen = trace.experts_LTK.shape[2]
    mark = "colour" if colour and trace.num_experts <= MOST_COLOURS else "number in braces"
    legend = [Span(f"layer {layer}: {mark} = the expert with the largest weight for the token  ", "dim")]
    if colour:
        used = sorted(set(trace.top_experts(row)))
        legend += [Span(f" {expert} ", expert_colour(expert, trace.num_experts)) for expert in used]
    return [
        *_token_lines(trace, row, colour),
        legend,
        [Span(f"load of each layer over this answer ({num_chosen} of {trace.num_experts} experts per token):", "dim")],
        *(_load_line(trace, index, colour) for index in range(len(trace.layers))),
    ]


def expert_colour(expert: int, num_experts: int) -> str:
    """A background `#rrggbb` on which black text is readable; experts are spread over the colour circle."""
    hue = expert / max(num_experts, 1)
    # Neighbours on a crowded circle also differ in lightness.
    lightness = 0.62 if num_experts > 8 and expert % 2 else 0.75
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.75)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def _token_lines(trace: RoutingTrace, row: int, colour: bool) -> list[list[Span]]:
    top = trace.top_experts(row)
    lines: list[list[Span]] = [[]]
    position = 0
    for piece in trace.pieces:
        # A piece of several tokens (a character of several bytes) takes the colour of its last one.
        experts = top[position : position + piece.num_tokens]
        position += piece.num_tokens
        style = expert_colour(experts[-1], trace.num_experts) if experts and colour else ""
        marked = experts and piece.text and (not colour or trace.num_experts > MOST_COLOURS)
        text = f"{piece.text}{{{','.join(map(str, experts))}}}" if marked else piece.text
        for index, part in enumerate(text.split("\n")):
            if index:
                lines.append([])
            if part:
                lines[-1].append(Span(part, style))
    return lines


def _load_line(trace: RoutingTrace, row: int, colour: bool) -> list[Span]:
    load = trace.load(row)
    line = [Span(f"layer {trace.layers[row]:>2} ")]
    for expert, width in enumerate(_widths(load)):
        if width:
            symbol = SYMBOLS[expert] if expert < len(SYMBOLS) else "+"
            line.append(Span(symbol * width, expert_colour(expert, trace.num_experts) if colour else ""))
    busiest = max(range(len(load)), key=load.__getitem__)
    idle = sum(share == 0 for share in load)
    summary = f" busiest {busiest} {load[busiest]:.0%} (even: {1 / trace.num_experts:.0%})"
    line.append(Span(f"{summary}, idle {idle} of {trace.num_experts}", "dim"))
    return line


def _widths(load: list[float]) -> list[int]:
    """Cells of the bar for each share; together they fill it exactly."""
    # The edges are rounded, not the widths, which would not add up to the bar.
    edges, total = [0], 0.0
    for share in load:
        total += share
        edges.append(round(BAR_WIDTH * total))
    return [after - before for before, after in itertools.pairwise(edges)]
