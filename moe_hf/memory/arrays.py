"""Vectors of numpy or torch, as float32 rows of numpy and back.

Shapes: N vectors, D width.
"""

from typing import Any

import numpy
import torch

from moe_hf.base.errors import ConfigError

Vectors = numpy.ndarray | torch.Tensor
"""(N, D), or (D,) for one; any floating type, any device."""


def as_rows(vectors: Vectors, dim: int) -> numpy.ndarray:
    """The vectors as float32, (N, D), by copy or not.

    Raises:
        ConfigError: another width, more than two dimensions, or numbers that are not finite.
    """
    if isinstance(vectors, torch.Tensor):
        vectors = vectors.detach().to("cpu", torch.float32).numpy()
    rows_ND = numpy.atleast_2d(numpy.asarray(vectors, dtype=numpy.float32))
    if rows_ND.ndim != 2 or rows_ND.shape[1] != dim:
        raise ConfigError(f"vectors of shape {tuple(numpy.shape(vectors))} are not allowed; they must be (N, {dim})")
    if not numpy.isfinite(rows_ND).all():
        raise ConfigError("vectors with numbers that are not finite are not allowed; give finite ones")
    return rows_ND


def like(rows_ND: numpy.ndarray, given: Any) -> Any:
    """The rows as what was given is: on the device and in the type of a tensor, or as an array of its type."""
    if isinstance(given, torch.Tensor):
        dtype = given.dtype if given.is_floating_point() else torch.float32
        return torch.from_numpy(numpy.ascontiguousarray(rows_ND)).to(given.device, dtype)
    kind = numpy.asarray(given).dtype
    return rows_ND.astype(kind if numpy.issubdtype(kind, numpy.floating) else numpy.float32)


def checked_size(name: str, value: int, least: int = 1) -> int:
    """The number, if it is a whole one of at least `least`.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not allowed; it must be an integer >= {least}")
    return value


def checked_weights(weights: Any, count: int) -> numpy.ndarray:
    """The weights as float64, (N,); 1 for each where there are none.

    Raises:
        ConfigError: not one finite number > 0 for each of `count` vectors.
    """
    if weights is None:
        return numpy.ones(count)
    weight_N = numpy.asarray(weights, dtype=float).reshape(-1)
    if len(weight_N) != count or not (numpy.isfinite(weight_N) & (weight_N > 0)).all():
        raise ConfigError(
            f"weights must be {count} finite numbers > 0, one for each vector; got {weight_N[:5].tolist()}"
        )
    return weight_N


def to_int8(rows_ND: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Each vector in 8 bits, (N, D), with one scale of its own, (N, 1): its largest number becomes 127."""
    scale_N1 = numpy.abs(rows_ND).max(axis=1, keepdims=True, initial=0.0).astype(numpy.float32) / 127
    safe_N1 = numpy.where(scale_N1 > 0, scale_N1, 1.0)
    return numpy.rint(rows_ND / safe_N1).astype(numpy.int8), scale_N1


def from_int8(code_ND: numpy.ndarray, scale_N1: numpy.ndarray) -> numpy.ndarray:
    """The vectors, (N, D) float32, that `to_int8` put into 8 bits."""
    return code_ND.astype(numpy.float32) * scale_N1
