"""Extraction of features by layer role: last map, inputs of normalisations, outputs of blocks, ...

A method requests roles, and `FeatureExtractor` finds the layers with these roles by running the
network once on a blank image. It works with any `nn.Module` that maps (N, channels, height, width)
to logits; the network needs no changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rayd.config.choices import LayerRole
from rayd.errors import ConfigError

if TYPE_CHECKING:
    from rayd.data.images import ImageShape
    from rayd.objectives.batch_parts import OtherParts


_NEEDS = {
    LayerRole.FEATURES: "a linear classifier",
    LayerRole.LAST_MAP: "a convolutional map before the classifier",
    LayerRole.BN_INPUTS: "batch normalisation",
    LayerRole.CONV_INPUTS: "convolutions",
    LayerRole.CONV_PATH: "convolutions",
    LayerRole.BLOCK_OUTPUTS: "convolutional blocks",
}


@dataclass(frozen=True, eq=False)
class Observation:
    """Logits and recorded layer tensors of a network for a batch."""

    logits: Tensor
    """Output of the network, (N, classes)."""
    layers: dict[LayerRole, tuple[Tensor, ...]]
    """Tensors of each requested role, with their graph, in order of execution; one tensor for
    FEATURES and LAST_MAP.
    """
    images: Tensor
    """Input of the network, (N, channels, height, width)."""
    others: OtherParts | None = None
    """The other parts of the batch, if this is one part: `logits` and FEATURES are then those of
    the whole batch, `images` and other layers those of this part.
    """


class FeatureExtractor(nn.Module):
    """A network whose forward pass also returns the tensors of requested layer roles.

    Hooks are registered during a forward pass only, so the network can be used, copied and saved
    as usual; layers are referred to by name, so a copied extractor observes the copied network. It
    works under `torch.no_grad`, autocast and `torch.func.functional_call` (parameters are named
    `network.<name>`).

    If the network changes a tensor in place after a recorded layer has read it, the recorded tensor
    changes, too. Layers are found in eval mode; layers that only run in training (auxiliary heads)
    are not recorded.

    Args:
        network: the network; its mode and its running statistics are left unchanged.
        roles: roles to record.
        shape: (channels, height, width) of the images.
        optional: roles that may have no layers; their tensors are then an empty tuple.

    Attributes:
        largest: number of values of the largest layer input or output, for one image.

    Raises:
        ConfigError: the network has no layer of a requested role that is not optional.
    """

    def __init__(
        self,
        network: nn.Module,
        roles: Collection[LayerRole],
        shape: ImageShape,
        *,
        optional: Collection[LayerRole] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self._calls: dict[LayerRole, tuple[_Call, ...]] = {}
        self._dimensions: dict[LayerRole, list[tuple[int, ...]]] = {}
        trace = _trace(network, shape)
        self.largest = max((tensor.numel() for _, tensor in trace), default=0)
        for role in LayerRole:
            if role not in roles:
                continue
            layers = _FINDERS[role](network, trace)
            if not layers and role not in optional:
                raise ConfigError(
                    f"Layer role '{role}' needs {_NEEDS[role]}; "
                    f"network {type(network).__name__} has none."
                )
            self._calls[role] = tuple(call for call, _ in layers)
            self._dimensions[role] = [
                tuple(_shaped(role, tensor).shape[1:]) for _, tensor in layers
            ]

    def __call__(self, images: Tensor) -> Observation:
        """Run the network on images (N, channels, height, width); see `forward`."""
        observation: Observation = super().__call__(images)
        return observation

    def forward(self, images: Tensor) -> Observation:
        """Run the network once; return its logits and the tensors of the requested roles."""
        requested = {call for calls in self._calls.values() for call in calls}
        recorded: dict[_Call, Tensor] = {}

        def record(call: _Call, tensor: Tensor) -> None:
            if call in requested:
                recorded[call] = tensor

        with _recording(self.network, {call.port for call in requested}, record):
            logits = self.network(images)
        layers = {}
        for role, calls in self._calls.items():
            layers[role] = tuple(_shaped(role, recorded[call]) for call in calls)
        return Observation(logits, layers, images)

    def layers(self, role: LayerRole) -> list[str]:
        """Names of the modules of a role, in order of execution, with repetitions."""
        return [call.port.module for call in self._calls[role]]

    def dimensions(self, role: LayerRole) -> list[tuple[int, ...]]:
        """Shapes of a role's tensors without the batch dimension, in the order of `layers`."""
        return list(self._dimensions[role])


class _Port(NamedTuple):
    """Input or output of a module of the network."""

    module: str
    side: Literal["input", "output"]


class _Call(NamedTuple):
    """The n-th tensor (from 0) that passes a port in a forward pass."""

    port: _Port
    number: int


_Trace = list[tuple[_Call, Tensor]]


@contextmanager
def _recording(
    network: nn.Module, ports: Iterable[_Port], record: Callable[[_Call, Tensor], None]
) -> Iterator[None]:
    """Context in which `record` is called with every tensor that passes the ports."""
    counts: Counter[_Port] = Counter()

    def count(port: _Port, value: object) -> None:
        if isinstance(value, Tensor):
            record(_Call(port, counts[port]), value)
        counts[port] += 1

    with ExitStack() as hooks:
        for port in ports:
            hooks.enter_context(_hook(network.get_submodule(port.module), port, count))
        yield


