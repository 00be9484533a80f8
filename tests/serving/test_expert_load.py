"""Tokens per expert, counted while a model runs."""

import torch

from moe_hf import GPT2WithMoE, create_moe_config
from moe_hf.inference.routing_recorder import sparse_layers
from moe_hf.models.found_routers import find_routers
from moe_hf.serving.expert_load import ExpertLoad


def test_every_token_is_counted_once_per_expert_that_took_it() -> None:
    config = create_moe_config(
        "tiny", vocab_size=30, num_hidden_layers=4, num_experts=4, mlp_layer_types=["dense", "sparse"] * 2
    )
    model = GPT2WithMoE(config).eval()
    routers = find_routers(model)
    load = ExpertLoad("m", list(zip(sparse_layers(routers), routers.values(), strict=True)), top_k=2)
    ids = torch.arange(14).reshape(2, 7)
    with torch.inference_mode():
        out = model(ids, output_router_logits=True)
    with torch.no_grad():
        model(ids[:1])
    counts: dict[int, dict[str, float]] = {}
    for sample in load.samples():
        labels = dict(sample.labels)
        assert labels["model"] == "m"
        counts.setdefault(int(labels["layer"]), {})[labels["expert"]] = sample.value
    assert list(counts) == [1, 3]
    for logits_TE, layer in zip(out.router_logits, (1, 3), strict=True):
        logits_TE = logits_TE.reshape(-1, 4)
        chosen = torch.cat([logits_TE, logits_TE[:7]]).topk(config.num_experts_per_tok, dim=-1).indices
        expected = torch.bincount(chosen.flatten(), minlength=4).tolist()
        assert [counts[layer][str(expert)] for expert in range(4)] == expected
