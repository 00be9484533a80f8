import re

import torch

from moe_hf.inference.routing_html import routing_html
from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.routing_view import expert_colour
from moe_hf.inference.streaming import Piece


def trace(*texts: str) -> RoutingTrace:
    """Two layers, two of four experts per token; the last token was never fed back."""
    experts_LTK = torch.tensor([[[0, 1], [1, 0], [0, 1]], [[2, 3], [3, 2], [3, 0]]])
    weights_LTK = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.6, 0.4], [0.7, 0.3]]])
    pieces = tuple(Piece(text, 1) for text in texts)
    return RoutingTrace(pieces, (1, 3), 4, experts_LTK[:, : len(texts) - 1], weights_LTK[:, : len(texts) - 1])


def test_a_token_has_its_experts_colour_and_number() -> None:
    html = routing_html(trace("a", "b", "c", "d"), layer=3)
    tokens = re.findall(
        r'<span class="routing-token"(?: style="background:(#\w+)" title="([^"]+)")?>(.*?)</span>', html
    )
    assert tokens == [
        (expert_colour(2, 4), "expert 2 of layer 3, weight 0.50", "a<sub>2</sub>"),
        (expert_colour(3, 4), "expert 3 of layer 3, weight 0.60", "b<sub>3</sub>"),
        (expert_colour(3, 4), "expert 3 of layer 3, weight 0.70", "c<sub>3</sub>"),
        ("", "", "d"),
    ]


def test_each_layer_has_a_bar_of_its_load_that_is_spoken_as_text() -> None:
    html = routing_html(trace("a", "b", "c", "d"), layer=1)
    assert re.findall(r'aria-label="(layer[^"]+)"', html) == [
        "layer 1: expert 0 50%, expert 1 50%",
        "layer 3: expert 0 17%, expert 2 33%, expert 3 50%",
    ]
    assert re.findall(r'<i style="width:([\d.]+)%', html) == ["50.00", "50.00", "16.67", "33.33", "50.00"]
    assert "busiest 3: 50%, idle: 1 of 4" in html


def test_a_token_writes_no_html_and_no_control_character() -> None:
    html = routing_html(trace("<script>alert(1)</script>", "\x1b[2J", "${1+1}", "&"), layer=1)
    assert "<script" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;<sub>0</sub>" in html


def test_a_character_of_several_tokens_takes_the_colour_of_the_last() -> None:
    whole = trace("a", "b", "c", "d")._replace(pieces=(Piece("é", 2), Piece("z", 2)))
    html = routing_html(whole, layer=1)
    assert f'background:{expert_colour(1, 4)}" title="expert 0,1 of layer 1, weight 0.80">é<sub>0,1</sub>' in html
    assert 'title="expert 1 of layer 1, weight 0.60">z<sub>1</sub>' in html


def test_a_line_end_shows_and_ends_the_line() -> None:
    assert "a↵↵<sub>0</sub></span><br><br><span" in routing_html(trace("a\n\n", "b"), layer=1)


def test_a_token_that_no_expert_took_has_a_dash_and_no_colour() -> None:
    # The id E marks an empty slot.
    dropped = trace("a", "b")._replace(experts_LTK=torch.full((2, 1, 2), 4), weights_LTK=torch.zeros(2, 1, 2))
    html = routing_html(dropped, layer=1)
    assert '<span class="routing-token" title="no expert of layer 1 took it">a<sub>-</sub></span>' in html
    assert "<li" not in html
    assert "<i " not in html
