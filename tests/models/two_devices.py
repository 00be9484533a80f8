"""A stand-in for a second device: tensors on the CPU that remember where they lie and refuse to meet the others.

`cpu:0` and `cpu:1` are the same memory to PyTorch, so values and gradients are real; what a second GPU would refuse is
refused here: an operation whose tensors lie on both, unless it copies.
"""

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

HERE, THERE = torch.device("cpu", 0), torch.device("cpu", 1)
_GET_DEVICE = torch.Tensor.device.__get__
_COPIES = {torch.ops.aten.copy_.default}


class TwoDevices(TorchFunctionMode):
    """Within it tensors lie on HERE, and on THERE where they were moved to or made from such."""

    def __init__(self) -> None:
        self.places = WeakTensorKeyDictionary()
        self.watch = _Watch(self)

    def __enter__(self) -> "TwoDevices":
        self.watch.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.watch.__exit__(*error)

    def place(self, tensor: torch.Tensor) -> torch.device:
        """Where the tensor lies."""
        return self.places.get(tensor, HERE)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers and obeys what is said of devices; the rest is PyTorch's."""
        if func == _GET_DEVICE:
            return self.place(args[0])
        kwargs = dict(kwargs or {})
        wanted = kwargs.pop("device", None)
        if func is torch.Tensor.new_tensor and wanted is None:
            wanted = self.place(args[0])
        if func is torch.Tensor.to:
            # Positional forms: a device, a type, or a tensor to resemble.
            for given in args[1:]:
                like = isinstance(given, torch.Tensor)
                wanted = self.place(given) if like else torch.device(given) if _names_device(given) else wanted
            args = (args[0], *(given for given in args[1:] if not _names_device(given)))
            if len(args) == 1 and not kwargs:
                kwargs = {"copy": False, "dtype": args[0].dtype}
        result = func(*args, **kwargs)
        if not isinstance(result, torch.Tensor):
            return result
        self.places.setdefault(result, HERE)
        wanted = self.place(result) if wanted is None else torch.device(wanted)
        wanted = HERE if wanted.index is None else wanted
        return result if self.place(result) == wanted else _Moved.apply(result, self, wanted)

    def put(self, device: torch.device, *tensors: torch.Tensor) -> None:
        """Say that they lie there."""
        for tensor in tensors:
            self.places[tensor] = device

    def move(self, module: nn.Module, device: torch.device) -> None:
        """Put the module there; its inputs follow, as with `accelerate.dispatch_model`."""
        self.put(device, *module.parameters(), *module.buffers())

        def bring(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return tree_map(lambda x: x.to(device) if isinstance(x, torch.Tensor) else x, (args, kwargs))

        module.register_forward_pre_hook(bring, with_kwargs=True)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, devices: TwoDevices, wanted: torch.device) -> torch.Tensor:
        ctx.devices, ctx.source = devices, devices.place(x)
        moved = x.clone()
        devices.places[moved] = wanted
        return moved

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        moved = gradient.clone()
        ctx.devices.places[moved] = ctx.source
        return moved, None, None


class _Watch(TorchDispatchMode):
    def __init__(self, devices: TwoDevices) -> None:
        super().__init__()
        self.devices = devices

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # What PyTorch makes by itself on the way was asked of nobody, and goes everywhere.
        places = {self.devices.places[tensor] for tensor in tensors if tensor in self.devices.places}
        if len(places) > 1 and func not in _COPIES:
            raise RuntimeError(f"{func} got tensors on {HERE} and {THERE}: {[tuple(t.shape) for t in tensors]}")
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result) if places and func not in _COPIES else ():
            if isinstance(leaf, torch.Tensor):
                self.devices.places[leaf] = next(iter(places))
        return result


def _names_device(given: Any) -> bool:
    return isinstance(given, torch.device | str)
