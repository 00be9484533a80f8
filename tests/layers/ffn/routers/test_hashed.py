"""Hash routing: by id alone, by bits only outside a model, and the table that a model keeps."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.layers.ffn.routers import HashRouter

E = 16


def test_the_same_id_meets_the_same_experts_wherever_it_stands() -> None:
    ids = torch.tensor([5, 9, 5, 700, 9])
    expert = HashRouter(E)(torch.randn(5, 8), ids).expert_TK
    assert expert[0].equal(expert[2])
    assert expert[1].equal(expert[4])
    assert HashRouter(E)(torch.randn(5, 8), ids).expert_TK.equal(expert)
    assert not HashRouter(E, seed=1)(torch.randn(5, 8), ids).expert_TK.equal(expert)


def test_a_table_says_what_the_hash_says() -> None:
    ids = torch.arange(61)
    x = torch.zeros(61, 8)
    assert HashRouter(E, table_size=61)(x, ids).expert_TK.equal(HashRouter(E)(x, ids).expert_TK)


def test_without_ids_equal_vectors_go_the_same_way() -> None:
    x = torch.randn(3, 8)
    expert = HashRouter(E)(torch.cat([x, x])).expert_TK
    assert expert[:3].equal(expert[3:])


def test_inside_a_model_ids_are_required(tiny_model, token_ids) -> None:
    model = tiny_model(router_type="hash")
    with pytest.raises(ConfigError, match="hash routing needs token ids"):
        model(inputs_embeds=model.get_input_embeddings()(token_ids))


def test_the_logits_are_the_routing_itself() -> None:
    logits, weight, expert = HashRouter(E)(torch.zeros(9, 8), torch.arange(9))
    torch.testing.assert_close(logits.softmax(-1).gather(1, expert), weight)
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(9))
    assert sum(1 for _ in HashRouter(E).parameters()) == 0


@pytest.mark.parametrize(("experts", "k"), [(16, 3), (16, 0), (1, 2)])
def test_more_than_two_experts_are_refused(experts: int, k: int) -> None:
    with pytest.raises(ConfigError, match="k must be 1 or 2"):
        HashRouter(experts, k=k)
