"""What a profile says: every operator with its own time, sorted into kinds of work.

A share is of the operators' own time, so the shares of one profile add up to 1.
"""

import re
from typing import NamedTuple

from moe_hf.bench.speed.sizes import Size

KINDS: dict[str, tuple[str, ...]] = {
    "optimizer": ("optimizer", "adam", "clip_grad", "foreach", "multi_tensor", "linalg_vector_norm"),
    "attention": ("scaled_dot_product", "attention", "flash", "fmha"),
    "loss": ("log_softmax", "logsoftmax", "nll_loss", "cross_entropy"),
    "gemm": (
        *("mm", "gemm", "linear", "matmul", "addmv", "aten::mv", "aten::dot", "nvjet", "cutlass", "xmma"),
        # This package's Triton kernels that multiply.
        *("_up_kernel", "_rows_kernel", "_hidden_gradient_kernel", "_weight_gradient_kernel"),
    ),
    "activation": ("gelu", "silu", "relu", "tanh", "sigmoid", "threshold_backward", "pow"),
    "norms": ("layer_norm", "rms_norm"),
    "index": (
        *("index", "gather", "scatter", "sort", "topk", "bincount", "nonzero", "where", "unique", "embedding", "histc"),
        *("cumsum", "one_hot", "searchsorted", "repeat_interleave", "argmax"),
        *("_count_kernel", "_place_kernel", "_tile_map_kernel", "_combine_kernel", "_route"),
    ),
    "copies": ("copy", "contiguous", "clone", "cat", "fill", "zero", "empty", "resize", "stack", "memcpy", "memset"),
    "elementwise": ("mul", "add", "sub", "div", "neg", "sum", "mean", "softmax", "exp", "clamp", "elementwise"),
}
"""What the name of an operator, or of a kernel on a GPU, must contain to be of a kind; the first that fits counts."""
GLUE, REST = "glue", "rest"
"""`glue` is Python between operators and autograd's own bookkeeping; `rest` is what is left, mostly views."""

# Autograd's nodes, and functions written in Python: their own time is what they do between operators.
_GLUE = re.compile(r"^autograd::|Backward\d*$|^_?[A-Z]\w*$")


class Operator(NamedTuple):
    """One operator of a profile: calls and own milliseconds, over all profiled steps."""

    name: str
    kind: str
    calls: int
    milliseconds: float


class Profile(NamedTuple):
    """Where the time of one arm goes: operators by own time, longest first."""

    part: str
    mode: str
    arm: str
    size: Size
    steps: int
    operators: list[Operator]
    table: str
    trace: str | None = None

    @property
    def milliseconds(self) -> float:
        """Own time of all operators per step; profiling itself makes it longer than an unprofiled step."""
        return sum(operator.milliseconds for operator in self.operators) / self.steps

    @property
    def shares(self) -> dict[str, float]:
        """Share of each kind of work, the largest first; they add up to 1."""
        total = sum(operator.milliseconds for operator in self.operators) or 1.0
        sums = dict.fromkeys([*KINDS, GLUE, REST], 0.0)
        for operator in self.operators:
            sums[operator.kind] += operator.milliseconds
        return {kind: sums[kind] / total for kind in sorted(sums, key=sums.__getitem__, reverse=True)}

    def share_of(self, operator: Operator) -> float:
        """The share of one operator."""
        return operator.milliseconds / (self.steps * self.milliseconds or 1.0)


def kind_of(name: str) -> str:
    """The kind of work that an operator of that name does.

    >>> [kind_of(name) for name in ("aten::addmm", "aten::gelu_backward", "aten::index_select", "MulBackward0")]
    ['gemm', 'activation', 'index', 'glue']
    """
    if _GLUE.search(name):
        return GLUE
    word = name.lower()
    return next((kind for kind, words in KINDS.items() if any(part in word for part in words)), REST)
