"""Resolution of `precision: auto` and `resources.layout: auto` to the fastest choice on the
hardware.

bfloat16 halves the time of a convolution where the processor computes it natively (AVX512-BF16,
AMX, CUDA from Ampere on), and makes it at least ten times as slow where it is emulated. Only a
benchmark can tell: a small network is run both ways, once per machine (`rayd.machine`), and

    bfloat16   is chosen where it takes at most `WORTH` of float32's time, unless the method needs
               finer numbers (`Method.least_precision`) or images are so small that conversions cost
               what they save;
    tf32       is chosen on GPUs that have it where a method allows it but not bfloat16;
    float32    is chosen everywhere else.

The choice is written into the recipe before anything else reads it, so that cache keys, cards and
workers get a definite value, and a run that is resumed on another machine keeps its original
choice. The choices of other hardware are recorded as well, as the store may hold its results
(`rayd.engine.stored_precisions`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from rayd import devices, machine, methods
from rayd.config import Precision, Recipe, ResourceSettings, lookup, merge, nested
from rayd.data import ImageShape

WORTH = 0.85
"""Fraction of float32's time below which another arithmetic or layout is chosen. The gain must
exceed the noise of the measurement, so that equal machines make equal choices.
"""
CLEARLY_SLOWER = 1.15
"""Fraction of the time in contiguous layout above which CPUs do not use channels last. Processors
with AVX2 and AVX-512 measured 0.8 to 1.0.
"""
CRAWLS = 1.5
"""Fraction of float32's time above which an explicit setting causes a warning."""
UNKNOWN = 1e6
"""Relative time of an arithmetic that a device lacks."""
SMALL = 16
"""Side of images in pixels below which bfloat16 is not chosen: on 8x8 digits, conversions take
about as long as it saves.
"""
SECTIONS = (
    "observers",
    "classifiers",
    "squeeze",
    "classifiers.squeeze",
    "experts",
    "synthesis",
    "evaluation",
)
"""Sections of a recipe that have a `precision`."""


@dataclass(frozen=True)
class Hardware:
    """Measured properties of the device on which a run computes."""

    device: str
    """`cpu`, `cuda` or `mps`."""
    name: str
    """Model of the processor or GPU."""
    bfloat16: float
    """Time of a training step in bfloat16, relative to float32."""
    tf32: bool
    """Whether convolutions can be rounded to TF32."""
    channels_last: float
    """Time of a training step with batch normalisation in channels-last layout, relative to
    contiguous.
    """

    @property
    def summary(self) -> str:
        """Short description of the device and its speed in bfloat16."""
        return (
            f"{self.device} ({self.name}; bfloat16 takes {self.bfloat16:.2g} times as long as "
            "float32)"
        )

    @property
    def layout(self) -> str:
        """The faster layout for networks with batch normalisation.

        The device's default (channels last on CPUs) is replaced only by a clearly faster one: equal
        machines must make equal choices, whatever else ran during the measurement.
        """
        least = CLEARLY_SLOWER if self.device == "cpu" else WORTH
        return "channels-last" if self.channels_last < least else "contiguous"

    def fastest(self, shape: ImageShape, least: Precision) -> Precision:
        """The fastest arithmetic that is no coarser than `least`.

        Args:
            shape: of an image.
            least: coarsest arithmetic that may be chosen.
        """
        small = min(shape.height, shape.width) < SMALL
        if least == "bfloat16" and self.bfloat16 <= WORTH and not small:
            return "bfloat16"
        return "tf32" if self.tf32 and least != "float32" else "float32"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able mapping, for cards and messages between processes."""
        return asdict(self)


@dataclass(frozen=True)
class Choice:
    """A recipe with its arithmetic resolved."""

    recipe: Recipe
    """The recipe; neither a `precision` nor `resources.layout` is `auto`."""
    hardware: Hardware
    """The device for which the choice was made."""
    warnings: tuple[str, ...] = ()
    """Sentences about explicit settings that are slow on this device."""
    others: tuple[Recipe, ...] = ()
    """The recipe as resolved for other hardware, if that differs."""

    @property
    def summary(self) -> str:
        """The chosen arithmetic, in a line."""
        sections = {
            "observers": self.recipe.observers.precision,
            "synthesis": self.recipe.synthesis.precision,
            "students": self.recipe.evaluation.precision,
        }
        words = ", ".join(f"{name} {value}" for name, value in sections.items())
        if len(set(sections.values())) == 1:
            words = sections["observers"]
        return f"arithmetic: {words} on {self.hardware.summary}"


def measure(device: torch.device, anew: bool = False) -> Hardware:
    """Measure a device of this process, which takes about a second, unless its properties are
    cached.

    Args:
        device: where to measure.
        anew: measure even if the properties are cached.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine.processor()
    return Hardware(
        device=device.type,
        name=name,
        bfloat16=machine.fact("bfloat16 / float32", device, lambda: _bfloat16(device), anew=anew),
        tf32=device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0),
        channels_last=machine.fact(
            "channels last / contiguous", device, lambda: _channels_last(device), anew=anew
        ),
    )


