"""The activations of moe_hf.ops.experts.activations on one tile, inside a Triton kernel, in float32."""

# Triton's compiler types the parameters of kernels; Python's types cannot.
# mypy: disable-error-code="no-untyped-def"

import triton  # noqa: TID251
import triton.language as tl  # noqa: TID251


@triton.jit
def activate_tile(z, NAME: tl.constexpr):
    """name(z); what `activate` gives for an activation without gate."""
    if NAME == "gelu":
        return 0.5 * z * (1 + tl.math.erf(z * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        # z * sigmoid(2u) is the tanh form of GELU written with one exponential.
        return z * tl.sigmoid(1.5957691216057308 * (z + 0.044715 * z * z * z))
    elif NAME == "silu":
        return z * tl.sigmoid(z)
    elif NAME == "relu":
        return tl.maximum(z, 0.0)
    else:
        tl.static_assert(NAME == "relu2", "unknown activation")
        positive = tl.maximum(z, 0.0)
        return positive * positive


@triton.jit
def activation_slope_tile(z, NAME: tl.constexpr):
    """The derivative of name at z."""
    if NAME == "gelu":
        below = 0.5 * (1 + tl.math.erf(z * 0.7071067811865476))
        return below + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    elif NAME == "gelu_tanh":
        square = z * z
        # The numbers are 2 * sqrt(2 / pi), and 3 * 0.044715 in the slope of the cube.
        gate = tl.sigmoid(1.5957691216057308 * z * (1 + 0.044715 * square))
        return gate + z * gate * (1 - gate) * 1.5957691216057308 * (1 + 0.134145 * square)
    elif NAME == "silu":
        gate = tl.sigmoid(z)
        return gate * (1 + z * (1 - gate))
    elif NAME == "relu":
        return tl.where(z > 0, 1.0, 0.0)
    else:
        tl.static_assert(NAME == "relu2", "unknown activation")
        return 2 * tl.maximum(z, 0.0)
