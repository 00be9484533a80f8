import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from moe_hf.base.errors import ConfigError
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.models import optim
from moe_hf.models.gpt2_moe import GPT2WithMoE
from moe_hf.models.optim import (
    MoEMuon,
    decayed_names,
    hidden_matrices,
    moe_muon,
    weight_decay_groups,
)
from moe_hf.training.trainer import MoETrainer
from tests.models.families import KINDS, tiny_family
from tests.ops.test_newton_schulz import reference_newton_schulz


def tiny_moe(**overrides):
    torch.manual_seed(0)
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"max_position_embeddings": 12, "num_experts": 3, "num_experts_per_tok": 2, "mixer_short_conv": 3}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2WithMoE(GPT2WithMoEConfig(**(shape | sizes | tokens | overrides)))


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def reference_step(weight, gradient, momentum, lr, weight_decay, transposed=False):
    """One matrix, one step, in float64; returns the new weight and momentum."""
    if weight.ndim == 3:
        slices = [reference_step(w, g, m, lr, weight_decay) for w, g, m in zip(weight, gradient, momentum, strict=True)]
        return tuple(torch.stack(part) for part in zip(*slices, strict=True))
    momentum = 0.95 * momentum + 0.05 * gradient
    outputs, inputs = weight.T.shape if transposed else weight.shape
    update = reference_newton_schulz(0.05 * gradient + 0.95 * momentum)
    weight = weight * (1 - lr * weight_decay) - lr * max(1, outputs / inputs) ** 0.5 * update
    return weight, momentum


@pytest.mark.parametrize("batch_elements", [1, 600, 2**18])
def test_steps_equal_a_plain_loop_over_matrices_and_experts(batch_elements, monkeypatch):
    # Whole matrices at least, and stacks cut in the middle.
    monkeypatch.setattr(optim, "_CPU_BATCH_ELEMENTS", batch_elements)
    model = tiny_moe(num_experts=4)
    muon = hidden_matrices(model)
    weights = {n: p.detach().double() for n, p in model.named_parameters() if n in muon}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    rates = {"learning_rate": 1e-3, "muon_learning_rate": 0.02, "weight_decay": 0.1}
    optimizer = moe_muon(model, **rates, precision=torch.float32)
    for step in range(3):
        give_gradients(model, step)
        gradients = {name: p.grad.double() for name, p in model.named_parameters() if name in muon}
        optimizer.step()
        for name, weight in weights.items():
            weights[name], momenta[name] = reference_step(weight, gradients[name], momenta[name], 0.02, 0.1)
    for name, parameter in model.named_parameters():
        if name in muon:
            torch.testing.assert_close(parameter.double(), weights[name], atol=1e-5, rtol=0, msg=name)


