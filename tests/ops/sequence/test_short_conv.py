"""Short convolutions: equal to nn.Conv1d, in pieces as in one go, past padding and within documents; gradients too."""

import pytest
import torch

from moe_hf.ops.sequence.short_conv import short_conv, token_shift

B, S, D, W = 3, 11, 5, 4


def make(length: int = S, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(B, length, D, dtype=dtype),
        torch.randn(D, W, dtype=dtype),
        torch.randn(D, dtype=dtype),
    )


def conv1d(x_BSD: torch.Tensor, weight_DW: torch.Tensor, bias_D: torch.Tensor | None) -> torch.Tensor:
    padded = torch.nn.functional.pad(x_BSD.transpose(1, 2), (W - 1, 0))
    return torch.nn.functional.conv1d(padded, weight_DW[:, None], bias_D, groups=D).transpose(1, 2)


@pytest.mark.parametrize("length", [1, 2, S, 300])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_a_causal_depthwise_convolution(length: int, biased: bool) -> None:
    x, weight, bias = make(length)
    bias = bias if biased else None
    out, state = short_conv(x, weight, bias)
    torch.testing.assert_close(out, conv1d(x, weight, bias), rtol=1e-5, atol=1e-5)
    assert state.shape == (B, W - 1, D)


@pytest.mark.parametrize("length", [S, 300])
def test_gradients_are_those_of_conv1d(length: int) -> None:
    x, weight, bias = make(length, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    direction = torch.randn(B, length, D, dtype=torch.float64)
    ours = torch.autograd.grad((short_conv(*leaves)[0] * direction).sum(), leaves)
    theirs = torch.autograd.grad((conv1d(*leaves) * direction).sum(), leaves)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_pieces_give_what_the_whole_gives(cut: int) -> None:
    x, weight, bias = make()
    whole, last = short_conv(x, weight, bias)
    first, state = short_conv(x[:, :cut], weight, bias)
    second, end = short_conv(x[:, cut:], weight, bias, initial_state=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


MASK = torch.tensor(
    [[1] * S, [0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0], [1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0]],
)


def test_padding_is_skipped_wherever_it_stands() -> None:
    x, weight, bias = make()
    out, state = short_conv(x, weight, bias, mask_BS=MASK)
    shifted, last = token_shift(x, mask_BS=MASK)
    for row in range(B):
        real = MASK[row].bool()
        alone, alone_state = short_conv(x[row : row + 1, real], weight, bias)
        torch.testing.assert_close(out[row, real], alone[0])
        torch.testing.assert_close(state[row], alone_state[0])
        before, alone_last = token_shift(x[row : row + 1, real])
        torch.testing.assert_close(shifted[row, real], before[0])
        torch.testing.assert_close(last[row], alone_last[0])


@pytest.mark.parametrize("masked", [True, False])
def test_documents_do_not_see_each_other(masked: bool) -> None:
    x, weight, bias = make()
    starts = torch.zeros(B, S, dtype=torch.bool)
    starts[:, 3] = starts[1, 8] = True
    mask = MASK if masked else None
    history = torch.randn(B, W - 1, D)
    out, state = short_conv(x, weight, bias, initial_state=history, mask_BS=mask, starts_BS=starts)
    follow = torch.randn(B, 2, D)
    after, _ = short_conv(follow, weight, bias, initial_state=state)
    shifted, _ = token_shift(x, mask_BS=mask, starts_BS=starts)
    for row in range(B):
        if masked and not MASK[row, 3]:
            continue
        ends = [*starts[row].nonzero().flatten().tolist(), S]
        for begin, end in zip([0, *ends], ends, strict=False):
            real = torch.arange(begin, end)[MASK[row, begin:end].bool() if masked else slice(None)]
            if len(real) == 0:
                continue
            past = history[row : row + 1] if begin == 0 else None
            alone, _ = short_conv(x[row : row + 1, real], weight, bias, initial_state=past)
            torch.testing.assert_close(out[row, real], alone[0])
            torch.testing.assert_close(shifted[row, real], token_shift(x[row : row + 1, real])[0][0])
        _, alone_state = short_conv(x[row : row + 1, real], weight, bias)
        expected, _ = short_conv(follow[row : row + 1], weight, bias, initial_state=alone_state)
        torch.testing.assert_close(after[row], expected[0])


def test_it_compiles_into_one_graph() -> None:
    x, weight, bias = make()
    compiled = torch.compile(lambda *args: short_conv(*args)[0], fullgraph=True, backend="aot_eager")
    leaves = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    direction = torch.randn(B, S, D)
    ours = torch.autograd.grad((compiled(*leaves) * direction).sum(), leaves)
    eager = torch.autograd.grad((short_conv(*leaves)[0] * direction).sum(), leaves)
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("length", [1, S])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_a_state_is_no_view_that_keeps_the_inputs_alive(length: int, packed: bool, padded: bool) -> None:
    x, weight, _ = make(length)
    real = torch.ones(B, length, dtype=torch.bool)
    layout = {"starts_BS": real if packed else None, "mask_BS": real if padded else None}
    for state in (short_conv(x, weight, **layout)[1], token_shift(x, **layout)[1]):
        assert state.untyped_storage().nbytes() == state.nbytes
