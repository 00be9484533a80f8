"""RWKV-7's delta rule: the paper's equations, and three forms of them that agree in value and in gradient."""

import pytest
import torch
from torch.nn.functional import normalize

from moe_hf.ops.sequence.delta_rule import delta_rule, delta_rule_step, reference_delta_rule

B, H, K, V = 2, 3, 8, 6
# Around the chunk of 32 tokens and the segment of 256.
LENGTHS = [1, 2, 31, 32, 33, 64, 65, 130, 256, 301]
CLOSE = 1e-5


def sequences(length: int, dtype: torch.dtype = torch.float32, batch: int = B) -> list[torch.Tensor]:
    """Inputs as RWKV-7's layer makes them, and an initial state."""
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    key = draw(batch, length, H, K)
    unit, rate = normalize(draw(batch, length, H, K), dim=-1), draw(batch, length, H, K).sigmoid()
    log_decay = -0.6065 * (3 * draw(batch, length, H, K)).sigmoid()
    parts = [draw(batch, length, H, K), log_decay, key, draw(batch, length, H, V), -unit, unit * rate]
    return [part.to(dtype) for part in [*parts, draw(batch, H, V, K)]]


def edges(kind: str, length: int) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(B, length, generator=generator) > 0.3 if "padding" in kind else None
    starts = torch.rand(B, length, generator=generator) < 0.1 if "documents" in kind else None
    return {"mask_BS": mask, "starts_BS": starts}


