"""The Hyena family's configuration reads HyenaDNA's, trimmed or not, and refuses what it cannot carry over."""

import pytest

from moe_hf import CheckpointError, HyenaWithMoEConfig


def test_a_trimmed_configuration_gets_hyenadna_s_defaults() -> None:
    found = HyenaWithMoEConfig.dict_from_dense({"model_type": "hyenadna", "d_model": 128})
    assert (found["intermediate_size"], found["num_attention_heads"]) == (512, 2)
    assert (found["max_position_embeddings"], found["hyena_filter_embedding"], found["embd_dropout"]) == (1024, 3, 0.1)


def test_the_vocabulary_is_padded_as_hyenadna_pads_it() -> None:
    assert HyenaWithMoEConfig.dict_from_dense({"vocab_size": 12, "pad_vocab_size_multiple": 8})["vocab_size"] == 16


def test_another_epsilon_of_the_last_norm_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"layer_norm_epsilon=0\.001, which is read by its last norm alone"):
        HyenaWithMoEConfig.dict_from_dense({"layer_norm_epsilon": 1e-3})


def test_heads_divide_any_width() -> None:
    for width in (16, 96, 128):
        heads = HyenaWithMoEConfig.dict_from_dense({"d_model": width})["num_attention_heads"]
        assert width % heads == 0
