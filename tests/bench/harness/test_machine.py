"""What a measurement was taken on, as what a JSON file can hold."""

import json

import torch

from moe_hf.bench.harness.machine import describe_machine


def test_the_machine_is_said_with_its_threads_and_what_holds_them(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found["environment"]["OMP_NUM_THREADS"] == "7"
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert len(found["load"]) == 2
    assert found["torch"] == torch.__version__
