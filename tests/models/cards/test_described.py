"""The card of a folder says what stands in its files, and nothing else."""

import json

import pytest
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from moe_hf import CheckpointError
from moe_hf.models.cards.card import is_unedited, split_card
from moe_hf.models.cards.described import card_of_folder, logged_rows
from moe_hf.models.info import get_moe_model_info
from tests.models.native_moes import native_moe


def test_it_counts_parameters_and_shows_the_pictures_that_are_there(tiny_model, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    (tmp_path / "expert_utilization.png").touch()
    text = card_of_folder(tmp_path, "me/tiny", get_moe_model_info)
    info = get_moe_model_info(model.config)
    assert f"| parameters | {sum(value.numel() for value in model.parameters()):,} |" in text
    assert f"| active per token | {info['active_params']:,} " in text
    assert "![expert utilization](expert_utilization.png)" in text
    assert "loss.png" not in text
    assert "AutoTokenizer" not in text
    assert "import moe_hf" in text
    assert is_unedited(text)
    assert split_card(text).metadata["tags"] == ["moe_hf", "mixture-of-experts", "moe"]


def test_a_model_of_transformers_own_needs_nothing_else_unless_it_is_quantised(tmp_path):
    native_moe("mixtral").save_pretrained(tmp_path / "moe")
    text = card_of_folder(tmp_path / "moe", "me/mixtral", get_moe_model_info)
    assert "import moe_hf" not in text
    assert "| active per token |" in text
    path = tmp_path / "moe" / "config.json"
    quantised = json.loads(path.read_text()) | {"quantization_config": {"quant_method": "moe_hf", "bits": 8}}
    path.write_text(json.dumps(quantised))
    assert "import moe_hf" in card_of_folder(tmp_path / "moe", "me/mixtral", get_moe_model_info)
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, head_dim=8
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    dense = card_of_folder(tmp_path / "dense", "me/llama", get_moe_model_info)
    assert split_card(dense).metadata["tags"] == ["moe_hf", "dense"]
    assert "active per token" not in dense


def test_code_of_an_unknown_type_is_named_but_not_run(tmp_path):
    config = {"model_type": "strange", "architectures": ["StrangeForCausalLM"], "auto_map": {"AutoConfig": "c.Strange"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "c.py").write_text("open('ran', 'w').close()\n")
    text = card_of_folder(tmp_path, "me/strange", get_moe_model_info)
    assert "trust_remote_code=True" in text
    assert "| parameters |" not in text
    assert not (tmp_path / "ran").exists()


def test_code_beside_a_known_type_is_an_alternative(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "c.GPT2WithMoEConfig", "AutoModelForCausalLM": "m.GPT2WithMoE"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = card_of_folder(tmp_path, "me/tiny", get_moe_model_info)
    assert "import moe_hf" in text
    assert "trust_remote_code=True" in text
    assert AutoConfig.from_pretrained(tmp_path).model_type == "gpt2_moe"


def test_the_numbers_of_a_checkpoint_are_the_last_ones(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    history = [{"loss": 3.0, "step": 1}, {"loss": 2.0, "cross_entropy": 1.5}, {"eval_loss": 1.75}, {"loss": "nan"}]
    state = {"global_step": 1200, "log_history": history}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    text = card_of_folder(tmp_path, "me/tiny", get_moe_model_info)
    assert "| steps | 1,200 |" in text
    assert "| training loss | 1.5000 nats per label, cross-entropy alone |" in text
    assert "| held-out loss | 1.7500 nats" in text
    assert logged_rows(0, history) == []
    (tmp_path / "trainer_state.json").write_text('{"global_step": "many", "log_history": 7}')
    assert "steps" not in card_of_folder(tmp_path, "me/tiny", get_moe_model_info)
    (tmp_path / "trainer_state.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"trainer_state.json holds a list"):
        card_of_folder(tmp_path, "me/tiny", get_moe_model_info)


def test_a_model_that_cannot_be_counted_has_a_card_without_sizes(tmp_path):
    config = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = card_of_folder(tmp_path, "me/vit", get_moe_model_info)
    assert "| parameters |" not in text
    assert 'AutoModel.from_pretrained("me/vit")' in text
    assert "pipeline_tag" not in split_card(text).metadata
