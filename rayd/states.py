"""States as tensors by name, for checkpoints and for tasks that travel to workers.

`Optimizer.state_dict` numbers parameters and nests tensors; files of safetensors hold tensors by
name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with a prefix, and remove the prefix."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def state_tensors(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by reference, as `<kind>.<name of the parameter>`.

    Args:
        optimizer: has taken any number of steps.
        names: of its parameters, in its order.

    >>> weight = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    >>> weight.sum().backward()
    >>> optimizer.step()
    >>> state_tensors(optimizer, ["weight"])
    {'momentum_buffer.weight': tensor([1.])}
    """
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        for kind, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{kind}.{names[index]}"] = value
    return tensors


def load_state_tensors(
    optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Give a new optimizer copies of the tensors of `state_tensors`.

    Raises:
        KeyError: a name is no parameter's.
        RuntimeError: a shape is not its parameter's.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        number = numbers[name]
        # in the memory layout of the parameter, which fused optimizers rely on
        like = value if kind == "step" else parameters[number]
        state.setdefault(number, {})[kind] = torch.empty_like(like).copy_(value)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
