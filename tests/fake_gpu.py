"""Code for a GPU run without one: on fake tensors, which have shape, dtype and device alone."""

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MODE = FakeTensorMode()  # one, and a device of its own: constants are cached by device
_DEVICE = torch.device("cuda", 7)
_WAITING = ("_local_scalar_dense", "_linalg_check_errors", "nonzero", "masked_select")


class _Watch(TorchDispatchMode):
    """Raise at an operation for which a CPU waits: one that needs a value, or copies between devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        # A CPU scalar is an operand that goes to the kernel by value, but not when it is copied.
        devices = {x.device.type for x in tensors if x.ndim or "copy" in str(func)}
        if len(devices) > 1 or any(name in str(func) for name in _WAITING):
            raise AssertionError(f"{func} waits for the GPU")
        return out


def _fake(x: Any) -> Any:
    """Copy of a tensor, dataclass, tuple or module with fake tensors."""
    if isinstance(x, Tensor):
        with _MODE:
            return torch.empty(x.shape, dtype=x.dtype, device=_DEVICE)
    if isinstance(x, nn.Module):
        x = copy.deepcopy(x)
        for module in x.modules():
            for named in (module._parameters, module._buffers):
                named.update({name: _fake(value) for name, value in named.items()})
    elif is_dataclass(x) and any(isinstance(getattr(x, f.name), Tensor | tuple) for f in fields(x)):
        return type(x)(**{f.name: _fake(getattr(x, f.name)) for f in fields(x)})  # type: ignore[operator]
    return tuple(map(_fake, x)) if type(x) is tuple else x


def assert_never_waits(function: Callable[..., object], *inputs: Any) -> None:
    """Call the function on fakes of the inputs, twice: constants are copied to the GPU at the first call."""
    inputs = _fake(inputs)
    with _MODE, torch.no_grad():
        function(*inputs)
        with _Watch():
            function(*inputs)
