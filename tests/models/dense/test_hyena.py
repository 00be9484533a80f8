"""A HyenaDNA of the Hub's layout becomes a Mixture of Experts with the same logits."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moe_hf import HyenaWithMoE, HyenaWithMoEConfig, HyenaWithMoEForSequenceClassification, HyenaWithMoEModel
from moe_hf.base.errors import CheckpointError, ConfigError

CONFIG = {
    "model_type": "hyenadna",
    "vocab_size": 12,
    "pad_vocab_size_multiple": 8,
    "d_model": 16,
    "d_inner": 24,
    "n_layer": 3,
    "max_seq_len": 34,
    "emb_dim": 5,
    "filter_order": 8,
    "num_inner_mlps": 2,
    "activation_freq": 10,
    "train_freq": True,
    "hyena_order": 2,
    "short_filter_order": 3,
    "layer_norm_epsilon": 1e-5,
}
# Spread of the weights: large enough for experts to be far from ties.
STD = 0.3


def formula_of_features(length: int, size: int) -> torch.Tensor:
    lag = torch.linspace(0, length - 1, length)[:, None]
    waves = torch.linspace(1e-4, (size - 1) // 2 - 1, (size - 1) // 2) * 2 * math.pi * lag / length
    return torch.cat([torch.linspace(0, 1, length)[:, None], waves.cos(), (-waves).sin()], dim=1)


def tensors_of(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights by the names of LongSafari's port."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = STD) -> torch.Tensor:
        return std * torch.randn(*shape, generator=generator)

    width, inner, order = config["d_model"], config["d_inner"], config["hyena_order"]
    rows, mlp, longest, size = 16, config["filter_order"], config["max_seq_len"], config["emb_dim"]
    channels, long_channels = (order + 1) * width, (order - 1) * width
    tensors = {"hyena.backbone.embeddings.word_embeddings.weight": draw(rows, width, std=1.0)}
    for layer in range(config["n_layer"]):
        mixer = {
            "in_proj.weight": draw(channels, width),
            "in_proj.bias": draw(channels),
            "out_proj.weight": draw(width, width),
            "out_proj.bias": draw(width),
            "short_filter.weight": draw(channels, 1, config["short_filter_order"]),
            "short_filter.bias": draw(channels),
            "filter_fn.bias": draw(long_channels),
            # Learnt, so that it is no longer the formula.
            "filter_fn.pos_emb.z": (formula_of_features(longest, size) + draw(longest, size, std=0.02))[None],
            "filter_fn.pos_emb.t": torch.linspace(0, 1, longest)[None, :, None],
            "filter_fn.modulation.deltas": torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, long_channels)[
                None, None
            ],
            # One module serves as all sines; safetensors keeps one name.
            "filter_fn.implicit_filter.1.freq": 10 + draw(1, mlp),
        }
        sizes = [size] + [mlp] * (config["num_inner_mlps"] + 1)
        for i, (a, b) in enumerate(pairwise(sizes)):
            mixer[f"filter_fn.implicit_filter.{2 * i}.weight"] = draw(b, a)
            mixer[f"filter_fn.implicit_filter.{2 * i}.bias"] = draw(b)
        last = 2 * config["num_inner_mlps"] + 2
        mixer[f"filter_fn.implicit_filter.{last}.weight"] = draw(long_channels, mlp)
        block = {f"mixer.{name}": value for name, value in mixer.items()}
        block |= {
            "mlp.fc1.weight": draw(inner, width),
            "mlp.fc1.bias": draw(inner),
            "mlp.fc2.weight": draw(width, inner),
            "mlp.fc2.bias": draw(width),
        }
        for norm in ("norm1", "norm2"):
            block |= {f"{norm}.weight": 1 + draw(width), f"{norm}.bias": draw(width)}
        tensors |= {f"hyena.backbone.layers.{layer}.{name}": value for name, value in block.items()}
    tensors |= {"hyena.backbone.ln_f.weight": 1 + draw(width), "hyena.backbone.ln_f.bias": draw(width)}
    return tensors


def reference_logits(tensors: dict[str, torch.Tensor], config: dict, ids: torch.Tensor) -> torch.Tensor:
    """HyenaDNA's function by its equations, with direct sums for convolutions."""
    width, length = config["d_model"], ids.shape[1]

    def get(name: str) -> torch.Tensor:
        return tensors[f"hyena.backbone.{name}"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, (width,), get(f"{name}.weight"), get(f"{name}.bias"))

    def linear(x: torch.Tensor, name: str, bias: bool = True) -> torch.Tensor:
        return x @ get(f"{name}.weight").T + (get(f"{name}.bias") if bias else 0)

    def delayed(x: torch.Tensor, lag: int) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x[:, :lag]), x[:, : x.shape[1] - lag]], dim=1)

    def mixer(u: torch.Tensor, name: str) -> torch.Tensor:
        u = linear(u, f"{name}.in_proj")
        taps = get(f"{name}.short_filter.weight")[:, 0]
        lags = range(taps.shape[1])
        u = sum(delayed(u, lag) * taps[:, taps.shape[1] - 1 - lag] for lag in lags) + get(f"{name}.short_filter.bias")
        first, *gates, v = u.split(width, dim=-1)
        fn = f"{name}.filter_fn"
        h = get(f"{fn}.pos_emb.z")[0, :length]
        for i in range(config["num_inner_mlps"] + 1):
            h = torch.sin(get(f"{fn}.implicit_filter.1.freq") * linear(h, f"{fn}.implicit_filter.{2 * i}"))
        h = linear(h, f"{fn}.implicit_filter.{2 * config['num_inner_mlps'] + 2}", bias=False)
        h = h * (torch.exp(-get(f"{fn}.pos_emb.t")[0, :length] * get(f"{fn}.modulation.deltas")[0].abs()) + 0.05)
        for o, gate in enumerate(reversed(gates)):
            part = slice(o * width, (o + 1) * width)
            v = v * gate
            v = sum(delayed(v, lag) * h[lag, part] for lag in range(length)) + get(f"{fn}.bias")[part] * v
        return linear(v * first, f"{name}.out_proj")

    x = get("embeddings.word_embeddings.weight")[ids]
    for layer in range(config["n_layer"]):
        name = f"layers.{layer}"
        x = x + mixer(norm(x, f"{name}.norm1"), f"{name}.mixer")
        inner = torch.nn.functional.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"), approximate="tanh")
        x = x + linear(inner, f"{name}.mlp.fc2")
    head = tensors.get("lm_head.weight", get("embeddings.word_embeddings.weight"))
    return norm(x, "ln_f") @ head.T


