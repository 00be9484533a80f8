"""The forward and the backward pass of attention to chosen blocks of keys, over one document.

Shapes: Z key heads (batch times groups of query heads), H query heads of a group, Q queries, N keys, C head width, V
width of the values; P the block size, K blocks per query, J = N / P blocks; within a part, R rows (its queries, for all
heads of a group), M pairs of a row and a block that it chose, sorted by block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from moe_hf.ops.attention.topk_selection import products

# Pairs of a row and a block treated as one part: their outputs are what the passes hold beyond inputs and outputs.
_PAIRS_AT_ONCE = 1 << 17
# Up to so many rows, gathering their blocks beats going from block to block.
_FEW_ROWS = 256
# Up to so many rows per head, products with all keys take less time than the means of the blocks.
_FEW_GATES = 4


class BlockOptions(NamedTuple):
    """What `topk_block_attention` was asked for; flat, as torch's operators need it.

    `top_k` is a whole number of blocks unless below 1; 0 stands for no `softcap`.
    """

    top_k: float
    block_size: int
    scale: float
    softcap: float
    dropout: float


class Tensors(NamedTuple):
    """The tensors of one document, in the dtype of the arithmetic; a query sees its first `count_Q` keys."""

    query_ZHQC: torch.Tensor
    key_ZNC: torch.Tensor
    value_ZNV: torch.Tensor
    count_Q: torch.Tensor
    sink_ZH: torch.Tensor | None
    seed: torch.Tensor | None


class Result(NamedTuple):
    """The output; the logarithm of each row's sum of exponentials; the blocks that it chose, J where it chose less.

    Of one document (Z, H, Q, V), (Z, H, Q) and (Z, H, Q, K); of a whole call (B, H, S, ...).
    """

    out: torch.Tensor
    logsum: torch.Tensor
    block: torch.Tensor


class Pairs(NamedTuple):
    """The pairs of one part: rows (M,) block after block, where each block's pairs begin, and each pair's place.

    The pairs of block j are those from `bounds[2 * j]` on; those of its own rows, which may not see all of it, come
    first and end at `bounds[2 * j + 1]`. `place_RK` leads from a row and its choice to the pair; pairs that are none
    come last, from `bounds[-1]` on.
    """

    row_M: torch.Tensor
    bounds: list[int]
    place_RK: torch.Tensor


def num_choices(options: BlockOptions, keys: int) -> int:
    """The blocks K that a query may choose in a document of so many keys, its own among them."""
    complete, blocks = keys // options.block_size, -(-keys // options.block_size)
    most = int(options.top_k) if options.top_k >= 1 else int(options.top_k * blocks) + 1
    return 1 + max(0, min(most - 1, complete))


def choose_blocks(tensors: Tensors, options: BlockOptions) -> torch.Tensor:
    """The blocks (Z, H, Q, K) that each query attends to: its own first, then the past ones of the largest gate.

    The gate is the query's product with the mean of the block's keys (Lu et al. 2025, MoBA, section 2.2). A past block
    is complete, so that the choice does not depend on what comes later.
    """
    query_ZHQC, key_ZNC, _, count_Q = tensors[:4]
    heads, _, queries, _ = query_ZHQC.shape
    keys, size = key_ZNC.shape[1], options.block_size
    complete, blocks = keys // size, -(-keys // size)
    own_Q = ((count_Q - 1) // size).long()
    past = num_choices(options, keys) - 1
    chosen = query_ZHQC.new_full((*query_ZHQC.shape[:3], 1 + past), blocks, dtype=torch.int32)
    chosen[..., 0] = own_Q
    if not past:
        return chosen
    if options.top_k < 1:
        # A little less, so that 0.1 of 30 blocks stay 3 in floating point.
        most_Q = ((own_Q + 1).double() * options.top_k - 1e-6).ceil()
    key_ZJPC = key_ZNC[:, : complete * size].unflatten(1, (complete, size))
    few = query_ZHQC.shape[1] * queries <= _FEW_GATES
    mean_ZJC = None if few else key_ZJPC.mean(dim=2)
    step = max(1, _PAIRS_AT_ONCE * 8 // (heads * query_ZHQC.shape[1] * complete))
    number_J = torch.arange(complete, device=key_ZNC.device)
    for start in range(0, queries, step):
        part = slice(start, start + step)
        query_ZRC = query_ZHQC[:, :, part].flatten(1, 2)
        if mean_ZJC is None:
            # The mean of the products is the product with the mean.
            gate_ZRJ = products(query_ZRC, key_ZJPC.flatten(1, 2)).unflatten(2, (complete, size)).mean(dim=3)
        else:
            gate_ZRJ = products(query_ZRC, mean_ZJC)
        gate_ZHqJ = gate_ZRJ.view(heads, -1, own_Q[part].numel(), complete)
        gate_ZHqJ.masked_fill_(number_J >= own_Q[part, None], -torch.inf)
        gate, block = gate_ZHqJ.topk(past, dim=-1)
        absent = gate == -torch.inf
        if options.top_k < 1:
            absent |= torch.arange(1, past + 1, device=absent.device) >= most_Q[part, None]
        chosen[:, :, part, 1:] = block.masked_fill_(absent, blocks).int()
    return chosen


def _parts(block_ZHQK: torch.Tensor) -> Iterator[tuple[int, slice]]:
    # One head of keys and some of the queries at a time.
    heads, per_head, queries, chosen = block_ZHQK.shape
    step = max(1, _PAIRS_AT_ONCE // (per_head * chosen))
    for head in range(heads):
        for start in range(0, queries, step):
            yield head, slice(start, min(start + step, queries))


def _sort_pairs(block_RK: torch.Tensor, blocks: int) -> Pairs:
    rank_RK = block_RK * 2 + 1
    rank_RK[:, 0] -= 1
    rank_M, order_M = rank_RK.flatten().sort()
    edges = torch.arange(2 * blocks + 1, dtype=rank_M.dtype, device=rank_M.device)
    place_M = torch.empty_like(order_M)
    place_M[order_M] = torch.arange(len(order_M), device=order_M.device)
    bounds = torch.searchsorted(rank_M, edges).tolist()
    return Pairs(order_M // block_RK.shape[1], bounds, place_M.view_as(block_RK))


def _logits(
    query_RC: torch.Tensor, key_PC: torch.Tensor, count_r: torch.Tensor, first: int, softcap: float
) -> torch.Tensor:
    # Of the rows of one block, whose keys begin at `first`; the first len(count_r) rows may not see all of it.
    logit_RP = query_RC @ key_PC.T
    # Before keys are hidden: the cap would make a number of minus infinity.
    if softcap:
        logit_RP.div_(softcap).tanh_().mul_(softcap)
    place_P = torch.arange(first, first + len(key_PC), device=key_PC.device)
    logit_RP[: len(count_r)].masked_fill_(place_P >= count_r[:, None], -torch.inf)
    return logit_RP


def _dropouts(tensors: Tensors, options: BlockOptions, number: int) -> "_Dropout | None":
    return None if tensors.seed is None else _Dropout(options.dropout, int(tensors.seed) + number, tensors.key_ZNC)


class _Dropout:
    # Draws the same factors again in the backward pass, which asks for them in the same order.
    def __init__(self, probability: float, seed: int, like: torch.Tensor) -> None:
        self.probability = probability
        self.generator = torch.Generator(like.device).manual_seed(seed)

    def factor(self, weight: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(weight.shape, generator=self.generator, device=weight.device) >= self.probability
        return kept.to(weight.dtype) / (1 - self.probability)


def forward_pass(tensors: Tensors, options: BlockOptions) -> Result:
    """The output of one document and what its backward pass needs."""
    query_ZHQC, key_ZNC, value_ZNV, count_Q, sink_ZH, seed = tensors
    block_ZHQK = choose_blocks(tensors, options)
    if query_ZHQC.shape[1] * query_ZHQC.shape[2] * len(query_ZHQC) <= _FEW_ROWS and seed is None:
        return _few_queries(tensors, options, block_ZHQK)
    out_ZHQV = query_ZHQC.new_empty(*query_ZHQC.shape[:3], value_ZNV.shape[-1])
    logsum_ZHQ = query_ZHQC.new_empty(query_ZHQC.shape[:3])
    for number, (head, part) in enumerate(_parts(block_ZHQK)):
        query_RC = query_ZHQC[head, :, part].flatten(0, 1) * options.scale
        count_R = count_Q[part].repeat(query_ZHQC.shape[1])
        sink_R = None if sink_ZH is None else sink_ZH[head].repeat_interleave(part.stop - part.start)
        out_RV, logsum_R = _attend_part(
            query_RC,
            key_ZNC[head],
            value_ZNV[head],
            block_ZHQK[head, :, part].flatten(0, 1),
            count_R,
            sink_R,
            options,
            _dropouts(tensors, options, number),
        )
        out_ZHQV[head, :, part] = out_RV.view(query_ZHQC.shape[1], -1, out_RV.shape[-1])
        logsum_ZHQ[head, :, part] = logsum_R.view(query_ZHQC.shape[1], -1)
    return Result(out_ZHQV, logsum_ZHQ, block_ZHQK)


def _attend_part(
    query_RC: torch.Tensor,
    key_NC: torch.Tensor,
    value_NV: torch.Tensor,
    block_RK: torch.Tensor,
    count_R: torch.Tensor,
    sink_R: torch.Tensor | None,
    options: BlockOptions,
    dropout: "_Dropout | None",
) -> tuple[torch.Tensor, torch.Tensor]:
    # Each block attends with all rows that chose it; a row's blocks are then weighed by their sums of exponentials.
    size = options.block_size
    blocks = -(-len(key_NC) // size)
    pairs = _sort_pairs(block_RK, blocks)
    # The pairs that are none lie behind the others: nothing will come of them.
    out_MV = query_RC.new_zeros(len(pairs.row_M), value_NV.shape[1])
    largest_M = query_RC.new_full((len(pairs.row_M),), -torch.inf)
    sum_M = query_RC.new_zeros(len(pairs.row_M))
    for block in range(blocks):
        start, own, stop = pairs.bounds[2 * block : 2 * block + 3]
        if start == stop:
            continue
        keys = slice(block * size, (block + 1) * size)
        row_m = pairs.row_M[start:stop]
        weight = _logits(query_RC[row_m], key_NC[keys], count_R[row_m[: own - start]], keys.start, options.softcap)
        largest_M[start:stop] = weight.amax(dim=1)
        # Never minus infinity: past blocks are complete, and the own one holds the last key that the query sees.
        weight.sub_(largest_M[start:stop, None]).exp_()
        sum_M[start:stop] = weight.sum(dim=1)
        if dropout is not None:
            weight *= dropout.factor(weight)
        torch.mm(weight, value_NV[keys], out=out_MV[start:stop])
    largest_RK = largest_M[pairs.place_RK]
    largest_R1 = largest_RK.amax(dim=1, keepdim=True)
    if sink_R is not None:
        largest_R1 = torch.maximum(largest_R1, sink_R[:, None])
    share_RK = largest_RK.sub_(largest_R1).exp_()
    sum_R1 = (share_RK * sum_M[pairs.place_RK]).sum(dim=1, keepdim=True)
    if sink_R is not None:
        sum_R1 = sum_R1 + (sink_R[:, None] - largest_R1).exp()
    out_RV = F.embedding_bag(pairs.place_RK, out_MV, per_sample_weights=share_RK.div_(sum_R1), mode="sum")
    return out_RV, (largest_R1 + sum_R1.log())[:, 0]


def _few_queries(tensors: Tensors, options: BlockOptions, block_ZHQK: torch.Tensor) -> Result:
    # All chosen keys are gathered and attended to at once: what decoding needs. Keys and values may be of any strides.
    query_ZHQC, key_ZNC, value_ZNV, count_Q, sink_ZH, _ = tensors
    heads, per_head, queries, _ = query_ZHQC.shape
    keys, size = key_ZNC.shape[1], options.block_size
    token = (block_ZHQK.long()[..., None] * size + torch.arange(size, device=key_ZNC.device)).flatten(3)
    # Found before the next line, which clamps `token` in place so that hidden places read some key.
    hidden_RT = (token >= count_Q[:, None]).flatten(0, 2)
    token_RT = token.clamp_(max=keys - 1).flatten(0, 2)
    head_R1 = torch.arange(heads, device=token.device).repeat_interleave(per_head * queries)[:, None]
    query_RC = query_ZHQC.flatten(0, 2) * options.scale
    logit_RT = (query_RC[:, None] @ key_ZNC[head_R1, token_RT].transpose(1, 2))[:, 0]
    if options.softcap:
        logit_RT.div_(options.softcap).tanh_().mul_(options.softcap)
    logit_RT.masked_fill_(hidden_RT, -torch.inf)
    logsum_R1 = logit_RT.logsumexp(dim=1, keepdim=True)
    if sink_ZH is not None:
        logsum_R1 = logsum_R1.logaddexp(sink_ZH.flatten().repeat_interleave(queries)[:, None])
    weight_RT = logit_RT.sub_(logsum_R1).exp_()
    out_RV = (weight_RT[:, None] @ value_ZNV[head_R1, token_RT])[:, 0]
    shape = (heads, per_head, queries)
    return Result(out_RV.view(*shape, -1), logsum_R1.view(shape), block_ZHQK)


def backward_pass(
    dout_ZHQV: torch.Tensor, tensors: Tensors, options: BlockOptions, result: Result
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The gradients of queries, keys, values and sinks; the choice of blocks has none."""
    query_ZHQC, key_ZNC, value_ZNV, count_Q, sink_ZH, _ = tensors
    dquery_ZHQC, dkey_ZNC, dvalue_ZNV = (torch.zeros_like(x) for x in tensors[:3])
    # Of each row: the mean of its weights' gradients, which the softmax takes off (Dao et al. 2022, FlashAttention).
    mean_ZHQ = (dout_ZHQV * result.out).sum(dim=-1)
    size = options.block_size
    blocks = -(-key_ZNC.shape[1] // size)
    for number, (head, part) in enumerate(_parts(result.block)):
        pairs = _sort_pairs(result.block[head, :, part].flatten(0, 1), blocks)
        dropout = _dropouts(tensors, options, number)
        query_RC = query_ZHQC[head, :, part].flatten(0, 1) * options.scale
        dout_RV = dout_ZHQV[head, :, part].flatten(0, 1)
        logsum_R, mean_R = result.logsum[head, :, part].flatten(), mean_ZHQ[head, :, part].flatten()
        count_R = count_Q[part].repeat(query_ZHQC.shape[1])
        dquery_MC = query_RC.new_zeros(len(pairs.row_M), query_RC.shape[1])
        for block in range(blocks):
            start, own, stop = pairs.bounds[2 * block : 2 * block + 3]
            if start == stop:
                continue
            keys = slice(block * size, (block + 1) * size)
            key_PC, value_PV = key_ZNC[head, keys], value_ZNV[head, keys]
            row_m = pairs.row_M[start:stop]
            query_mC, dout_mV = query_RC[row_m], dout_RV[row_m]
            logit = _logits(query_mC, key_PC, count_R[row_m[: own - start]], keys.start, options.softcap)
            weight = (logit - logsum_R[row_m, None]).exp_()
            dweight, dropped = dout_mV @ value_PV.T, weight
            if dropout is not None:
                # Drawn again as in the forward pass, block by block in the same order.
                drop = dropout.factor(weight)
                dweight, dropped = dweight.mul_(drop), weight * drop
            dvalue_ZNV[head, keys].addmm_(dropped.T, dout_mV)
            dlogit = dweight.sub_(mean_R[row_m, None]).mul_(weight)
            if options.softcap:
                # Hidden keys have logits of minus infinity, and weights of zero.
                dlogit *= 1 - (logit.clamp_(min=-options.softcap) / options.softcap).square()
            dkey_ZNC[head, keys].addmm_(dlogit.T, query_mC)
            torch.mm(dlogit, key_PC, out=dquery_MC[start:stop])
        dquery_RC = F.embedding_bag(pairs.place_RK, dquery_MC, mode="sum") * options.scale
        dquery_ZHQC[head, :, part] = dquery_RC.view(query_ZHQC.shape[1], -1, dquery_RC.shape[-1])
    dsink_ZH = None
    if sink_ZH is not None:
        dsink_ZH = -((sink_ZH[..., None] - result.logsum).exp() * mean_ZHQ).sum(dim=-1)
    return dquery_ZHQC, dkey_ZNC, dvalue_ZNV, dsink_ZH
