"""Settings of networks and observers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rayd.config.base import Listed, Precision, Settings, When

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""Augmentation of Zhao and Bilen (2021) for natural images; for digits, omit `flip`."""


class NetworkSettings(Settings):
    """An architecture of the registry; a bare name selects its defaults."""

    name: str = "convnet"
    """A known name: `convnet`, `mlp`, `alexnet`, `vgg11`, `resnet18`, ..., `torchvision/<model>`, or
    `timm/<model>` (with the extra `timm`).
    """
    depth: int | None = Field(default=None, ge=1)
    """Number of blocks, for architectures with this option; by default as customary for the image
    size.
    """
    width: int | None = Field(default=None, ge=1)
    """Channels of a block (ConvNet) or units of a layer (MLP), for architectures with this
    option.
    """
    norm: Literal["instance", "batch", "group", "layer", "none"] | None = None
    """Normalisation layers, for architectures with this option."""

    @property
    def label(self) -> str:
        """Short name that identifies architecture and options, for tables and file names."""
        # own networks are named package.module:Name
        parts = [self.name.replace(":", ".")]
        parts += [f"d{self.depth}"] if self.depth is not None else []
        parts += [f"w{self.width}"] if self.width is not None else []
        parts += [self.norm] if self.norm is not None else []
        return "-".join(parts)


def _network_from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Network = Annotated[NetworkSettings, BeforeValidator(_network_from_name)]


class ObserverNetworkSettings(NetworkSettings):
    """An architecture and its initial weights."""

    weights: str | None = None
    """`torchvision` for pretrained weights (those that torchvision recommends, or those of a name, as
    in `torchvision/IMAGENET1K_V1`), or the path of a checkpoint (safetensors, or a state dict that
    torch loads with `weights_only`); by default random.
    """


ObserverNetwork = Annotated[ObserverNetworkSettings, BeforeValidator(_network_from_name)]


class StudentNetworkSettings(NetworkSettings):
    """An architecture of students, with the settings in which it departs from the protocol."""

    learning_rate: float | None = Field(default=None, gt=0)
    """Initial step size of students of this architecture, e.g. 1e-4 for a Swin-Tiny beside ResNets;
    by default that of the protocol. It takes precedence over a step size that was learned with the
    set.
    """

    @property
    def label(self) -> str:
        """Short name, including the step size if the architecture has its own."""
        own = "" if self.learning_rate is None else f"-lr{self.learning_rate:g}"
        return super().label + own


StudentNetwork = Annotated[StudentNetworkSettings, BeforeValidator(_network_from_name)]


class NetworkGroupSettings(Settings):
    """A group of networks that take turns computing features."""

    networks: Annotated[tuple[ObserverNetwork, ...], Listed, Field(min_length=1)] = (
        ObserverNetworkSettings(),
    )
    """Architectures of the networks, used in this order."""
    trained: bool = False
    """Whether the networks are trained on the real data before use; see `squeeze`."""
    pool: int = Field(default=20, ge=1)
    """Number of networks of each architecture."""
    seed: int = Field(default=0, ge=0)
    """Seed of the networks, independent of the run's seed: runs that differ only in their seed
    share networks and measured statistics.
    """
    per_step: int = Field(default=1, ge=1)
    """Number of networks whose gradients are averaged in a step; with more than one, workers
    compute them in parallel.
    """
    order: Literal["turn", "random"] = "turn"
    """Which networks a step uses: the next ones in turn (round robin), or random ones, redrawn each
    step.
    """
    augmentation: str | None = DSA_STRATEGY
    """Siamese augmentation of real and synthetic images: operations joined by underscores, of which
    each step draws one, or by `+`, to be applied together (see `rayd.data.augmentation.dsa`); null
    for none. Observers with measured statistics keep a single draw; others draw for every class in
    every step.
    """
    batch_size: int = Field(default=256, ge=1)
    """Images per forward pass while statistics are measured; affects speed and memory, and results
    by rounding only.
    """
    precision: Precision = "auto"
    """Arithmetic of forward passes while statistics are measured; accumulation is in float64."""

    interpolate: bool = False
    """Interpolate between initial and trained weights: u times the initial ones and 1 - u times the
    trained ones, with u uniform in [0, 1], drawn once per network (NCFM). Networks that label images
    use the trained weights.
    """

    @property
    def count(self) -> int:
        """Total number of networks."""
        return self.pool * len(self.networks)

    def network_of(self, network_id: int) -> ObserverNetworkSettings:
        """Architecture of a network (round robin)."""
        return self.networks[network_id % len(self.networks)]

    def copy_of(self, network_id: int) -> int:
        """Index of a network among those of its architecture."""
        return network_id // len(self.networks)


