"""Sends each vocabulary id to fixed experts, by a hash or by a table balanced for the ids' frequencies.

Shapes: V vocabulary ids, E experts, K experts per token.
"""

import heapq

import torch

MOST_HASHED_EXPERTS = 2
"""Hash Layers gain nothing from more experts per token, and the second hash below is built for two."""

# Odd constants of 32-bit finalizers: every input bit reaches every output bit.
_MIX = (0x7FEB352D, 0x846CA68B)
_GOLDEN = 0x9E3779B9
_MASK = 0xFFFFFFFF


def hash_experts(token_ids: torch.Tensor, num_experts: int, k: int = 1, seed: int = 0) -> torch.Tensor:
    """The k different experts of each id, the same ones always and on every device (Roller et al. 2021, Hash Layers).

    Args:
        token_ids: integers of any shape.
        num_experts: E.
        k: 1 or 2, at most E.
        seed: another seed gives another, unrelated assignment.

    Returns:
        `token_ids.shape` + (k,) indices in [0, E).
    """
    first = _mixed(token_ids.long(), seed) % num_experts
    if k == 1:
        return first[..., None]
    # A step of 1 to E - 1 never comes back to the first.
    step = 1 + _mixed(token_ids.long(), seed + 1) % (num_experts - 1)
    return torch.stack([first, (first + step) % num_experts], dim=-1)


def ids_of_vectors(x_TD: torch.Tensor) -> torch.Tensor:
    """An integer for each vector, (T,): a checksum of its bits in float32, for where no vocabulary ids are at hand.

    Equal vectors get equal ids; the least change of a vector changes its id.
    """
    bits_TD = x_TD.detach().float().contiguous().view(torch.int32).long() & _MASK
    position_D = torch.arange(1, bits_TD.shape[-1] + 1, device=bits_TD.device)
    return _mixed(bits_TD + position_D * _GOLDEN, 0).sum(dim=-1) & _MASK


def balanced_hash_table(token_counts: torch.Tensor, num_experts: int, k: int = 1, seed: int = 0) -> torch.Tensor:
    """Experts (V, K) of each id such that frequent ids are spread evenly (Roller et al. 2021, "balanced hash").

    From the most frequent id to the rarest, each goes to the k experts that have the least so far; equally loaded
    ones are told apart by the hash. No expert can have less than the most frequent id's share.

    Args:
        token_counts: (V,) how often each id occurs, >= 0.
        num_experts: E.
        k: 1 or 2, at most E.
        seed: breaks ties.
    """
    # To break ties, over so wide a range that hardly two experts are equal.
    rank_E = hash_experts(torch.arange(num_experts), 2**31 - 1, 1, seed)[:, 0].tolist()
    heap = [(0.0, rank_E[expert], expert) for expert in range(num_experts)]
    heapq.heapify(heap)
    counts = token_counts.double().cpu()
    table_VK = torch.empty(len(counts), k, dtype=torch.long)
    for token in counts.argsort(descending=True, stable=True).tolist():
        # All k are taken out before one goes back, so that they differ.
        least = [heapq.heappop(heap) for _ in range(k)]
        table_VK[token] = torch.tensor([expert for _, _, expert in least])
        # Ids that never occurred still take their turn, by a little.
        share = max(float(counts[token]), 1e-3)
        for load, rank, expert in least:
            heapq.heappush(heap, (load + share, rank, expert))
    return table_VK


def _mixed(value: torch.Tensor, seed: int) -> torch.Tensor:
    value = (value + (seed + 1) * _GOLDEN) & _MASK
    for constant in _MIX:
        value = value ^ (value >> 16)
        # Split, since a product of two 32-bit numbers does not fit a signed 64-bit one.
        low, high = value & 0xFFFF, value >> 16
        value = (low * constant + ((high * constant) << 16)) & _MASK
    return value ^ (value >> 15)
