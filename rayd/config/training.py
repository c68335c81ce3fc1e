"""Settings of training: of observers on the real data, and of students on small sets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rayd.config.base import POSITIVE, Listed, Only, Precision, Settings
from rayd.config.observers import (
    DSA_STRATEGY,
    Network,
    NetworkGroupSettings,
    NetworkSettings,
    ObserverNetwork,
    ObserverNetworkSettings,
)


def _within(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(
            "a crop's scale is two shares of the image's area with 0 < least <= most <= 1"
        )
    return area


Area = Annotated[tuple[float, float], AfterValidator(_within)]
"""Least and most share of an image's area."""


class TransformSettings(Settings):
    """A random view of every image of a batch: its parts in the order below, all of them off by
    default.
    """

    rand_augment: int = Field(default=0, ge=0)
    """Operations of RandAugment on each image; 0 for none."""
    magnitude: Annotated[int, Only(rand_augment=POSITIVE)] = Field(default=9, ge=0, le=30)
    """Strength of RandAugment's operations, of 30."""
    crop: Area | None = None
    """Least and most share of the image's area that a resized crop keeps, in (0, 1]; null for
    none.
    """
    shift: int = Field(default=0, ge=0)
    """Pixels by which the image moves at most on each axis, filled with the mean colour: the crop
    of a padded image.
    """
    flip: bool = False
    """Mirror left to right with probability 1/2."""
    roll: int = Field(default=0, ge=0)
    """Pixels by which the whole batch is rolled at most on each axis, around the border (the
    papers' "jitter").
    """

    @property
    def words(self) -> str:
        """What it does, for a protocol.

        >>> TransformSettings(crop=(0.08, 1.0), flip=True).words
        'crop 0.08-1, flip'
        """
        parts = [f"RandAugment {self.rand_augment}x{self.magnitude}"] if self.rand_augment else []
        parts += [f"crop {self.crop[0]:g}-{self.crop[1]:g}"] if self.crop else []
        parts += [f"shift {self.shift}"] if self.shift else []
        parts += ["flip"] if self.flip else []
        parts += [f"roll {self.roll}"] if self.roll else []
        return ", ".join(parts)


class ScheduleSettings(Settings):
    """How the step size falls over the epochs; see `rayd.schedules`."""

    name: Literal["constant", "restart", "multistep", "linear", "cosine", "ssrs", "alrs"] = "cosine"
    """`restart` is `multistep` with an optimizer made anew, its momentum lost, at every milestone
    (Zhao and Bilen 2021).
    """
    stretch: Annotated[float, Only(name=("linear", "cosine", "ssrs"))] = Field(default=1.0, ge=1.0)
    """The papers' zeta: `cosine`, `linear` and `ssrs` are stretched over this many times the
    epochs, so end above zero.
    """
    milestones: Annotated[tuple[float, ...], Listed, Only(name=("restart", "multistep"))] = (0.5,)
    """Shares of the epochs after which `restart` and `multistep` multiply the step size by
    `factor`.
    """
    factor: Annotated[float, Only(name=("restart", "multistep", "alrs"))] = Field(
        default=0.1, gt=0, le=1
    )
    """What the step size is multiplied by at a milestone, or by `alrs` when the loss stalls."""

    @property
    def words(self) -> str:
        """The schedule in words, for a protocol.

        >>> ScheduleSettings(stretch=2).words, ScheduleSettings(name="restart").words
        ('cosine over 2x', 'restart 0.5 x0.1')
        """
        if self.name in ("restart", "multistep"):
            return f"{self.name} {' '.join(f'{share:g}' for share in self.milestones)} x{self.factor:g}"
        if self.name == "alrs":
            return f"alrs x{self.factor:g}"
        return f"{self.name} over {self.stretch:g}x" if self.stretch != 1 else self.name


