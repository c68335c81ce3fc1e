"""A simulation of Apple's GPU, which refuses float64, and operations that mix its tensors with
those of the host.

Tensors stay on the CPU and only report `mps` as their device. This is sufficient for testing
computations, but `Module.to` does not move a network there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

MPS = torch.device("mps", 0)
REFUSED = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
)
"""Torch's message."""


class SimulatedTensor(torch.Tensor):
    """A tensor that reports the GPU as its device."""

    device = property(lambda self: MPS)  # type: ignore[assignment]

    def __deepcopy__(self, memo: Any) -> Tensor:
        copied = self.detach().clone()
        is_parameter = isinstance(self, nn.Parameter)
        return nn.Parameter(copied, self.requires_grad) if is_parameter else copied


@contextmanager
def simulated() -> Iterator[None]:
    """Within the context, `tensor.to("mps")` gives simulated tensors."""
    with _Rules():
        yield


def there(value: Tensor) -> Tensor:
    """A tensor on the simulated device.

    Raises:
        TypeError: it is of float64.
    """
    if value.dtype in (torch.float64, torch.complex128):
        raise TypeError(REFUSED)
    # in-place operations must return the same object
    return value if isinstance(value, SimulatedTensor) else value.as_subclass(SimulatedTensor)


class _Rules(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cpu):
            return _moved(func, args, kwargs)
        wanted = kwargs.get("device")
        is_made_there = wanted is not None and torch.device(wanted).type == "mps"
        if is_made_there:
            kwargs["device"] = "cpu"
        tensors = [one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        simulated = [one for one in tensors if isinstance(one, SimulatedTensor)]
        strangers = [one for one in tensors if not isinstance(one, SimulatedTensor) and one.ndim]
        takes_indices = func in (Tensor.__getitem__, Tensor.__setitem__, Tensor.copy_)
        if simulated and strangers and not takes_indices:
            raise RuntimeError(f"{func.__name__}: tensors are on the host and on the GPU")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if is_made_there or (simulated and not takes_indices) or _is_simulated(args[:1]):
            return pytree.tree_map_only(Tensor, there, result)
        return result


def _is_simulated(values: tuple[Any, ...]) -> bool:
    return any(isinstance(one, SimulatedTensor) for one in values)


def _moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The result of `tensor.to(...)` or `tensor.cpu()`."""
    source = args[0]
    target = source.device
    rest = []
    for value in args[1:]:
        if isinstance(value, Tensor):
            target = value.device
            rest.append(value.dtype)
        elif isinstance(value, str | torch.device):
            target = torch.device(value)
        else:
            rest.append(value)
    if (device := kwargs.pop("device", None)) is not None:
        target = torch.device(device)
    if func is Tensor.cpu:
        target = torch.device("cpu")
    with torch._C.DisableTorchFunctionSubclass():
        plain = source.as_subclass(Tensor)
        result = plain.to(*rest, **kwargs) if rest or kwargs else plain
    # values are converted on the source device
    if isinstance(source, SimulatedTensor) and result.dtype != source.dtype:
        there(result)
    return there(result) if target.type == "mps" else result
