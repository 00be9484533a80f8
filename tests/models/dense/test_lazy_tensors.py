"""Lazy tensors answer like safetensors' slices and read only when asked."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from moe_hf import CheckpointError
from moe_hf.models.dense.lazy_tensors import Drawn, Held, LazyTensor, Sliced, StackEntry, dtype_named

MATRIX = torch.arange(24.0).view(4, 6)
VECTOR = torch.arange(6.0)
INDICES = [
    ...,
    slice(1, 3),
    (slice(None), slice(0, 2)),
    (slice(1, 2), slice(1, 3)),
    2,
    (slice(None, None, 2),),
    slice(-2, None),
]


@pytest.fixture
def stored(tmp_path: Path):
    save_file({"matrix": MATRIX, "vector": VECTOR, "half": MATRIX.half()}, tmp_path / "file.safetensors")
    file = safe_open(tmp_path / "file.safetensors", framework="pt")
    return lambda name: file.get_slice(name)


CASES = [
    ("matrix", {}, MATRIX),
    ("matrix", {"transpose": True}, MATRIX.T),
    ("matrix", {"columns": slice(2, 4)}, MATRIX[:, 2:4]),
    ("matrix", {"transpose": True, "columns": slice(4, 6)}, MATRIX[:, 4:6].T),
    ("vector", {}, VECTOR),
    ("vector", {"columns": slice(2, 4)}, VECTOR[2:4]),
    ("half", {"transpose": True}, MATRIX.half().T),
]


@pytest.mark.parametrize(("name", "how", "expected"), CASES)
def test_shape_type_and_values_are_those_of_the_piece(stored, name: str, how: dict, expected: torch.Tensor) -> None:
    lazy = Sliced(stored(name), **how)
    assert lazy.get_shape() == list(expected.shape)
    assert lazy.get_dtype() == ("F16" if name == "half" else "F32")
    value = lazy.read()
    assert value.equal(expected)
    assert value.is_contiguous()


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("how", [{}, {"transpose": True}, {"transpose": True, "columns": slice(1, 5)}])
def test_a_part_equals_the_part_of_the_whole(stored, how: dict, index) -> None:
    lazy = Sliced(stored("matrix"), **how)
    assert lazy[index].equal(lazy[...][index])
    assert lazy[index].is_contiguous()


def test_an_entry_of_a_stack_is_read_alone(tmp_path: Path) -> None:
    stack = torch.arange(24.0).view(3, 4, 2)
    save_file({"stack": stack}, tmp_path / "stack.safetensors")
    with safe_open(tmp_path / "stack.safetensors", "pt") as file:
        entry = StackEntry(file.get_slice("stack"), 1, slice(2, 4))
        assert (entry.get_shape(), entry.get_dtype()) == ([2, 2], "F32")
        assert entry[...].equal(stack[1, 2:4])
        assert StackEntry(file.get_slice("stack"), 2).read().equal(stack[2])


def test_nothing_is_read_before_it_is_asked_for() -> None:
    class Guarded:
        def get_shape(self) -> list[int]:
            return [4, 6]

        def get_dtype(self) -> str:
            return "F32"

        def __getitem__(self, index):
            raise AssertionError("read")

    lazy = Sliced(Guarded(), transpose=True)
    assert lazy.get_shape() == [6, 4]
    with pytest.raises(AssertionError, match="read"):
        lazy.read()


def test_draws_are_the_same_in_every_order_of_reading() -> None:
    first, second = Drawn((40, 50), 0.5, seed=3), Drawn((40, 50), 0.5, seed=4)
    torch.manual_seed(0)
    value = first.read()
    assert value.std().item() == pytest.approx(0.5, rel=0.1)
    assert second.read().equal(Drawn((40, 50), 0.5, seed=4).read())
    assert first.read().equal(value)
    assert not second.read().equal(value)
    assert first[1:3].equal(value[1:3])
    # The global generator is left alone.
    drawn = torch.randn(3)
    torch.manual_seed(0)
    assert torch.randn(3).equal(drawn)


def test_a_spread_of_zero_is_zero() -> None:
    assert Drawn((3, 2), 0.0, seed=1).read().equal(torch.zeros(3, 2))


def test_the_base_does_not_know_its_values() -> None:
    with pytest.raises(TypeError, match="abstract"):
        LazyTensor((1,), "F32")  # type: ignore[abstract]


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool],
)
def test_what_exists_already_keeps_its_type(tmp_path: Path, dtype: torch.dtype) -> None:
    held = Held(torch.ones(3, dtype=dtype))
    save_file({"a": held.read()}, tmp_path / "file.safetensors")
    assert held.get_dtype() == safe_open(tmp_path / "file.safetensors", framework="pt").get_slice("a").get_dtype()
    assert dtype_named(held.get_dtype()) == dtype
    assert held.written_dtype(torch.float16) == dtype


def test_weights_are_written_in_the_asked_type(stored) -> None:
    assert Sliced(stored("matrix")).written_dtype(torch.bfloat16) == torch.bfloat16
    assert Drawn((2, 3), 1.0, seed=0).written_dtype(torch.bfloat16) == torch.bfloat16


def test_a_type_that_no_file_holds_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"torch\.complex128 .* allowed are torch\.bool"):
        Held(torch.ones(2, dtype=torch.complex128))
    with pytest.raises(CheckpointError, match=r"'F8_E8M0' .* allowed are BOOL"):
        dtype_named("F8_E8M0")


def test_draws_do_not_depend_on_the_default_type() -> None:
    wanted = Drawn((4, 5), 0.5, seed=3).read()
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn, zero = Drawn((4, 5), 0.5, seed=3).read(), Drawn((4, 5), 0.0, seed=3).read()
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == zero.dtype == torch.float32
    assert drawn.equal(wanted)


def test_what_needs_single_precision_is_written_in_it() -> None:
    tensor = Drawn((2, 3), 1.0, 0)
    assert tensor.written_dtype(torch.bfloat16) == torch.bfloat16
    tensor.in_float32 = True
    assert tensor.written_dtype(torch.bfloat16) == torch.float32
    assert tensor.written_dtype(torch.float64) == torch.float64
