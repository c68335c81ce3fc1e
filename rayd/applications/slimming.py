r"""Data-free network slimming: channels are pruned by their importance on a small set.

Network slimming (Liu et al., ICCV 2017) trains a network whose convolutions are followed by batch
normalisation, with an L1 penalty on the normalisations' scales :math:`\gamma`,

.. math:: L = L_{\text{protocol}} + \lambda \sum_\gamma |\gamma|,

removes the channels with the smallest scales over all layers, and trains the remaining network for
a while. If the real data are unavailable, all of this is done on a distilled set (Shao et al.,
"Elucidating the Design Space of Dataset Condensation", NeurIPS 2024, with VGG-11). Networks are
also slimmed with random and herded images of the same budget, and with the whole set.

Training follows the recipe's protocol under hard labels, the second training a quarter of it
without the penalty. A layer keeps at least one channel.

The weight :math:`\lambda` that a given sparsity needs depends on the number of steps, which differs
between sets of different sizes. So the setting is the distance by which the penalty alone would
move a scale over the training,
:math:`s = \lambda \sum_t \eta_t / (1 - \mu)` with the step sizes :math:`\eta_t` and the momentum
:math:`\mu` of SGD; scales begin at 1. Adam divides gradients by their size, so that the distance
does not depend on :math:`\lambda`; with Adam, only :math:`s = 0` is accepted.

If there are several penalties, each set uses the one whose networks are best on the validation
split after the second training, averaged over seeds and pruned shares; only that one is evaluated
on the test split.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rayd import devices, networks, recipes, seeding
from rayd.config import EvaluationSettings, NetworkSettings, Recipe
from rayd.data import ImageData, ImageSet, ImageShape
from rayd.data.selection import select
from rayd.distilled import Distilled, load
from rayd.engine.progress import Progress
from rayd.engine.reading import normalized_as, read
from rayd.errors import ArtifactError, ConfigError
from rayd.schedules import learning_rate_factor
from rayd.training.batches import Draws
from rayd.training.judging import accuracy, hits
from rayd.training.losses import Target, loss_of
from rayd.training.sets import TrainingSet
from rayd.training.trainer import Trainer

SETS = ("distilled", "random", "herding", "whole")
"""Sets with which a network can be slimmed."""
SHARES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
"""Shares of the channels that are pruned, by default."""
SPARSITY = 0.7
"""Distance by which the penalty would move a scale by default: below 1, so that it cannot by
itself switch a channel off. (At 3, as the paper's weight and steps give, networks on 50 digits stay
at chance.)
"""
SPARSITIES = (0.0, 0.35, 0.7, 1.0, 1.5)
"""Candidate penalties, if there is a validation split."""
STAGES = ((16,), (32,), (64, 64))
"""Widths of the small VGG's convolutions between max pools."""
LEAST_SIDE = 28
"""Minimum side of images for VGG-11."""


@dataclass(frozen=True)
class Slimmed:
    """Accuracies of networks that were slimmed with one set."""

    set: str
    """`distilled`, or the name of a baseline."""
    shares: tuple[float, ...]
    """Pruned shares of the channels."""
    parameters: tuple[float, ...]
    """Mean share of the parameters that is left, for each pruned share."""
    pruned: tuple[tuple[float, ...], ...]
    """Test accuracy after pruning: a row for each share, a value for each seed."""
    tuned: tuple[tuple[float, ...], ...]
    """Test accuracy after the second training."""
    sparsity: float
    """Distance by which the penalty alone would have moved scales."""

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return asdict(self)


