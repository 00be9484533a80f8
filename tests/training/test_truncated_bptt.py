"""Training on a stream: carried states are the whole sequence's, memory stays, and a run goes on where it stopped."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.optim import SGD, AdamW

from moe_hf import CheckpointError, ConfigError
from moe_hf.layers.caches.states import detach_states
from moe_hf.training.truncated_bptt import (
    cut_stream,
    load_stream_state,
    save_stream_state,
    stream_loss,
    train_on_stream,
)
from tests.models.families import tiny_family

ROOT = Path(__file__).parents[2]
B, S = 2, 24
RECURRENT = ["rwkv7", "rwkv4"]
NO_ROUTER_LOSS = {"router_aux_loss_coef": 0.0, "router_z_loss_coef": 0.0}


def row(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 61, (B, length), generator=torch.Generator().manual_seed(seed))


def test_a_stream_is_cut_with_each_next_token_as_the_target() -> None:
    ids = row(20)
    chunks = list(cut_stream(iter([ids[:, :3], ids[:, 3:4], ids[:, 4:17], ids[:, 17:]]), 6))
    assert len(chunks) == 3
    for index, chunk in enumerate(chunks):
        assert torch.equal(chunk.input_ids, ids[:, 6 * index : 6 * index + 6])
        assert torch.equal(chunk.targets, ids[:, 6 * index + 1 : 6 * index + 7])


def test_a_stream_is_read_only_as_far_as_it_is_needed() -> None:
    def endless():
        while True:
            yield row(5)

    chunks = cut_stream(endless(), 7)
    assert all(next(chunks).input_ids.shape == (B, 7) for _ in range(10))


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("chunk_length", [1, 6, 24])
def test_chunks_under_full_backpropagation_equal_the_whole_sequence(kind: str, chunk_length: int) -> None:
    ids = row(S + 1)
    model = tiny_family(kind, **NO_ROUTER_LOSS).train()
    parameters = list(model.parameters())
    whole = model(ids[:, :-1], shift_labels=ids[:, 1:].contiguous(), use_cache=False).loss
    expected = torch.autograd.grad(whole, parameters)
    loss = stream_loss(model, list(cut_stream([ids], chunk_length)), model.model.new_cache())
    assert abs(loss - whole) / whole <= 1e-5
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm().clamp_min(1e-6)


def test_the_gradient_of_an_update_stops_where_the_update_begins() -> None:
    model = tiny_family("rwkv7", **NO_ROUTER_LOSS)
    first, second = cut_stream([row(2 * S + 1)], S)
    cache = model.model.new_cache()
    with torch.no_grad():
        stream_loss(model.train(), [first], cache)
    expected = torch.autograd.grad(stream_loss(model, [second], cache), list(model.parameters()))
    cache = model.model.new_cache()
    stream_loss(model, [first], cache)
    detach_states(cache)
    given = torch.autograd.grad(stream_loss(model, [second], cache), list(model.parameters()))
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_each_step_tells_how_far_it_has_come() -> None:
    model = tiny_family("rwkv7")
    optimizer = SGD(model.parameters(), lr=0.0)
    steps = list(train_on_stream(model, cut_stream([row(5 * S + 1)], S), optimizer, chunks_per_update=2))
    assert [step.tokens_seen for step in steps] == [2 * S, 4 * S, 5 * S]
    assert all(step.gradient_norm > 0 for step in steps)
    assert model.balance_window is None


def test_what_repeats_after_longer_than_a_chunk_is_learnt() -> None:
    # Three tokens in an order that no pair of them tells: where a chunk of 8 begins in it is for the state to know.
    period = torch.tensor([[3, 3, 4, 3, 5, 5, 4, 4, 3, 5, 4]])
    model = tiny_family("rwkv7", num_hidden_layers=2, mlp_layer_types=["dense"] * 2)
    chunks = cut_stream([period.repeat(1, 44)], 8)
    losses = [step.loss for step in train_on_stream(model, chunks, AdamW(model.parameters(), lr=1e-2))]
    assert losses[0] > 3
    assert sum(losses[-5:]) / 5 < 0.2


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_run_goes_on_where_it_stopped(kind: str, tmp_path) -> None:
    ids = row(6 * S + 1)

    def run(model, optimizer, start: int, steps: int, cache=None):
        made = train_on_stream(model, cut_stream([ids[:, start:]], S), optimizer, cache=cache)
        return [next(made) for _ in range(steps)]

    model = tiny_family(kind)
    whole = run(model, AdamW(model.parameters(), lr=1e-3), 0, 6)
    model = tiny_family(kind)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    before = run(model, optimizer, 0, 3)
    save_stream_state(before[-1].cache, tmp_path / "stream.safetensors")
    cache = load_stream_state(tmp_path / "stream.safetensors", model)
    after = run(model, optimizer, before[-1].tokens_seen, 3, cache)
    assert [step.loss for step in before + after] == [step.loss for step in whole]
    assert after[-1].tokens_seen == 6 * S


def test_the_balance_of_routers_is_kept_as_in_any_training() -> None:
    model = tiny_family("rwkv7", router_type="sigmoid_bias", router_balance_loss="global_batch")
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "correction_bias" in name}
    list(train_on_stream(model, cut_stream([row(2 * S + 1)], S), SGD(model.parameters(), lr=0.0)))
    after = dict(model.named_buffers())
    assert before
    assert all(not torch.equal(after[name], buffer) for name, buffer in before.items())


def test_what_cannot_run_on_a_stream_is_refused(tmp_path, checkpointed) -> None:
    chunks = list(cut_stream([row(S + 1)], S))

    def start(model, **options) -> None:
        next(train_on_stream(model, chunks, SGD(model.parameters(), lr=0.0), **options))

    with pytest.raises(ConfigError, match=r"layers \[0, 2\] keep"):
        start(tiny_family("rwkv7-attention"))
    with pytest.raises(ConfigError, match="gradient checkpointing"):
        start(checkpointed(tiny_family("rwkv7")))
    with pytest.raises(ConfigError, match="chunks_per_update=0"):
        start(tiny_family("rwkv7"), chunks_per_update=0)
    with pytest.raises(ConfigError, match="chunk_length=0"):
        next(cut_stream([row(4)], 0))


def test_a_file_that_is_not_the_state_of_this_model_is_refused(tmp_path) -> None:
    model = tiny_family("rwkv7")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_stream_state(tmp_path / "absent.safetensors", model)
    cache = model.model.new_cache()
    with torch.no_grad():
        model(row(5), past_key_values=cache)
    save_stream_state(cache, tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="this model has 2 layers"):
        load_stream_state(
            tmp_path / "state.safetensors", tiny_family("rwkv7", num_hidden_layers=2, mlp_layer_types=["dense"] * 2)
        )


@pytest.mark.parametrize("tokens", [16384, pytest.param(65536, marks=pytest.mark.slow)])
def test_memory_stays_the_same_from_1k_tokens_on(tokens: int) -> None:
    # In a process of its own, whose memory nothing else has filled before.
    script = f"""
import torch, psutil
from moe_hf.training.truncated_bptt import cut_stream, train_on_stream
from tests.models.families import tiny_family

torch.set_num_threads(1)
model = tiny_family("rwkv7", num_hidden_layers=1, mlp_layer_types=["sparse"])
generator = torch.Generator().manual_seed(0)
endless = iter(lambda: torch.randint(3, 61, (1, 1000), generator=generator), None)
for step in train_on_stream(model, cut_stream(endless, 512), torch.optim.SGD(model.parameters(), lr=1e-3)):
    if step.tokens_seen in (1024, {tokens}):
        print(psutil.Process().memory_info().rss)
    if step.tokens_seen >= {tokens}:
        break
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    early, late = map(int, ran.stdout.split())
    assert late <= 1.05 * early