class ModelPoolSettings(Settings):
    """A pool of networks trained alongside the synthesis, to match at different training ages.

    The defaults are IDM's: many networks, trained on real images while others compute features.
    DC uses a single network that is trained on the synthetic images between steps and replaced
    regularly; FRePo uses a pool of these, each replaced after sufficient training.
    """

    start: int = Field(default=3, ge=1)
    """Initial number of random networks."""
    push_every: int | None = Field(default=30, ge=1)
    """Steps between additions of a random network, from step 0 on; null for none."""
    capacity: int = Field(default=100, ge=1)
    """Maximum number of networks; the oldest is replaced."""
    lifetime: int | None = Field(default=None, ge=1)
    """Number of training rounds after which a network is replaced (`push_every: null`); null for
    unlimited. Initial networks have staggered, shorter lifetimes, so that the pool always contains
    different ages.
    """
    source: Literal["real", "synthetic"] = "real"
    """Training images: real ones, in parallel with the step, or the synthetic ones after it."""
    trained: Literal["drawn", "used"] = "drawn"
    """Networks trained in a step: randomly drawn ones, or those that the step used."""
    trained_per_step: Annotated[int, When(trained="drawn")] = Field(default=2, ge=0)
    """`drawn`: number of trained networks, limited by the size of the pool."""
    train_steps: Annotated[int, When(train_epochs=None)] = Field(default=10, ge=1)
    """Optimizer steps of each trained network."""
    train_epochs: int | None = Field(default=None, ge=1)
    """Passes over all images, in place of `train_steps`."""
    batch_size: int = Field(default=256, ge=1)
    """Images per training batch, of all classes."""
    augmentation: str | None = None
    """DSA augmentation of the training batches (per-sample parameters), operations joined by
    underscores; null for none.
    """
    loss: Literal["cross-entropy", "mse", "contrast"] = "cross-entropy"
    """`mse`: half the squared distance of the logits from the targets of a ridge regression;
    `contrast`: cross-entropy plus losses on the similarity of images of one basis and of one class
    (HaBa's adversary; `source: synthetic`).
    """
    optimizer: Literal["sgd", "adam"] = "sgd"
    """Optimizer of the networks."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Step size of the optimizer."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD, first moment decay of Adam; kept per network."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty."""

    @model_validator(mode="after")
    def _one_rule(self) -> ModelPoolSettings:
        if self.lifetime is not None and self.push_every is not None:
            raise ValueError(
                "'model_pool.lifetime' only replaces networks if 'model_pool.push_every' adds "
                "none: set one of them to null"
            )
        if self.loss == "contrast" and self.source == "real":
            raise ValueError(
                "'model_pool.loss: contrast' needs images of one basis: "
                "set 'model_pool.source: synthetic'"
            )
        if self.push_every is None and self.start > self.capacity:
            raise ValueError(
                f"'model_pool.start' ({self.start}) must not exceed 'model_pool.capacity' "
                f"({self.capacity})"
            )
        return self


class ObserverSettings(NetworkGroupSettings):
    """Networks whose features of real and synthetic images are compared."""

    real_batch: int = Field(default=256, ge=1)
    """Real images drawn per class and step (`real: sampled`); with replacement from smaller
    classes.
    """
    ascent_steps: int = Field(default=0, ge=0)
    """Gradient ascent steps of fixed observers on the cross-entropy of each block's first images,
    so that every block is matched through different networks (DWA); 0 for none.
    """
    ascent_length: Annotated[float, When(ascent_steps=True)] = Field(default=0.015, gt=0)
    """Total length of the ascent over all steps, in the Euclidean norm of all weights."""
    model_pool: ModelPoolSettings | None = None
    """Networks trained alongside the synthesis, in place of a fresh one in each step (`real:
    sampled`); null for none.
    """
