import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.config.presets import create_moe_config
from moe_hf.models.gpt2_moe import GPT2WithMoE
from moe_hf.models.info import get_moe_model_info
from moe_hf.models.megabyte.model import MegaByteWithMoE
from moe_hf.ops.routing.balance import load_balance_loss, router_z_loss
from moe_hf.text.tokenizers import byte_tokenizer, train_tokenizer
from moe_hf.training.metrics import (
    CrossEntropyMeter,
    RoutingMeter,
    SpeedMeter,
    append_metrics,
    bits_per_byte,
    bytes_per_label,
    keep_metrics_until,
    known_peak_flops,
    read_metrics,
    routing_of_window,
    training_flops,
)

LAYERS, TOKENS, EXPERTS, K = 3, 20, 5, 2


def test_the_cross_entropy_of_a_window_is_what_evaluation_measures():
    numbers = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(2, 5, 7, generator=numbers), torch.randint(0, 7, (2, 5), generator=numbers)
    labels[0, 2], answers = -100, torch.ones(2, 5, dtype=torch.bool)
    answers[1, 3:] = False
    meter = CrossEntropyMeter()
    for row in range(2):
        meter.update(logits[row : row + 1], labels[row : row + 1], answers[row : row + 1])
    counted = labels.masked_fill(~answers, -100)[:, 1:]
    total, count = meter.sums.tolist()
    assert count == (counted != -100).sum()
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), counted.flatten())
    assert total / count == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("num_items", [None, torch.tensor(40)])
def test_what_a_training_model_says_of_its_cross_entropy_counts_like_its_logits(num_items):
    ids = torch.randint(0, 30, (2, 12), generator=torch.Generator().manual_seed(0))
    labels, by_logits, by_mean = ids.clone(), CrossEntropyMeter(), CrossEntropyMeter()
    labels[0, :7] = -100
    model = GPT2WithMoE(tiny_config()).train()
    for targets in (labels, torch.full_like(labels, -100)):
        out = model(input_ids=ids, labels=targets, num_items_in_batch=num_items)
        by_logits.update(out.logits, targets)
        by_mean.update_by_mean(out.cross_entropy, targets)
        torch.testing.assert_close(by_mean.sums, by_logits.sums, rtol=1e-5, atol=1e-5)
    assert not out.cross_entropy.requires_grad
    assert model.eval()(input_ids=ids, labels=labels).cross_entropy is None


def random_logits(seed=0, tokens=TOKENS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, EXPERTS, generator=generator) * 2 for _ in range(LAYERS)]


def measured(*forwards):
    meter = RoutingMeter(K)
    for forward in forwards:
        meter.update(*forward)
    return routing_of_window(meter.sums)


def tiny_config(**overrides):
    shape = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {
        "max_position_embeddings": 12,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 8,
    }
    return GPT2WithMoEConfig(**(shape | sizes | {"bos_token_id": 0, "eos_token_id": 0} | overrides))


def test_losses_are_those_of_the_model_layer_by_layer():
    logits = random_logits()
    routing = measured((logits,))
    for layer in range(LAYERS):
        alone = logits[layer : layer + 1]
        assert routing.aux_loss[layer] == pytest.approx(load_balance_loss(alone, K).item(), rel=1e-5)
        assert routing.z_loss[layer] == pytest.approx(router_z_loss(alone).item(), rel=1e-5)


def test_load_and_dead_experts_follow_the_chosen_experts():
    logits = torch.full((4, EXPERTS), -5.0)
    logits[:, 0] = 3.0
    logits[:3, 1] = 2.0
    logits[3, 4] = 2.0
    routing = measured(([logits],))
    assert routing.load == [pytest.approx([4 / 8, 3 / 8, 0, 0, 1 / 8])]
    assert routing.load_max == [pytest.approx(0.5 * EXPERTS)]
    assert routing.dead_experts == [2]


def test_an_expert_is_dead_only_if_the_whole_window_leaves_it_out():
    one, other = torch.full((4, EXPERTS), -5.0), torch.full((4, EXPERTS), -5.0)
    one[:, :2], other[:, 2:4] = 1.0, 1.0
    assert measured(([one],)).dead_experts == [3]
    assert measured(([one],), ([other],)).dead_experts == [1]


def test_entropy_is_one_when_undecided_and_zero_when_certain():
    certain = torch.full((4, EXPERTS), float("-1e9"))
    certain[:, 2] = 0.0
    routing = measured(([torch.zeros(4, EXPERTS), certain],))
    assert routing.entropy == pytest.approx([1.0, 0.0], abs=1e-6)


def test_perfect_balance_reads_one():
    # Each token is sure of one pair of neighbours, and the pairs go round.
    logits = torch.full((EXPERTS, EXPERTS), -50.0)
    for token in range(EXPERTS):
        logits[token, token] = logits[token, (token + 1) % EXPERTS] = 0.0
    routing = measured(([logits],))
    assert routing.aux_loss == pytest.approx([1.0])
    assert routing.load_max == pytest.approx([1.0])


def test_padding_does_not_count():
    logits = random_logits()
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[1, 3:] = 0
    mask[3, 1:] = 0
    kept = [layer[mask.reshape(-1) == 1] for layer in logits]
    for one, other in zip(measured((logits, mask)), measured((kept,)), strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other))


def test_a_window_weighs_tokens_equally():
    short, long = random_logits(1, tokens=5), random_logits(2, tokens=15)
    both = [torch.cat(pair) for pair in zip(short, long, strict=True)]
    window, whole = measured((short,), (long,)), measured((both,))
    torch.testing.assert_close(torch.tensor(window.load), torch.tensor(whole.load))
    assert window.entropy == pytest.approx(whole.entropy, rel=1e-5)
    assert window.z_loss == pytest.approx(whole.z_loss, rel=1e-5)


