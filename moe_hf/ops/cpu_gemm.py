"""Linear layers by whichever library is fastest for the shape: oneDNN where it runs and wins, else PyTorch's own.

Shapes: N rows, I columns in, O columns out.
"""

import torch
from torch.nn import functional as F

from moe_hf.ops.activations import Activation, activate

# When oneDNN's linear layer beats F.linear, measured on Zen 4: its call costs some 15 microseconds more, which large
# weights or many products repay. It reorders the weights at each call, which few rows repay in float32 unless the
# weights are transposed, and never in bfloat16, where F.linear is oneDNN's matrix product on the weights as they lie.
ONEDNN_FROM_WEIGHTS = 2**18
ONEDNN_FROM_PRODUCTS = 2**21
ONEDNN_FROM_ROWS = {torch.float32: 1, torch.bfloat16: 129}
ONEDNN_FROM_ROWS_TRANSPOSED = {torch.float32: 16, torch.bfloat16: 129}

# What oneDNN can compute on the product before it is written.
FUSED_ACTIVATIONS: dict[str, tuple[str, list[float], str]] = {
    "gelu": ("gelu", [], "none"),
    "gelu_tanh": ("gelu", [], "tanh"),
    "relu": ("relu", [], ""),
    "silu": ("swish", [], ""),
}


_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_available() -> bool:
    """Whether this PyTorch was built with oneDNN's linear layer and the user has not turned it off."""
    return _HAS_ONEDNN and bool(torch.backends.mkldnn.enabled)


def onednn_wins(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """Whether oneDNN computes this linear layer, and computes it faster."""
    from_rows = ONEDNN_FROM_ROWS if weight_OI.is_contiguous() else ONEDNN_FROM_ROWS_TRANSPOSED
    num_rows, num_weights = x_NI.shape[0], weight_OI.numel()
    if x_NI.dtype not in from_rows or num_rows < from_rows[x_NI.dtype] or not x_NI.is_cpu:
        return False
    large = num_weights >= ONEDNN_FROM_WEIGHTS or num_rows * num_weights >= ONEDNN_FROM_PRODUCTS
    return large and onednn_available()


def linear(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` without gradients, (N, O); a transposed view as weight costs no copy."""
    if onednn_wins(x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")
    return F.linear(x_NI, weight_OI, bias_O)


def linear_activated(
    x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, activation: Activation
) -> torch.Tensor:
    """A linear layer and its activation without gradients, as one kernel where oneDNN has it."""
    if activation.gate == "none" and activation.name in FUSED_ACTIVATIONS and onednn_wins(x_NI, weight_OI):
        return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, *FUSED_ACTIVATIONS[activation.name])
    return activate(linear(x_NI, weight_OI, bias_O), activation)
