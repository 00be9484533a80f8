"""What stands in a line of the training log covers the whole window behind it."""

import pytest
import torch
from transformers import (
    TrainerCallback,
)

from moe_hf.training.metrics import read_metrics
from moe_hf.training.window import LoggingWindow
from tests.training.tiny import LENGTH, make_trainer, rows, tiny_moe


def test_metrics_of_a_window_cover_all_its_steps_and_parts(tmp_path):
    options = {"gradient_accumulation_steps": 2, "max_steps": 4}
    make_trainer(tmp_path / "each", **options).train()
    make_trainer(tmp_path / "window", logging_steps=4, **options).train()
    each = [record for record in read_metrics(str(tmp_path / "each")) if "loss" in record]
    window = read_metrics(str(tmp_path / "window"))[0]
    for name in ("aux_loss", "z_loss", "router_entropy", "loss"):
        assert window[name] == pytest.approx(sum(record[name] for record in each) / 4, rel=1e-5), name
    loads = torch.tensor([record["layers"]["load"] for record in each]).mean(dim=0)
    torch.testing.assert_close(torch.tensor(window["layers"]["load"]), loads)


def test_reported_values_are_scalars_of_the_same_logs(tmp_path):
    seen = []

    class Sink(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    make_trainer(tmp_path, callbacks=[Sink()], max_steps=1, peak_flops=1e12).train()
    names = {"aux_loss", "z_loss", "router_entropy", "load_max", "dead_experts", "tokens_per_second", "mfu"}
    assert names <= set(seen[0])
    assert all(isinstance(value, int | float) for value in seen[0].values())
    assert "layers" in read_metrics(str(tmp_path))[0]


def test_a_dense_model_logs_no_routing(tmp_path):
    make_trainer(tmp_path, tiny_moe(mlp_layer_types=["dense", "dense"]), max_steps=1).train()
    record = read_metrics(str(tmp_path))[0]
    assert record["tokens_per_second"] > 0
    assert not {"layers", "aux_loss", "dead_experts", "mfu"} & set(record)


def test_total_flos_count_active_parameters(tmp_path):
    few, many = (make_trainer(tmp_path / str(e), tiny_moe(num_experts=e), max_steps=1) for e in (4, 8))
    for trainer in (few, many):
        trainer.train()
    # Twice the experts, k the same: only the routers grow.
    tokens, layers, width = 2 * LENGTH, 2, 16
    assert many.state.total_flos - few.state.total_flos == tokens * 6 * layers * 4 * width


def test_a_window_measures_what_the_model_can_tell_and_begins_anew():
    window = LoggingWindow(tiny_moe())
    assert set(window.meters) == {"routing", "cross_entropy"}
    batch = torch.stack([row["input_ids"] for row in rows(3)])
    model = tiny_moe().train()
    outputs = model(batch, labels=batch, output_router_logits=True)
    window.add_outputs(outputs, labels=batch)
    assert window.add_batch(batch, torch.ones_like(batch)) > 0
    sums = window.sums()
    expected = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
    logs, details = window.close(sums, num_processes=1, peak_flops=None)
    assert logs["cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)
    assert logs["tokens_per_second"] > 0
    assert [sum(load) for load in details["layers"]["load"]] == pytest.approx([1, 1])
    assert window.sums() == {}
    assert window.close({}, 1, None) == ({}, {})


def test_a_window_that_was_left_open_goes_on_from_its_sums():
    window, other = LoggingWindow(tiny_moe()), LoggingWindow(tiny_moe())
    batch = torch.stack([row["input_ids"] for row in rows(3)])
    outputs = tiny_moe().train()(batch, labels=batch)
    for _ in range(2):
        window.add_outputs(outputs, labels=batch)
    other.restore({"cross_entropy": window.sums()["cross_entropy"], "unknown": torch.ones(1)}, torch.device("cpu"))
    other.add_outputs(outputs, labels=batch)
    window.add_outputs(outputs, labels=batch)
    assert torch.equal(other.sums()["cross_entropy"], window.sums()["cross_entropy"])


def test_a_model_that_tells_nothing_is_not_measured():
    window = LoggingWindow(torch.nn.Linear(2, 2))
    window.add_outputs({"logits": torch.ones(1, 2, 2)}, labels=torch.ones(1, 2, dtype=torch.long))
    assert window.add_batch(torch.ones(1, 2)) is None
    assert window.sums() == {}
