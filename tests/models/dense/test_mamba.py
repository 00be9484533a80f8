"""Dense Mambas: what fits is read under any of its names, what does not fit is named, and fresh FFNs are silent."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM

from moe_hf import CheckpointError, MambaWithMoE
from moe_hf.models.upcycling.directory import upcycle_directory

SHAPE = {"vocab_size": 53, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 5, "initializer_range": 0.2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "intermediate_size": 40}


@pytest.fixture
def dense() -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(**SHAPE)).eval()


@pytest.fixture
def folder(dense: MambaForCausalLM, tmp_path: Path) -> Path:
    dense.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_what_cannot_be_carried_over_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"3 mixers, but there is place for 2.*6 are needed"):
        MambaWithMoE.from_pretrained(folder, mlp_placement="interleaved", **EXPERTS)
    with pytest.raises(CheckpointError, match="mixer asks for attention as well"):
        MambaWithMoE.from_pretrained(folder, mixer="mamba,mamba,attention", num_attention_heads=2, **EXPERTS)
    with pytest.raises(CheckpointError, match=r"A_log of shape \(64, 5\), but the configuration asks for \(64, 6\)"):
        MambaWithMoE.from_pretrained(folder, mamba_state_size=6, **EXPERTS)
    weights = load_file(folder / "model.safetensors")
    del weights["backbone.layers.1.mixer.D"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 that are needed: layers\.1.mixer.D"):
        MambaWithMoE.from_pretrained(folder, **EXPERTS)


def test_the_oldest_name_of_the_embedding_is_understood(dense: MambaForCausalLM, folder: Path) -> None:
    ids = torch.randint(3, 53, (2, 19), generator=torch.Generator().manual_seed(1))
    weights = load_file(folder / "model.safetensors")
    weights["backbone.embedding.weight"] = weights.pop("backbone.embeddings.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with torch.no_grad():
        expected = dense(ids, use_cache=False).logits
        logits = MambaWithMoE.from_pretrained(folder, **EXPERTS).eval()(ids, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_fresh_experts_keep_the_logits_whatever_their_router_weighs(folder: Path, tmp_path: Path) -> None:
    upcycle_directory(str(folder), tmp_path / "moe", norm_topk_prob=False, **EXPERTS)
    card = " ".join((tmp_path / "moe" / "README.md").read_text(encoding="utf-8").split())
    assert "It gives the source's logits" in card
