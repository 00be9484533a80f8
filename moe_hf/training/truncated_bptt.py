"""Trains on streams without end: the state is carried from chunk to chunk, the gradient cut off between updates.

Shapes: B rows, each a stream of its own, S tokens of a chunk.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim import Optimizer
from transformers import Cache

from moe_hf.base.errors import CheckpointError, ConfigError
from moe_hf.base.files import atomic_file
from moe_hf.config.pattern import CACHE_OF_MIXER
from moe_hf.layers.caches.states import StateLayer, advance, detach_states, states_of
from moe_hf.models.heads import MoEForCausalLM
from moe_hf.training.balance import RouterUpkeep

_TOKENS_SEEN = "tokens_seen"


class StreamChunk(NamedTuple):
    """Neighbouring tokens of B streams, and the token that follows each of them, (B, S) both."""

    input_ids: torch.Tensor
    targets: torch.Tensor


class StreamStep(NamedTuple):
    """What one update of the weights did.

    Attributes:
        loss: of the update's tokens, router losses included, as it was before the update.
        gradient_norm: before clipping.
        tokens_seen: of each row, those of earlier runs included; where the stream goes on.
        cache: the state after these tokens.
    """

    loss: float
    gradient_norm: float
    tokens_seen: int
    cache: Cache


def cut_stream(pieces: Iterable[torch.Tensor], chunk_length: int) -> Iterator[StreamChunk]:
    """The chunks of B endless rows; the target of a chunk's last token is the first token of the next.

    Args:
        pieces: (B, any length) token ids that follow each other; nothing beyond the chunk at hand is kept of them.
        chunk_length: S; what is left at the end, shorter than S + 1, is dropped.

    Raises:
        ConfigError: `chunk_length` is below 1.

    >>> [chunk.targets.tolist() for chunk in cut_stream([torch.arange(4)[None], torch.arange(4, 8)[None]], 3)]
    [[[1, 2, 3]], [[4, 5, 6]]]
    """
    if chunk_length < 1:
        raise ConfigError(f"chunk_length={chunk_length} is not allowed; it must be an integer >= 1")
    held: list[torch.Tensor] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += piece.shape[1]
        if length <= chunk_length:
            continue
        row = torch.cat(held, dim=1)
        start = 0
        for start in range(0, length - chunk_length, chunk_length):
            window = row[:, start : start + chunk_length + 1]
            yield StreamChunk(window[:, :-1].contiguous(), window[:, 1:].contiguous())
        # A copy, so that the long row is let go.
        held = [row[:, start + chunk_length :].clone()]
        length = held[0].shape[1]


def train_on_stream(
    model: MoEForCausalLM,
    chunks: Iterable[StreamChunk],
    optimizer: Optimizer,
    *,
    cache: Cache | None = None,
    chunks_per_update: int = 1,
    max_grad_norm: float = 1.0,
) -> Iterator[StreamStep]:
    """Truncated backpropagation through time (Williams and Peng 1990), in memory that does not grow with the stream.

    The loss of each update is the mean over its tokens. The gradient reaches back over the chunks of the update, and no
    farther; the state itself reaches back to the beginning. Nothing happens until the first step is asked for, and
    whoever asks may stop at any time, save `step.cache` (`save_stream_state`) and go on later. On CPUs in half
    precision oneDNN, without which it is slow there, may still add some hundred megabytes over time.

    Args:
        model: all of whose layers keep a state of constant size; is put into training mode.
        chunks: as `cut_stream` gives them.
        optimizer: of the model's parameters; a schedule of its learning rate may be stepped between two steps.
        cache: the state that the stream goes on from; None is the beginning.
        chunks_per_update: chunks that one gradient reaches over, whose activations are alive together.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them as they are.

    Yields:
        One step per update. What is left of the stream when it is shorter than an update makes a last, smaller one.

    Raises:
        ConfigError: a layer keeps more the more it has seen; gradient checkpointing is on, under which transformers
            drops the state; or `chunks_per_update` is below 1.
    """
    if chunks_per_update < 1:
        raise ConfigError(f"chunks_per_update={chunks_per_update} is not allowed; it must be an integer >= 1")
    recomputed = [index for index, layer in enumerate(model.model.layers) if layer.gradient_checkpointing]
    if recomputed:
        raise ConfigError(
            f"gradient checkpointing (of layers {recomputed}) is not allowed on a stream, since it drops the state "
            "between chunks; turn it off: shorter chunks bound the memory as well"
        )
    cache = _stream_cache(model) if cache is None else cache
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    remaining = iter(chunks)
    # Whoever stops asking ends the generator here, and the model must be left as it was.
    with closing(RouterUpkeep(model)) as routers:
        while update := list(islice(remaining, chunks_per_update)):
            optimizer.zero_grad()
            with _constant_memory(model):
                loss = stream_loss(model, update, cache)
                loss.backward()
            # After backward: before it, the cut would part the chunks of this update as well.
            detach_states(cache)
            # An infinite norm clips nothing, and is measured all the same.
            norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
            routers.step()
            optimizer.step()
            yield StreamStep(float(loss.detach()), float(norm), int(cache.get_seq_length()), cache)


def stream_loss(model: MoEForCausalLM, chunks: list[StreamChunk], cache: Cache) -> torch.Tensor:
    """The mean loss of neighbouring chunks, whose gradient reaches over all of them; the cache is carried on."""
    # Divided by the targets of all chunks, the losses below add up to a mean over tokens.
    num_targets = sum(chunk.targets.ne(-100).sum() for chunk in chunks)
    losses = []
    for chunk in chunks:
        output = model(
            chunk.input_ids.to(model.device),
            shift_labels=chunk.targets.to(model.device),
            past_key_values=cache,
            use_cache=True,
            num_items_in_batch=num_targets,
        )
        losses.append(output.loss)
    return torch.stack(losses).sum()


def save_stream_state(cache: Cache, path: str | os.PathLike) -> None:
    """Write the state of a stream to a safetensors file, which appears whole or not at all."""
    # Copies in one piece: safetensors takes no tensors that share memory or have gaps.
    tensors = {
        f"{index}.{name}": state.detach().clone().contiguous()
        for index, layer in enumerate(cache.layers)
        if isinstance(layer, StateLayer)
        for name, state in layer.states.items()
    }
    with atomic_file(path) as aside:
        # safetensors' metadata holds nothing but text.
        save_file(tensors, aside, metadata={_TOKENS_SEEN: str(int(cache.get_seq_length()))})


def load_stream_state(path: str | os.PathLike, model: MoEForCausalLM) -> Cache:
    """The state that `save_stream_state` wrote, on the model's device.

    Raises:
        CheckpointError: the file cannot be read, or is the state of a model with other layers.
        ConfigError: a layer of the model keeps more the more it has seen.
    """
    cache = _stream_cache(model)
    try:
        with safe_open(path, framework="pt", device=str(model.device)) as file:
            seen = (file.metadata() or {}).get(_TOKENS_SEEN)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} can't be read as the state of a stream ({error}); it is damaged") from error
    layers = {int(name.partition(".")[0]) for name in tensors if name.partition(".")[0].isdecimal()}
    if seen is None or not layers or max(layers) >= len(cache.layers):
        raise CheckpointError(
            f"{path} holds the states of {len(layers)} layers after {seen} tokens; this model has {len(cache.layers)} "
            "layers: give it a file that save_stream_state wrote for it"
        )
    for name, state in tensors.items():
        index, _, state_name = name.partition(".")
        states = states_of(cache, int(index))
        assert states is not None
        states.write(state_name, state)
    advance(cache, int(seen))
    return cache


@contextmanager
def _constant_memory(model: MoEForCausalLM) -> Iterator[None]:
    # For each number of rows that it has met oneDNN keeps code, and experts meet ever new ones: hundreds of megabytes.
    # In float32 PyTorch's other products are as fast at these sizes; half precision needs oneDNN.
    before = torch.backends.mkldnn.enabled
    if model.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before  # type: ignore[assignment]


def _stream_cache(model: MoEForCausalLM) -> Cache:
    growing = [index for index, kind in enumerate(model.config.layer_types or []) if kind != "recurrent"]
    if growing:
        states = [mixer for mixer, kept in CACHE_OF_MIXER.items() if kept == "recurrent"]
        raise ConfigError(
            f"mixer={model.config.mixer!r} is not allowed on a stream without end, since what layers {growing} keep "
            f"grows with it; it must be made of {', '.join(states)}"
        )
    return model.model.new_cache()
