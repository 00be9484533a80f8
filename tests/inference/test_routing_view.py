import torch

from moe_hf.inference.routing_recorder import RoutingTrace
from moe_hf.inference.routing_view import BAR_WIDTH, expert_colour, routing_lines
from moe_hf.inference.streaming import Piece

# Two layers, four tokens of which three were fed back, two of four experts each.
TRACE = RoutingTrace(
    pieces=(Piece("a", 1), Piece("é\n", 2), Piece("z", 1)),
    layers=(1, 3),
    num_experts=4,
    experts_LTK=torch.tensor([[[0, 1], [1, 0], [0, 1]], [[2, 3], [3, 2], [3, 0]]]),
    weights_LTK=torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.6, 0.4], [0.7, 0.3]]]),
)


def text_of(line):
    return "".join(span.text for span in line)


def test_without_colour_the_experts_stand_behind_the_tokens():
    lines = [text_of(line) for line in routing_lines(TRACE, layer=3, colour=False)]
    assert lines[0] == "a{2}é"
    assert lines[1] == "{3,3}z"
    assert "layer 3: number in braces" in lines[2]


def test_with_colour_the_tokens_are_on_their_expert_s_background():
    lines = routing_lines(TRACE, layer=1, colour=True)
    assert lines[0] == [("a", expert_colour(0, 4)), ("é", expert_colour(1, 4))]
    # The last token was never fed back: no expert, no colour.
    assert lines[1] == [("z", "")]
    assert [span for span in lines[2] if span.style.startswith("#")] == [
        (" 0 ", expert_colour(0, 4)),
        (" 1 ", expert_colour(1, 4)),
    ]


def test_a_bar_is_shared_by_load():
    lines = [text_of(line) for line in routing_lines(TRACE, layer=1, colour=False)]
    assert f" {'0' * 24}{'1' * 24} busiest 0 50% (even: 25%), idle 2 of 4" in lines[-2]
    assert f" {'0' * 8}{'2' * 16}{'3' * 24} busiest 3 50% (even: 25%), idle 1 of 4" in lines[-1]
    assert BAR_WIDTH == 48


def test_experts_have_different_colours():
    for num_experts in (4, 8, 16, 32):
        assert len({expert_colour(expert, num_experts) for expert in range(num_experts)}) == num_experts