def choose(recipe: Recipe, shape: ImageShape, before: Recipe | None = None) -> Choice:
    """Replace every `auto` of a recipe's arithmetic.

    Args:
        recipe: the run.
        shape: of an image of its data.
        before: the recipe of the run that is resumed, whose choices are kept; None for a new run.

    Raises:
        ResourceError: the device that the recipe names does not exist here, or its cluster cannot
            be reached.
    """
    hardware = _hardware(recipe.resources)
    method = methods.build(recipe)
    fixed: dict[str, Any] = {}
    # sections whose precision the hardware decides, with the coarsest that is allowed
    open_sections: dict[str, Precision] = {}
    warnings = []
    dumped = recipe.model_dump(mode="json")
    kept = before.model_dump(mode="json") if before is not None else {}
    for section in SECTIONS:
        settings = lookup(dumped, section)
        # sections that the method does not use must keep their defaults, or the recipe would be
        # refused
        if settings is None or section.partition(".")[0] in method.unused:
            continue
        key = f"{section}.precision"
        if settings["precision"] == "auto":
            chosen = lookup(kept, key)
            if chosen in (None, "auto"):
                open_sections[section] = _least(method.least_precision, section)
            else:
                fixed = merge(fixed, nested({key: chosen}))
        elif settings["precision"] == "bfloat16" and hardware.bfloat16 > CRAWLS:
            warnings.append(
                f"'{key}: bfloat16' takes {hardware.bfloat16:.2g} times as long as float32 on this "
                f"{hardware.device} ({hardware.name}); 'auto' would choose float32."
            )
    if recipe.resources.layout == "auto":
        fixed = merge(fixed, {"resources": {"layout": hardware.layout}})

    def resolved(hardware: Hardware) -> Recipe:
        tree = fixed
        for section, least in open_sections.items():
            chosen = hardware.fastest(shape, least)
            tree = merge(tree, nested({f"{section}.precision": chosen}))
        made: Recipe = _replaced(recipe, tree)
        return made

    own = resolved(hardware)
    others = []
    # for this purpose there are only four kinds of machines: the store may hold results of the
    # recipe as resolved for any of them
    for bfloat16, tf32 in product((0.0, UNKNOWN), (True, False)):
        other = resolved(replace(hardware, bfloat16=bfloat16, tf32=tf32))
        if other != own and other not in others:
            others.append(other)
    return Choice(own, hardware, tuple(warnings), tuple(others))


def with_precision_of(recipe: Recipe, other: Recipe, sections: Iterable[str]) -> Recipe:
    """Copy the precision of some sections from another recipe."""
    dumped = other.model_dump(mode="json")
    tree: dict[str, Any] = {}
    for section in sections:
        if lookup(dumped, section) is not None:
            key = f"{section}.precision"
            tree = merge(tree, nested({key: lookup(dumped, key)}))
    changed: Recipe = _replaced(recipe, tree)
    return changed


def _least(least: Mapping[str, Precision], section: str) -> Precision:
    """Coarsest arithmetic of a section; classifiers follow the observers."""
    return least.get("observers" if section == "classifiers" else section, "bfloat16")


def _replaced(settings: Any, tree: Mapping[str, Any]) -> Any:
    """Settings with some values replaced at any depth, without validation."""
    update: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            value = _replaced(getattr(settings, name), value)
        update[name] = value
    return settings.model_copy(update=update)


def _hardware(resources: ResourceSettings) -> Hardware:
    """Hardware of this machine, or of a worker's node in the cluster that the run joins."""
    if resources.address is not None:
        from rayd.engine.on_ray.cluster import connect, run_on_worker

        connect(resources.address)
        return Hardware(**run_on_worker(resources, measure_here, resources))
    return Hardware(**measure_here(resources))


def measure_here(resources: ResourceSettings) -> dict[str, Any]:
    """JSON-able result of `measure` for the device that the resources select in this process."""
    return measure(devices.choose(resources)).to_json()


class _Probe:
    """A training step of two 3x3 convolutions with a normalisation between them.

    Its size is that of a ConvNet's layer: 64 channels and 8 images of 16x16 on the CPU, 128
    channels and 128 images of 32x32 on a GPU, which smaller work does not fill.
    """

    def __init__(self, device: torch.device, norm: type[nn.Module], last: bool = False):
        width, count, side = (64, 8, 16) if device.type == "cpu" else (128, 128, 32)
        first = nn.Conv2d(width, width, 3, padding=1)
        second = nn.Conv2d(width, width, 3, padding=1)
        between = nn.GroupNorm(width, width) if norm is nn.GroupNorm else norm(width)
        self._order = torch.channels_last if last else torch.contiguous_format
        self._network = nn.Sequential(first, between, nn.ReLU(), second).to(
            device=device, memory_format=self._order
        )  # type: ignore[call-overload]
        images = torch.zeros(count, width, side, side, device=device).contiguous(
            memory_format=self._order
        )
        self._images = images.requires_grad_()

    def step(self, precision: str) -> Tensor:
        """One forward and backward pass."""
        device = self._images.device
        with devices.convolutions(device, precision):
            with devices.autocast(device, precision):
                loss = self._network(self._images).float().square().mean()
            (gradient,) = torch.autograd.grad(loss, [self._images])
        return gradient


def _bfloat16(device: torch.device) -> float:
    probe = _Probe(device, nn.GroupNorm)
    try:
        return machine.ratio(lambda: probe.step("bfloat16"), lambda: probe.step("float32"), device)
    except RuntimeError:
        # a device without bfloat16, such as MPS before macOS 14
        return UNKNOWN


def _channels_last(device: torch.device) -> float:
    last = _Probe(device, nn.BatchNorm2d, last=True)
    contiguous = _Probe(device, nn.BatchNorm2d)
    return machine.ratio(lambda: last.step("float32"), lambda: contiguous.step("float32"), device)
