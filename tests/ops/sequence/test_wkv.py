"""RWKV-4's WKV: transformers' own function, the weighted average it stands for, and three forms that agree."""

import pytest
import torch
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from moe_hf.ops.sequence.wkv import empty_wkv_state, reference_wkv, wkv, wkv_step

B, D = 2, 5
# Around the chunk of 32 tokens and the segment of 512.
LENGTHS = [1, 2, 31, 32, 33, 64, 65, 130, 512, 550]
CLOSE = 1e-5


def sequences(length: int, dtype: torch.dtype = torch.float32, spread: float = 1.0, batch: int = B):
    """Decay, bonus, key, value and an initial state; `spread` is that of the logarithms."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # From nearly no fading to what is forgotten at once.
    decay = torch.tensor([1e-3, 0.1, 0.7, 2.0, 20.0], dtype=torch.float64)
    state = torch.stack([draw(batch, D), draw(batch, D).exp(), spread * draw(batch, D)], dim=1)
    parts = [decay, spread * draw(D), spread * draw(batch, length, D), draw(batch, length, D), state]
    return [part.to(dtype) for part in parts]


def edges(kind: str, length: int) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(B, length, generator=generator) > 0.3 if "padding" in kind else None
    starts = torch.rand(B, length, generator=generator) < 0.1 if "documents" in kind else None
    return {"mask_BS": mask, "starts_BS": starts}


def distance(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((given.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def meaning(state: torch.Tensor) -> torch.Tensor:
    """Average and log weight: what the three entries say together, whatever maximum they are relative to."""
    num, den, top = state.unbind(1)
    den = den.clamp_min(1e-30)
    return torch.stack([num / den, den.log() + top.clamp_min(-1e3)])


def value_and_gradients(function, parts: list[torch.Tensor], **options) -> list[torch.Tensor]:
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    out, state = function(*leaves[:4], initial_state=leaves[4], **options)
    state = meaning(state)
    if options.get("mask_BS") is not None:
        out = out * options["mask_BS"][..., None]
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in (out, state)]
    loss = sum((part * direction).sum() for part, direction in zip((out, state), directions, strict=True))
    return [out, state, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("form", [reference_wkv, wkv])
def test_it_is_the_function_of_transformers(form):
    log_decay, bonus, key, value, state = sequences(40, torch.float64)
    wanted, last = rwkv_linear_attention_cpu(log_decay, bonus, key, value, state=state.unbind(1), return_state=True)
    out, end = form(log_decay.exp(), bonus, key, value, initial_state=state)
    # It computes with the keys in float32, whatever they come in.
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(meaning(end), meaning(torch.stack(last, dim=1)), atol=1e-5, rtol=1e-5)


def test_the_reference_is_the_weighted_average_of_the_paper():
    decay, bonus, key, value, _ = sequences(9, torch.float64)
    out, _ = reference_wkv(decay, bonus, key, value)
    for t in range(9):
        steps_back = torch.arange(t - 1, -2, -1)[:, None]
        logit = key[:, : t + 1] - steps_back.clamp_min(0) * decay
        logit[:, t] += bonus
        torch.testing.assert_close(out[:, t], (logit.softmax(dim=1) * value[:, : t + 1]).sum(1))


@pytest.mark.parametrize("kind", ["plain", "padding", "documents", "padding and documents"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_reference_in_value_and_gradient(length: int, kind: str):
    parts, options = sequences(length), edges(kind, length)
    wanted = value_and_gradients(reference_wkv, [part.double() for part in parts], **options)
    given = value_and_gradients(wkv, parts, **options)
    assert max(distance(g, w) for g, w in zip(given, wanted, strict=True)) <= CLOSE


def test_keys_may_span_hundreds_of_powers_of_e():
    parts = sequences(130, spread=100.0)
    wanted = value_and_gradients(reference_wkv, [part.double() for part in parts])
    given = value_and_gradients(wkv, parts)
    assert max(distance(g, w) for g, w in zip(given, wanted, strict=True)) <= CLOSE


def test_gradients_pass_gradcheck():
    parts = [part.requires_grad_() for part in sequences(35, torch.float64, batch=1)]
    options = {"starts_BS": torch.arange(35)[None] == 20, "mask_BS": torch.arange(35)[None] != 7}

    def run(*tensors: torch.Tensor):
        out, state = wkv(*tensors[:4], initial_state=tensors[4], **options)
        return out, meaning(state)

    assert torch.autograd.gradcheck(run, parts, fast_mode=True)


def test_steps_equal_the_whole_sequence():
    decay, bonus, key, value, state = sequences(40)
    doubles = [part.double() for part in (decay, bonus, key, value)]
    wanted, last = reference_wkv(*doubles, initial_state=state.double())
    outputs = []
    for t in range(40):
        out, state = wkv_step(decay, bonus, key[:, t], value[:, t], initial_state=state)
        outputs.append(out)
    assert distance(torch.stack(outputs, dim=1), wanted) <= CLOSE
    assert distance(meaning(state), meaning(last)) <= CLOSE


def test_a_step_goes_past_padding_with_its_state_unchanged():
    decay, bonus, key, value, state = sequences(1)
    token = (decay, bonus, key[:, 0], value[:, 0])
    _, moved = wkv_step(*token, initial_state=state)
    _, masked = wkv_step(*token, initial_state=state, mask_B=torch.tensor([1, 0]))
    assert torch.equal(masked, torch.stack([moved[0], state[1]]))
    assert not torch.equal(moved[1], state[1])


@pytest.mark.parametrize("cut", [1, 7, 64, 513])
def test_a_sequence_may_be_continued_from_its_state(cut: int):
    decay, bonus, key, value, state = sequences(530)
    whole, last = wkv(decay, bonus, key, value, initial_state=state)
    first, middle = wkv(decay, bonus, key[:, :cut], value[:, :cut], initial_state=state)
    second, end = wkv(decay, bonus, key[:, cut:], value[:, cut:], initial_state=middle)
    assert distance(torch.cat([first, second], dim=1), whole.double()) <= CLOSE
    assert distance(meaning(end), meaning(last).double()) <= CLOSE


def test_packed_documents_equal_separate_ones():
    decay, bonus, key, value, state = sequences(90, spread=30.0)
    starts = torch.zeros(B, 90, dtype=torch.bool)
    starts[:, [0, 37, 64]] = True
    packed, last = wkv(decay, bonus, key, value, initial_state=state, starts_BS=starts)
    pieces = [wkv(decay, bonus, key[:, i:j], value[:, i:j]) for i, j in ((0, 37), (37, 64), (64, 90))]
    assert distance(packed, torch.cat([out for out, _ in pieces], dim=1).double()) <= CLOSE
    assert distance(meaning(last), meaning(pieces[-1][1]).double()) <= CLOSE


@pytest.mark.parametrize("form", [reference_wkv, wkv])
def test_a_document_does_not_begin_at_padding(form):
    *parts, state = sequences(70)
    options = edges("padding and documents", 70)
    mask, starts = options["mask_BS"], options["starts_BS"]
    assert not mask[starts].all()
    given, end = form(*parts, initial_state=state, **options)
    wanted, last = form(*parts, initial_state=state, mask_BS=mask, starts_BS=starts & mask)
    torch.testing.assert_close(given[mask], wanted[mask], rtol=0, atol=0)
    torch.testing.assert_close(end, last, rtol=0, atol=0)


@pytest.mark.parametrize("form", [reference_wkv, wkv])
def test_padding_anywhere_is_as_if_it_were_not_there(form):
    decay, bonus, key, value, _ = sequences(50)
    real = torch.ones(B, 50, dtype=torch.long)
    real[:, :5], real[:, 20:24], real[:, -8:] = 0, 0, 0
    kept = real[0].bool()
    padded = [torch.where(kept[None, :, None], part, 100.0) for part in (key, value)]
    out, last = form(decay, bonus, *padded, mask_BS=real)
    wanted, wanted_last = form(decay, bonus, key[:, kept], value[:, kept])
    assert out.isfinite().all()
    assert distance(out[:, kept], wanted.double()) <= CLOSE
    assert distance(meaning(last), meaning(wanted_last).double()) <= CLOSE


def test_a_row_of_nothing_but_padding_leaves_the_state_as_it_is():
    decay, bonus, key, value, state = sequences(40)
    out, last = wkv(decay, bonus, key, value, initial_state=state, mask_BS=torch.zeros(B, 40))
    assert out.isfinite().all()
    assert torch.equal(last, state)
    _, empty = wkv(decay, bonus, key, value, mask_BS=torch.zeros(B, 40))
    assert torch.equal(empty, empty_wkv_state(B, D))


def test_half_precision_keeps_its_state_in_float32():
    parts = sequences(70, torch.bfloat16)[:4]
    out, state = wkv(*parts)
    wanted, wanted_state = reference_wkv(*(part.double() for part in parts))
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert distance(meaning(state), meaning(wanted_state)) <= CLOSE
    assert distance(out, wanted) <= 5e-3


def test_given_tensors_stay_as_they_are():
    parts = sequences(70)
    before = [part.clone() for part in parts]
    decay, bonus, key, value, state = parts
    wkv(decay, bonus, key, value, initial_state=state)
    wkv_step(decay, bonus, key[:, 0], value[:, 0], initial_state=state)
    assert all(torch.equal(a, b) for a, b in zip(before, parts, strict=True))


def test_the_backward_pass_keeps_the_inputs_and_one_state_per_segment():
    leaves = [part.requires_grad_() for part in sequences(1100)[:4]]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        wkv(*leaves)
    # 512 + 512 + 64 + 12 tokens.
    assert sum(kept) == sum(part.numel() for part in leaves) + 4 * B * 3 * D


@pytest.mark.parametrize("length", [1, 45, 550])
def test_the_compiler_sees_one_node(length: int):
    parts, options = sequences(length), edges("padding and documents", length)
    torch.compiler.reset()
    compiled = torch.compile(wkv, fullgraph=True, backend="aot_eager")
    wanted = value_and_gradients(wkv, parts, **options)
    given = value_and_gradients(compiled, parts, **options)
    assert all(torch.equal(g, w) for g, w in zip(given, wanted, strict=True))
