"""Tile sizes of the grouped GEMMs: guessed in the interpreter, timed once on a GPU and remembered on disk.

Timing happens at the first call of each coarse shape and synchronises the device; the environment variable
MOE_HF_TRITON_AUTOTUNE=0 leaves it out, as does capturing a CUDA graph. The answers lie in
$XDG_CACHE_HOME/moe_hf/triton_tiles.json (or ~/.cache/moe_hf); deleting that file asks anew.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton  # noqa: TID251
from triton.runtime.errors import OutOfResources, PTXASError  # noqa: TID251

from moe_hf.base.files import atomic_file

INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernels were imported with TRITON_INTERPRET=1 and so run on the CPU, in NumPy."""


COMPILATION: dict[str, Any] = {"enable_fp_fusion": True}
"""What every launch says, so that a change of Triton's default changes no number here."""


class Tiles(NamedTuple):
    """How one GEMM is cut: an output tile of block_m x block_n, summed block_k at a time; all powers of 2, >= 16."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3

    def keywords(self) -> dict[str, Any]:
        """The arguments that a kernel's launch takes from here."""
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            **COMPILATION,
        }


class GemmShape(NamedTuple):
    """What the best tiles depend on.

    `kernel` names the kernel, `rows` counts all experts' rows, `columns` and `depth` are the output's width and the
    length of the sums (for weight gradients: the two sides of one expert's matrix), `operands` is 2 where a gate
    makes the kernel load two weight tiles, `sums` counts the output-sized float32 tiles that live at once, and
    `layout` says which weight axis is contiguous.
    """

    kernel: str
    rows: int
    experts: int
    columns: int
    depth: int
    operands: int
    sums: int
    layout: str


INTERPRETER_TILES = Tiles(32, 64, 64)

# The first of each list serves where nothing may be timed. Tensor cores of Hopper take 64 rows or more at a time; fewer
# rows are bound by reading the weights, for which many loads in flight count.
_FEW_ROWS = (
    Tiles(16, 64, 128, 4, 4),
    Tiles(16, 128, 64, 4, 5),
    Tiles(16, 32, 256, 4, 3),
    Tiles(16, 64, 64, 4, 6),
    Tiles(16, 128, 128, 8, 4),
)
_SOME_ROWS = (
    Tiles(64, 128, 64, 4, 4),
    Tiles(64, 128, 64, 8, 4),
    Tiles(32, 128, 64, 4, 4),
    Tiles(64, 256, 64, 8, 3),
    Tiles(128, 128, 64, 8, 3),
)
_MANY_ROWS = (
    Tiles(128, 128, 64, 8, 3),
    Tiles(128, 256, 64, 8, 3),
    Tiles(256, 128, 64, 8, 3),
    Tiles(128, 128, 32, 8, 4),
    Tiles(64, 256, 64, 8, 3),
    Tiles(128, 64, 64, 4, 4),
    Tiles(128, 64, 64, 8, 4),
    Tiles(64, 128, 64, 8, 4),
)
# Here a stage in two goes to the indices of the rows, so that 5 stages hold 3 tiles.
_WEIGHTS = (
    Tiles(128, 128, 64, 8, 5),
    Tiles(128, 256, 64, 8, 5),
    Tiles(256, 128, 64, 8, 5),
    Tiles(128, 128, 64, 8, 7),
    Tiles(64, 128, 64, 4, 5),
)
# IEEE float32 runs on the plain cores: small tiles keep the sums in registers.
_FLOAT32_FEW_ROWS = (Tiles(16, 64, 64, 4, 3), Tiles(16, 32, 64, 4, 3))
_FLOAT32 = (Tiles(64, 64, 32, 4, 3), Tiles(64, 128, 32, 8, 3), Tiles(128, 64, 32, 8, 3), Tiles(32, 64, 32, 4, 3))
_TF32 = (Tiles(64, 64, 32, 4, 3), Tiles(128, 128, 32, 8, 3), Tiles(64, 128, 32, 4, 4), Tiles(128, 64, 32, 4, 4))
# Float32 numbers of live tiles that one thread can hold; with more the compiler spills them by the thousand.
_REGISTERS = 128

_remembered: dict[str, Tiles] = {}


