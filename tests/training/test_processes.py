"""Several processes train as one, and hear of what one decided."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.training import processes
from moe_hf.training.metrics import read_metrics
from moe_hf.training.processes import main_process_says
from tests.models.native_moes import native_moe
from tests.training.tiny import EndlessStream, InterruptAt, make_trainer, rows, tiny_moe, without_speed

WORLD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.training.test_processes import world_run
world_run(sys.argv[2])
"""


def world_run(folder):
    """Runs of the same 4 rows per step: map-style, of transformers' own class, and streamed, stopped and resumed."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    options = {"per_device_train_batch_size": 4 // world, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    coefficients = {"router_aux_loss_coef": 5.0, "router_z_loss_coef": 5.0}
    same = {"data": rows(2) * 8, "train_sampling_strategy": "sequential", "optim": "sgd", "learning_rate": 0.1}
    trainer = make_trainer(f"{folder}/map", tiny_moe(**coefficients), **(same | options))
    trainer.train()
    torch.save(trainer.model.state_dict(), f"{folder}/map-{trainer.args.process_index}.pt")
    # The processes' micro-batches are those that one process accumulates.
    micro = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2 // world}
    native = native_moe("mixtral", router_aux_loss_coef=5.0).train()
    trainer = make_trainer(f"{folder}/native", native, **(same | options | micro))
    trainer.train()
    torch.save(trainer.model.state_dict(), f"{folder}/native-{trainer.args.process_index}.pt")
    # Only the last process is interrupted: all have to agree.
    alone = [InterruptAt(2)] if trainer.args.process_index == world - 1 else []
    # Balance is each process's own affair, so it stays out where their rows differ.
    model, resumed = (tiny_moe(router_aux_loss_coef=0.0, router_z_loss_coef=5.0) for _ in range(2))
    stopped = make_trainer(f"{folder}/stream", model, EndlessStream(), alone, **options)
    stopped.train()
    assert stopped.state.global_step == 2
    make_trainer(f"{folder}/stream", resumed, EndlessStream(), **options).train(resume_from_checkpoint=True)


def test_two_processes_train_as_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tail = ["-c", WORLD, str(Path(__file__).parents[2])]
    script = tmp_path / "world.py"
    script.write_text(WORLD)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    subprocess.run([sys.executable, *tail, str(tmp_path / "one")], check=True, env=environment, timeout=200)
    subprocess.run([*torchrun, *tail[2:], str(tmp_path / "two")], check=True, env=environment, timeout=200)
    names = {
        "map": ("loss", "aux_loss", "z_loss", "grad_norm", "epoch"),
        "native": ("loss", "aux_loss", "grad_norm", "epoch"),
        "stream": ("loss", "z_loss", "grad_norm", "epoch"),
    }
    for kind in names:
        one, two = (without_speed(read_metrics(str(tmp_path / world / kind))) for world in ("one", "two"))
        assert [record["step"] for record in two] == [1, 2, 3, 4]
        for record, twin in zip(one, two, strict=True):
            for name in names[kind]:
                assert twin[name] == pytest.approx(record[name], rel=1e-3), (kind, name)
    for kind in ("map", "native"):
        states = [torch.load(tmp_path / f"{name}.pt") for name in (f"one/{kind}-0", f"two/{kind}-0", f"two/{kind}-1")]
        for name, tensor in states[0].items():
            assert torch.equal(states[1][name], states[2][name])
            torch.testing.assert_close(states[1][name], tensor, atol=1e-5, rtol=1e-4)


class Process:
    """What `main_process_says` reads of training arguments."""

    def __init__(self, process_index, world_size):
        self.process_index, self.world_size = process_index, world_size


def test_a_lone_process_decides_for_itself():
    assert main_process_says(Process(0, 1), lambda: "runs/a") == "runs/a"
    with pytest.raises(ConfigError, match="in use"):
        main_process_says(Process(0, 1), refuse)


def refuse():
    raise ConfigError("in use")


@pytest.mark.parametrize("decide", [lambda: "runs/a", refuse])
def test_the_others_hear_what_the_main_process_decided_and_decide_nothing(monkeypatch, decide):
    sent = []

    def broadcast(answer):
        if sent:
            answer[:] = sent[0]
        else:
            sent.append(list(answer))

    monkeypatch.setattr(processes, "broadcast_object_list", broadcast)
    heard = []
    for index, ask in enumerate((decide, lambda: pytest.fail("asked twice"))):
        try:
            heard.append(main_process_says(Process(index, 2), ask))
        except ConfigError as error:
            heard.append(str(error))
    assert heard == [sent[0][0] if decide is not refuse else "in use"] * 2