def small_vgg(shape: ImageShape, classes: int) -> nn.Sequential:
    """Build a small VGG for images of 8 pixels or more: 3x3 convolutions with batch normalisation.

    Args:
        shape: of the images; sides of at least 8.
        classes: number of logits.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for stage in STAGES:
        for wide in stage:
            convolution = nn.Conv2d(channels, wide, kernel_size=3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(wide), nn.ReLU()]
            channels = wide
        layers.append(nn.MaxPool2d(2))
        height //= 2
        width //= 2
    return nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels * height * width, classes),
        )
    )


def scales(network: nn.Module) -> list[Tensor]:
    """The scales of all batch normalisations of maps, in the order of the layers."""
    return [m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def prune(network: nn.Module, share: float) -> nn.Sequential:
    """Remove the channels with the smallest scales, over all layers together.

    Args:
        network: a chain of convolutions, each with its batch normalisation, and a linear
            classifier, such as `vgg11` and `convnet` with `norm: batch`; not modified.
        share: of all channels, in [0, 1). Every layer keeps its largest.

    Returns:
        A smaller network, whose outputs are those of the given one with the scales and biases of
        the removed channels set to zero.

    Raises:
        ConfigError: the share is out of range, or the network has another form.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"The pruned share must be in [0, 1). Got {share} instead.")
    layers = [deepcopy(layer) for layer in _chain(network)]
    sizes = torch.cat([scale.detach().abs() for scale in scales(network)])
    count = int(share * len(sizes))
    ranks = sizes.argsort(stable=True).argsort()
    remains = list(torch.split(ranks >= count, [len(scale) for scale in scales(network)]))
    kept: Tensor | None = None
    after: Tensor | None = None
    channels = 0
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            mask = remains.pop(0)
            if not bool(mask.any()):
                # the first of this layer's normalisation; a layer without channels passes nothing
                mask = torch.zeros_like(mask)
                mask[_largest_of(network, len(scales(network)) - len(remains) - 1)] = True
            after = mask.nonzero().squeeze(1)
            channels = layer.out_channels
            _narrow_convolution(layer, kept, after)
            kept = after
        elif isinstance(layer, nn.BatchNorm2d):
            assert kept is not None
            _narrow_normalization(layer, kept)
        elif isinstance(layer, nn.Linear):
            assert kept is not None
            places = layer.in_features // channels
            columns = (kept[:, None] * places + torch.arange(places, device=kept.device)).flatten()
            layer.weight = nn.Parameter(layer.weight.detach()[:, columns])
            layer.in_features = len(columns)
    return nn.Sequential(*layers)


def _largest_of(network: nn.Module, number: int) -> int:
    return int(scales(network)[number].detach().abs().argmax())


def _chain(network: nn.Module) -> list[nn.Module]:
    """The layers of a network in order, checked to be a chain that can be pruned."""
    layers = [m for m in network.modules() if not isinstance(m, nn.Sequential)]
    is_flat = all(isinstance(m, nn.Sequential) or not list(m.children()) for m in network.modules())
    pairs = pairwise(layers)
    convolutions = [pair for pair in pairs if isinstance(pair[0], nn.Conv2d)]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    normalised = all(isinstance(after, nn.BatchNorm2d) for _, after in convolutions)
    grouped = any(isinstance(m, nn.Conv2d) and m.groups != 1 for m in layers)
    # scales of a normalisation elsewhere would be mistaken for those of another layer
    normalised = normalised and len(scales(network)) == len(convolutions)
    if not is_flat or not convolutions or not normalised or grouped or linear != layers[-1:]:
        raise ConfigError(
            "Slimming needs a chain of convolutions, each followed by batch normalisation, and one "
            f"linear classifier, such as vgg11 with 'norm: batch'. Got {type(network).__name__}."
        )
    return layers


def _narrow_convolution(layer: nn.Conv2d, before: Tensor | None, after: Tensor) -> None:
    weight = layer.weight.detach()[after]
    if before is not None:
        weight = weight[:, before]
    layer.weight = nn.Parameter(weight)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach()[after])
    layer.out_channels, layer.in_channels = weight.shape[:2]


def _narrow_normalization(layer: nn.BatchNorm2d, kept: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.detach()[kept])
    layer.bias = nn.Parameter(layer.bias.detach()[kept])
    for name in ("running_mean", "running_var"):
        layer.register_buffer(name, getattr(layer, name)[kept])
    layer.num_features = len(kept)


def reach(protocol: EvaluationSettings, epochs: int, batches: int) -> float:
    """Distance by which a constant gradient of 1 moves a parameter in a training by SGD.

    Args:
        protocol: step size, schedule and momentum.
        epochs: passes over the set.
        batches: steps of a pass.

    >>> settings = EvaluationSettings(learning_rate=0.1, momentum=0.5, schedule={"name": "constant"})
    >>> round(reach(settings, epochs=10, batches=2), 6)
    4.0
    """
    factors = [learning_rate_factor(protocol.schedule, epoch, epochs) for epoch in range(epochs)]
    return protocol.learning_rate * batches * sum(factors) / (1 - protocol.momentum)


