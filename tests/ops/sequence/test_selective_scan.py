"""The selective scan gives what its equations say, in value and in gradient, at any length, padding and packing."""

from typing import Any

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.sequence import selective_scan as ops
from tests.ops.sequence.scans import (
    BATCH,
    CHANNELS,
    STATE,
    distance,
    make_inputs,
    make_options,
    values_and_gradients,
)

# (Any: the state is None only where it was not asked for.)
selective_scan: Any = ops.selective_scan
reference_selective_scan: Any = ops.reference_selective_scan
selective_scan_step: Any = ops.selective_scan_step

LENGTHS = (1, 2, 63, 64, 65, 130)


@pytest.mark.parametrize(
    "names", [(), ("initial_state",), ("mask_BS",), ("starts_BS",), ("initial_state", "mask_BS", "starts_BS")]
)
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_are_the_references(length: int, names: tuple[str, ...]) -> None:
    inputs, options = make_inputs(length), make_options(length)
    chosen = {name: options[name] for name in names}
    ours = values_and_gradients(selective_scan, inputs, chosen)
    theirs = values_and_gradients(reference_selective_scan, inputs, chosen)
    assert len(ours) == len(theirs) == 7 + ("initial_state" in names)
    for our, their in zip(ours, theirs, strict=True):
        assert distance(our, their) <= 2e-6


def test_gradients_are_those_of_finite_differences() -> None:
    inputs, options = make_inputs(5, dtype=torch.float64), make_options(5, dtype=torch.float64)
    others = {name: options[name] for name in ("mask_BS", "starts_BS")}

    def scan(initial_state: torch.Tensor, *inputs: torch.Tensor) -> Any:
        return selective_scan(*inputs, initial_state=initial_state, **others)

    assert torch.autograd.gradcheck(scan, (options["initial_state"], *inputs))


@pytest.mark.parametrize("sizes", [(1,) * 9, (7, 2), (2, 7), (4, 4, 1)])
def test_a_sequence_in_pieces_is_the_whole(sizes: tuple[int, ...]) -> None:
    inputs, options = make_inputs(9), make_options(9)
    whole, last = selective_scan(*inputs, **options)
    u, delta, a, b, c = inputs
    state: Any = options["initial_state"]
    outputs = []
    pieces = [x.split(sizes, dim=1) for x in (u, delta, b, c, options["mask_BS"], options["starts_BS"])]
    for u_p, delta_p, b_p, c_p, mask, starts in zip(*pieces, strict=True):
        y, state = selective_scan(u_p, delta_p, a, b_p, c_p, initial_state=state, mask_BS=mask, starts_BS=starts)
        outputs.append(y)
    assert distance(torch.cat(outputs, dim=1), whole) <= 1e-6
    assert distance(state, last) <= 1e-6


def test_steps_are_the_scan() -> None:
    inputs, options = make_inputs(9), make_options(9)
    del options["starts_BS"]
    for chosen in ({}, options):
        whole, last = selective_scan(*inputs, **chosen)
        u, delta, a, b, c = inputs
        state: Any = chosen.get("initial_state")
        outputs = []
        for t in range(9):
            step = {"mask_B": chosen["mask_BS"][:, t]} if chosen else {}
            y, state = selective_scan_step(u[:, t], delta[:, t], a, b[:, t], c[:, t], initial_state=state, **step)
            outputs.append(y)
        assert distance(torch.stack(outputs, dim=1), whole) <= 1e-6
        assert distance(state, last) <= 1e-6


def test_padding_anywhere_is_as_if_it_were_not_there() -> None:
    u, delta, a, b, c = make_inputs(20, batch=1)
    real = torch.ones(1, 20, dtype=torch.long)
    real[0, [0, 1, 7, 12, 18, 19]] = 0
    kept = real[0].nonzero()[:, 0]
    ours, state = selective_scan(u, delta, a, b, c, mask_BS=real)
    alone, last = selective_scan(u[:, kept], delta[:, kept], a, b[:, kept], c[:, kept])
    assert distance(ours[:, kept], alone) <= 1e-6
    assert distance(state, last) <= 1e-6
    assert ours.isfinite().all()


@pytest.mark.parametrize("scan", [selective_scan, reference_selective_scan])
def test_what_stands_at_padding_is_not_read(scan: Any) -> None:
    inputs = [x.detach() for x in make_inputs(20)]
    mask = make_options(20)["mask_BS"]
    mask[1, 0] = 0
    expected, last = scan(*inputs, mask_BS=mask)
    odd = [x if x.ndim == 2 else x.masked_fill((mask == 0)[..., None], torch.nan) for x in inputs]
    ours, state = scan(*odd, mask_BS=mask)
    assert torch.equal(ours[mask != 0], expected[mask != 0])
    assert torch.equal(state, last)
    u, delta, a, b, c = odd
    first = torch.ones(BATCH, CHANNELS, STATE)
    step = selective_scan_step(u[:, 0], delta[:, 0], a, b[:, 0], c[:, 0], initial_state=first, mask_B=mask[:, 0])
    assert torch.equal(step[1][mask[:, 0] == 0], first[mask[:, 0] == 0])


def test_a_document_does_not_begin_at_padding() -> None:
    inputs, options = make_inputs(70), make_options(70)
    mask = options["mask_BS"] != 0
    assert (options["starts_BS"] & ~mask).any()
    for scan in (selective_scan, reference_selective_scan):
        ours = values_and_gradients(scan, inputs, options)
        theirs = values_and_gradients(
            reference_selective_scan, inputs, options | {"starts_BS": options["starts_BS"] & mask}
        )
        assert max(map(distance, ours, theirs)) <= 2e-6


