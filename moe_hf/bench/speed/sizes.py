"""The sizes that a measurement varies, and the arithmetic that follows from them.

Letters: T tokens, D width, E experts, K experts per token, F width of one expert.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers.activations import ACT2FN

from moe_hf.base.errors import ConfigError
from moe_hf.base.registry import Registry
from moe_hf.layers.ffn.routers import ROUTERS

DTYPES: Registry[torch.dtype] = Registry(
    "dtype", {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Size(NamedTuple):
    """One point of a sweep.

    `tokens`, `hidden_size`, `num_experts`, `k` and `expert_width` are T, D, E, K and F. `skew` is the exponent of the
    experts' popularity (0 is balanced: expert i is drawn in proportion to (i + 1) ** -skew). `capacity_factor` None
    means that no token is dropped. `threads` are PyTorch's intra-op threads.
    """

    tokens: int = 2048
    hidden_size: int = 256
    expert_width: int = 1024
    num_experts: int = 8
    k: int = 2
    dtype: str = "float32"
    activation: str = "gelu"
    threads: int = 1
    capacity_factor: float | None = None
    skew: float = 0.0
    router_type: str = "top_k"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        return DTYPES[self.dtype]

    @property
    def rows(self) -> int:
        """Rows that go through experts: T * K."""
        return self.tokens * self.k

    @property
    def rows_per_expert(self) -> float:
        """Rows that an expert gets where routing is balanced."""
        return self.rows / self.num_experts

    @property
    def label(self) -> str:
        """The shape in one short word, such as 2048x256x1024 E8 k2.

        >>> Size().label
        '2048x256x1024 E8 k2'
        """
        text = f"{self.tokens}x{self.hidden_size}x{self.expert_width} E{self.num_experts} k{self.k}"
        if self.capacity_factor is not None:
            text += f" cf{self.capacity_factor:g}"
        return text + (f" skew{self.skew:g}" if self.skew else "")

    @property
    def setting(self) -> str:
        """Everything but the shape, such as fp32 gelu, 1 thread."""
        plural = "" if self.threads == 1 else "s"
        return f"{_SHORT[self.dtype]} {self.activation}, {self.threads} thread{plural}"

    def place(self, case: str, mode: str) -> str:
        """Where a number was measured; the table's row says of which case and mode."""
        return f"{self.label}, {self.setting}"

    def title(self, case: str, mode: str) -> str:
        """What stands above the table of one group."""
        return f"{case}, {mode}: {self.label}, {self.setting}, {self.rows_per_expert:g} rows per expert"

    def require_possible(self) -> "Size":
        """This size itself.

        Raises:
            ConfigError: a number is out of range, or there is no such dtype, router or activation.
        """
        for table, name in ((DTYPES, self.dtype), (ROUTERS, self.router_type)):
            # A miss says which names there are.
            table[name]
        if self.activation not in ACT2FN:
            raise ConfigError(
                f"activation={self.activation!r} is not allowed; it must be a name of transformers' ACT2FN"
            )
        for name in ("tokens", "hidden_size", "expert_width", "num_experts", "k", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not allowed; it must be an integer >= 1")
        if self.k > self.num_experts:
            raise ConfigError(f"k={self.k} is not allowed; it must be at most num_experts={self.num_experts}")
        if self.capacity_factor is not None and not 0 < self.capacity_factor < math.inf:
            raise ConfigError(f"capacity_factor={self.capacity_factor} is not allowed; it must be > 0, or none")
        if not 0 <= self.skew < math.inf:
            raise ConfigError(f"skew={self.skew} is not allowed; it must be >= 0, and 0 is balanced")
        return self


SMALL_WIDTHS = (Size(1536, 128, 128, 8, 1, activation="gelu_new"), Size(512, 128, 256, 8, 2))
"""Experts so small that the work around the GEMMs decides, the tiny preset's first; they have goals of their own."""


def sizes_with(
    dtype: str = "float32",
    activation: str | None = "gelu",
    least_rows: int = 0,
    tokens: int | None = None,
    small: bool = False,
) -> Callable[[Size], bool]:
    """Whether a goal counts a size; `small` counts those of `SMALL_WIDTHS` alone, which no other goal counts."""
    shapes = {size.label for size in SMALL_WIDTHS}

    def counts(size: Size) -> bool:
        return (
            size.dtype == dtype
            and activation in (None, size.activation)
            and (size.label in shapes) == small
            and size.rows_per_expert >= least_rows
            and tokens in (None, size.tokens)
        )

    return counts


def expert_flops(size: Size, training: bool) -> float:
    """Floating-point operations of the two projections for T * K rows, a multiply-add counted as 2.

    Forward 4 T K D F; the backward pass computes two products for each of the forward's, so training counts thrice.

    >>> expert_flops(Size(tokens=3, k=2, hidden_size=5, expert_width=7), training=True) == 3 * 4 * 3 * 2 * 5 * 7
    True
    """
    return (3 if training else 1) * 4.0 * size.rows * size.hidden_size * size.expert_width


def expert_gradient_bytes(size: Size) -> int:
    """Bytes of the gradients that a training step of the experts returns: of the tokens, their weights, the experts."""
    width, inner = size.hidden_size, size.expert_width
    expert = 2 * width * inner + width + inner
    return (size.num_experts * expert + size.tokens * width + size.rows) * size.torch_dtype.itemsize


def sweep(**values: list[Any]) -> list[Size]:
    """Every combination of the values given for fields of `Size`, the last field varying fastest.

    >>> [size.label for size in sweep(tokens=[1, 8], num_experts=[16])]
    ['1x256x1024 E16 k2', '8x256x1024 E16 k2']

    Raises:
        ConfigError: a combination is not possible.
    """
    sizes = [Size()]
    for name, choices in values.items():
        sizes = [size._replace(**{name: choice}) for size in sizes for choice in choices]
    return [size.require_possible() for size in sizes]
