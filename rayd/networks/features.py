"""Features of a network by the role of its layers: what its classifier reads, its last map, inputs
of normalisations and of convolutions, outputs of blocks.

A method asks for roles, and `FeatureExtractor` finds the layers that play them by running the
network once on a blank image. Any `nn.Module` that maps (N, channels, height, width) to logits
works as it is.

Shapes: N images, d channels or features, h x w pixels of a map.
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
    """The output of a network on a batch, with that of its layers."""

    logits: Tensor
    """Output of the network, (N, classes)."""
    taps: dict[LayerRole, tuple[Tensor, ...]]
    """The tensors of each layer role, with their graph, in order of execution; one for FEATURES and
    LAST_MAP.
    """
    images: Tensor
    """The input of the network, (N, channels, height, width)."""


class FeatureExtractor(nn.Module):
    """A network whose forward pass also returns the inputs or outputs of chosen layers.

    Hooks stand only while a forward pass runs, so the network can be used, copied and saved as if
    there were none; layers are known by name, so a copy of `FeatureExtractor` records those of the
    copied network. It works under `torch.no_grad`, autocast and `torch.func.functional_call`
    (parameters are named `network.<name>`).

    A network that changes a tensor in place after it was recorded changes what is returned. The
    layers are those that run in eval mode; layers that run in training alone (auxiliary heads) are
    not recorded.

    Args:
        network: the network; its mode and its running statistics stay as they are.
        taps: the layer roles.
        shape: (channels, height, width) of the images that it will see.
        optional: those of them that the network may lack: they give an empty tuple.

    Attributes:
        largest: values of the largest tensor that goes into or out of a layer, for one image.

    Raises:
        ConfigError: the network has no layer of a role that is not optional.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Collection[LayerRole],
        shape: ImageShape,
        *,
        optional: Collection[LayerRole] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self._points: dict[LayerRole, tuple[_Point, ...]] = {}
        self._dimensions: dict[LayerRole, list[tuple[int, ...]]] = {}
        recorded = _dry_run(network, shape)
        self.largest = max((tensor.numel() for _, tensor in recorded), default=0)
        for tap in LayerRole:
            if tap not in taps:
                continue
            found = _FINDERS[tap](network, recorded)
            if not found and tap not in optional:
                raise ConfigError(
                    f"The layer role '{tap}' needs {_NEEDS[tap]}; network {type(network).__name__} has none."
                )
            self._points[tap] = tuple(point for point, _ in found)
            self._dimensions[tap] = [
                tuple(_as_returned(tap, tensor).shape[1:]) for _, tensor in found
            ]

    def __call__(self, images: Tensor) -> Observation:
        """Observe images (N, channels, height, width)."""
        observation: Observation = super().__call__(images)
        return observation

    def forward(self, images: Tensor) -> Observation:
        """Run the network once and return its logits with the recorded tensors."""
        wanted = {point for points in self._points.values() for point in points}
        recorded: dict[_Point, Tensor] = {}

        def record(point: _Point, tensor: Tensor) -> None:
            if point in wanted:
                recorded[point] = tensor

        with _hooks(self.network, {point.side for point in wanted}, record):
            logits = self.network(images)
        taps = {
            tap: tuple(_as_returned(tap, recorded[point]) for point in points)
            for tap, points in self._points.items()
        }
        return Observation(logits, taps, images)

    def layers(self, tap: LayerRole) -> list[str]:
        """The names of the modules whose tensors a role takes, in order of execution; a module that
        runs twice is named twice.
        """
        return [point.side.module for point in self._points[tap]]

    def dimensions(self, tap: LayerRole) -> list[tuple[int, ...]]:
        """The shapes of a role's tensors without the batch, in the order of `layers`."""
        return list(self._dimensions[tap])


class _Side(NamedTuple):
    """One side of a module of the network."""

    module: str
    which: Literal["input", "output"]


class _Point(NamedTuple):
    """One tensor of a forward pass: that of one side of a module at its n-th call."""

    side: _Side
    call: int


_Recorded = list[tuple[_Point, Tensor]]


@contextmanager
def _hooks(
    network: nn.Module, sides: Iterable[_Side], record: Callable[[_Point, Tensor], None]
) -> Iterator[None]:
    """Call `record` with every tensor at these sides of modules, until the block ends, however it
    ends.
    """
    calls: Counter[_Side] = Counter()

    def report(side: _Side, value: object) -> None:
        if isinstance(value, Tensor):
            record(_Point(side, calls[side]), value)
        calls[side] += 1

    with ExitStack() as hooks:
        for side in sides:
            hooks.enter_context(_hook(network.get_submodule(side.module), side, report))
        yield


def _hook(
    module: nn.Module, side: _Side, report: Callable[[_Side, object], None]
) -> torch.utils.hooks.RemovableHandle:
    def before(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        report(side, next(iter((*arguments, *keywords.values())), None))

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        report(side, output)

    if side.which == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)