class TrainingSettings(Settings):
    """How a network is trained."""

    epochs: int = Field(default=1000, ge=1)
    """Passes over the set."""
    batch_size: int = Field(default=256, ge=1)
    """Images of a training batch; the last batch of an epoch may be smaller."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the weights."""
    learning_rate: float = Field(default=0.01, gt=0)
    """First step size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD, first moment decay of AdamW (whose second is 0.999)."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty of SGD, decoupled decay of AdamW."""
    schedule: ScheduleSettings = ScheduleSettings(name="restart")
    """How the step size falls."""
    augmentation: str | None = None
    """DSA augmentation of the batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    transform: TransformSettings = TransformSettings()
    """Random view of every image, before any mixing."""
    mix: Literal["none", "cutmix", "mixup"] = "none"
    """How images of a batch are mixed in pairs."""
    mix_concentration: Annotated[float, Only(mix=("cutmix", "mixup"))] = Field(default=1.0, gt=0)
    """Mixing shares are drawn from Beta(c, c)."""
    average: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the moving average of the weights, which is then what is used; null for the weights
    themselves.
    """
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes."""


class SqueezeSettings(TrainingSettings):
    """How observers are trained on the real data: by cross-entropy, as SRe2L does on CIFAR unless
    said otherwise.
    """

    epochs: int = Field(default=200, ge=0)
    """Passes over the training split; 0 takes the given weights (`observers.networks.weights`) as
    they are.
    """
    batch_size: int = Field(default=128, ge=1)
    """Images of a training batch."""
    learning_rate: float = Field(default=0.1, gt=0)
    """First step size."""
    schedule: ScheduleSettings = ScheduleSettings(name="cosine")
    """How the step size falls."""
    transform: TransformSettings = TransformSettings(shift=4, flip=True)
    """Random view of every image."""
    workers: int = Field(default=1, ge=1)
    """Above 1, each observer is trained by that many workers of Ray Train together, each on its
    part of every batch: for networks too slow or too large for one device. Each worker reserves
    `resources.cpus_per_worker` and `resources.gpus_per_worker`, and computes on the CPU without the
    latter. Ray is used with `resources.workers: 0` too, for this stage alone. Across machines the
    store must be shared, or a worker that dies costs all epochs so far.
    """


class ClassifierSettings(NetworkGroupSettings):
    """Networks beside the observers that some terms look through, such as the class centralization
    of IID.

    By default as in the released code of IID, which draws one of 1,000 in each step; a few do.
    """

    networks: Annotated[tuple[ObserverNetwork, ...], Listed, Field(min_length=1)] = (
        ObserverNetworkSettings(name="resnet18", norm="instance"),
    )
    """Architectures of the classifiers; steps go round them in this order."""
    trained: bool = True
    """Whether they are trained on the real data before they look."""
    pool: int = Field(default=10, ge=1)
    """How many classifiers of each architecture there are."""
    squeeze: Annotated[SqueezeSettings, Only(trained=True)] = SqueezeSettings(
        epochs=40,
        batch_size=256,
        learning_rate=0.01,
        schedule=ScheduleSettings(name="constant"),
        transform=TransformSettings(),
    )
    """How they are trained; by several workers together if `squeeze.workers` of the recipe says
    so.
    """


Baseline = Literal["random", "herding", "k-center", "whole"]
Epoch = Literal["last", "validation-best"]


class EvaluationSettings(TrainingSettings):
    """How students are trained on a set and tested: the hard-label protocol of Zhao and Bilen
    (2021) unless said otherwise.
    """

    networks: Annotated[tuple[Network, ...], Listed, Field(min_length=1)] = (NetworkSettings(),)
    """Architectures of the students."""
    seeds: int = Field(default=3, ge=1)
    """Students per architecture, each from its own seed."""
    whole_epochs: int | None = Field(default=None, ge=1)
    """Passes over the whole training set for the baseline `whole`; absent: the same number as
    `epochs`.
    """
    augmentation: str | None = DSA_STRATEGY
    """DSA augmentation of the batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    loss: Literal["cross-entropy", "kl", "mse"] = "cross-entropy"
    """`kl`: divergence from the teachers' softened labels, not multiplied by the squared
    temperature; `mse`: squared distance from the teachers' logits.
    """
    temperature: Annotated[float, Only(loss="kl")] = Field(default=20.0, gt=0)
    """Of the softmax in `kl`."""
    hard_weight: Annotated[float, Only(loss=("kl", "mse"))] = Field(default=0.0, ge=0)
    """Weight of the cross-entropy with the images' own hard labels, added to `kl` or `mse`."""
    clean_forward: bool = False
    """Let the student also see each batch before mixing, without gradient, so that batch statistics
    update twice (released code of RDED).
    """
    learned_step_size: bool = True
    """Train on a set that was learned together with a step size with that step size, in place of
    `learning_rate`.
    """
    epoch: Annotated[tuple[Epoch, ...], Listed, Field(min_length=1)] = ("last",)
    """Whose accuracy is reported: the last epoch's student, the best on the validation split, or
    both.
    """
    baselines: Annotated[tuple[Baseline, ...], Listed] = ("random",)
    """Sets on which students are trained under the same protocol as on the distilled one."""

    def epochs_on(self, set_name: str) -> int:
        """Passes over a set by name (`distilled`, `random`, ..., `whole`)."""
        return self.whole_epochs or self.epochs if set_name == "whole" else self.epochs

    def protocol_on(
        self, set_name: str, labels: LabelSettings | None = None, learned: bool = False
    ) -> str:
        """The protocol in words that tell it from its variants: labels, epochs, augmentation, and
        what else is not the default.

        With `learned`, images have soft labels of their own, which were learned with them.

        >>> EvaluationSettings(augmentation="flip_crop", learning_rate=0.02).protocol_on("random")
        'hard-label, 1000 epochs, flip_crop, learning_rate 0.02'
        """
        seen = [
            words
            for words in (
                self.augmentation,
                self.transform.words,
                self.mix if self.mix != "none" else "",
            )
            if words
        ]
        own = "learned-label" if learned else "hard-label"
        said = own if labels is None or labels.kind == "hard" else labels.words
        words = [f"{said}, {self.epochs_on(set_name)} epochs", *(seen or ["no augmentation"])]
        if self.loss != "cross-entropy":
            words.append(f"kl T={self.temperature:g}" if self.loss == "kl" else "mse")
        if self.schedule != type(self).model_fields["schedule"].default:
            words.append(self.schedule.words)
        named = [
            "batch_size",
            "optimizer",
            "learning_rate",
            "momentum",
            "weight_decay",
            "average",
            "hard_weight",
        ]
        named += ["mix_concentration", "clean_forward"]
        for name in named:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                words.append(f"{name} {value}")
        if self.precision not in ("auto", "float32"):
            words.append(f"precision {self.precision}")
        return ", ".join(words)