def slim(
    distilled: Distilled,
    recipe: Recipe,
    data: ImageData,
    *,
    sets: Sequence[str] = SETS,
    shares: Sequence[float] = SHARES,
    sparsity: float | Sequence[float] | None = None,
    seeds: int = 3,
    network: NetworkSettings | Callable[[], nn.Module] | None = None,
    progress: Progress | None = None,
) -> tuple[Slimmed, ...]:
    """Slim networks with a distilled set and with others of its budget.

    Args:
        distilled: the set.
        recipe: the protocol (`evaluation`), under hard labels and the last epoch.
        data: real data, from which the other sets are drawn and which test the networks.
        sets: names among `SETS`.
        shares: of the channels that are pruned.
        sparsity: distance by which the penalty alone would move a scale, which starts at 1; of
            several, each set uses the best on the validation split. None means `SPARSITIES` if the
            data have such a split, else `SPARSITY`.
        seeds: number of networks per set; each gets its own random images.
        network: the architecture, or a function that builds it; by default VGG-11 with batch
            normalisation, or `small_vgg` for images below 28 pixels.
        progress: where progress is shown.

    Raises:
        ConfigError: a set is unknown, a share or a penalty is out of range, the network cannot be
            pruned, the protocol's optimizer is not SGD, which penalties are for, or there are
            several penalties and no validation split.
    """
    penalties = _penalties(sparsity, data)
    if unknown := sorted(set(sets) - set(SETS)):
        raise ConfigError(f"Sets are {', '.join(SETS)}. Got '{unknown[0]}' instead.")
    if not sets or not shares or seeds < 1:
        raise ConfigError(
            "Slimming needs at least one set, share and network. "
            f"Got {len(sets)} sets, {len(shares)} shares and {seeds} networks."
        )
    progress = progress or Progress(quiet=True)
    protocol = recipe.evaluation.model_copy(
        update={"loss": "cross-entropy", "hard_weight": 0.0, "epoch": ("last",)}
    )
    if protocol.optimizer != "sgd" and any(penalties):
        raise ConfigError(
            "A penalty is how far SGD would move scales by it, and has no such size with "
            f"evaluation.optimizer={protocol.optimizer}: add evaluation.optimizer=sgd "
            "evaluation.learning_rate=0.01 evaluation.weight_decay=0.0005, or --sparsity 0."
        )
    # what cannot be pruned is refused before it is trained
    untrained = _built(network, data, 0)
    for share in shares:
        prune(untrained, share)
    slimming = _Slimming(distilled, recipe, data, protocol, network, tuple(shares), seeds)
    found = []
    with devices.thread_limit(devices.threads(recipe.resources)):
        for name in sets:
            penalty, runs = slimming.best(name, penalties)
            found.append(slimming.tested(name, penalty, runs))
            whole = fmean(found[-1].tuned[0])
            last = fmean(found[-1].tuned[-1])
            progress.log(
                f"slimming: {name}, penalty {penalty:g}: {whole:.3f} with {shares[0]:.0%} of the "
                f"channels pruned, {last:.3f} with {shares[-1]:.0%}"
            )
    return tuple(found)


def _penalties(sparsity: float | Sequence[float] | None, data: ImageData) -> tuple[float, ...]:
    """Candidate penalties; a single one needs no selection."""
    if sparsity is None:
        return (SPARSITY,) if data.validation is None else SPARSITIES
    if isinstance(sparsity, int | float):
        sparsity = (sparsity,)
    if not sparsity or not all(0 <= value < inf for value in sparsity):
        raise ConfigError(
            "Penalties must be at least one finite number from 0 on. "
            f"Got {', '.join(map(str, sparsity)) or 'none'}."
        )
    if len(sparsity) > 1 and data.validation is None:
        raise ConfigError(
            f"Choosing among {len(sparsity)} penalties needs a validation split, and '{data.name}' "
            "has none: distil with data.validation_fraction=0.2, or give one penalty."
        )
    return tuple(sparsity)


