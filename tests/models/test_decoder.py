"""The skeleton: fresh weights, positions, what is recorded, checkpointing, compilation, precision."""

import contextlib
import logging
import warnings

import pytest
import torch

from moe_hf import ConfigError, GPT2WithMoE, GPT2WithMoEModel
from moe_hf.layers.ffn.routers import HashRouter
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import Mixer
from moe_hf.models.router_states import routers_of


class TestFreshWeights:
    def test_every_parameter_is_drawn_or_set(self, tiny_config, monkeypatch) -> None:
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *size, **kwargs: _poisoned(empty(*size, **kwargs)))
        model = GPT2WithMoE(tiny_config(mixer_short_conv=3, shared_expert_intermediate_size=16))
        for name, parameter in model.named_parameters():
            assert parameter.isfinite().all(), name

    def test_spreads_are_gpt2_s(self, tiny_config) -> None:
        torch.manual_seed(0)
        config = tiny_config(hidden_size=64, intermediate_size=256, initializer_range=0.02, num_experts=8)
        model = GPT2WithMoEModel(config)
        sparse, dense = model.layers[0], model.layers[1]
        residual = 0.02 / (2 * config.num_hidden_layers) ** 0.5
        expected = {
            model.embed_tokens.weight: 0.02,
            model.embed_positions.weight: 0.02,
            sparse.mixer.q_proj.weight: 0.02,
            sparse.mlp.gate.weight: 0.02,
            sparse.mlp.experts.up_proj: 0.02,
            sparse.mlp.experts.down_proj: residual,
            sparse.mixer.o_proj.weight: residual,
            dense.mlp.up_proj.weight: 0.02,
            dense.mlp.down_proj.weight: residual,
        }
        for weight, std in expected.items():
            assert weight.std().item() == pytest.approx(std, rel=0.1)
            assert weight.mean().abs().item() < std / 5
        for zero in (sparse.mlp.experts.up_proj_bias, sparse.mlp.experts.down_proj_bias, dense.mixer.o_proj.bias):
            assert zero.abs().max() == 0
        assert model.norm.weight.equal(torch.ones(64))

    def test_experts_differ_from_each_other(self, tiny_config) -> None:
        weight = GPT2WithMoEModel(tiny_config()).layers[0].mlp.experts.up_proj
        assert not weight[0].equal(weight[1])

    def test_a_seed_fixes_them(self, tiny_config) -> None:
        models = []
        for _ in range(2):
            torch.manual_seed(7)
            models.append(GPT2WithMoE(tiny_config()).state_dict())
        assert all(value.equal(models[1][name]) for name, value in models[0].items())

    def test_parameter_names_are_the_documented_ones(self, tiny_config) -> None:
        config = tiny_config(num_hidden_layers=2, mixer_short_conv=2, shared_expert_intermediate_size=8)
        layer = {
            *(
                f"{norm}.{part}"
                for norm in ("input_layernorm", "post_attention_layernorm")
                for part in ("weight", "bias")
            ),
            *(f"mixer.{name}_proj.{part}" for name in "qkvo" for part in ("weight", "bias")),
            "mixer.short_conv.weight",
        }
        projections = {f"{name}.{part}" for name in ("up_proj", "down_proj") for part in ("weight", "bias")}
        sparse = {
            "gate.weight",
            *(f"experts.{name}{part}" for name in ("up_proj", "down_proj") for part in ("", "_bias")),
        }
        sparse |= {f"shared_expert.{name}" for name in projections}
        expected = {f"model.layers.{i}.{name}" for i in (0, 1) for name in layer}
        expected |= {f"model.layers.0.mlp.{name}" for name in sparse}
        expected |= {f"model.layers.1.mlp.{name}" for name in projections}
        expected |= {
            "model.norm.weight",
            "model.norm.bias",
            "model.embed_tokens.weight",
            "model.embed_positions.weight",
        }
        assert set(GPT2WithMoE(config).state_dict()) == expected | {"lm_head.weight"}
        assert not [name for name in GPT2WithMoE(config).state_dict() if "rotary" in name]


def _poisoned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.fill_(float("nan")) if tensor.is_floating_point() and tensor.device.type != "meta" else tensor