def _hook(
    module: nn.Module, port: _Port, count: Callable[[_Port, object], None]
) -> torch.utils.hooks.RemovableHandle:
    def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        # the first argument, positional or by keyword
        count(port, next(iter((*arguments, *keywords.values())), None))

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        count(port, output)

    if port.side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _trace(network: nn.Module, shape: ImageShape) -> _Trace:
    """All module inputs and outputs, in order, of a forward pass of a blank image in eval mode."""
    trace: _Trace = []
    ports: list[_Port] = []
    for name, _ in network.named_modules():
        ports += [_Port(name, "input"), _Port(name, "output")]
    # submodules may differ in mode, so each one's is restored
    modes = {module: module.training for module in network.modules()}
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        network.eval()
        with (
            torch.no_grad(),
            _recording(network, ports, lambda call, tensor: trace.append((call, tensor))),
        ):
            network(torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype))
    finally:
        for module, training in modes.items():
            module.training = training
    return trace


def _inputs(
    network: nn.Module, trace: _Trace, kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> _Trace:
    """The inputs of all modules of some kinds."""
    inputs: _Trace = []
    for call, tensor in trace:
        module = network.get_submodule(call.port.module)
        if call.port.side == "input" and isinstance(module, kinds):
            inputs.append((call, tensor))
    return inputs


def _features(network: nn.Module, trace: _Trace) -> _Trace:
    return _inputs(network, trace, nn.Linear)[-1:]


def _bn_inputs(network: nn.Module, trace: _Trace) -> _Trace:
    return _inputs(network, trace, (nn.BatchNorm2d, nn.SyncBatchNorm))


def _conv_inputs(network: nn.Module, trace: _Trace) -> _Trace:
    return _inputs(network, trace, nn.Conv2d)


def _conv_path(network: nn.Module, trace: _Trace) -> _Trace:
    """Inputs of convolutions, each tensor once."""
    first: dict[int, tuple[_Call, Tensor]] = {}
    for call, tensor in _conv_inputs(network, trace):
        first.setdefault(id(tensor), (call, tensor))
    return list(first.values())


def _last_map(network: nn.Module, trace: _Trace) -> _Trace:
    """Input of the last adaptive pooling, or the last later map that is larger than its output.

    Networks use adaptive pooling for global pooling, but squeeze-and-excitation uses it inside a
    block, hence the second case. A network that turns its maps into a sequence of tokens (N,
    tokens, d) has no last map.
    """
    last: _Trace = []
    pooled_area = 0
    convolved = False
    for call, tensor in trace:
        module = network.get_submodule(call.port.module)
        convolved |= isinstance(module, nn.Conv2d)
        pooling = isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        if tensor.ndim == 3:
            # tokens
            last = []
        elif tensor.ndim != 4 or not convolved:
            continue
        elif call.port.side == "input":
            last = [(call, tensor)] if pooling else last
        elif pooling:
            pooled_area = _area(tensor)
        elif _area(tensor) > pooled_area:
            last = [(call, tensor)]
            pooled_area = 0
    return last


def _block_outputs(network: nn.Module, trace: _Trace) -> _Trace:
    """Maps after which the resolution decreases permanently, and the last map; see `LayerRole`.

    The resolution decreases inside a convolution (by strides) or between two of them (by pooling).
    In both cases, the map that the next stage reads first is the output of a block.
    """
    last = _last_map(network, trace)
    written = {
        (call.port.module, call.number): _area(tensor)
        for call, tensor in trace
        if call.port.side == "output" and tensor.ndim == 4
    }
    read = [(call, tensor) for call, tensor in _conv_inputs(network, trace) if tensor.ndim == 4]
    images = read[0][1] if read else None
    # index of the first read of a tensor, as shortcuts read it again
    first: dict[int, int] = {}
    # by area of the map, the index in `read` at which it shrinks, after a convolution or inside one
    pooled: dict[int, int] = {}
    strided: dict[int, int] = {}
    # area of the previous convolution's output
    before = 0
    for order, (call, tensor) in enumerate(read):
        area = _area(tensor)
        index = first.setdefault(id(tensor), order)
        after = written.get((call.port.module, call.number), area)
        later = max((_area(other) for _, other in (*read[order + 1 :], *last)), default=0)
        # squeeze-and-excitation also reads pooled maps, but larger ones follow
        if tensor is not images and later <= area:
            if after < area:
                strided[area] = min(index, strided.get(area, index))
            elif area < before:
                pooled[area] = index
        before = after
    # a stem's pooled map has the resolution of the next stage, whose output is the block's
    ends = [read[index] for index in sorted((pooled | strided).values())]
    return [end for end in ends if not last or end[1] is not last[0][1]] + last


def _area(maps: Tensor) -> int:
    return maps.shape[2] * maps.shape[3]


_FINDERS: dict[LayerRole, Callable[[nn.Module, _Trace], _Trace]] = {
    LayerRole.FEATURES: _features,
    LayerRole.LAST_MAP: _last_map,
    LayerRole.BN_INPUTS: _bn_inputs,
    LayerRole.CONV_INPUTS: _conv_inputs,
    LayerRole.CONV_PATH: _conv_path,
    LayerRole.BLOCK_OUTPUTS: _block_outputs,
}


def _shaped(role: LayerRole, tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if role is LayerRole.FEATURES else tensor