def slim_run(
    directory: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    network: str | None = None,
    data_root: Path | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Slimmed, ...]:
    """Slim networks with the set of a run directory, under its recipe.

    Args:
        directory: a run directory, a distilled set or an export.
        overrides: settings of the protocol (`evaluation`) or `resources`, nested.
        network: name of the architecture, with batch normalisation; see `slim`.
        data_root: folder of named data that is searched first.
        cache: store of finished work that runs share.
        progress: where progress is shown.
        options: further arguments of `slim`.

    Raises:
        ArtifactError: the set's card holds no recipe.
        ConfigError: another setting is overridden, or as `slim` raises it.
    """
    if other := sorted((overrides or {}).keys() - {"evaluation", "resources"}):
        raise ConfigError(
            f"Slimming takes settings of evaluation and resources only. Got '{other[0]}' instead."
        )
    distilled = load(directory)
    config = distilled.card.get("config")
    if not isinstance(config, Mapping):
        raise ArtifactError(
            f"'{directory}' cannot be used: its card holds no recipe ('config'), so its data and "
            "protocol are unknown."
        )
    recipe = recipes.restore(config, overrides or {}, "the card's recipe")
    progress = progress or Progress(quiet=True)
    data = normalized_as(distilled, read(recipe.data, data_root, cache, progress))
    chosen = None if network is None else NetworkSettings(name=network, norm="batch")
    return slim(distilled, recipe, data, network=chosen, progress=progress, **options)


@dataclass(frozen=True)
class _Point:
    """A pruned network."""

    left: float
    """Share of the parameters that is left."""
    pruned: nn.Module
    """The network after pruning."""
    tuned: nn.Module
    """The same after the second training."""