class TestPositions:
    def test_beyond_the_learned_table_is_an_error_that_says_what_to_do(self, tiny_model) -> None:
        model = tiny_model()
        model(torch.full((1, 40), 5))
        with pytest.raises(ConfigError, match=r"position 40 is beyond max_position_embeddings=40; .*rotary"):
            model(torch.full((1, 41), 5))
        with pytest.raises(ConfigError, match="position 57"):
            model(torch.full((1, 2), 5), position_ids=torch.tensor([[0, 57]]))

    def test_rotary_positions_go_on(self, tiny_model) -> None:
        assert tiny_model(position_embedding_type="rotary")(torch.full((1, 90), 5)).logits.isfinite().all()

    def test_ids_or_embeddings_but_exactly_one(self, tiny_model, token_ids) -> None:
        model = tiny_model()
        embeds = model.model.embed_tokens(token_ids)
        torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(token_ids).logits)
        for wrong in ({}, {"input_ids": token_ids, "inputs_embeds": embeds}):
            with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
                model(**wrong)


class TestRecordings:
    @pytest.mark.parametrize("kinds", [None, ["dense", "sparse", "sparse", "sparse"]])
    def test_router_logits_are_one_raw_tensor_per_sparse_layer(self, tiny_model, token_ids, kinds) -> None:
        model = tiny_model(mlp_layer_types=kinds)
        out = model(token_ids, output_router_logits=True)
        assert [tuple(logits.shape) for logits in out.router_logits] == [(21, 4)] * len(model.config.sparse_layers)
        assert out.router_logits[0].dtype == torch.float32
        # Raw: rows of probabilities would sum to 1.
        assert (out.router_logits[0].sum(-1) - 1).abs().min() > 1e-3
        assert model(token_ids).router_logits is None

    def test_the_configuration_may_ask_for_router_logits(self, tiny_model, token_ids) -> None:
        assert tiny_model(output_router_logits=True)(token_ids).aux_loss is not None

    def test_hidden_states_go_from_the_embedding_to_the_last_layer(self, tiny_model, token_ids) -> None:
        model = tiny_model(GPT2WithMoEModel)
        out = model(token_ids, output_hidden_states=True)
        assert [tuple(state.shape) for state in out.hidden_states] == [(3, 7, 32)] * 5
        embedded = model.embed_tokens(token_ids) + model.embed_positions(torch.arange(7))
        torch.testing.assert_close(out.hidden_states[0], embedded)
        torch.testing.assert_close(out.hidden_states[1], model.layers[0](embedded, _plain_call()), atol=1e-5, rtol=1e-4)

    def test_attentions_are_causal_weights(self, tiny_model, token_ids) -> None:
        out = tiny_model(attn_implementation="eager", mixer_short_conv=3)(token_ids, output_attentions=True)
        assert [tuple(weight.shape) for weight in out.attentions] == [(3, 4, 7, 7)] * 4
        torch.testing.assert_close(out.attentions[0].sum(-1), torch.ones(3, 4, 7))
        assert out.attentions[2].triu(1).abs().max() == 0

    def test_a_dense_twin_records_nothing(self, tiny_model, token_ids) -> None:
        out = tiny_model(mlp_layer_types=["dense"] * 4).train()(token_ids, labels=token_ids, output_router_logits=True)
        assert not out.router_logits
        assert out.aux_loss is None

    def test_a_tuple_on_demand(self, tiny_model, token_ids) -> None:
        logits = tiny_model()(token_ids, return_dict=False, use_cache=False)[0]
        assert logits.shape == (3, 7, 61)


def test_a_layer_is_not_called_without_what_it_must_know_of_the_tokens(tiny_config) -> None:
    # Eager attention would see the future.
    layer = GPT2WithMoEModel(tiny_config()).layers[0]
    with pytest.raises(TypeError, match="inputs"):
        layer(torch.zeros(2, 3, layer.input_layernorm.weight.shape[0]))


def _plain_call() -> LayerInputs:
    mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1)[None, None]
    return LayerInputs(attention_mask=mask, position_ids=torch.arange(7)[None])


