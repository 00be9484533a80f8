"""A recurrence that is known on one segment becomes one on a sequence, there and back."""

from typing import NamedTuple

import pytest
import torch

from moe_hf.ops.sequence.contract import Edges, Segments
from moe_hf.ops.sequence.segments import SegmentPasses, in_segments


class Sums(NamedTuple):
    rate: torch.Tensor
    x_BS: torch.Tensor

    def between(self, start: int, stop: int) -> "Sums":
        return self._replace(x_BS=self.x_BS[:, start:stop])


def sums(inputs: Sums, edges: Edges, state: torch.Tensor, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decaying sums and the last of them, token by token."""
    assert inputs.x_BS.shape[1] % chunk == 0
    out = []
    for x_B in inputs.x_BS.unbind(1):
        state = inputs.rate * state + x_B
        out.append(state)
    return torch.stack(out, dim=1), state


def sums_backward(
    dout: torch.Tensor, dstate: torch.Tensor, inputs: Sums, edges: Edges, state: torch.Tensor, chunk: int
) -> tuple[Sums, torch.Tensor]:
    before = [state, *sums(inputs, edges, state, chunk)[0].unbind(1)]
    drate, dx_BS = torch.zeros_like(inputs.rate), torch.empty_like(inputs.x_BS)
    for n in reversed(range(dout.shape[1])):
        dstate = dstate + dout[:, n]
        dx_BS[:, n], drate = dstate, drate + (dstate * before[n]).sum()
        dstate = inputs.rate * dstate
    return Sums(drate, dx_BS), dstate


in_pieces = in_segments("test_sums", SegmentPasses(Sums, "x_BS", sums, sums_backward), Segments(chunk=2, segment=4))


def leaves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((), (2, 11), (2,))
    ]


@pytest.mark.parametrize("of", ["both", "outputs", "state"])
def test_pieces_give_the_values_and_gradients_of_the_whole(of: str) -> None:
    rate, x, first = leaves()
    out, last, kept = in_pieces(Sums(rate, x), first, Edges())
    wanted, wanted_last = sums(Sums(rate, x), Edges(), first, 11)
    torch.testing.assert_close((out, last), (wanted, wanted_last))
    # Before tokens 0, 4, 8 and 10.
    torch.testing.assert_close(kept, torch.stack([first, *(wanted[:, n] for n in (3, 7, 9))]))
    used = {"both": (0, 1), "outputs": (0,), "state": (1,)}[of]
    ours, theirs = ([(n + 1) * pair[n].square().sum() for n in used] for pair in ((out, last), (wanted, wanted_last)))
    torch.testing.assert_close(
        torch.autograd.grad(sum(ours), (rate, x, first)), torch.autograd.grad(sum(theirs), (rate, x, first))
    )


def test_the_operator_keeps_its_promises_to_the_compiler() -> None:
    torch.library.opcheck(torch.ops.moe_hf.test_sums.default, (*leaves(), None, None))
