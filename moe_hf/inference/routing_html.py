"""Draws a routing trace as HTML: tokens on their expert's colour with its number, and a bar of each layer's load."""

from html import escape

from moe_hf.base.printable import printable
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.routing_view import expert_colour

# A narrower part of a bar has no room for its number, which then stands in its title alone.
_ROOM_FOR_A_NUMBER = 0.06


def routing_html(trace: RoutingTrace, layer: int) -> str:
    """The answer with the expert of each token in one layer, a legend, and a bar of the load for every sparse layer.

    All of the text is escaped: it comes from a model. What a colour says, a number says too. Classes are `routing-...`;
    how they look is up to the page.

    Args:
        trace: of one answer, whole or so far.
        layer: the decoder layer whose experts mark the tokens; one of `trace.layers`.
    """
    num_chosen = trace.experts_LTK.shape[2]
    return (
        f'<div class="routing-tokens">{_tokens(trace, layer)}</div>{_legend(trace, layer)}'
        f'<p class="routing-caption">Load of each layer over this answer, {num_chosen} of {trace.num_experts} experts '
        f"per token (even: {1 / trace.num_experts:.0%} each)</p>"
        f'<div class="routing-bars">{"".join(_bar(trace, row) for row in range(len(trace.layers)))}</div>'
    )


def _tokens(trace: RoutingTrace, layer: int) -> str:
    row = trace.layers.index(layer)
    top = trace.top_experts(row)
    # Of the experts that a token visits, the share that the router gave to its first one.
    weight_T = trace.weights_LTK[row].max(dim=-1).values
    drawn: list[str] = []
    position = 0
    for piece in trace.pieces:
        experts = top[position : position + piece.num_tokens]
        position += piece.num_tokens
        # A line end shows as a sign in its token, and ends the line behind it.
        text = escape(printable(piece.text)).replace("\n", "↵")
        if not experts:
            drawn.append(f'<span class="routing-token">{text}</span>')
        elif experts[-1] == trace.num_experts:
            drawn.append(
                f'<span class="routing-token" title="no expert of layer {layer} took it">{text}<sub>-</sub></span>'
            )
        elif text:
            # A piece of several tokens (a character of several bytes) takes the colour of its last one.
            number = ",".join(map(str, experts))
            weight = float(weight_T[position - piece.num_tokens + len(experts) - 1])
            drawn.append(
                f'<span class="routing-token" style="background:{expert_colour(experts[-1], trace.num_experts)}" '
                f'title="expert {number} of layer {layer}, weight {weight:.2f}">{text}<sub>{number}</sub></span>'
            )
        drawn.append("<br>" * piece.text.count("\n"))
    return "".join(drawn)


def _legend(trace: RoutingTrace, layer: int) -> str:
    used = sorted(set(trace.top_experts(trace.layers.index(layer))) - {trace.num_experts})
    keys = "".join(
        f'<li style="background:{expert_colour(expert, trace.num_experts)}">{expert}</li>' for expert in used
    )
    return (
        f'<p class="routing-caption">Colour and small number: the expert of layer {layer} with the largest weight for '
        f'the token. Used here:</p><ul class="routing-legend" aria-label="experts used in layer {layer}">{keys}</ul>'
    )


def _bar(trace: RoutingTrace, row: int) -> str:
    load = trace.load(row)
    busiest = max(range(len(load)), key=load.__getitem__)
    idle = sum(share == 0 for share in load)
    parts = "".join(
        f'<i style="width:{100 * share:.2f}%;background:{expert_colour(expert, trace.num_experts)}" '
        f'title="expert {expert}: {share:.0%}">{expert if share >= _ROOM_FOR_A_NUMBER else ""}</i>'
        for expert, share in enumerate(load)
        if share
    )
    spoken = ", ".join(f"expert {expert} {share:.0%}" for expert, share in enumerate(load) if share)
    return (
        f'<div class="routing-layer"><b>Layer {trace.layers[row]}</b>'
        f'<div class="routing-bar" role="img" aria-label="layer {trace.layers[row]}: {spoken}">{parts}</div>'
        f"<span>busiest {busiest}: {load[busiest]:.0%}, idle: {idle} of {trace.num_experts}</span></div>"
    )
