"""Files are what safetensors reads, and hold one tensor in memory while they are written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from moe_hf.models.dense.lazy_tensors import Drawn, Held, LazyTensor
from moe_hf.models.upcycling.weights import write_file, write_weights, written_size

STATE: dict[str, LazyTensor] = {
    "narrow": Held(torch.tensor([1, 2, 3], dtype=torch.uint8)),
    'a "name" of ünusual letters': Drawn((3, 5), 1.0, 0),
    "none": Drawn((0, 5), 1.0, 0),
    "one": Held(torch.tensor(7.5, dtype=torch.float64)),
    "ids": Held(torch.arange(4)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_file_gives_back_every_tensor(tmp_path: Path, dtype: torch.dtype) -> None:
    write_file(STATE, tmp_path / "model.safetensors", dtype)
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert found[name].equal(value.read().to(value.written_dtype(dtype)))
    assert written_size(STATE["ids"], dtype) == 32


def test_shards_have_an_index(tmp_path: Path) -> None:
    state: dict[str, LazyTensor] = {f"w{i}": Drawn((10, 10), 1.0, i) for i in range(5)}
    seen = []
    count = write_weights(state, tmp_path, torch.float32, "1KB", lambda *done: seen.append(done))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2000
    assert seen == [(i + 1, count) for i in range(count)]
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name].equal(state[name].read())


def test_no_tensor_is_read_before_its_turn(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Counted(Drawn):
        def read(self) -> torch.Tensor:
            sizes.append((tmp_path / "model.safetensors").stat().st_size)
            return super().read()

    write_file(
        {f"w{i}": Counted((1000, 1000), 1.0, i) for i in range(3)}, tmp_path / "model.safetensors", torch.float32
    )
    # Each is read when those before it are on their way to the disk.
    assert all(size >= 4_000_000 * i for i, size in enumerate(sizes))
    assert len(sizes) == 3
