"""Settings of networks and of the observers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from rayd.config.base import Listed, Only, Precision, Settings

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
"""The augmentation of Zhao and Bilen (2021) for natural images; digits leave out `flip`."""


class NetworkSettings(Settings):
    """An architecture of the registry. A bare name stands for its defaults."""

    name: str = "convnet"
    """A known name: `convnet`, `mlp`, `alexnet`, `vgg11`, `resnet18`, ... or
    `torchvision/<model>`.
    """
    depth: int | None = Field(default=None, ge=1)
    """Number of blocks, where the architecture has that choice; absent: the field's choice for the
    image size.
    """
    width: int | None = Field(default=None, ge=1)
    """Channels of a block (ConvNet) or units of a layer (MLP), where the architecture has that
    choice.
    """
    norm: Literal["instance", "batch", "group", "layer", "none"] | None = None
    """Normalisation layers, where the architecture has that choice."""

    @property
    def label(self) -> str:
        """A short name that tells this architecture from its neighbours, for tables and file
        names.
        """
        parts = [self.name]
        parts += [f"d{self.depth}"] if self.depth is not None else []
        parts += [f"w{self.width}"] if self.width is not None else []
        parts += [self.norm] if self.norm is not None else []
        return "-".join(parts)


def _network_from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


Network = Annotated[NetworkSettings, BeforeValidator(_network_from_name)]


class ObserverNetworkSettings(NetworkSettings):
    """An architecture and the weights that it starts from."""

    weights: str | None = None
    """`torchvision` for its pretrained weights, or the path of a checkpoint (safetensors, or a
    state dict that torch loads with `weights_only`); absent: random ones.
    """


ObserverNetwork = Annotated[ObserverNetworkSettings, BeforeValidator(_network_from_name)]


class NetworkGroupSettings(Settings):
    """A panel: networks that look at the same images in turn."""

    networks: Annotated[tuple[ObserverNetwork, ...], Listed, Field(min_length=1)] = (
        ObserverNetworkSettings(),
    )
    """Architectures of the observers; steps go round them in this order."""
    trained: bool = False
    """Whether they are squeezed, that is trained on the real data, before they look; see
    `squeeze`.
    """
    pool: int = Field(default=20, ge=1)
    """How many fixed observers of each architecture there are."""
    seed: int = Field(default=0, ge=0)
    """Seed of the fixed observers. It is not the run's seed: runs that differ in seed alone share
    what was measured.
    """
    per_step: int = Field(default=1, ge=1)
    """Observers whose gradients are averaged in one step; more than one lets workers share a
    step.
    """
    augmentation: str | None = DSA_STRATEGY
    """Siamese augmentation through which real and synthetic images are seen, operations joined by
    underscores; null for none. A measured observer keeps one draw for good; others draw for every
    class of every step.
    """
    batch_size: int = Field(default=256, ge=1)
    """Images of one forward pass while measuring; changes speed and memory, results only by
    rounding.
    """
    precision: Precision = "auto"
    """Arithmetic of the measuring forward pass; statistics are accumulated in float64 whatever it
    is.
    """

    interpolate: bool = False
    """Trained observers stand somewhere between their initial weights and the trained ones, each at
    a place of its own, drawn once: l initial + (1 - l) trained, l uniform in [0, 1] (NCFM). Those
    that label images are the trained ones.
    """

    @property
    def count(self) -> int:
        """Fixed observers in all."""
        return self.pool * len(self.networks)

    def network_of(self, network_id: int) -> ObserverNetworkSettings:
        """Architecture of a fixed observer: round robin."""
        return self.networks[network_id % len(self.networks)]

    def copy_of(self, network_id: int) -> int:
        """Which of the fixed observers of its architecture a member is."""
        return network_id // len(self.networks)


class ModelPoolSettings(Settings):
    """Networks that grow beside the synthesis: young and old ones look in turn, and are trained
    meanwhile.

    The defaults are IDM's: many networks, trained on real images while others look. One network
    that is trained on the synthetic images between two looks, and given up after some, is DC's; a
    pool of them, each renewed when it has learned long enough, is FRePo's.
    """

    start: int = Field(default=3, ge=1)
    """Random networks at the beginning."""
    push_every: int | None = Field(default=30, ge=1)
    """Steps after which one more random network comes, from step 0 on; null: none comes."""
    capacity: int = Field(default=100, ge=1)
    """Most networks; the oldest one leaves for a new one."""
    lifetime: int | None = Field(default=None, ge=1)
    """Times that a network is trained on, after which a new one takes its place (`push_every:
    null`); null: no end. The first ones live shorter, each in turn, so that young and old ones are
    there at any time.
    """
    source: Literal["real", "synthetic"] = "real"
    """What they are trained on: real images, while others look in the same step, or the synthetic
    ones once they have moved.
    """
    trained: Literal["drawn", "looking"] = "drawn"
    """Who is trained on in a step: some that are drawn at random, or those that looked."""
    trained_per_step: Annotated[int, Only(trained="drawn")] = Field(default=2, ge=0)
    """`drawn`: how many; fewer while the queue holds fewer."""
    train_steps: Annotated[int, Only(train_epochs=None)] = Field(default=10, ge=1)
    """Steps of the optimizer that each of them gets."""
    train_epochs: int | None = Field(default=None, ge=1)
    """Passes over all images, in place of `train_steps`."""
    batch_size: int = Field(default=256, ge=1)
    """Images of such a step, of all classes."""
    augmentation: str | None = None
    """DSA augmentation of these images (per-sample parameters), operations joined by underscores;
    null for none.
    """
    loss: Literal["cross-entropy", "mse"] = "cross-entropy"
    """`mse`: half the squared distance of the logits from the targets of a ridge regression."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """What trains them."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Its step size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD, first moment decay of Adam; every network keeps its own."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty."""

    @model_validator(mode="after")
    def _one_rule(self) -> ModelPoolSettings:
        if self.lifetime is not None and self.push_every is not None:
            raise ValueError(
                "'model_pool.lifetime' renews networks where 'model_pool.push_every' adds none: set one of them to null"
            )
        if self.push_every is None and self.start > self.capacity:
            raise ValueError(
                f"'model_pool.start' ({self.start}) must not exceed 'model_pool.capacity' ({self.capacity})"
            )
        return self


class ObserverSettings(NetworkGroupSettings):
    """The networks through which real and synthetic images are compared."""

    real_batch: Annotated[int, Only(real="sampled")] = Field(default=256, ge=1)
    """Real images drawn per class in a step (`real: sampled`); smaller classes are drawn with
    replacement.
    """
    model_pool: ModelPoolSettings | None = None
    """Networks that grow beside the synthesis, in place of a fresh one in each step (`real:
    sampled`); null for none.
    """