def _dry_run(network: nn.Module, shape: ImageShape) -> _Recorded:
    """Every input and output of any module, in order, while the network forwards one blank image in
    eval mode.
    """
    recorded: _Recorded = []
    sides = [
        _Side(name, side) for name, _ in network.named_modules() for side in ("input", "output")
    ]
    modes = {module: module.training for module in network.modules()}
    weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    try:
        network.eval()
        with (
            torch.no_grad(),
            _hooks(network, sides, lambda point, tensor: recorded.append((point, tensor))),
        ):
            network(torch.zeros(1, *shape, device=weight.device, dtype=weight.dtype))
    finally:
        for module, training in modes.items():
            module.training = training
    return recorded


def _inputs(
    network: nn.Module, recorded: _Recorded, kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> _Recorded:
    return [
        (p, t)
        for p, t in recorded
        if p.side.which == "input" and isinstance(network.get_submodule(p.side.module), kinds)
    ]


def _features(network: nn.Module, recorded: _Recorded) -> _Recorded:
    return _inputs(network, recorded, nn.Linear)[-1:]


def _bn_inputs(network: nn.Module, recorded: _Recorded) -> _Recorded:
    return _inputs(network, recorded, (nn.BatchNorm2d, nn.SyncBatchNorm))


def _conv_inputs(network: nn.Module, recorded: _Recorded) -> _Recorded:
    return _inputs(network, recorded, nn.Conv2d)


def _conv_path(network: nn.Module, recorded: _Recorded) -> _Recorded:
    """Inputs of convolutions without those whose very tensor was recorded before."""
    first: dict[int, tuple[_Point, Tensor]] = {}
    for point, tensor in _conv_inputs(network, recorded):
        first.setdefault(id(tensor), (point, tensor))
    return list(first.values())


def _last_map(network: nn.Module, recorded: _Recorded) -> _Recorded:
    """The input of the last adaptive pooling, or the last map that comes after it and is larger
    than what it gave.

    Adaptive pooling is how networks pool globally; squeeze-and-excitation does it inside a block,
    whence the second clause. A network that turns its maps into a sequence of tokens (N, tokens, d)
    has no last map.
    """
    found: _Recorded = []
    pooled_area = 0
    convolved = False
    for point, tensor in recorded:
        module = network.get_submodule(point.side.module)
        convolved |= isinstance(module, nn.Conv2d)
        pooling = isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d)
        if tensor.ndim == 3:
            found = []
        elif tensor.ndim != 4 or not convolved:
            continue
        elif point.side.which == "input":
            found = [(point, tensor)] if pooling else found
        elif pooling:
            pooled_area = tensor.shape[2] * tensor.shape[3]
        elif tensor.shape[2] * tensor.shape[3] > pooled_area:
            found = [(point, tensor)]
            pooled_area = 0
    return found


def _block_outputs(network: nn.Module, recorded: _Recorded) -> _Recorded:
    """Maps at which the resolution falls for good, and the last map; see `LayerRole`."""
    last = _last_map(network, recorded)
    written = {
        (point.side.module, point.call): _area(tensor)
        for point, tensor in recorded
        if point.side.which == "output" and tensor.ndim == 4
    }
    read = [
        (point, tensor) for point, tensor in _conv_inputs(network, recorded) if tensor.ndim == 4
    ]
    images = read[0][1] if read else None
    first: dict[int, int] = {}
    pooled: dict[int, int] = {}
    strided: dict[int, int] = {}
    before = 0
    for order, (point, tensor) in enumerate(read):
        area = _area(tensor)
        index = first.setdefault(id(tensor), order)
        after = written.get((point.side.module, point.call), area)
        later = max((_area(other) for _, other in (*read[order + 1 :], *last)), default=0)
        # squeeze-and-excitation reads pooled maps, too, but larger ones follow
        if tensor is not images and later <= area:
            if after < area:
                strided[area] = min(index, strided.get(area, index))
            elif area < before:
                pooled[area] = index
        before = after
    # a stem's pooled map has the resolution of the stage that follows, whose output counts
    ends = [read[index] for index in sorted((pooled | strided).values())]
    return [end for end in ends if not last or end[1] is not last[0][1]] + last


def _area(maps: Tensor) -> int:
    return maps.shape[2] * maps.shape[3]


_FINDERS: dict[LayerRole, Callable[[nn.Module, _Recorded], _Recorded]] = {
    LayerRole.FEATURES: _features,
    LayerRole.LAST_MAP: _last_map,
    LayerRole.BN_INPUTS: _bn_inputs,
    LayerRole.CONV_INPUTS: _conv_inputs,
    LayerRole.CONV_PATH: _conv_path,
    LayerRole.BLOCK_OUTPUTS: _block_outputs,
}


def _as_returned(tap: LayerRole, tensor: Tensor) -> Tensor:
    return tensor.flatten(1) if tap is LayerRole.FEATURES else tensor
