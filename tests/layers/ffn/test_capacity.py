"""Capacity: who is dropped, what it weighs, and that a cached and an uncached run agree."""

import pytest
import torch

from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.inputs import LayerInputs

BACKENDS = ["eager", "grouped_mm", "batched_mm"]


def test_a_dropped_slot_weighs_nothing_and_meets_nobody(tiny_config) -> None:
    torch.manual_seed(0)
    ffn = SparseFFN(tiny_config(router_capacity_factor=0.5, experts_implementation="eager")).train()
    weight = torch.rand(6, 2)
    expert = torch.tensor([[0, 1]] * 6)
    admitted = ffn.capacity(weight, expert, batch_size=2)
    # Three tokens x 2 experts per sequence over 4 experts, half of the fair share: one slot each.
    assert admitted.expert_TK.tolist() == [[0, 1], [4, 4], [4, 4]] * 2
    assert admitted.weight_TK[[1, 2, 4, 5]].abs().sum() == 0
    assert admitted.weight_TK[[0, 3]].equal(weight[[0, 3]])
    assert admitted.dropped == pytest.approx(2 / 3)


def test_the_heaviest_stay_under_the_weight_policy_in_training_alone(tiny_config) -> None:
    ffn = SparseFFN(
        tiny_config(router_capacity_factor=0.5, router_eval_capacity_factor=0.05, router_drop_policy="weight")
    )
    weight = torch.tensor([[0.1, 0.1], [0.9, 0.2], [0.3, 0.8]])
    expert = torch.tensor([[0, 1]] * 3)
    assert ffn.train().capacity(weight, expert, 1).expert_TK.tolist() == [[4, 4], [0, 4], [4, 1]]
    assert ffn.eval().capacity(weight, expert, 1).expert_TK.tolist() == [[0, 1], [4, 4], [4, 4]]


def test_padding_takes_nobody_s_place(tiny_config) -> None:
    ffn = SparseFFN(tiny_config(router_capacity_factor=0.5)).train()
    weight, expert = torch.ones(3, 2), torch.tensor([[0, 1]] * 3)
    admitted = ffn.capacity(weight, expert, 1, LayerInputs(padding_mask=torch.tensor([[0, 1, 1]])))
    assert admitted.expert_TK.tolist() == [[0, 1], [0, 1], [4, 4]]
    assert admitted.dropped == 0.5


@pytest.mark.parametrize("policy", ["position", "weight"])
def test_a_sequence_is_dropped_alike_with_and_without_padding(tiny_model, policy: str) -> None:
    model = tiny_model(router_capacity_factor=0.6, router_drop_policy=policy, position_embedding_type="rotary").train()
    ids = torch.randint(3, 61, (1, 8), generator=torch.Generator().manual_seed(3))
    padded, mask = torch.cat([ids, ids[:, :6]], dim=1), torch.tensor([[1] * 8 + [0] * 6])
    alone = model(ids, output_router_logits=True)
    beside = model(padded, attention_mask=mask, output_router_logits=True)
    assert max(alone.router_dropped) > 0.1
    torch.testing.assert_close(torch.stack(beside.router_dropped), torch.stack(alone.router_dropped))
    torch.testing.assert_close(beside.logits[:, :8], alone.logits, atol=1e-5, rtol=1e-5)


def test_hash_routed_layers_have_the_capacity_of_their_own_k(tiny_config) -> None:
    config = tiny_config(num_experts_per_tok=4, router_num_hash_layers=1, router_capacity_factor=1.0)
    assert [SparseFFN(config, layer).capacity.num_experts_per_tok for layer in (0, 2)] == [2, 4]


@pytest.mark.parametrize("policy", ["position", "weight"])
def test_all_backends_compute_the_same_with_dropped_slots(tiny_config, policy: str) -> None:
    x = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for backend in BACKENDS:
        torch.manual_seed(0)
        config = tiny_config(router_capacity_factor=0.7, router_drop_policy=policy, experts_implementation=backend)
        ffn = SparseFFN(config).train()
        for parameter in ffn.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        out = ffn(x)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in ffn.parameters())])
    for other in results[1:]:
        for ours, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=1e-4)


def test_expert_choice_needs_no_second_limit_also_beside_hashed_layers(tiny_model, token_ids) -> None:
    fields = {"router_type": "expert_choice", "router_num_hash_layers": 1, "router_capacity_factor": 0.6}
    dropped = tiny_model(**fields).train()(token_ids, labels=token_ids).router_dropped
    assert dropped[0] > 0
    assert dropped[1] == 0