def distance(given: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((given.double() - wanted).norm() / wanted.norm().clamp_min(1e-30)).item()


def value_and_gradients(function, parts: list[torch.Tensor], **options) -> list[torch.Tensor]:
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    out, state = function(*leaves[:6], initial_state=leaves[6], **options)
    if options.get("mask_BS") is not None:
        out = out * options["mask_BS"][..., None, None]
    generator = torch.Generator().manual_seed(4)
    directions = [torch.randn(part.shape, generator=generator, dtype=torch.float64) for part in (out, state)]
    loss = sum((part * direction).sum() for part, direction in zip((out, state), directions, strict=True))
    return [out, state, *torch.autograd.grad(loss, leaves)]


def test_the_reference_is_the_equation_of_the_paper():
    r, log_w, k, v, a, b, state = sequences(7, torch.float64)
    out, last = reference_delta_rule(r, log_w, k, v, a, b, initial_state=state)
    for row in range(B):
        for head in range(H):
            expected = state[row, head]
            for t in range(7):
                at = (row, t, head)
                transition = torch.diag(log_w[at].exp()) + torch.outer(a[at], b[at])
                expected = expected @ transition + torch.outer(v[at], k[at])
                torch.testing.assert_close(out[at], expected @ r[at])
            torch.testing.assert_close(last[row, head], expected)


@pytest.mark.parametrize("kind", ["plain", "padding", "documents", "padding and documents"])
@pytest.mark.parametrize("length", LENGTHS)
def test_chunks_equal_the_reference_in_value_and_gradient(length: int, kind: str):
    parts, options = sequences(length), edges(kind, length)
    wanted = value_and_gradients(reference_delta_rule, [part.double() for part in parts], **options)
    given = value_and_gradients(delta_rule, parts, **options)
    assert max(distance(g, w) for g, w in zip(given, wanted, strict=True)) <= CLOSE


def test_gradients_pass_gradcheck():
    parts = [part.requires_grad_() for part in sequences(35, torch.float64, batch=1)]
    options = {"starts_BS": torch.arange(35)[None] == 20, "mask_BS": torch.arange(35)[None] != 7}

    def run(*tensors: torch.Tensor):
        return delta_rule(*tensors[:6], initial_state=tensors[6], **options)

    assert torch.autograd.gradcheck(run, parts, fast_mode=True)


def test_the_slowest_and_the_fastest_decay_stay_exact():
    parts = sequences(130)
    for log_decay in (0.0, -0.6065, -2.5):
        parts[1] = torch.full_like(parts[1], log_decay)
        wanted = value_and_gradients(reference_delta_rule, [part.double() for part in parts])
        given = value_and_gradients(delta_rule, parts)
        assert max(distance(g, w) for g, w in zip(given, wanted, strict=True)) <= CLOSE


def test_a_key_said_again_and_again_stays_exact():
    parts = sequences(96)
    parts[4], parts[5] = parts[4][:, :1].expand_as(parts[4]), parts[5][:, :1].expand_as(parts[5])
    parts[1] = torch.zeros_like(parts[1])
    wanted = reference_delta_rule(*(part.double() for part in parts[:6]))
    for given, expected in zip(delta_rule(*parts[:6]), wanted, strict=True):
        assert distance(given, expected) <= CLOSE


def test_steps_equal_the_whole_sequence():
    *parts, state = sequences(40)
    wanted, last = reference_delta_rule(*(part.double() for part in parts), initial_state=state.double())
    outputs = []
    for t in range(40):
        out, state = delta_rule_step(*(part[:, t] for part in parts), initial_state=state)
        outputs.append(out)
    assert distance(torch.stack(outputs, dim=1), wanted) <= CLOSE
    assert distance(state, last) <= CLOSE


def test_a_step_has_the_reference_s_gradients():
    *parts, state = sequences(1)

    def step(*tensors: torch.Tensor, initial_state: torch.Tensor):
        out, new_state = delta_rule_step(*(part[:, 0] for part in tensors), initial_state=initial_state)
        return out[:, None], new_state

    wanted = value_and_gradients(reference_delta_rule, [part.double() for part in (*parts, state)])
    given = value_and_gradients(step, [*parts, state])
    assert max(distance(g, w) for g, w in zip(given, wanted, strict=True)) <= CLOSE


def test_a_step_goes_past_padding_with_its_state_unchanged():
    *parts, state = sequences(1)
    token = [part[:, 0] for part in parts]
    _, moved = delta_rule_step(*token, initial_state=state)
    _, masked = delta_rule_step(*token, initial_state=state, mask_B=torch.tensor([1, 0]))
    assert torch.equal(masked, torch.stack([moved[0], state[1]]))
    assert not torch.equal(moved[1], state[1])


@pytest.mark.parametrize("cut", [1, 7, 64, 257])
def test_a_sequence_may_be_continued_from_its_state(cut: int):
    *parts, state = sequences(300)
    whole, last = delta_rule(*parts, initial_state=state)
    first, middle = delta_rule(*(part[:, :cut] for part in parts), initial_state=state)
    second, end = delta_rule(*(part[:, cut:] for part in parts), initial_state=middle)
    assert distance(torch.cat([first, second], dim=1), whole.double()) <= CLOSE
    assert distance(end, last.double()) <= CLOSE


def test_packed_documents_equal_separate_ones():
    *parts, _ = sequences(90)
    starts = torch.zeros(B, 90, dtype=torch.bool)
    starts[:, [0, 37, 64]] = True
    packed, last = delta_rule(*parts, initial_state=torch.ones(B, H, V, K), starts_BS=starts)
    pieces = [delta_rule(*(part[:, i:j] for part in parts)) for i, j in ((0, 37), (37, 64), (64, 90))]
    assert distance(packed, torch.cat([out for out, _ in pieces], dim=1).double()) <= CLOSE
    assert distance(last, pieces[-1][1].double()) <= CLOSE


@pytest.mark.parametrize("form", [reference_delta_rule, delta_rule])
def test_a_document_does_not_begin_at_padding(form):
    *parts, state = sequences(70)
    options = edges("padding and documents", 70)
    mask, starts = options["mask_BS"], options["starts_BS"]
    assert not mask[starts].all()
    given, end = form(*parts, initial_state=state, **options)
    wanted, last = form(*parts, initial_state=state, mask_BS=mask, starts_BS=starts & mask)
    torch.testing.assert_close(given[mask], wanted[mask], rtol=0, atol=0)
    torch.testing.assert_close(end, last, rtol=0, atol=0)


def test_padding_anywhere_is_as_if_it_were_not_there():
    *parts, _ = sequences(50)
    real = torch.ones(B, 50, dtype=torch.long)
    real[:, :5], real[:, 20:24], real[:, -8:] = 0, 0, 0
    kept = real[0].bool()
    padded = [torch.where(kept[None, :, None, None], part, 100.0 if i != 1 else -0.5) for i, part in enumerate(parts)]
    out, last = delta_rule(*padded, mask_BS=real)
    wanted, wanted_last = delta_rule(*(part[:, kept] for part in parts))
    assert out.isfinite().all()
    assert distance(out[:, kept], wanted.double()) <= CLOSE
    assert distance(last, wanted_last.double()) <= CLOSE


def test_half_precision_keeps_its_state_in_float32():
    parts = sequences(70, torch.bfloat16)[:6]
    out, state = delta_rule(*parts)
    wanted, wanted_state = reference_delta_rule(*(part.double() for part in parts))
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert distance(state, wanted_state) <= CLOSE
    assert distance(out, wanted) <= 5e-3
    with torch.autocast("cpu", torch.bfloat16):
        _, again = delta_rule(*parts)
    assert torch.equal(again, state)


def test_given_tensors_stay_as_they_are():
    *parts, state = sequences(70)
    before = [part.clone() for part in (*parts, state)]
    delta_rule(*parts, initial_state=state)
    delta_rule_step(*(part[:, 0] for part in parts), initial_state=state)
    assert all(torch.equal(a, b) for a, b in zip(before, (*parts, state), strict=True))


def test_the_backward_pass_keeps_the_inputs_and_one_state_per_segment():
    leaves = [part.requires_grad_() for part in sequences(600)[:6]]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        delta_rule(*leaves)
    # 256 + 256 + 64 + 24 tokens.
    assert sum(kept) == sum(part.numel() for part in leaves) + 4 * B * H * V * K


def test_the_final_state_may_be_left_out():
    parts = [part.requires_grad_() for part in sequences(40)[:6]]
    out, state = delta_rule(*parts, output_final_state=False)
    assert state is None
    # Reading alone depends on the receptance, the final state does not.
    assert torch.autograd.grad(out.sum(), parts[0])[0].abs().sum() > 0
    _, last = delta_rule(*parts)
    assert torch.autograd.grad(last.sum(), parts[0])[0].abs().sum() == 0


@pytest.mark.parametrize("length", [1, 45, 300])
def test_the_compiler_sees_one_node(length: int):
    parts, options = sequences(length), edges("padding and documents", length)
    torch.compiler.reset()
    compiled = torch.compile(delta_rule, fullgraph=True, backend="aot_eager")
    wanted = value_and_gradients(delta_rule, parts, **options)
    given = value_and_gradients(compiled, parts, **options)
    assert all(torch.equal(g, w) for g, w in zip(given, wanted, strict=True))
