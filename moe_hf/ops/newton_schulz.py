"""The half-orthogonal matrix nearest to each matrix of a batch, approximately and by products alone.

Shapes: N matrices, R rows, C columns, M the smaller of the two.
"""

import functools
from typing import Any, NamedTuple, Self

import torch


class Quintic(NamedTuple):
    """The odd polynomial a x + b x^3 + c x^5."""

    a: float
    b: float
    c: float


# One after the other, the quintics that bring singular values in [0.003, 1] nearest to 1, the worst of them (Amsel et
# al. 2025, Polar Express): each is the best one for the interval that the one before leaves. That interval is taken 1%
# wider at its upper end, since beyond it a quintic that begins with 8 soon grows without bound, and products round.
QUINTICS = (
    Quintic(8.383674, -24.765906, 18.357082),
    Quintic(4.005857, -2.925287, 0.542360),
    Quintic(3.484023, -2.561421, 0.502366),
    Quintic(2.490612, -1.807013, 0.421121),
)
# Bounds of singular values are taken so much wider: bfloat16 keeps 8 bits.
_MARGIN = 1.02


class NewtonSchulzRoom(NamedTuple):
    """Memory for batches of one shape, one after the other: fresh memory would cost as much as a product.

    Attributes:
        matrix_NRC: to be filled in, and overwritten.
        x_NRC, next_NRC: the matrices on their way, in the precision of the products.
        gram_NMM, mix_NMM: X X^T or X^T X, and what a quintic makes of it.
    """

    matrix_NRC: torch.Tensor
    x_NRC: torch.Tensor
    next_NRC: torch.Tensor
    gram_NMM: torch.Tensor
    mix_NMM: torch.Tensor

    @classmethod
    def like(cls, matrix_NRC: torch.Tensor, precision: torch.dtype | None = None) -> Self:
        """Room for a batch of that shape, dtype and device; `precision` as in `newton_schulz`."""
        rows, columns = matrix_NRC.shape[1:]
        precision = best_precision(matrix_NRC.device) if precision is None else precision
        x_NRC = torch.empty_like(matrix_NRC, dtype=precision, memory_format=torch.contiguous_format)
        gram_NMM = x_NRC.new_empty(len(x_NRC), min(rows, columns), min(rows, columns))
        matrix_NRC = torch.empty_like(matrix_NRC, memory_format=torch.contiguous_format)
        return cls(matrix_NRC, x_NRC, torch.empty_like(x_NRC), gram_NMM, torch.empty_like(gram_NMM))

    def first(self, num_matrices: int) -> Self:
        """The room of the first so many matrices, for a batch that does not fill it."""
        return type(self)(*(part[:num_matrices] for part in self))


def newton_schulz(matrix_NRC: torch.Tensor, precision: torch.dtype | None = None) -> torch.Tensor:
    """Every matrix with its singular values pushed to about 1, by `QUINTICS` (Jordan et al. 2024; Amsel et al. 2025).

    Those above 0.003 of the largest end in (0.79, 1.21), smaller ones are multiplied by 290.

    Args:
        matrix_NRC: wide or tall.
        precision: None is bfloat16 on CUDA and on CPUs with instructions for it, else float32.

    Returns:
        (N, R, C), in the precision that was computed in.
    """
    room = NewtonSchulzRoom.like(matrix_NRC, precision)
    room.matrix_NRC.copy_(matrix_NRC)
    return newton_schulz_in(room)


def newton_schulz_in(room: NewtonSchulzRoom) -> torch.Tensor:
    """`newton_schulz` of `room.matrix_NRC`: a view of the room, which the next batch overwrites.

    Long float32 matrices iterate on their small square products, as X X^T, and multiply X once at the end: the same
    polynomial with fewer operations. In bfloat16 that form would lose the small singular values.
    """
    matrix_NRC, x_NRC, next_NRC, gram_NMM, mix_NMM = room
    rows, columns = matrix_NRC.shape[1:]
    # M is the shorter side: X X^T for wide matrices, X^T X for tall ones.
    wide, shorter = rows <= columns, min(rows, columns)
    # Of norm 1, whatever the gradients' size is; so small a one that it may be rounding stays small.
    norm_N11 = torch.linalg.vector_norm(matrix_NRC, dim=(-2, -1), keepdim=True)
    x_NRC.copy_(matrix_NRC.div_(norm_N11.add_(1e-7)))
    _gram(x_NRC, wide, gram_NMM)
    # The norm of X X^T bounds the largest singular value's square, more closely than the norm of X does: the quintics
    # begin nearer to 1. Of a matrix of norm 1 it is at least 1 / sqrt(M).
    bound_N11 = torch.linalg.vector_norm(gram_NMM, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x_NRC.mul_(bound_N11.clamp_(min=0.5 * shorter**-0.5).mul_(_MARGIN).rsqrt_().to(x_NRC.dtype))
    if x_NRC.dtype == torch.float32 and max(rows, columns) >= 2 * shorter:
        product_NMM = _polynomial_of_gram(_gram(x_NRC, wide, gram_NMM))
        return torch.bmm(product_NMM, x_NRC, out=next_NRC) if wide else torch.bmm(x_NRC, product_NMM, out=next_NRC)
    for a, b, c in QUINTICS:
        _gram(x_NRC, wide, gram_NMM)
        torch.baddbmm(gram_NMM, gram_NMM, gram_NMM, beta=b, alpha=c, out=mix_NMM)
        left, right = (mix_NMM, x_NRC) if wide else (x_NRC, mix_NMM)
        torch.baddbmm(x_NRC, left, right, beta=a, out=next_NRC)
        x_NRC, next_NRC = next_NRC, x_NRC
    return x_NRC


def _gram(x_NRC: torch.Tensor, wide: bool, out_NMM: torch.Tensor) -> torch.Tensor:
    return torch.bmm(x_NRC, x_NRC.mT, out=out_NMM) if wide else torch.bmm(x_NRC.mT, x_NRC, out=out_NMM)


def _polynomial_of_gram(gram_NMM: torch.Tensor) -> torch.Tensor:
    """The matrix by which the iterations multiply X, from X X^T alone."""
    eye_MM = torch.eye(gram_NMM.shape[-1], device=gram_NMM.device)
    product_NMM = None
    for step, (a, b, c) in enumerate(QUINTICS, start=1):
        mix_NMM = torch.baddbmm(gram_NMM, gram_NMM, gram_NMM, beta=b, alpha=c)
        factor_NMM = torch.add(mix_NMM, eye_MM, alpha=a)
        product_NMM = factor_NMM if product_NMM is None else factor_NMM @ product_NMM
        if step < len(QUINTICS):
            # X X^T of the next X = factor X; all commute, being polynomials of the first gram matrix.
            gram_NMM = factor_NMM @ gram_NMM @ factor_NMM
    return eye_MM if product_NMM is None else product_NMM


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA and on CPUs with instructions for it, else float32."""
    fast = device.type == "cuda" or (device.type == "cpu" and _cpu_multiplies_bfloat16())
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def _cpu_multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for it; without them it is slower than float32. Older torch cannot tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
