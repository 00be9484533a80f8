"""Makes an opaque operator of two passes: what autograd and the compiler see in place of loops that they cannot follow.

A loop over segments, whose graph would grow with the length, or over groups whose number the data decide, is one node
to both. torch wants such an operator's arguments flat, its shapes told apart from its values, and its backward pass as
an operator of its own; here all of this is said once.
"""

import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, get_type_hints

import torch

# Registering an operator takes its name away from the one that had it. Where this file is the copy that an exported
# model brought along, there may be other copies in the process, of other versions, and this package itself.
NAMESPACE = "moe_hf" if __name__.startswith("moe_hf.") else f"moe_hf_{zlib.crc32(__name__.encode()):08x}"
"""What stands before `::` in the names of this package's operators."""

P = ParamSpec("P")
R = TypeVar("R")


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of one of them."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def opaque(
    name: str,
    forward: Callable[P, R],
    shapes: Callable[..., R],
    backward: Callable[..., Sequence[torch.Tensor]],
    gradient_shapes: Callable[..., Sequence[torch.Tensor]],
    *,
    returns: tuple[str, ...],
    gradients: tuple[str, ...],
) -> Callable[P, R]:
    """`forward` as the operator `moe_hf::name`, whose gradient can be taken once, by `moe_hf::name_backward`.

    Arguments of the passes may be NamedTuples, nested as well; the operators take their fields, one after the other.

    Args:
        name: of the operator, after `moe_hf::`.
        forward: gives a tensor, or a plain tuple of tensors, none of which may be one of its arguments.
        shapes: gives empty tensors of the shapes, types and strides that `forward` gives; takes those of its arguments
            that it names.
        backward: gives a tensor for each of `gradients`, an empty one where it is not needed. What it takes is found by
            name: "d" and the name of a result is that result's gradient, None where there is none; the name of an
            argument of `forward`, or of a result, is its value; `needs` says which of `gradients` are asked for.
        gradient_shapes: gives empty tensors like those of `backward`; takes those of its arguments that it names.
        returns: names of the results.
        gradients: names of the arguments that have a gradient. It is given in the type of the argument.
    """
    operator = _operator(name, forward, shapes, tuple[(torch.Tensor,) * len(returns)] if returns[1:] else torch.Tensor)
    backward_operator = _operator(f"{name}_backward", backward, gradient_shapes, list[torch.Tensor])
    arguments = list(_flat_fields(_arguments(forward)))
    asked = [field for field, _ in _flat_fields(_arguments(backward))]
    _differentiate(operator, backward_operator, arguments, asked, returns, gradients)

    signature = inspect.signature(forward)
    count = len(signature.parameters)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs and len(args) == count:
            return operator(*_flat(args))
        # Apart from the plain call, since a small one would feel it. An argument too many or too few is named here.
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return operator(*_flat(bound.args))

    return call


def _differentiate(
    operator: Any,
    backward_operator: Any,
    arguments: Sequence[tuple[str, Any]],
    asked: Sequence[str],
    returns: Sequence[str],
    gradients: Sequence[str],
) -> None:
    """Let autograd differentiate `operator` by `backward_operator`, which takes what `asked` names."""
    taken = [field for field, _ in arguments]
    places = [taken.index(field) for field in gradients]
    # Where the values that the backward pass asks for stand, first among those of the forward pass, then among all that
    # there are on the way back: worked out here, since a small call would feel it.
    pool = [*taken, *returns]
    is_plain = {field: kind not in (torch.Tensor, torch.Tensor | None) for field, kind in arguments}
    tensors = [field for field in asked if field in pool and not is_plain.get(field)]
    plain = [field for field in asked if is_plain.get(field)]
    tensor_places, plain_places = ([pool.index(field) for field in fields] for fields in (tensors, plain))
    later = [*tensors, *plain, *(f"d{result}" for result in returns), "needs"]
    order = [later.index(field) for field in asked]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values = (*inputs, *output) if isinstance(output, tuple) else (*inputs, output)
        # Without this the absent gradients would be made, as zeros of the results' sizes.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[values[place] for place in tensor_places])
        ctx.plain = [values[place] for place in plain_places]
        # The passes compute in wider types, and autograd wants the gradient in that of the argument.
        ctx.dtypes = [None if inputs[place] is None else inputs[place].dtype for place in places]

    def differentiate(ctx: Any, *found: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        results: list[torch.Tensor | None] = [None] * len(taken)
        if all(gradient is None for gradient in found):
            return tuple(results)
        needs = [ctx.needs_input_grad[place] for place in places]
        # The saved tensors are read once: gradient checkpointing allows no second access.
        values = [*ctx.saved_tensors, *ctx.plain, *found, needs]
        computed = backward_operator(*[values[at] for at in order])
        for place, need, dtype, gradient in zip(places, needs, ctx.dtypes, computed, strict=True):
            if need:
                results[place] = gradient.to(dtype)
        return tuple(results)

    operator.register_autograd(differentiate, setup_context=keep)


class _Argument(NamedTuple):
    """An argument, of a type that torch knows, or a NamedTuple of such."""

    name: str
    kind: Any
    fields: "list[_Argument] | None"


def _arguments(function: Callable[..., Any]) -> list[_Argument]:
    hints = get_type_hints(function)
    return [_argument(name, hints[name]) for name in inspect.signature(function).parameters]


def _argument(name: str, kind: Any) -> _Argument:
    # No base class tells a NamedTuple from other tuples.
    if not hasattr(kind, "_fields"):
        return _Argument(name, kind, None)
    return _Argument(name, kind, [_argument(field, hint) for field, hint in get_type_hints(kind).items()])


def _operator(name: str, function: Callable[..., Any], shapes: Callable[..., Any], returned: Any) -> Any:
    arguments = _arguments(function)

    def flat(*values: Any) -> Any:
        result = function(*_grouped(arguments, iter(values)))
        return result if returned is torch.Tensor else returned(result)

    # torch reads an operator's schema off the signature.
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(field, positional, annotation=kind) for field, kind in _flat_fields(arguments)]
    flat.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
    operator = torch.library.custom_op(f"{NAMESPACE}::{name}", flat, mutates_args=())
    names = [argument.name for argument in arguments]
    wanted = [names.index(field) for field in inspect.signature(shapes).parameters]

    def fake(*values: Any) -> Any:
        grouped = _grouped(arguments, iter(values))
        return shapes(*[grouped[place] for place in wanted])

    operator.register_fake(fake)
    return operator


def _flat_fields(arguments: Sequence[_Argument]) -> Iterator[tuple[str, Any]]:
    """Name and type of each argument that is no NamedTuple, and of the fields of those that are."""
    for name, kind, fields in arguments:
        if fields is None:
            yield name, kind
        else:
            yield from _flat_fields(fields)


def _grouped(arguments: Sequence[_Argument], values: Iterator[Any]) -> list[Any]:
    """What `_flat` took apart."""
    return [next(values) if fields is None else kind(*_grouped(fields, values)) for _, kind, fields in arguments]


def _flat(values: Sequence[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            flat.extend(_flat(value))
        else:
            flat.append(value)
    return flat