def test_the_rest_moves_as_with_adamw():
    model = tiny_moe()
    twin = copy.deepcopy(model)
    decay = ["lm_head.weight", "model.embed_tokens.weight"]
    optimizer = moe_muon(model, learning_rate=1e-2, muon_learning_rate=0.02, weight_decay=0.1, decay_names=decay)
    rest = {n: p for n, p in twin.named_parameters() if n not in hidden_matrices(twin)}
    groups = [
        {"params": [p for n, p in rest.items() if n in decay], "weight_decay": 0.1},
        {"params": [p for n, p in rest.items() if n not in decay], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1e-2, fused=True)
    for step in range(3):
        for each in (model, twin):
            give_gradients(each, step)
        optimizer.step()
        reference.step()
    own = dict(model.named_parameters())
    for name, parameter in rest.items():
        assert torch.equal(own[name], parameter), name


def test_muon_gets_matrices_and_expert_stacks_only():
    sparse, dense = "model.layers.0", "model.layers.1"
    mixers = {f"{layer}.mixer.{p}_proj.weight" for layer in (sparse, dense) for p in "qkvo"}
    experts = {f"{sparse}.mlp.experts.{p}_proj" for p in ("up", "down")}
    shared = {f"{sparse}.mlp.shared_expert.{p}_proj.weight" for p in ("up", "down")}
    feed_forward = {f"{dense}.mlp.{p}_proj.weight" for p in ("up", "down")}
    model = tiny_moe(shared_expert_intermediate_size=8, mlp_layer_types=["sparse", "dense"])
    assert set(hidden_matrices(model)) == mixers | experts | shared | feed_forward


def test_transposed_weights_of_gpt2_move_as_their_linear_twins():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    chosen = hidden_matrices(model)
    assert chosen == {
        f"transformer.h.0.{name}.weight": True for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    give_gradients(model, 0)
    parameter = model.transformer.h[0].mlp.c_fc.weight
    expected, _ = reference_step(
        parameter.detach().double(), parameter.grad.double(), torch.zeros(parameter.shape).double(), 0.02, 0.0, True
    )
    moe_muon(model, learning_rate=1e-3, muon_learning_rate=0.02, precision=torch.float32).step()
    torch.testing.assert_close(parameter.double(), expected, atol=1e-5, rtol=0)


def test_a_state_dict_takes_the_optimizer_up_again_exactly():
    model = tiny_moe()
    optimizer = moe_muon(model, learning_rate=1e-3, muon_learning_rate=0.02)
    give_gradients(model, 0)
    optimizer.step()
    twin = copy.deepcopy(model)
    resumed = moe_muon(twin, learning_rate=1.0, muon_learning_rate=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, own in ((model, optimizer), (twin, resumed)):
        give_gradients(each, 1)
        own.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_schedule_scales_both_learning_rates():
    optimizer = moe_muon(tiny_moe(), learning_rate=1e-3, muon_learning_rate=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert {(group["kind"], group["lr"]) for group in optimizer.param_groups} == {("adamw", 5e-4), ("muon", 0.01)}
    # What Trainer logs as the learning rate.
    assert schedule.get_last_lr()[0] == 5e-4


def test_frozen_parameters_stay_out():
    model = tiny_moe()
    model.model.layers[0].requires_grad_(False)
    optimizer = moe_muon(model, learning_rate=1e-3, muon_learning_rate=0.02)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_a_closure_is_evaluated_with_gradients():
    layer = nn.Linear(3, 2, bias=False)
    group = {"kind": "muon", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, "transposed": False}
    optimizer = MoEMuon([{**group, "params": [layer.weight]}])

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("rates", [{"learning_rate": 0.0}, {"muon_learning_rate": -1.0}])
def test_a_learning_rate_that_is_not_positive_is_refused(rates):
    with pytest.raises(ConfigError, match=f"{next(iter(rates))} must be > 0"):
        moe_muon(tiny_moe(), **{"learning_rate": 1e-3, "muon_learning_rate": 0.02, **rates})


def test_a_vector_in_a_muon_group_is_refused():
    with pytest.raises(ConfigError, match=r"\(3,\)"):
        MoEMuon([{"kind": "muon", "params": [nn.Parameter(torch.ones(3))]}])


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_optimizer_decays_what_multiplies_and_nothing_else(kind, tmp_path):
    model = tiny_family(kind, num_hidden_layers=2)
    decayed = set(decayed_names(model))
    # Tables of numbers, vectors and filters; what is embedded counts as a weight.
    words = {name: name.split(".") for name, _ in model.named_parameters()}
    multiplies = {n for n, w in words.items() if w[-1] == "weight" or "experts" in w or w[-1].endswith("conv_weight")}
    multiplies |= {n for n, w in words.items() if w[-1] in ("start", "local_start")}
    assert decayed == {
        name
        for name in multiplies
        if "filter" not in words[name] and not any("norm" in word or "bias" in word for word in words[name])
    }

    settings = {"output_dir": str(tmp_path), "weight_decay": 0.1, "report_to": [], "use_cpu": True}
    trainer = MoETrainer(model=model, args=TrainingArguments(**settings))
    optimizers = [
        trainer.create_optimizer(),
        torch.optim.AdamW(weight_decay_groups(model, 0.1)),
        moe_muon(model, learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0.1),
    ]
    for optimizer in optimizers:
        groups = optimizer.param_groups
        falls = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
        assert {name for name, p in model.named_parameters() if id(p) in falls} == decayed
        assert sum(len(group["params"]) for group in groups) == len(words)


def test_a_mark_on_a_parameter_counts():
    module = nn.Linear(3, 3)
    assert decayed_names(module) == ["weight"]
    module.weight._no_weight_decay = True
    assert decayed_names(module) == []