class TestGradientCheckpointing:
    @pytest.mark.parametrize(
        "overrides",
        [
            {"mixer_short_conv": 3, "position_embedding_type": "rotary"},
            # Random draws must be repeated in the second pass.
            {"resid_dropout": 0.3, "embd_dropout": 0.2, "attention_dropout": 0.2, "router_jitter_noise": 0.2},
        ],
    )
    def test_gives_the_same_loss_and_gradients_and_records_once(
        self, tiny_model, token_ids, checkpointed, overrides
    ) -> None:
        results = []
        for wrap in (lambda model: model, checkpointed):
            model = wrap(tiny_model(**overrides).train())
            torch.manual_seed(3)
            out = model(token_ids, labels=token_ids, output_router_logits=True, use_cache=False)
            out.loss.backward()
            assert len(out.router_logits) == 2
            results.append((out.loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
        assert results[0][0].equal(results[1][0])
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(results[1][1][name], gradient, msg=name)

    def test_the_reentrant_form_would_lose_the_balance_gradient_and_is_refused(self, tiny_model, checkpointed) -> None:
        with pytest.raises(ConfigError, match="use_reentrant=True is not allowed; it must be False"):
            checkpointed(tiny_model(), gradient_checkpointing_kwargs={"use_reentrant": True})
        checkpointed(tiny_model(), gradient_checkpointing_kwargs={"use_reentrant": False})

    def test_can_be_switched_off_again(self, tiny_model, token_ids, checkpointed) -> None:
        model = checkpointed(tiny_model().train())
        assert model.model.gradient_checkpointing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_disable()
        assert model(token_ids).past_key_values.get_seq_length() == 7


class TestPrecision:
    @pytest.mark.parametrize("backend", ["eager", "batched_mm", "grouped_mm"])
    @pytest.mark.parametrize("position", ["learned", "rotary"])
    def test_bfloat16_is_finite_and_near_float32(self, tiny_model, token_ids, backend, position) -> None:
        shape = {"experts_implementation": backend, "position_embedding_type": position, "mixer_short_conv": 3}
        model = tiny_model(**shape).bfloat16().train()
        out = model(token_ids, labels=token_ids)
        out.loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        assert out.logits.dtype == torch.bfloat16
        assert out.loss.item() == pytest.approx(
            tiny_model(**shape).train()(token_ids, labels=token_ids).loss.item(), rel=0.05
        )

    def test_autocast_keeps_the_router_in_float32(self, tiny_model, token_ids) -> None:
        model = tiny_model().train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(token_ids, labels=token_ids, output_router_logits=True)
        out.loss.backward()
        assert out.router_logits[0].dtype == torch.float32
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_mixed_documents_and_padding_in_bfloat16_are_finite(self, tiny_model, token_ids) -> None:
        mask = torch.ones_like(token_ids)
        mask[0, :5] = 0
        out = tiny_model(mixer_short_conv=3).bfloat16()(token_ids, attention_mask=mask)
        assert out.logits.isfinite().all()


# torch's compiler imports parts of torch that torch itself calls outdated, and warns of a cached version check.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Dynamo detected a call to a .functools.lru_cache")
class TestCompilation:
    def test_the_whole_forward_is_one_graph(self, tiny_model, token_ids) -> None:
        # "eager" compiles nothing but traces everything: a graph break is an error.
        shape = {"position_embedding_type": "rotary", "mixer_short_conv": 3, "num_hidden_layers": 2}
        model = tiny_model(experts_implementation="grouped_mm", **shape)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(
            compiled(token_ids, use_cache=False).logits, model(token_ids).logits, atol=1e-5, rtol=1e-4
        )

    def test_a_training_step_is_one_graph_with_the_same_gradients(self, tiny_model, token_ids) -> None:
        # In bfloat16, which has a grouped product of its own; in float32 older transformers cannot trace its gradient.
        model = tiny_model(experts_implementation="grouped_mm", num_hidden_layers=2).bfloat16().train()
        model(token_ids, labels=token_ids, use_cache=False).loss.backward()
        expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        model.zero_grad()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        compiled(token_ids, labels=token_ids, use_cache=False).loss.backward()
        for name, parameter in model.named_parameters():
            scale = max(expected[name].abs().max().item(), 1e-2)
            torch.testing.assert_close(parameter.grad, expected[name], atol=0.02 * scale, rtol=0, msg=name)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_the_real_compiler_gives_the_same_logits(self, tiny_model, token_ids, dtype) -> None:
        model = tiny_model(experts_implementation="grouped_mm", num_hidden_layers=2).to(dtype)
        compiled = torch.compile(model, fullgraph=True)
        with torch.no_grad():
            tolerance = 1e-4 if dtype == torch.float32 else 5e-2
            torch.testing.assert_close(
                compiled(token_ids, use_cache=False).logits, model(token_ids).logits, atol=tolerance, rtol=tolerance
            )


class TestWhatTransformersGuesses:
    @pytest.mark.parametrize("word", ["RWKV", "MiniMax", "XLSTM"])
    def test_a_default_cache_whatever_the_class_is_called(self, tiny_model, token_ids, word) -> None:
        model = tiny_model(type(f"{word}Lookalike", (GPT2WithMoE,), {}))
        out = model.generate(token_ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        assert out.past_key_values.get_seq_length() >= 7

    def test_assisted_decoding_is_refused_for_a_state_that_cannot_be_cut_back(self, tiny_model, token_ids) -> None:
        model = tiny_model(mixer_short_conv=3)
        with pytest.raises(ValueError, match="stateful"):
            model.generate(token_ids[:1], prompt_lookup_num_tokens=2, max_new_tokens=2, do_sample=False)
        expected = tiny_model().generate(token_ids[:1], max_new_tokens=4, do_sample=False)
        found = tiny_model().generate(token_ids[:1], prompt_lookup_num_tokens=2, max_new_tokens=4, do_sample=False)
        assert found.equal(expected)

    def test_nothing_is_said_while_building_and_running(self, tiny_model, token_ids, caplog) -> None:
        with caplog.at_level(logging.WARNING), contextlib.redirect_stdout(None):
            tiny_model().train()(token_ids, labels=token_ids).loss.backward()
        assert not caplog.records

    def test_the_mixers_are_what_the_recorder_looks_for(self, tiny_model) -> None:
        assert all(isinstance(layer.mixer, Mixer) for layer in tiny_model().model.layers)


class TestVocabularySize:
    @pytest.mark.parametrize("router", [{"router_type": "hash"}, {"router_num_hash_layers": 1}], ids=lambda r: min(r))
    @pytest.mark.parametrize("size", [70, 50])
    def test_hash_tables_follow_the_embedding(self, tiny_model, tmp_path, router, size) -> None:
        model = tiny_model(**router)
        gates = [gate for gate in routers_of(model) if isinstance(gate, HashRouter)]
        # Not the hash's own table, as after balancing: the old rows must stay.
        for gate in gates:
            gate.expert_of_id.copy_(gate.expert_of_id.roll(1, dims=0))
        before = [gate.expert_of_id.clone() for gate in gates]
        model.resize_token_embeddings(size)
        kept = min(size, 61)
        for gate, table in zip(gates, before, strict=True):
            assert gate.expert_of_id.shape == (size, 2)
            assert gate.expert_of_id.dtype == table.dtype
            assert gate.expert_of_id[:kept].equal(table[:kept])
            assert gate.expert_of_id[kept:].equal(gate.hash_table(size)[kept:])
        ids = torch.tensor([[3, size - 1, 4]])
        expected = model(ids).logits
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(GPT2WithMoE.from_pretrained(tmp_path)(ids).logits, expected)

    def test_padding_to_a_multiple_counts(self, tiny_model) -> None:
        model = tiny_model(model_class=GPT2WithMoEModel, router_type="hash")
        model.resize_token_embeddings(62, pad_to_multiple_of=8)
        assert [len(gate.expert_of_id) for gate in routers_of(model)] == [64, 64]

    def test_asking_for_nothing_changes_nothing(self, tiny_model) -> None:
        model = tiny_model(router_type="hash")
        assert model.resize_token_embeddings() is model.get_input_embeddings()
        assert [len(gate.expert_of_id) for gate in routers_of(model)] == [61, 61]
