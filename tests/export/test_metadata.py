"""The keys of a GGUF file say what the configuration says."""

from pathlib import Path

from moe_hf.export.gguf_file import export_gguf
from tests.export.conftest import ReadBack, SaveModel

YARN = {"rope_type": "yarn", "rope_theta": 2e4, "factor": 4.0, "original_max_position_embeddings": 16}


def fields_of(folder: Path) -> dict:
    export_gguf(str(folder), folder / "out.gguf")
    return ReadBack(folder / "out.gguf").fields


def test_sizes_and_experts_of_a_mixture(saved: SaveModel) -> None:
    fields = fields_of(saved("qwen2_moe"))
    expected = {
        "general.architecture": "qwen2moe",
        "general.name": "model",
        "qwen2moe.vocab_size": 61,
        "qwen2moe.context_length": 64,
        "qwen2moe.embedding_length": 32,
        "qwen2moe.block_count": 2,
        "qwen2moe.feed_forward_length": 48,
        "qwen2moe.attention.head_count": 4,
        "qwen2moe.attention.head_count_kv": 2,
        "qwen2moe.attention.key_length": 8,
        "qwen2moe.expert_count": 4,
        "qwen2moe.expert_used_count": 2,
        "qwen2moe.expert_feed_forward_length": 1408,
        "qwen2moe.expert_shared_feed_forward_length": 5632,
    }
    assert {key: fields[key] for key in expected} == expected


def test_a_head_wider_than_its_share_and_stretched_positions(saved: SaveModel) -> None:
    fields = fields_of(saved("llama", rope_parameters=YARN))
    assert (fields["llama.attention.key_length"], fields["llama.rope.dimension_count"]) == (8, 8)
    assert (fields["llama.rope.scaling.type"], fields["llama.rope.scaling.factor"]) == ("yarn", 4.0)
    assert (fields["llama.rope.scaling.original_context_length"], fields["llama.rope.freq_base"]) == (16, 2e4)
    assert "llama.expert_count" not in fields


def test_granites_multipliers(saved: SaveModel) -> None:
    fields = fields_of(saved("granitemoe"))
    scales = [fields[f"granitemoe.{key}"] for key in ("embedding_scale", "logit_scale", "residual_scale")]
    assert scales == [3.0, 2.0, 1.0]
    assert abs(fields["granitemoe.attention.scale"] - 0.3) < 1e-7


def test_a_window_is_the_context_that_is_computed_alike(saved: SaveModel) -> None:
    report = export_gguf(str(folder := saved("mistral", sliding_window=5)), folder / "out.gguf")
    assert ReadBack(report.path).fields["llama.context_length"] == 5
    assert report.notices[0].startswith("llama.cpp computes this architecture without windows: the file says a context")
    # Qwen2 has one in its configuration that it does not use.
    assert fields_of(saved("qwen2", "other", sliding_window=5))["qwen2.context_length"] == 64
