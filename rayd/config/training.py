"""Settings of training: of observers on real data, and of students on small sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, model_validator

from rayd.config.base import Listed, Precision, Settings, When
from rayd.config.observers import (
    DSA_STRATEGY,
    NetworkGroupSettings,
    ObserverNetwork,
    ObserverNetworkSettings,
    StudentNetwork,
    StudentNetworkSettings,
)
from rayd.config.protocols import Protocol


def _within(area: tuple[float, float]) -> tuple[float, float]:
    if not 0 < area[0] <= area[1] <= 1:
        raise ValueError(
            "a crop's scale is two shares of the image's area with 0 < least <= most <= 1"
        )
    return area


Area = Annotated[tuple[float, float], AfterValidator(_within)]
"""Least and largest fraction of an image's area."""


class TransformSettings(Settings):
    """A random view of every image: augmentations applied in this order; 0, false or null for none."""

    rand_augment: int = Field(default=0, ge=0)
    """Number of RandAugment operations per image; 0 for none."""
    magnitude: Annotated[int, When(rand_augment=True)] = Field(default=9, ge=0, le=30)
    """Magnitude of RandAugment's operations, 0 to 30."""
    crop: Area | None = None
    """Least and largest fraction of the area kept by a resized crop, in (0, 1]; null for none."""
    shift: int = Field(default=0, ge=0)
    """Maximum shift in pixels on each axis, filled with the mean colour: a crop of a padded
    image.
    """
    flip: bool = False
    """Mirror left to right with probability 1/2."""
    roll: int = Field(default=0, ge=0)
    """Maximum roll in pixels of the whole batch on each axis (the papers' "jitter")."""

    @property
    def summary(self) -> str:
        """Active augmentations, for the description of a protocol.

        >>> TransformSettings(crop=(0.08, 1.0), flip=True).summary
        'crop 0.08-1, flip'
        """
        parts = [f"RandAugment {self.rand_augment}x{self.magnitude}"] if self.rand_augment else []
        parts += [f"crop {self.crop[0]:g}-{self.crop[1]:g}"] if self.crop else []
        parts += [f"shift {self.shift}"] if self.shift else []
        parts += ["flip"] if self.flip else []
        parts += [f"roll {self.roll}"] if self.roll else []
        return ", ".join(parts)


ALRS_FACTOR = 0.9975
"""Default factor of `alrs`, that of EDC's released code; it applies after every stalled epoch."""


