"""Makes an operator of a recurrence that is known on one segment: it carries the state over segments, there and back.

Shapes: B rows, S positions, G segments.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.operators import opaque
from moe_hf.ops.sequence.contract import Edges, Segments


class SegmentPasses(NamedTuple):
    """The passes of a recurrence on one segment, there and back.

    Attributes:
        inputs: the NamedTuple of its inputs, with a method `between(start, stop)` that cuts those that belong to tokens
            to the tokens of a segment, as views, and leaves the others as they are.
        value: the name of the input that the outputs are like.
        forward: from inputs, edges, the state before, and the tokens of a chunk to outputs and the state after.
        backward: from the gradients of these two and all that `forward` takes to those of the inputs and of the state
            before.
    """

    inputs: type[Any]
    value: str
    forward: Callable[[Any, Edges, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[..., tuple[Any, torch.Tensor]]


def in_segments(
    name: str, passes: SegmentPasses, segments: Segments
) -> Callable[[Any, torch.Tensor, Edges], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The operator `moe_hf::name`: from inputs, first state and edges to outputs, last state and the states between.

    The last, (G, ...), are one before each segment, which the backward pass starts from: it keeps them beside the
    inputs and computes the rest again.
    """

    def forward(
        inputs: Any, initial_state: torch.Tensor, edges: Edges
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = torch.empty_like(getattr(inputs, passes.value), memory_format=torch.contiguous_format)
        found, state = segments.of(out.shape[1]), initial_state
        kept = initial_state.new_empty(segments.limit(out.shape[1]), *initial_state.shape)
        kept[len(found) :].zero_()
        with without_autocast(out):
            for index, (start, stop, chunk) in enumerate(found):
                kept[index] = state
                within, around = inputs.between(start, stop), edges.between(start, stop)
                out[:, start:stop], state = passes.forward(within, around, state, chunk)
        # An operator may not give back what it was given.
        return out, state.clone(), kept

    def shapes(inputs: Any, initial_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        like = getattr(inputs, passes.value)
        kept = initial_state.new_empty(segments.limit(like.shape[1]), *initial_state.shape)
        return like.new_empty(like.shape), initial_state.new_empty(initial_state.shape), kept

    def backward(
        dout: torch.Tensor | None, dstate: torch.Tensor | None, inputs: Any, edges: Edges, kept: torch.Tensor
    ) -> list[torch.Tensor]:
        dout = torch.zeros_like(getattr(inputs, passes.value)) if dout is None else dout
        dstate = kept.new_zeros(kept.shape[1:]) if dstate is None else dstate
        gradients = passes.inputs(*gradient_room(inputs, kept))
        with without_autocast(dout):
            # Not strict: there is room for more states than there are segments (`Segments.limit`).
            for (start, stop, chunk), state in reversed(list(zip(segments.of(dout.shape[1]), kept, strict=False))):
                within, around = inputs.between(start, stop), edges.between(start, stop)
                found, dstate = passes.backward(dout[:, start:stop], dstate, within, around, state, chunk)
                for whole, part, new in zip(gradients, gradients.between(start, stop), found, strict=True):
                    # What belongs to no token collects the shares of all segments.
                    part.add_(new) if part is whole else part.copy_(new)
        return [*gradients, dstate.clone()]

    def gradient_room(inputs: Any, kept: torch.Tensor) -> list[torch.Tensor]:
        # What comes back uncut belongs to no token: its gradient is a sum over all, kept in the type of the state.
        first = inputs.between(0, 1)
        return [
            kept.new_zeros(x.shape) if x is cut else torch.empty_like(x, memory_format=torch.contiguous_format)
            for x, cut in zip(inputs, first, strict=True)
        ]

    def gradient_shapes(inputs: Any, kept: torch.Tensor) -> list[torch.Tensor]:
        return [*gradient_room(inputs, kept), kept.new_empty(kept.shape[1:])]

    # `opaque` reads the operator's arguments off the annotations.
    for function in (forward, backward):
        function.__annotations__["inputs"] = passes.inputs
    results, differentiable = ("out", "state", "kept"), (*passes.inputs._fields, "initial_state")
    return opaque(name, forward, shapes, backward, gradient_shapes, returns=results, gradients=differentiable)
