"""Costs measured in turns, and what a run finds."""

import math

import pytest
import torch

from moe_hf.bench.studies.language_data import IGNORED
from moe_hf.bench.studies.worth.candidates import TWIN, make_model
from moe_hf.bench.studies.worth.learning import expert_loads, learn, measure_costs
from moe_hf.bench.studies.worth.real_text import real_text
from tests.bench.studies.worth.toy import SIZES, write_rows


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rows = write_rows(folder / "t.jsonl", 24), write_rows(folder / "h.jsonl", 6, start=50)
    return real_text(*rows, SIZES.vocab_size, SIZES.context_length)


def test_costs_are_ratios_to_the_twin_within_each_turn(text, monkeypatch):
    clock = {"now": 0.0}
    monkeypatch.setattr("time.process_time", lambda: clock["now"])

    def step(model, optimizer, batch):
        # The machine gets slower from step to step; an MoE's takes twice as long.
        clock["now"] += (2.0 if model.config.sparse_layers else 1.0) * (1.0 + clock["now"] / 1e6)

    monkeypatch.setattr("moe_hf.bench.studies.worth.learning.train_step", step)
    costs = measure_costs(["the tiny preset"], text, SIZES, turns=3)
    assert list(costs) == [TWIN, "the tiny preset"]
    assert costs[TWIN]["ratio"] == 1.0
    assert costs["the tiny preset"]["ratio"] == pytest.approx(2.0, rel=1e-4)
    assert costs["the tiny preset"]["low"] <= costs["the tiny preset"]["ratio"] <= costs["the tiny preset"]["high"]


def test_a_run_learns_is_repeatable_and_its_bits_are_those_of_its_nats(text):
    learnt, again = (learn("the tiny preset", 6, 1, text, SIZES) for _ in range(2))
    assert learnt._replace(cpu_seconds=0.0) == again._replace(cpu_seconds=0.0)
    assert learnt.tokens == 6 * 2 * 32
    assert learnt.curve[0][0] == 0
    assert learnt.curve[-1][0] == 6
    assert learnt.nats == learnt.curve[-1][1] < learnt.curve[0][1]
    for domain, nats in learnt.nats_of_domain.items():
        bits = nats / math.log(2) / text.bytes_per_token[domain]
        assert learnt.bits_per_byte_of_domain[domain] == pytest.approx(bits)
    low, high = sorted(learnt.bits_per_byte_of_domain.values())
    assert low < learnt.bits_per_byte < high


def test_loads_count_real_tokens_alone(text):
    model = make_model("the tiny preset", len(text.tokenizer), SIZES.context_length, seed=0)
    heldout = text.heldout["code"]
    loads = torch.tensor(expert_loads(model, heldout, batch_size=2))
    assert loads.shape == (2, 8)
    assert torch.allclose(loads.sum(dim=-1), torch.ones(2))
    padded = heldout._replace(
        input_ids=torch.cat([heldout.input_ids, torch.zeros_like(heldout.input_ids)]),
        labels=torch.cat([heldout.labels, torch.full_like(heldout.labels, IGNORED)]),
    )
    assert torch.allclose(torch.tensor(expert_loads(model, padded, batch_size=2)), loads)
    assert expert_loads(make_model(TWIN, len(text.tokenizer), 32, 0), heldout) == []
