"""Who is admitted when experts are full, by position and by weight."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.routing.capacity import admit_by_position, admit_by_weight, capacity_per_expert

E = 3


def by_hand(expert_BSK: torch.Tensor, capacity: int) -> torch.Tensor:
    kept = torch.zeros_like(expert_BSK, dtype=torch.bool)
    for b, sequence in enumerate(expert_BSK.tolist()):
        taken = [0] * E
        for s, slots in enumerate(sequence):
            for k, expert in enumerate(slots):
                if expert < E and taken[expert] < capacity:
                    kept[b, s, k] = True
                    taken[expert] += 1
    return kept


def random_experts(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, E + 1, (2, 9, 2), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("capacity", [1, 2, 4, 100])
def test_the_first_come_stay(capacity: int) -> None:
    expert = random_experts()
    assert admit_by_position(expert, E, capacity).kept_BSK.equal(by_hand(expert, capacity))


def test_pieces_are_treated_like_the_whole() -> None:
    expert, offered, kept = random_experts(), None, []
    for piece in expert.split([4, 1, 0, 4], dim=1):
        admission = admit_by_position(piece, E, 2, offered)
        offered = admission.offered_BE
        kept.append(admission.kept_BSK)
    whole = admit_by_position(expert, E, 2)
    assert torch.cat(kept, dim=1).equal(whole.kept_BSK)
    assert offered.equal(whole.offered_BE)


def test_the_heaviest_stay() -> None:
    expert = random_experts()
    weight = torch.rand(expert.shape, generator=torch.Generator().manual_seed(1))
    kept = admit_by_weight(expert, weight, E, 2)
    for b in range(2):
        for e in range(E):
            asked = expert[b] == e
            best = weight[b][asked].topk(min(2, int(asked.sum()))).values
            assert weight[b][asked & kept[b]].sort(descending=True).values.equal(best)
    assert not kept[expert == E].any()


def test_capacity_is_the_fair_share_rounded_up() -> None:
    assert capacity_per_expert(num_tokens=10, num_experts=4, k=1, factor=1.0) == 3
    with pytest.raises(ConfigError, match="must be > 0, got 0"):
        capacity_per_expert(8, 2, 1, 0)