@dataclass(frozen=True)
class _Slimming:
    """Training, pruning and training again of networks with several sets."""

    distilled: Distilled
    recipe: Recipe
    data: ImageData
    protocol: EvaluationSettings
    network: NetworkSettings | Callable[[], nn.Module] | None
    shares: tuple[float, ...]
    seeds: int

    @property
    def device(self) -> torch.device:
        """Device on which networks are trained."""
        return devices.choose(self.recipe.resources)

    def best(self, name: str, penalties: Sequence[float]) -> tuple[float, list[list[_Point]]]:
        """The penalty that is best on the validation split (the smallest of equal ones), and its
        networks.
        """
        if len(penalties) == 1:
            return penalties[0], self.runs(name, penalties[0])
        validation = self.data.judged_on_validation().test
        chosen: tuple[float, list[list[_Point]]] = (penalties[0], [])
        highest = -1.0
        for penalty in sorted(penalties):
            runs = self.runs(name, penalty)
            judged = fmean(self.accuracy(one.tuned, validation) for run in runs for one in run)
            if judged > highest:
                highest = judged
                chosen = (penalty, runs)
        return chosen

    def runs(self, name: str, sparsity: float) -> list[list[_Point]]:
        """Pruned networks under a penalty: a list for each seed, with one for each share."""
        runs = []
        for seed in range(self.seeds):
            training = _training(name, self.distilled, self.recipe, self.data, seed)
            network = _built(self.network, self.data, seed)
            runs.append(self._run(network, training, sparsity, seed))
        return runs

    def _run(
        self, network: nn.Module, training: TrainingSet, sparsity: float, seed: int
    ) -> list[_Point]:
        epochs = self.protocol.epochs_on(training.name)
        self._train(network, training, epochs, sparsity, seed)
        whole = sum(p.numel() for p in network.parameters())
        points = []
        for share in self.shares:
            pruned = prune(network.cpu(), share).to(self.device)
            left = sum(p.numel() for p in pruned.parameters()) / whole
            tuned = deepcopy(pruned)
            self._train(tuned, training, max(1, epochs // 4), 0.0, seed)
            points.append(_Point(left, pruned, tuned))
        return points

    def _train(
        self, network: nn.Module, training: TrainingSet, epochs: int, sparsity: float, seed: int
    ) -> None:
        protocol_loss = loss_of(self.protocol)
        gammas = scales(network)
        draws = Draws(self.protocol, len(training), self.data.shape, seed)
        weight = sparsity / reach(self.protocol, epochs, len(draws.sizes))

        def loss(logits: Tensor, target: Target) -> Tensor:
            value = protocol_loss(logits, target)
            if sparsity == 0:
                return value
            return value + weight * torch.stack([gamma.abs().sum() for gamma in gammas]).sum()

        trainer = Trainer(
            network,
            training,
            self.protocol,
            draws,
            loss,
            epochs=epochs,
            seed=seed,
            device=self.device,
        )
        for _ in range(epochs):
            trainer.advance()
        networks.restore(network, trainer.weights())

    def tested(self, name: str, sparsity: float, runs: Sequence[Sequence[_Point]]) -> Slimmed:
        """Accuracies of pruned networks on the test split."""
        parameters = []
        pruned = []
        tuned = []
        for of_share in zip(*runs, strict=True):
            parameters.append(fmean(one.left for one in of_share))
            pruned.append(tuple(self.accuracy(one.pruned, self.data.test) for one in of_share))
            tuned.append(tuple(self.accuracy(one.tuned, self.data.test) for one in of_share))
        return Slimmed(
            set=name,
            shares=self.shares,
            parameters=tuple(parameters),
            pruned=tuple(pruned),
            tuned=tuple(tuned),
            sparsity=sparsity,
        )

    def accuracy(self, network: nn.Module, images: ImageSet) -> float:
        """Share of images that a network classifies correctly."""
        judged = TrainingSet.from_images(images, self.data.normalization)
        weights = network.state_dict()
        (hit,) = hits(network, [weights], judged, self.device, self.protocol.precision)
        return accuracy(hit)


def _training(
    name: str, distilled: Distilled, recipe: Recipe, data: ImageData, seed: int
) -> TrainingSet:
    """A training set by name; random ones are redrawn for each seed."""
    if name == "distilled":
        # like the other sets; labels that were learned with the images would confound the
        # comparison
        return replace(TrainingSet.from_distilled(distilled), labels=distilled.hard_labels)
    if name == "whole":
        return TrainingSet.from_images(data.train, data.normalization, name=name)
    draws = seeding.generator(seed, "slimming")
    rows = select(name, data.train, recipe.ipc, data.normalization, draws)
    return TrainingSet.from_images(data.train, data.normalization, rows, name)


def _built(
    network: NetworkSettings | Callable[[], nn.Module] | None, data: ImageData, seed: int
) -> nn.Module:
    derived = seeding.derive(seed, "slimming network")
    if network is None and min(data.shape.height, data.shape.width) >= LEAST_SIDE:
        network = NetworkSettings(name="vgg11", norm="batch")
    if isinstance(network, NetworkSettings):
        return networks.build(network, data.shape, data.classes, seed=derived)
    with seeding.seeded(derived, "slimming"):
        return small_vgg(data.shape, data.classes) if network is None else network()


def text(found: Sequence[Slimmed]) -> str:
    """Format accuracies after the second training as a table."""
    width = max(len("channels pruned"), *(len(one.set) for one in found))
    shares = found[0].shares
    heads = [f"{s:>6.0%}" for s in shares]
    lines = ["  ".join(["channels pruned".ljust(width), *heads, "penalty"])]
    for one in found:
        cells = [f"{fmean(row):>6.3f}" for row in one.tuned]
        lines.append("  ".join([one.set.ljust(width), *cells, f"{one.sparsity:>7g}"]))
    first = found[0]
    left = [f"{value:>6.0%}" for value in first.parameters]
    lines.append("  ".join(["parameters left".ljust(width), *left]) + f"  ({first.set})")
    count = len(first.tuned[0])
    networks = "one network" if count == 1 else f"mean of {count} networks"
    lines.append(f"test accuracy after pruning and training again, {networks}")
    return "\n".join(lines)


def chart(found: Sequence[Slimmed], title: str = "") -> Image.Image:
    """Draw accuracy over the pruned share: after training again, and thin right after pruning."""
    from rayd.drawing import as_image, new_figure, styled

    with styled():
        figure = new_figure(680, 400)
        axes = figure.subplots()
        for number, one in enumerate(found):
            colour = f"C{number}"
            means = [fmean(row) for row in one.tuned]
            stds = [stdev(row) if len(row) > 1 else 0.0 for row in one.tuned]
            label = f"{one.set}, penalty {one.sparsity:g}"
            axes.errorbar(one.shares, means, stds, marker="o", capsize=2, color=colour, label=label)
            pruned = [fmean(row) for row in one.pruned]
            axes.plot(one.shares, pruned, ":", color=colour, linewidth=1)
        axes.set_xlabel("share of channels pruned (dotted: before training again)")
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0, 1)
        axes.set_xticks(np.asarray(found[0].shares))
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_title(title)
        return as_image(figure)