def matmul_precision(dtype: torch.dtype) -> str:
    """Triton's `input_precision` for operands of this type: float32 is exact unless torch may use TF32."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def best_tiles(shape: GemmShape, like: torch.Tensor, launch: Callable[[Tiles], None]) -> Tiles:
    """The fastest candidate for this shape on this device, timed at the first call and remembered.

    Args:
        shape: coarse shape; nearby row counts share an answer.
        like: a tensor on the device and in the type of the operands.
        launch: runs the kernel once with the given tiles; must not change what a second run computes.
    """
    if INTERPRETED:
        return INTERPRETER_TILES
    if os.environ.get("MOE_HF_TRITON_AUTOTUNE", "1") == "0":
        return _candidates(shape, like)[0]
    key = _key(shape, like)
    if key not in _remembered:
        _remembered.update(read_tiles(cache_file()))
    if key not in _remembered:
        candidates = _candidates(shape, like)
        # Timing waits for the device, which a capture does not allow.
        if torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _remembered[key] = min(candidates, key=lambda tiles: _milliseconds(launch, tiles))
        # Read again: other processes may have written since.
        write_tiles(cache_file(), {**read_tiles(cache_file()), key: _remembered[key]})
    return _remembered[key]


def cache_file() -> Path:
    """Where the timed answers are kept between processes."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "moe_hf" / "triton_tiles.json"


def _milliseconds(launch: Callable[[Tiles], None], tiles: Tiles) -> float:
    try:
        return triton.testing.do_bench(lambda: launch(tiles), warmup=5, rep=20, return_mode="median")
    except (OutOfResources, PTXASError):
        return float("inf")


def _candidates(shape: GemmShape, like: torch.Tensor) -> list[Tiles]:
    rows = shape.rows / shape.experts
    listed: tuple[Tiles, ...]
    if like.dtype == torch.float32:
        few = rows <= 16 and shape.kernel != "weights"
        listed = _FLOAT32_FEW_ROWS if few else _TF32 if matmul_precision(like.dtype) == "tf32" else _FLOAT32
    elif shape.kernel == "weights":
        listed = _WEIGHTS
    else:
        listed = _FEW_ROWS if rows <= 16 else _SOME_ROWS if rows <= 256 else _MANY_ROWS
    limit = triton.runtime.driver.active.utils.get_device_properties(like.get_device())["max_shared_mem"]

    def shared_bytes(tiles: Tiles) -> int:
        buffers = (tiles.num_stages + 1) // 2 if shape.kernel == "weights" else tiles.num_stages
        return buffers * tiles.block_k * (tiles.block_m + shape.operands * tiles.block_n) * like.element_size()

    def registers(tiles: Tiles) -> float:
        return tiles.block_m * tiles.block_n * shape.sums / (32 * tiles.num_warps)

    fitting = [tiles for tiles in listed if shared_bytes(tiles) <= limit and registers(tiles) <= _REGISTERS]
    return fitting or [min(listed, key=shared_bytes)]


def _key(shape: GemmShape, like: torch.Tensor) -> str:
    rows = shape.rows / shape.experts
    load = next((limit for limit in (16, 64, 256, 1024) if rows <= limit), "more")
    device = torch.cuda.get_device_name(like.device)
    place = (device, f"triton {triton.__version__}", like.dtype, matmul_precision(like.dtype))
    return "; ".join(map(str, (*place, shape.kernel, f"{load} rows", *shape[2:])))


def read_tiles(path: Path) -> dict[str, Tiles]:
    """What the file says, as far as it makes sense: a broken file only means that tiles are timed again."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(table, dict):
        return {}
    return {key: Tiles(*numbers) for key, numbers in table.items() if _is_tiles(numbers)}


def _is_tiles(numbers: object) -> bool:
    if not (isinstance(numbers, list) and len(numbers) == len(Tiles._fields)):
        return False
    if not all(type(number) is int and number > 0 for number in numbers):
        return False
    *blocks, warps, stages = numbers
    return (
        all(16 <= block <= 512 and block & (block - 1) == 0 for block in blocks)
        and warps in (1, 2, 4, 8, 16)
        and stages <= 8
    )


def write_tiles(path: Path, table: dict[str, Tiles]) -> None:
    """Puts the table where `read_tiles` finds it, whole or not at all; a folder that can't be written is left alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as aside:
            aside.write_text(json.dumps(table, sort_keys=True), encoding="utf-8")
    except OSError:
        # A home that cannot be written costs a timing per process, not the run.
        return