@pytest.mark.parametrize("scan", [selective_scan, reference_selective_scan])
def test_a_start_cuts_off_what_is_not_finite_in_value_and_gradient(scan: Any) -> None:
    inputs = make_inputs(20)
    clean = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.no_grad():
        inputs[0][:, 3] = torch.inf
    starts = (torch.arange(20) == 11).expand(BATCH, 20)
    found = []
    for given in (inputs, clean):
        y, state = scan(*given, starts_BS=starts)
        gradients = torch.autograd.grad(y[:, 11:].sum() + state.sum(), [given[i] for i in (0, 1, 3, 4)])
        found.append([y[:, 11:], state, *(x[:, 11:] for x in gradients)])
    assert not scan(*inputs, starts_BS=starts)[0][:, 10].isfinite().all()
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("place", "shape", "text"),
    [
        (1, (BATCH, 6, 1), "delta"),
        (2, (1, STATE), "do not fit"),
        (3, (1, 6, STATE), "do not fit"),
        (4, (BATCH, 6, 1), "do not fit"),
        (5, (1, CHANNELS, STATE), "initial_state of shape"),
    ],
)
def test_shapes_that_would_be_stretched_are_refused(place: int, shape: tuple[int, ...], text: str) -> None:
    arguments = [*make_inputs(6), torch.zeros(BATCH, CHANNELS, STATE)]
    arguments[place] = torch.zeros(shape)
    for scan in (selective_scan, reference_selective_scan):
        with pytest.raises(ConfigError, match=text):
            scan(*arguments[:5], initial_state=arguments[5])


def test_a_state_in_double_precision_is_read_in_that_of_the_input() -> None:
    inputs, state = make_inputs(6), make_options(6)["initial_state"]
    expected = selective_scan(*inputs, initial_state=state)
    assert all(map(torch.equal, selective_scan(*inputs, initial_state=state.double()), expected))


def test_documents_in_one_row_do_not_see_each_other_nor_the_initial_state() -> None:
    u, delta, a, b, c = make_inputs(11, batch=1)
    starts = torch.zeros(1, 11, dtype=torch.bool)
    starts[0, [0, 4]] = True
    packed, state = selective_scan(u, delta, a, b, c, starts_BS=starts, initial_state=torch.ones(1, CHANNELS, STATE))
    first, _ = selective_scan(u[:, :4], delta[:, :4], a, b[:, :4], c[:, :4])
    second, last = selective_scan(u[:, 4:], delta[:, 4:], a, b[:, 4:], c[:, 4:])
    torch.testing.assert_close(packed, torch.cat([first, second], dim=1))
    torch.testing.assert_close(state, last)


def test_half_precision_inputs_keep_a_float32_state() -> None:
    inputs = make_inputs(70)
    exact, last = selective_scan(*inputs)
    rounded = [x.detach().bfloat16().requires_grad_() for x in inputs]
    ours, state = selective_scan(*rounded)
    assert ours.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert distance(ours.float(), exact) <= 1e-2
    assert distance(state, last) <= 1e-2
    for gradient in torch.autograd.grad(ours.float().square().mean(), rounded):
        assert gradient.dtype == torch.bfloat16
        assert gradient.isfinite().all()


def test_autocast_leaves_the_scan_in_float32() -> None:
    inputs = make_inputs(20)
    expected = values_and_gradients(selective_scan, inputs, {})
    u, delta, a, b, c = inputs
    state = torch.zeros(BATCH, CHANNELS, STATE)
    step = selective_scan_step(u[:, 0], delta[:, 0], a, b[:, 0], c[:, 0], initial_state=state)
    with torch.autocast("cpu", torch.bfloat16):
        ours = values_and_gradients(selective_scan, inputs, {})
        step_too = selective_scan_step(u[:, 0], delta[:, 0], a, b[:, 0], c[:, 0], initial_state=state)
    assert all(map(torch.equal, (*ours, *step_too), (*expected, *step)))


def test_the_final_state_is_given_on_request_alone() -> None:
    inputs = make_inputs(3)
    for scan in (selective_scan, reference_selective_scan):
        assert scan(*inputs, output_final_state=False)[1] is None


def test_neither_inputs_nor_states_are_written_to() -> None:
    inputs, options = make_inputs(20), make_options(20)
    before = [x.detach().clone() for x in (*inputs, *options.values())]
    values_and_gradients(selective_scan, inputs, options)
    u, delta, a, b, c = inputs
    selective_scan_step(u[:, 0], delta[:, 0], a, b[:, 0], c[:, 0], initial_state=options["initial_state"])
    for then, now in zip(before, (*inputs, *options.values()), strict=True):
        assert torch.equal(then, now)


def test_the_compiler_sees_one_node_forward_and_backward() -> None:
    inputs, options = make_inputs(70), make_options(70)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    ours = values_and_gradients(compiled, inputs, options)
    for our, their in zip(ours, values_and_gradients(selective_scan, inputs, options), strict=True):
        torch.testing.assert_close(our, their)


def test_the_operator_keeps_its_promises_to_the_compiler() -> None:
    options = make_options(70)
    arguments = (*make_inputs(70), options["starts_BS"], options["initial_state"], True)
    torch.library.opcheck(torch.ops.moe_hf.selective_scan, arguments)
