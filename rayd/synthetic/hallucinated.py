r"""Hallucinated images: small networks generate several images from every stored one (HaBa).

Liu et al., "Dataset Distillation via Factorization" (NeurIPS 2022). Every hallucinator h generates
an image from every basis b,

    x_bh = decoder_h * (scale_h . (encoder_h # b + encoder_bias_h) + shift_h) + decoder_bias_h

    b         basis: a stored image (C, H, W), of one class
    #, *      convolution without padding, and transposed convolution, both of kernel size s, so that x is as large as b
    scale_h, shift_h   of every position, (C, H - s + 1, W - s + 1)

so k hallucinators and n bases give k n images, ordered by basis. Bases and hallucinators are
learned, and nothing else is stored:

    bases  n C H W        hallucinators  k (2 C^2 s^2 + 2 C + 2 C (H - s + 1) (W - s + 1))

For 32 x 32 pixels and s = 3, five hallucinators are 27,840 numbers, as many as nine images.

As in the released code, hallucinators start as layers of torch do (encoder and decoder uniform in
plus and minus one over the root of their inputs), with scale 1 and shift 0, and bases as real images.
They act within the channels that images have.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from rayd.data.images import ImageShape
from rayd.derived import derived
from rayd.errors import ConfigError
from rayd.synthetic.base import SyntheticSet, is_regular

PARTS = ("encoder", "encoder_bias", "scale", "shift", "decoder", "decoder_bias")
"""Names of the parameters of hallucinators."""


class Hallucinators(NamedTuple):
    """Parameters of k hallucinators."""

    encoder: Tensor
    """Kernels (k, C, C, s, s) of the convolutions."""
    encoder_bias: Tensor
    """Biases (k, C) of the convolutions."""
    scale: Tensor
    """Factors of every position, (k, C, H - s + 1, W - s + 1)."""
    shift: Tensor
    """Summands of every position, of the same shape."""
    decoder: Tensor
    """Kernels (k, C, C, s, s) of the transposed convolutions, inputs first."""
    decoder_bias: Tensor
    """Biases (k, C) of the transposed convolutions."""


class Hallucinated(SyntheticSet):
    """Bases with hard labels, and hallucinators that generate k images from each."""

    labels: Tensor

    def __init__(self, images: Tensor, labels: Tensor, hallucinators: Hallucinators):
        """Initialise from bases (n, C, H, W), normalised, class indices (n,), and hallucinators.

        Raises:
            ConfigError: the hallucinators do not fit the bases.
        """
        super().__init__()
        kernel = hallucinators.encoder.shape[-1]
        inner = [side - kernel + 1 for side in images.shape[2:]]
        if list(hallucinators.scale.shape[1:]) != [images.shape[1], *inner]:
            raise ConfigError(
                f"Hallucinators of kernel size {kernel} must scale maps of {images.shape[1]} channels and "
                f"{inner[0]} x {inner[1]} positions for bases {tuple(images.shape)}. "
                f"Got {tuple(hallucinators.scale.shape)} instead."
            )
        self.images = nn.Parameter(images.detach().clone().float())
        self.register_buffer("labels", labels.detach().clone().long())
        for name, tensor in zip(PARTS, hallucinators, strict=True):
            self.register_parameter(name, nn.Parameter(tensor.detach().clone().float()))

    @property
    def hallucinators(self) -> Hallucinators:
        """The hallucinators' parameters, attached to the autograd graph."""
        return Hallucinators(*(getattr(self, name) for name in PARTS))

    @property
    def per_basis(self) -> int:
        """Number of images per basis, k."""
        return len(self.hallucinators.encoder)

    def __len__(self) -> int:
        """Number of hallucinated images, k n."""
        return len(self.images) * self.per_basis

    def batch(self, indices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hallucinated images and class indices; image i is of basis i // k, hallucinator i % k."""
        count = self.per_basis
        if indices is None:
            # the same tensor in every call, so that values derived from it are cached
            labels = derived(
                self.labels, f"repeated {count}", lambda: self.labels.repeat_interleave(count)
            )
            return hallucinate(self.images, self.hallucinators).flatten(0, 1), labels
        stored, which = torch.unique(indices // count, return_inverse=True)
        images = hallucinate(self.images[stored], self.hallucinators)
        return images[which, indices % count], self.labels[indices // count]

    def clip(self, lower: Tensor, upper: Tensor) -> None:
        """Refuse, as bounds of the images do not translate to bases and hallucinators.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "Hallucinated images cannot be kept in a range: set 'synthesis.clip: false'."
        )

    @property
    def samples(self) -> Tensor:
        """Labels of the bases."""
        return self.labels

    def part(self, indices: Tensor) -> Self:
        """Copy the whole set, as hallucinators belong to all bases together.

        Raises:
            ConfigError: the indices are not all, in order.
        """
        self._check_whole(indices)
        return type(self)(self.images, self.labels, self.hallucinators)

    @torch.no_grad()
    def put(self, indices: Tensor, part: Self) -> None:
        """Overwrite the whole set.

        Raises:
            ConfigError: the indices are not all, in order.
        """
        self._check_whole(indices)
        self.assign(dict(part.named_parameters()))

    def _check_whole(self, indices: Tensor) -> None:
        if not torch.equal(indices.cpu(), torch.arange(len(self.samples))):
            raise ConfigError(
                "Images that share hallucinators cannot be cut apart: set 'synthesis.block: null'."
            )

    @property
    def implied(self) -> frozenset[str]:
        """Hard labels, if every class has equally many bases, sorted by class."""
        return frozenset({"labels"}) if is_regular(self.labels) else frozenset()


def hallucinate(bases: Tensor, hallucinators: Hallucinators) -> Tensor:
    """Images (n, k, C, H, W) that k hallucinators generate from bases (n, C, H, W)."""
    made = []
    for encoder, encoder_bias, scale, shift, decoder, decoder_bias in zip(
        *hallucinators, strict=True
    ):
        maps = functional.conv2d(bases, encoder, encoder_bias)
        styled = scale * maps + shift
        made.append(functional.conv_transpose2d(styled, decoder, decoder_bias))
    return torch.stack(made, 1)


def initial_hallucinators(
    count: int, kernel: int, shape: ImageShape, draws: Generator
) -> Hallucinators:
    """Draw hallucinators with torch's default initialisation of layers.

    Args:
        count: k.
        kernel: side s of the kernels.
        shape: of the images.
        draws: a private generator on the CPU.

    Raises:
        ConfigError: the kernel exceeds a side of the images.
    """
    channels, height, width = shape
    if kernel > min(height, width):
        raise ConfigError(
            f"'synthetic.kernel_size' must not exceed the images' sides, {height} x {width}. "
            f"Got {kernel} instead."
        )
    bound = 1 / sqrt(channels * kernel**2)

    def drawn(*size: int) -> Tensor:
        return (2 * torch.rand(count, *size, generator=draws) - 1) * bound

    inner = (channels, height - kernel + 1, width - kernel + 1)
    return Hallucinators(
        encoder=drawn(channels, channels, kernel, kernel),
        encoder_bias=drawn(channels),
        scale=torch.ones(count, *inner),
        shift=torch.zeros(count, *inner),
        decoder=drawn(channels, channels, kernel, kernel),
        decoder_bias=drawn(channels),
    )
