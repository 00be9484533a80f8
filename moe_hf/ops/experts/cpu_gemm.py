"""Linear layers by whichever library is fastest for the shape: oneDNN where it runs and wins, else PyTorch's own.

Shapes: N rows, I columns in, O columns out.
"""

import torch
from torch.nn import functional as F

from moe_hf.ops.experts.activations import Activation, activate, function_of

# When oneDNN's linear layer beats F.linear, measured on Zen 4: its call costs some 15 microseconds more, which large
# weights or many products repay. It reorders the weights at each call, which few rows repay in float32 unless the
# weights are transposed, and never in bfloat16, where F.linear is oneDNN's matrix product on the weights as they lie.
ONEDNN_FROM_WEIGHTS = 2**19
ONEDNN_FROM_PRODUCTS = 3 * 2**22
ONEDNN_FROM_ROWS = {torch.float32: 1, torch.bfloat16: 129}
ONEDNN_FROM_ROWS_TRANSPOSED = {torch.float32: 16, torch.bfloat16: 129}

_HAS_ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise")
# Without AVX-512 or AVX-NE-CONVERT oneDNN has no bfloat16, and its linear layer raises where F.linear falls back.
_HAS_BFLOAT16 = (
    _HAS_ONEDNN
    and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
    and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
)


def onednn_available(dtype: torch.dtype) -> bool:
    """Whether PyTorch has oneDNN's linear layer in this dtype on this CPU, and the user has not turned it off."""
    computes = {torch.float32: _HAS_ONEDNN, torch.bfloat16: _HAS_BFLOAT16}
    return computes.get(dtype, False) and bool(torch.backends.mkldnn.enabled)


def onednn_wins(x_NI: torch.Tensor, weight_OI: torch.Tensor) -> bool:
    """Whether oneDNN computes this linear layer, and computes it faster."""
    from_rows = ONEDNN_FROM_ROWS if weight_OI.is_contiguous() else ONEDNN_FROM_ROWS_TRANSPOSED
    num_rows, num_weights = x_NI.shape[0], weight_OI.numel()
    if x_NI.dtype not in from_rows or num_rows < from_rows[x_NI.dtype] or not x_NI.is_cpu:
        return False
    large = num_weights >= ONEDNN_FROM_WEIGHTS or num_rows * num_weights >= ONEDNN_FROM_PRODUCTS
    return large and onednn_available(x_NI.dtype)


def pointwise(
    x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, activation: Activation | None = None
) -> torch.Tensor:
    """oneDNN's linear layer, and the activation if there is one; the weights may be packed, the bias has any stride."""
    product = torch.ops.mkldnn._linear_pointwise
    # oneDNN takes the bias for contiguous, whatever it is.
    bias_O = None if bias_O is None else bias_O.contiguous()
    if activation is None:
        return product(x_NI, weight_OI, bias_O, "none", [], "")
    fused = function_of(activation).onednn
    if activation.gate == "none" and fused is not None:
        # Computed on the product before it is written.
        return product(x_NI, weight_OI, bias_O, *fused)
    return activate(product(x_NI, weight_OI, bias_O, "none", [], ""), activation)


def linear(x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear` without gradients, (N, O); a transposed view as weight costs no copy."""
    if onednn_wins(x_NI, weight_OI):
        return pointwise(x_NI, weight_OI, bias_O)
    return F.linear(x_NI, weight_OI, bias_O)


def linear_into(
    out_NO: torch.Tensor, x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None
) -> None:
    """Writes what `linear` gives into `out_NO`, which may be of another dtype."""
    # torch.mm writes only into its own type, and oneDNN's layer only into memory of its own.
    if out_NO.dtype != x_NI.dtype or onednn_wins(x_NI, weight_OI):
        out_NO.copy_(linear(x_NI, weight_OI, bias_O))
    elif bias_O is None:
        torch.mm(x_NI, weight_OI.t(), out=out_NO)
    else:
        torch.addmm(bias_O, x_NI, weight_OI.t(), out=out_NO)


def linear_activated(
    x_NI: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None, activation: Activation
) -> torch.Tensor:
    """A linear layer and its activation without gradients, as one kernel where oneDNN has it."""
    if onednn_wins(x_NI, weight_OI):
        return pointwise(x_NI, weight_OI, bias_O, activation)
    return activate(F.linear(x_NI, weight_OI, bias_O), activation)
