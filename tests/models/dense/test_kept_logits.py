"""Whether experts that are copies keep the dense model's logits is known beforehand, and said."""

import pytest
import torch

from moe_hf import GPT2WithMoE, GPT2WithMoEConfig
from moe_hf.models.dense import kept_logits
from moe_hf.models.dense.checkpoint_files import open_slices
from moe_hf.models.dense.gpt2 import DenseGPT2


@pytest.fixture
def make_config(dense_folder):
    return lambda **overrides: GPT2WithMoEConfig.from_pretrained(dense_folder, **overrides)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({}, None),
        ({"norm_topk_prob": False}, "norm_topk_prob=False"),
        ({"norm_topk_prob": False, "num_experts": 2}, None),
        ({"norm_topk_prob": False, "num_experts": 2, "router_type": "sigmoid_bias"}, "norm_topk_prob=False"),
        ({"norm_topk_prob": False, "router_type": "hash"}, None),
        ({"router_type": "switch", "num_experts_per_tok": 1}, 'router_type="switch"'),
        ({"router_type": "switch", "num_experts_per_tok": 1, "router_num_hash_layers": 2}, None),
        ({"router_type": "sigmoid_bias"}, None),
        ({"router_type": "sigmoid_bias", "router_scale": 2.5}, "router_scale=2.5"),
        ({"router_type": "top_k", "router_scale": 2.5}, None),
        ({"norm_topk_prob": False, "mlp_layer_types": ["dense"] * 3}, None),
    ],
    ids=str,
)
def test_a_warning_exactly_where_the_function_is_not_kept(
    dense_gpt2, dense_folder, make_config, caplog, overrides, reason
) -> None:
    type(kept_logits.logger).warning_once.cache_clear()
    DenseGPT2().state_dict(open_slices([str(dense_folder / "model.safetensors")]), make_config(**overrides))
    assert [reason in record.getMessage() for record in caplog.records] == ([] if reason is None else [True])
    caplog.clear()
    model = GPT2WithMoE.from_pretrained(dense_folder, **overrides)
    ids = torch.arange(3, 23)[None]
    kept = torch.allclose(model(ids).logits, dense_gpt2()(ids).logits, atol=1e-4)
    assert kept == (reason is None)