def test_the_meter_keeps_no_graph_and_begins_anew():
    meter = RoutingMeter(K)
    meter.update([layer.requires_grad_() for layer in random_logits()])
    assert not meter.sums.requires_grad
    meter.reset()
    assert meter.sums is None


def test_scalars_sum_up_the_layers():
    routing = measured((random_logits(),))
    scalars = routing.scalars()
    assert scalars["aux_loss"] == pytest.approx(sum(routing.aux_loss) / LAYERS)
    assert scalars["load_max"] == max(routing.load_max)
    assert scalars["dead_experts"] == sum(routing.dead_experts)
    assert set(scalars) == {"aux_loss", "z_loss", "router_entropy", "load_max", "dead_experts"}


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}, {"mlp_layer_types": ["dense", "dense"]}])
def test_training_flops_are_three_times_the_forward_of_active_parameters(overrides):
    config = tiny_config(**overrides)
    flops = training_flops(GPT2WithMoE(config))
    length = config.max_position_embeddings
    assert flops.of_batch(1, length) == pytest.approx(3 * get_moe_model_info(config)["flops_per_token"], rel=1e-12)


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}, {"local_lookback": 0}])
def test_training_flops_of_megabyte_are_three_times_the_forward_of_a_byte(overrides):
    config = create_moe_config("tiny", architecture="megabyte", **overrides)
    length = config.max_position_embeddings
    flops = training_flops(MegaByteWithMoE(config)).of_batch(1, length)
    # The forward counts one more patch, that of start.
    assert flops == pytest.approx(3 * get_moe_model_info(config)["flops_per_token"], rel=2e-3)


def test_bits_per_byte_are_those_counted_by_hand():
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    ids = tokenizer("a\u00e9!")["input_ids"]
    # Four bytes and two ends are predicted; the first label of a row is not, and -100 is none.
    rows = [{"labels": [-100, *ids, end]}, {"labels": [ids[0], -100, end]}]
    assert bytes_per_label(rows, tokenizer) == 4 / 6
    words = train_tokenizer(["good morning, good evening"] * 3, "word", 300)
    labels = words("good morning")["input_ids"]
    assert len(labels) == 2
    assert bytes_per_label([{"labels": [-100, *labels]}], words) == 6
    assert bits_per_byte(3.0, 6) == pytest.approx(3.0 / math.log(2) / 6)
    assert bytes_per_label([{"labels": [5, -100]}], tokenizer) is None


def test_training_flops_of_transformers_models():
    shape = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    models = [
        MixtralForCausalLM(MixtralConfig(**shape, **heads, num_local_experts=e, num_experts_per_tok=2)) for e in (2, 8)
    ]
    two, eight = (training_flops(model) for model in models)
    # Only the router sees the number of experts: 16 more weights for each of the 6 more.
    assert eight.weights - two.weights == 6 * 16
    dense = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=8))
    embeddings = (30 + 8) * 16
    assert training_flops(dense).weights == dense.num_parameters() - embeddings + 30 * 16
    assert training_flops(dense).attention_width == 2 * 16
    assert training_flops(nn.Linear(2, 2)) is None


def test_speed_counts_training_time_only(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = SpeedMeter()
    assert meter.read(1, None) == {}
    meter.add(tokens=600, flops=3e6)
    now[0] += 2
    with meter.pause():
        now[0] += 50
    now[0] += 1
    assert meter.read(4, None) == {"tokens_per_second": 800.0}
    assert meter.read(4, 1e7) == {"tokens_per_second": 800.0, "mfu": pytest.approx(0.1)}


def test_no_peak_is_claimed_for_a_cpu():
    assert known_peak_flops(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("X", None),
    ],
)
def test_the_peak_of_a_device_is_read_from_its_name(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert known_peak_flops(torch.device("cuda")) == peak


def test_metrics_are_read_back_without_a_line_cut_short(tmp_path):
    records = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    for record in records:
        append_metrics(str(tmp_path), record)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert read_metrics(str(tmp_path)) == records
    assert read_metrics(str(tmp_path / "absent")) == []


@pytest.mark.parametrize(
    "odd", [b"[]", b"{}", b"[" * 100_000, b'{"step": "4"}', b'{"step": 4, "loss": "\xff', b"\0" * 80]
)
def test_metrics_end_at_a_line_that_is_no_record(tmp_path, odd):
    append_metrics(str(tmp_path), {"step": 1})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(odd + b"\n")
    append_metrics(str(tmp_path), {"step": 5})
    assert read_metrics(str(tmp_path)) == [{"step": 1}]


def test_a_resumed_run_forgets_what_it_does_again(tmp_path):
    append_metrics(str(tmp_path), {"step": 2, "loss": 1.0})
    append_metrics(str(tmp_path), {"step": 4, "loss": 0.5})
    append_metrics(str(tmp_path), {"step": 4, "train_runtime": 3.0})
    append_metrics(str(tmp_path), {"step": 4, "eval_loss": 0.25})
    append_metrics(str(tmp_path), {"step": 6, "loss": math.pi})
    keep_metrics_until(str(tmp_path), 4, [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}])
    assert read_metrics(str(tmp_path)) == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}]
    keep_metrics_until(str(tmp_path), 0, [])
    assert read_metrics(str(tmp_path)) == []
    keep_metrics_until(str(tmp_path / "absent"), 4, [])
    assert not (tmp_path / "absent").exists()
