"""A run goes on from the weights of its own model, and from no others."""

import copy

import pytest
from transformers import (
    OlmoeForCausalLM,
)

from moe_hf.base.errors import CheckpointError
from moe_hf.training.metrics import read_metrics
from tests.training.tiny import StopAfter, assert_same_run, make_trainer, tiny_gpt2, tiny_moe, tiny_olmoe


@pytest.mark.parametrize("build_model", [tiny_gpt2, tiny_olmoe])
def test_models_of_transformers_train_and_resume_exactly(tmp_path, build_model):
    # OLMoE's experts are fused in memory and apart on disk: Trainer alone goes on with fresh ones.
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    whole = make_trainer(tmp_path / "whole", build_model(), **options)
    whole.train()
    make_trainer(tmp_path / "parts", build_model(), callbacks=[StopAfter(3)], **options).train()
    resumed = make_trainer(tmp_path / "parts", build_model(), **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)
    assert ("layers" in read_metrics(str(tmp_path / "whole"))[0]) == (build_model is tiny_olmoe)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    other = tiny_moe(mixer_short_conv=3)
    with pytest.raises(CheckpointError, match=r"short_conv"):
        make_trainer(tmp_path, other).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("build_model", [tiny_moe, tiny_gpt2, tiny_olmoe])
def test_a_checkpoint_of_other_sizes_is_refused_and_both_are_named(tmp_path, build_model):
    make_trainer(tmp_path, build_model(), save_strategy="steps", save_steps=2, max_steps=2).train()
    other = copy.deepcopy(build_model().config)
    setattr(other, "hidden_size" if build_model is tiny_moe else "vocab_size", 48)
    with pytest.raises(CheckpointError, match=r"other sizes .*(40|16).* from checkpoint, .*48") as error:
        make_trainer(tmp_path, type(build_model())(other)).train(resume_from_checkpoint=True)
    assert "\n" not in str(error.value)


def test_experts_of_other_sizes_under_other_names_are_refused(tmp_path):
    make_trainer(tmp_path, tiny_olmoe(), save_strategy="steps", save_steps=2, max_steps=2).train()
    other = copy.deepcopy(tiny_olmoe().config)
    other.intermediate_size = 12
    with pytest.raises(CheckpointError, match=r"does not fit the model.*experts.*8.*12"):
        make_trainer(tmp_path, OlmoeForCausalLM(other)).train(resume_from_checkpoint=True)