class ScheduleSettings(Settings):
    """Schedule of the step size over epochs; see `rayd.schedules`."""

    name: Literal["constant", "restart", "multistep", "linear", "cosine", "ssrs", "alrs"] = "cosine"
    """`restart` is `multistep` with a new optimizer, without momentum, at every milestone (Zhao and
    Bilen 2021).
    """
    stretch: Annotated[float, When(name=("linear", "cosine", "ssrs"))] = Field(default=1.0, ge=1.0)
    """The papers' zeta: `cosine`, `linear` and `ssrs` span this many times the epochs, so that they
    end above zero.
    """
    milestones: Annotated[tuple[float, ...], Listed, When(name=("restart", "multistep"))] = (0.5,)
    """Fractions of the epochs after which `restart` and `multistep` multiply the step size by
    `factor`.
    """
    factor: Annotated[float, When(name=("restart", "multistep", "alrs"))] = Field(
        default=0.1, gt=0, le=1
    )
    """Factor of the step size at a milestone, or, for `alrs`, when the loss stalls (0.9975 by
    default).
    """

    @model_validator(mode="before")
    @classmethod
    def _factor_of_alrs(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("name") == "alrs":
            return {"factor": ALRS_FACTOR, **given}
        return given

    @property
    def summary(self) -> str:
        """Short description of the schedule, for the description of a protocol.

        >>> ScheduleSettings(stretch=2).summary, ScheduleSettings(name="restart").summary
        ('cosine over 2x', 'restart 0.5 x0.1')
        """
        if self.name in ("restart", "multistep"):
            shares = " ".join(f"{share:g}" for share in self.milestones)
            return f"{self.name} {shares} x{self.factor:g}"
        if self.name == "alrs":
            return f"alrs x{self.factor:g}"
        return f"{self.name} over {self.stretch:g}x" if self.stretch != 1 else self.name


class TrainingSettings(Settings):
    """Training of a network."""

    epochs: int = Field(default=1000, ge=1)
    """Passes over the set."""
    batch_size: int = Field(default=256, ge=1)
    """Images per batch; the last batch of an epoch may be smaller."""
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """Optimizer of the weights."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Initial step size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD, first moment decay of Adam and AdamW (whose second is 0.999)."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty of SGD and Adam, decoupled decay of AdamW."""
    weight_decay_of: Annotated[Literal["all", "weights"], When(weight_decay=True)] = "all"
    """Parameters that decay: all, or matrices and kernels alone, so that biases and normalisations
    are exempt (released code of SRe2L for stored labels, RDED and EDC).
    """
    schedule: ScheduleSettings = ScheduleSettings(name="restart")
    """Schedule of the step size."""
    augmentation: str | None = None
    """DSA augmentation of the batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    transform: TransformSettings = TransformSettings()
    """Random view of every image, before any mixing."""
    mix: Literal["none", "cutmix", "mixup"] = "none"
    """Pairwise mixing of the images of a batch."""
    mix_concentration: Annotated[float, When(mix=("cutmix", "mixup"))] = Field(default=1.0, gt=0)
    """Mixing shares are drawn from Beta(c, c)."""
    average: float | None = Field(default=None, ge=0, lt=1)
    """Decay of a moving average of the weights, which replaces them after training; null for
    none.
    """
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes."""


class SqueezeSettings(TrainingSettings):
    """Training of observers on real data by cross-entropy; defaults of SRe2L for CIFAR."""

    epochs: int = Field(default=200, ge=0)
    """Passes over the training split; with 0 the given weights (`observers.networks.weights`) are
    used unchanged.
    """
    batch_size: int = Field(default=128, ge=1)
    """Images per batch."""
    learning_rate: float = Field(default=0.1, gt=0)
    """Initial step size."""
    schedule: ScheduleSettings = ScheduleSettings(name="cosine")
    """Schedule of the step size."""
    transform: TransformSettings = TransformSettings(shift=4, flip=True)
    """Random view of every image."""
    workers: int = Field(default=1, ge=1)
    """Above 1, each observer is trained by that many workers of Ray Train, data-parallel: for
    networks too slow or too large for one device. Each worker reserves `resources.cpus_per_worker`
    and `resources.gpus_per_worker`, and computes on the CPU without the latter. With
    `resources.workers: 0`, Ray is used for this stage only. Across machines the store must be
    shared, or the loss of a worker costs all epochs so far.
    """


class ClassifierSettings(NetworkGroupSettings):
    """Networks that know the classes, for terms whose observers do not.

    An example is IID's class centralization. Defaults follow the released code of IID, which draws
    one of 1,000 in each step; a few suffice.
    """

    networks: Annotated[tuple[ObserverNetwork, ...], Listed, Field(min_length=1)] = (
        ObserverNetworkSettings(name="resnet18_pool4", norm="instance"),
    )
    """Architectures of the classifiers."""
    trained: bool = True
    """Whether they are trained on the real data before use."""
    pool: int = Field(default=10, ge=1)
    """Number of classifiers of each architecture."""
    order: Literal["turn", "random"] = "random"
    """Which classifiers a step uses: random ones, redrawn each step, or the next ones in turn."""
    squeeze: Annotated[SqueezeSettings, When(trained=True)] = SqueezeSettings(
        epochs=40,
        batch_size=256,
        learning_rate=0.01,
        schedule=ScheduleSettings(name="constant"),
        # set explicitly: by default they would be the shift and flip of `squeeze`
        transform=TransformSettings(shift=0, flip=False),
    )
    """Training of the classifiers; `squeeze.workers` of the recipe applies to them, too."""


Baseline = Literal[
    "random", "herding", "k-center", "forgetting", "el2n", "difficulty", "rded", "whole"
]
Epoch = Literal["last", "validation-best"]
Comparison = Literal["hard-labels", "equal-storage", "no-augmentation"]

NOT_OF_A_STUDENT = frozenset(
    {
        "networks",
        "seeds",
        "epochs",
        "whole_epochs",
        "baselines",
        "comparisons",
        "learned_step_size",
        "protocol",
        "learning_rates",
        "workers",
    }
)
"""Evaluation settings that determine which students are trained and where, but not how."""


class EvaluationSettings(TrainingSettings):
    """Training and testing of students; default: hard-label protocol of Zhao and Bilen (2021)."""

    protocol: Protocol | None = None
    """Published protocol whose settings are used unless they are also set explicitly, see
    `rayd.config.protocols`; null for none.
    """
    networks: Annotated[tuple[StudentNetwork, ...], Listed, Field(min_length=1)] = (
        StudentNetworkSettings(),
    )
    """Architectures of the students, each with its own step size if it needs one."""
    seeds: int = Field(default=3, ge=1)
    """Number of students per architecture, with different seeds."""
    whole_epochs: int | None = Field(default=None, ge=1)
    """Passes over the whole training set for the baseline `whole`; by default `epochs`."""
    augmentation: str | None = DSA_STRATEGY
    """DSA augmentation of the batches (per-sample parameters), operations joined by underscores;
    null for none.
    """
    loss: Literal["cross-entropy", "kl", "mse"] = "cross-entropy"
    """`kl`: divergence from the teachers' softened labels, not multiplied by the squared
    temperature; `mse`: squared distance from the teachers' logits.
    """
    temperature: Annotated[float, When(loss="kl")] = Field(default=20.0, gt=0)
    """Temperature of the softmax in `kl`."""
    hard_weight: Annotated[float, When(loss=("kl", "mse"))] = Field(default=0.0, ge=0)
    """Weight of the cross-entropy with the images' hard labels, added to `kl` or `mse`."""
    clean_forward: bool = False
    """Also run each batch before mixing through the student, without gradient, so that batch
    statistics update twice (as the released code of RDED intends to, although it passes mixed
    images).
    """
    learned_step_size: bool = True
    """Train with the step size that was learned with the set, if any, in place of
    `learning_rate`.
    """
    learning_rates: Annotated[tuple[PositiveFloat, ...], Listed] = ()
    """Step sizes that are tried in place of `learning_rate`; the report contains the students of
    the one that is best on the validation split, for each set and architecture.
    """
    epoch: Annotated[tuple[Epoch, ...], Listed, Field(min_length=1)] = ("last",)
    """Reported accuracy: of the last epoch, of the epoch that is best on the validation split, or
    both.
    """
    workers: int = Field(default=1, ge=1)
    """Above 1, each student is trained by that many workers of Ray Train, data-parallel, with as
    many students at a time as `resources.workers` suffice for: for more GPUs than students. Batches
    are the same, and the result is the same up to rounding, except that on CPUs each worker
    normalises its own part of a batch.
    """
    baselines: Annotated[tuple[Baseline, ...], Listed] = ("random",)
    """Sets trained under the same protocol for comparison: real images of the same budget, selected
    at random, by herding or k-center, or by how networks learn them (`forgetting`, `el2n`,
    `difficulty`; see `ranking`); images stitched from the patches that the first observer finds
    most realistic (`rded`); or all real images (`whole`).
    """
    comparisons: Annotated[tuple[Comparison, ...], Listed] = ("hard-labels", "equal-storage")
    """Further students that put an accuracy into perspective. `hard-labels`: all sets under hard
    labels as well, where the protocol's are soft; `equal-storage`: random real images that take as
    many bytes as the distilled set with its labels, for as many optimizer steps; `no-augmentation`:
    the distilled and random images without augmentation. An empty list disables them, as does an
    empty list of baselines.
    """

    def epochs_on(self, set_name: str) -> int:
        """Passes over a set by name (`distilled`, `random`, ..., `whole`)."""
        return self.whole_epochs or self.epochs if set_name == "whole" else self.epochs

    def protocol_on(
        self, set_name: str, labels: LabelSettings | None = None, learned: bool = False
    ) -> str:
        """Short description of the protocol: labels, epochs, augmentation, non-default settings.

        Args:
            set_name: set that students are trained on.
            labels: label settings; None for hard labels.
            learned: whether the images have soft labels that were learned with them.

        >>> EvaluationSettings(augmentation="flip_crop", learning_rate=0.02).protocol_on("random")
        'hard-label, 1000 epochs, flip_crop, learning_rate 0.02'
        """
        mix = self.mix if self.mix != "none" else ""
        views = [text for text in (self.augmentation, self.transform.summary, mix) if text]
        kind = "learned-label" if learned else "hard-label"
        if labels is not None and labels.kind != "hard":
            kind = labels.summary
        words = [f"{kind}, {self.epochs_on(set_name)} epochs", *(views or ["no augmentation"])]
        words += self._departing_words()
        if self.precision not in ("auto", "float32"):
            words.append(f"precision {self.precision}")
        return ", ".join(words)

    def _departing_words(self) -> list[str]:
        """Descriptions of the training settings that are not the defaults."""
        words = []
        if self.loss != "cross-entropy":
            words.append(f"kl T={self.temperature:g}" if self.loss == "kl" else "mse")
        if self.schedule != type(self).model_fields["schedule"].default:
            words.append(self.schedule.summary)
        named = (
            "batch_size",
            "optimizer",
            "learning_rate",
            "momentum",
            "weight_decay",
            "weight_decay_of",
            "average",
            "hard_weight",
            "mix_concentration",
            "clean_forward",
        )
        for name in named:
            value = getattr(self, name)
            if name == "learning_rate" and self.learning_rates:
                words.append(f"learning_rate best of {len(self.learning_rates)} by validation")
                continue
            if value != type(self).model_fields[name].default:
                words.append(f"{name} {value}")
        return words


_SOFT = When(kind=("online", "stored"))


class LabelSettings(Settings):
    """Labels for training students: the images' hard labels, or soft labels by teachers."""

    kind: Literal["hard", "online", "stored"] = "hard"
    """`online`: teachers label every batch during training; `stored`: labels are computed once and
    replayed.
    """
    networks: Annotated[tuple[ObserverNetwork, ...] | None, Listed, _SOFT] = None
    """Architectures of the teachers, by default those of the observers. Labels are the mean of
    their logits.
    """
    precision: Annotated[Literal["float16", "float32"], _SOFT] = "float16"
    """Type of the logits, including online ones."""
    seed: Annotated[int | None, _SOFT] = Field(default=None, ge=0)
    """Seed of the order, crops and mixes that are labelled; by default each student's own if
    online, and 0 if stored.
    """

    @property
    def stored_seed(self) -> int:
        """Seed of the order, crops and mixes of stored labels."""
        return self.seed or 0

    @property
    def summary(self) -> str:
        """Short description of the teachers, for the description of a protocol.

        Stored labels are described like online ones, as they are equal.

        >>> LabelSettings(kind="online", networks=["resnet18"], precision="float32").summary
        'soft-label by resnet18 in float32'
        """
        names = ""
        if self.networks:
            names = f" by {' '.join(network.label for network in self.networks)}"
        digits = f" in {self.precision}" if self.precision != "float16" else ""
        return f"soft-label{names}{digits}"

    @model_validator(mode="after")
    def _named(self) -> LabelSettings:
        if self.networks is not None and not self.networks:
            raise ValueError("'labels.networks' must name at least one teacher, or be absent")
        return self
