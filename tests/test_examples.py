"""The examples of the documentation run, and show what they claim."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from moe_hf import MoE

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.fixture(scope="module")
def drop_in() -> ModuleType:
    specification = importlib.util.spec_from_file_location("drop_in_moe", EXAMPLES / "drop_in_moe.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_drop_in_example_trains_both_models_and_reports(drop_in: ModuleType, capsys: pytest.CaptureFixture) -> None:
    drop_in.main(["--steps", "6", "--batch_size", "4", "--num_experts", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "after 6 steps of 256 tokens:"
    losses = {}
    for line in lines[1:3]:
        found = re.match(r" *(dense|MoE): held-out loss ([0-9.]+), ([0-9,]+) parameters, ([0-9.]+) ms CPU", line)
        losses[found[1]] = float(found[2])
        assert float(found[4]) > 0
    # Both begin at log(768) = 6.6.
    assert set(losses) == {"dense", "MoE"}
    assert max(losses.values()) < 6.0
    for layer, line in enumerate(lines[3:]):
        shares = [float(share) for share in re.findall(r"([0-9.]+)%", line)]
        assert line.startswith(f"layer {layer}, share")
        assert sum(shares) == pytest.approx(100, abs=0.2)
        assert len(shares) == 3
    assert len(lines) == 5


def test_drop_in_example_compares_equal_active_flops(drop_in: ModuleType) -> None:
    dense, sparse = (drop_in.Block(drop_in.GPTConfig(num_experts=count)) for count in (0, 6))
    assert isinstance(sparse.mlp, MoE)
    weights = sum(parameter.numel() for parameter in sparse.mlp.experts.parameters())
    assert weights * 2 / 6 == sum(parameter.numel() for parameter in dense.mlp.parameters())


def test_drop_in_example_s_step_reaches_every_weight(drop_in: ModuleType) -> None:
    torch.manual_seed(0)
    model = drop_in.GPT(drop_in.GPTConfig(num_experts=2, n_layer=1, vocab_size=50, n_embd=16, block_size=12))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    seconds = drop_in.train_step(model, optimizer, torch.randint(50, (3, 12)))
    assert seconds > 0
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    assert not any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