_SOFT = Only(kind=("online", "stored"))


class LabelSettings(Settings):
    """What students learn from: the images' own labels, or what teachers say of every batch."""

    kind: Literal["hard", "online", "stored"] = "hard"
    """`online`: teachers label every batch while the student trains; `stored`: they did so once,
    and training replays it.
    """
    networks: Annotated[tuple[ObserverNetwork, ...] | None, Listed, _SOFT] = None
    """Architectures of the teachers; absent: those of the observers. Their mean logits are the
    label.
    """
    precision: Annotated[Literal["float16", "float32"], _SOFT] = "float16"
    """In which logits are kept, online ones too."""
    seed: Annotated[int | None, _SOFT] = Field(default=None, ge=0)
    """Seed of the order, crops and mixes that labels are made for; absent: each student's own
    online, 0 for stored ones.
    """

    @property
    def stored_seed(self) -> int:
        """Seed of the order, crops and mixes that stored labels are made for."""
        return self.seed or 0

    @property
    def words(self) -> str:
        """Who teaches, for a protocol; stored labels are online ones that were kept.

        >>> LabelSettings(kind="online", networks=["resnet18"], precision="float32").words
        'soft-label by resnet18 in float32'
        """
        names = (
            f" by {' '.join(network.label for network in self.networks)}" if self.networks else ""
        )
        digits = f" in {self.precision}" if self.precision != "float16" else ""
        return f"soft-label{names}{digits}"

    @model_validator(mode="after")
    def _named(self) -> LabelSettings:
        if self.networks is not None and not self.networks:
            raise ValueError("'labels.networks' must name at least one teacher, or be absent")
        return self
