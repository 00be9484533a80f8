"""The recurrence with scalar decay by the GPU kernel of flash-linear-attention; what it cannot do is left to ours.

Shapes: B rows, S positions, H heads, K key width, V value width, N documents of all rows together.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import torch

from moe_hf.base.optional import require
from moe_hf.ops.sequence.backends import Kernel
from moe_hf.ops.sequence.contract import Carried, call_of
from moe_hf.ops.sequence.scalar_decay import neutral_at_padding, scalar_decay


def fla_scalar_decay(
    query_BSHK: torch.Tensor,
    key_BSHK: torch.Tensor,
    value_BSHV: torch.Tensor,
    log_decay: torch.Tensor,
    **carried: Unpack[Carried],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`moe_hf.ops.sequence.scalar_decay.scalar_decay` by `chunk_simple_gla`, in the type of the values.

    Heads that share keys, float64 and what is being compiled are computed by ours.
    """
    shared = key_BSHK.shape[2] != value_BSHV.shape[2]
    if shared or value_BSHV.dtype == torch.float64 or torch.compiler.is_compiling():
        return scalar_decay(query_BSHK, key_BSHK, value_BSHV, log_decay, **carried)
    initial_state, (mask_BS, starts_BS), output_final_state = call_of(**carried)
    key_BSHK, value_BSHV, log_decay = neutral_at_padding(key_BSHK, value_BSHV, log_decay, mask_BS)
    query_BSHK, key_BSHK = (x.to(value_BSHV.dtype).contiguous() for x in (query_BSHK, key_BSHK))
    batch, length = value_BSHV.shape[:2]
    sequences, options = [query_BSHK, key_BSHK, value_BSHV.contiguous()], dict[str, Any]()
    state = None if initial_state is None else initial_state.float()
    documents = None if starts_BS is None else _documents(starts_BS)
    if documents is not None:
        # The kernel knows documents only as pieces of a single row.
        sequences = [x.flatten(0, 1)[None] for x in sequences]
        options["cu_seqlens"] = documents.bounds
        if state is not None:
            # Rows that begin with a new document forget theirs.
            kept_BHKV = state * ~documents.begins_B[:, None, None, None]
            # Each document has a state of its own, and only the first one of a row goes on with what was given.
            empty_NHKV = state.new_zeros(len(documents.bounds) - 1, *state.shape[1:])
            state = empty_NHKV.index_copy(0, documents.first_B, kept_BHKV)
    kernel = _kernel()
    # The kernel's own decays per head get no gradient, and not every version has them.
    is_fixed = log_decay.dim() == 1 and not (torch.is_grad_enabled() and log_decay.requires_grad)
    if is_fixed and "g_gamma" in inspect.signature(kernel).parameters:
        options["g_gamma"] = log_decay.float()
    else:
        log_BSH = log_decay.float().expand(batch, length, -1)
        options["g"] = (log_BSH if documents is None else log_BSH.flatten(0, 1)[None]).contiguous()
    out, after = kernel(*sequences, scale=1.0, initial_state=state, output_final_state=output_final_state, **options)
    if documents is not None and after is not None:
        after = after[documents.last_B]
    return out.view(value_BSHV.shape).to(value_BSHV.dtype), after.float() if output_final_state else None


class _Documents(NamedTuple):
    """Documents of rows laid one behind the other.

    Attributes:
        bounds: (N + 1,), where each begins, and the end.
        first_B: the first document of each row.
        last_B: the last of each row.
        begins_B: whether a row's first token begins a document, or goes on with one.
    """

    bounds: torch.Tensor
    first_B: torch.Tensor
    last_B: torch.Tensor
    begins_B: torch.Tensor


def _documents(starts_BS: torch.Tensor) -> _Documents:
    opens_BS = starts_BS.clone()
    # Rows lie one behind the other: the first token of each opens a piece, whether it begins a document or goes on.
    opens_BS[:, 0] = True
    first = opens_BS.flatten().nonzero().flatten()
    bounds = torch.cat([first, first.new_tensor([starts_BS.numel()])])
    count_B = opens_BS.sum(dim=1)
    after_B = count_B.cumsum(dim=0)
    return _Documents(bounds, after_B - count_B, after_B - 1, starts_BS[:, 0])


def _kernel() -> Callable[..., Any]:
    package = require("fla", "its kernel of the recurrence with scalar decay")
    return importlib.import_module(f"{package.__name__}.ops.simple_gla").chunk_simple_gla


def _example(device: torch.device) -> tuple[tuple[Any, ...], dict[str, Any]]:
    # Drawn on the CPU whatever torch's default device is: generators of other devices draw other numbers.
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = ((2, 70, 2, 32), (2, 70, 2, 32), (2, 70, 2, 64), (2, 2, 32, 64))
    query, key, value, state = (torch.randn(shape, generator=generator, device="cpu").to(device) for shape in shapes)
    log_decay_H = torch.tensor([-0.03, -0.3], device=device)
    starts_BS = torch.arange(140, device=device).view(2, 70) % 23 == 5
    return (query, key, value, log_decay_H), {"initial_state": state, "starts_BS": starts_BS}


FLA_SCALAR_DECAY = Kernel("fla", "the recurrence with scalar decay", fla_scalar_decay, scalar_decay, _example)
