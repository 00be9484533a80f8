"""A dense RWKV-4 of transformers as a Mixture of Experts: its logits, also where transformers has a row at a time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, RwkvConfig, RwkvForCausalLM

from moe_hf import CheckpointError, RWKVWithMoE, RWKVWithMoEConfig, RWKVWithMoEModel
from moe_hf.models.dense.checkpoint_files import open_slices
from moe_hf.models.dense.rwkv import DenseRWKV4

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def dense_rwkv(**overrides) -> RwkvForCausalLM:
    """A small RWKV-4, whose every parameter is away from its first value, in training mode: see `logits_of`."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 48,
        "context_length": 64,
        "rescale_every": 0,
    }
    model = RwkvForCausalLM(RwkvConfig(**{**fields, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def logits_of(dense: RwkvForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        # With a cache it takes no inner width but its own.
        return dense.eval()(ids, use_cache=False).logits


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (3, 21), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rwkv")
    dense_rwkv().save_pretrained(path)
    return path


@pytest.mark.parametrize(
    "overrides",
    [{}, {"attention_hidden_size": 40}, {"rescale_every": 1}, {"rescale_every": 2, "tie_word_embeddings": True}],
)
def test_the_logits_are_those_of_the_dense_model(tmp_path, ids, overrides) -> None:
    dense = dense_rwkv(**overrides)
    # Before it is used: on the first call in eval transformers divides the weights of later layers in place.
    dense.save_pretrained(tmp_path)
    model = RWKVWithMoE.from_pretrained(tmp_path, num_experts=3, num_experts_per_tok=2)
    with torch.no_grad():
        logits = model(ids).logits
    # Halved activations meet the same epsilon in the norms.
    close = {"rtol": 1e-4, "atol": 1e-4} if overrides.get("rescale_every") else CLOSE
    torch.testing.assert_close(logits, logits_of(dense, ids), **close)


def test_dense_layers_give_them_too(folder, ids) -> None:
    model = RWKVWithMoE.from_pretrained(folder, mlp_layer_types=["dense"] * 3)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, logits_of(dense_rwkv(), ids), **CLOSE)


def test_in_half_precision_the_rates_of_fading_stay_in_float32(folder, ids) -> None:
    model = RWKVWithMoE.from_pretrained(folder, dtype=torch.bfloat16)
    kept = {name.rpartition(".")[2] for name, part in model.named_parameters() if part.dtype == torch.float32}
    assert kept == {"time_decay", "time_first"}
    with torch.no_grad():
        error = (model(ids).logits.float() - logits_of(dense_rwkv(), ids)).norm(dim=-1)
    assert (error / logits_of(dense_rwkv(), ids).norm(dim=-1)).median() < 0.05


@pytest.mark.parametrize(
    "overrides", [{}, {"mlp_layer_types": ["sparse"] * 3, "shared_expert_intermediate_size": 16, "num_experts": 3}]
)
def test_has_every_tensor_of_the_model_in_its_shape(folder, overrides) -> None:
    config = RWKVWithMoEConfig.from_pretrained(folder, **overrides)
    state = DenseRWKV4().state_dict(open_slices([str(folder / "model.safetensors")]), config)
    with torch.device("meta"):
        expected = {name: list(value.shape) for name, value in RWKVWithMoE(config).state_dict().items()}
    assert {name: value.get_shape() for name, value in state.items()} == expected
    assert {name: list(value.read().shape) for name, value in state.items()} == expected


def test_the_configuration_is_translated(folder) -> None:
    config = RWKVWithMoEConfig.from_pretrained(folder)
    assert (config.rwkv_version, config.mlp_token_shift, config.rwkv_inner_width) == (4, "rwkv4", 32)
    assert (config.max_position_embeddings, config.intermediate_size, config.vocab_size) == (64, 48, 61)
    assert not config.tie_word_embeddings


def test_without_a_head_it_loads_as_well(folder, ids) -> None:
    model = RWKVWithMoEModel.from_pretrained(folder)
    whole = RWKVWithMoE.from_pretrained(folder)
    with torch.no_grad():
        hidden = model(ids).last_hidden_state
        torch.testing.assert_close(whole.lm_head(hidden), whole(ids).logits)


def test_saved_again_it_is_a_model_of_this_family(folder, ids, tmp_path) -> None:
    model = RWKVWithMoE.from_pretrained(folder)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is RWKVWithMoE
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ({"rwkv_version": 7}, "rwkv_version=4 describes, but rwkv_version=7"),
        ({"mixer": "attention,rwkv,rwkv"}, "time mixing in every layer"),
        ({"mlp_gated": True}, "mlp_gated=False describes"),
        ({"moe_intermediate_size": 20}, "moe_intermediate_size=20"),
        ({"num_hidden_layers": 4}, "lacks"),
        ({"num_hidden_layers": 2}, "3 layers"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, overrides, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        RWKVWithMoE.from_pretrained(folder, **overrides)


def test_another_epsilon_than_the_last_norm_has_is_refused(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-6}))
    with pytest.raises(CheckpointError, match="layer_norm_epsilon"):
        RWKVWithMoE.from_pretrained(tmp_path)


def test_each_row_of_a_batch_is_decoded_as_transformers_does_it_alone(folder, ids) -> None:
    model, dense = RWKVWithMoE.from_pretrained(folder), dense_rwkv().eval()
    for each in (model, dense):
        each.generation_config.eos_token_id = None
    batched = model.generate(ids, max_new_tokens=5, do_sample=False)
    for row, prompt in enumerate(ids):
        assert torch.equal(batched[row], dense.generate(prompt[None], max_new_tokens=5, do_sample=False)[0])


def test_padding_is_not_seen(folder, ids) -> None:
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    model, dense = RWKVWithMoE.from_pretrained(folder), dense_rwkv().eval()
    with torch.no_grad():
        alone = dense(ids[1:2, 6:], use_cache=False).logits
        logits = model(ids * mask, attention_mask=mask).logits[1:2, 6:]
    torch.testing.assert_close(logits, alone, **CLOSE)


def test_beams_with_and_without_a_cache_agree(folder, ids) -> None:
    beams = {"max_new_tokens": 4, "num_beams": 3, "do_sample": False}
    model = RWKVWithMoE.from_pretrained(folder)
    assert torch.equal(model.generate(ids, **beams), model.generate(ids, use_cache=False, **beams))


def test_gradients_flow_in_eval_with_a_cache(folder, ids) -> None:
    model = RWKVWithMoE.from_pretrained(folder).eval()
    model(ids, labels=ids, use_cache=True).loss.backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if "time_" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