@pytest.fixture
def folder(tmp_path: Path):
    def write(tensors: dict[str, torch.Tensor] | None = None, **changes) -> Path:
        config = {**CONFIG, **changes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(tensors if tensors is not None else tensors_of(config), tmp_path / "model.safetensors")
        return tmp_path

    return write


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 12, (2, 29), generator=torch.Generator().manual_seed(1))


def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits


class TestLogits:
    @pytest.mark.parametrize("order", [2, 3])
    def test_equal_those_of_the_dense_model(self, folder, ids, order: int) -> None:
        config = {**CONFIG, "hyena_order": order}
        tensors = tensors_of(config)
        model = HyenaWithMoE.from_pretrained(folder(tensors, hyena_order=order), num_experts=3)
        expected = reference_logits(tensors, config, ids)
        assert expected.std() > 0.3
        torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)
        assert model.config.sparse_layers == [0, 2]

    def test_also_at_the_longest_length_and_for_one_token(self, folder) -> None:
        tensors = tensors_of(CONFIG)
        model = HyenaWithMoE.from_pretrained(folder(tensors))
        for length in (1, 34):
            ids = torch.randint(0, 12, (1, length), generator=torch.Generator().manual_seed(2))
            expected = reference_logits(tensors, CONFIG, ids)
            torch.testing.assert_close(logits_of(model, ids), expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(ConfigError, match="longer than the filter, which has 34"):
            model(torch.zeros(1, 35, dtype=torch.long))

    @pytest.mark.parametrize("name", [1, 3, 5])
    def test_whichever_name_of_the_shared_sine_was_kept(self, folder, ids, name: int) -> None:
        tensors = tensors_of(CONFIG)
        renamed = {key.replace("filter.1.freq", f"filter.{name}.freq"): value for key, value in tensors.items()}
        model = HyenaWithMoE.from_pretrained(folder(renamed))
        torch.testing.assert_close(logits_of(model, ids), reference_logits(tensors, CONFIG, ids), rtol=1e-4, atol=1e-4)

    def test_with_a_sine_that_was_not_trained(self, folder, ids) -> None:
        tensors = tensors_of(CONFIG)
        constant = {key: torch.full_like(value, 10.0) if "freq" in key else value for key, value in tensors.items()}
        stored = {key: value for key, value in tensors.items() if "freq" not in key}
        model = HyenaWithMoE.from_pretrained(folder(stored, train_freq=False))
        torch.testing.assert_close(logits_of(model, ids), reference_logits(constant, CONFIG, ids), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("tied", [True, False])
    def test_with_a_stored_head(self, folder, ids, tied: bool) -> None:
        tensors = tensors_of(CONFIG)
        embedding = tensors["hyena.backbone.embeddings.word_embeddings.weight"]
        tensors["lm_head.weight"] = embedding.clone() if tied else embedding.flip(0).contiguous()
        model = HyenaWithMoE.from_pretrained(folder(tensors, tie_word_embeddings=tied))
        torch.testing.assert_close(logits_of(model, ids), reference_logits(tensors, CONFIG, ids), rtol=1e-4, atol=1e-4)

    def test_untied_where_the_file_has_no_head_it_starts_as_a_copy(self, folder, ids) -> None:
        tensors = tensors_of(CONFIG)
        model = HyenaWithMoE.from_pretrained(folder(tensors), tie_word_embeddings=False)
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        torch.testing.assert_close(logits_of(model, ids), reference_logits(tensors, CONFIG, ids), rtol=1e-4, atol=1e-4)

    def test_names_without_the_prefix(self, folder, ids) -> None:
        tensors = tensors_of(CONFIG)
        bare = {key.removeprefix("hyena."): value for key, value in tensors.items()}
        model = HyenaWithMoE.from_pretrained(folder(bare))
        torch.testing.assert_close(logits_of(model, ids), reference_logits(tensors, CONFIG, ids), rtol=1e-4, atol=1e-4)


class TestWhatIsMade:
    def test_nothing_is_missing_or_left_over_and_it_is_an_ordinary_model(self, folder, ids, tmp_path) -> None:
        model, report = HyenaWithMoE.from_pretrained(folder(), output_loading_info=True)
        assert not any(report.values())
        model.save_pretrained(tmp_path / "sparse")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse")
        assert type(again) is HyenaWithMoE
        assert logits_of(again, ids).equal(logits_of(model, ids))

    def test_without_a_head_and_with_labels(self, folder, ids) -> None:
        path = folder()
        whole = HyenaWithMoE.from_pretrained(path).eval()
        bare = HyenaWithMoEModel.from_pretrained(path).eval()
        labels = HyenaWithMoEForSequenceClassification.from_pretrained(path, num_labels=3)
        with torch.no_grad():
            assert bare(ids).last_hidden_state.equal(whole.model(ids).last_hidden_state)
        assert labels.model.layers[0].mixer.in_proj.weight.equal(whole.model.layers[0].mixer.in_proj.weight)

    def test_the_configuration(self, folder) -> None:
        config = HyenaWithMoEConfig.from_pretrained(folder())
        assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (16, 16, 24)
        assert config.layer_types == ["history"] * 3
        assert (config.hidden_act, config.hyena_filter_shift) == ("gelu_pytorch_tanh", 0.05)


class TestWrongInput:
    def test_missing_tensors(self, folder) -> None:
        tensors = {key: value for key, value in tensors_of(CONFIG).items() if "layers.1.mlp.fc2" not in key}
        with pytest.raises(CheckpointError, match=r"lacks 2 that are needed: backbone.layers.1.mlp.fc2.weight"):
            HyenaWithMoE.from_pretrained(folder(tensors))

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"hyena_filter_time_base": 40}, "pos_emb.z of shape"),
            ({"num_hidden_layers": 2}, "3 layers, but num_hidden_layers=2"),
            ({"mixer": "attention"}, "Hyena operators in all layers"),
            ({"moe_intermediate_size": 8}, "moe_intermediate_size=8"),
            ({"norm_type": "rms"}, "norm_type='layer' describes"),
            ({"mlp_gated": True}, "mlp_gated=False describes"),
            ({"mlp_token_shift": "rwkv7"}, "mlp_token_shift='none' describes"),
            ({"mlp_layer_types": ["none", "sparse", "dense"]}, r"would drop \(model\.layers\.0\.mlp"),
            ({"hidden_act": "relu"}, "hidden_act='gelu_pytorch_tanh', but 'relu'"),
            ({"hyena_filter_learned_features": False}, "hyena_filter_learned_features=True, but False"),
            ({"hyena_filter_frequency": 3.0}, "hyena_filter_frequency=.*, but 3.0"),
        ],
    )
    def test_a_misfitting_override(self, folder, changes, text: str) -> None:
        with pytest.raises(CheckpointError, match=text):
            HyenaWithMoE.from_pretrained(folder(), **changes)

    def test_another_norm_at_the_end(self, folder) -> None:
        with pytest.raises(CheckpointError, match=r"layer_norm_epsilon=0\.001"):
            HyenaWithMoE.from_pretrained(folder(layer_norm_epsilon=1e-3))

    def test_other_windows(self, folder) -> None:
        tensors = tensors_of(CONFIG)
        tensors["hyena.backbone.layers.0.mixer.filter_fn.modulation.deltas"] *= 2
        with pytest.raises(CheckpointError, match=r"modulation\.deltas that are not those of HyenaDNA"):
            HyenaWithMoE.from_pretrained(folder(tensors))

    def test_a_head_of_its_own_that_the_configuration_denies(self, folder) -> None:
        tensors = tensors_of(CONFIG)
        tensors["lm_head.weight"] = torch.zeros(16, 16)
        with pytest.raises(CheckpointError, match="tie_word_embeddings=True; pass False"):
            HyenaWithMoE.from_pretrained(folder(tensors))

    def test_the_file_is_not_changed(self, folder) -> None:
        path = folder()
        before = load_file(path / "model.safetensors")
        HyenaWithMoE.from_pretrained(path)
        after = load_file(path / "model.safetensors")
        assert all(value.equal(after[key]) for key, value in before.items())
