"""Settings of the networks that rank real images by how hard they are to learn."""

from __future__ import annotations

from pydantic import Field, model_validator

from rayd.config.base import Settings
from rayd.config.observers import Network, NetworkSettings

RANKED = ("forgetting", "el2n", "difficulty")
"""Selections that need networks trained on the real images; see `rayd.training.image_ranking`."""


class RankingSettings(Settings):
    """Training of the networks whose learning curves rank the real images: `synthetic.init` and
    `evaluation.baselines` of `forgetting`, `el2n` and `difficulty`. Scores are means over them.
    """

    network: Network = NetworkSettings()
    """Architecture of the networks."""
    count: int = Field(default=3, ge=1)
    """Number of networks (10 in the paper of EL2N, 5 in that of forgetting)."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the real images (200 in the paper of forgetting)."""
    early: int = Field(default=10, ge=1)
    """Number of passes after which errors are measured for `el2n` and `difficulty`."""
    batch_size: int = Field(default=128, ge=1)
    """Images per batch."""
    learning_rate: float = Field(default=0.01, gt=0)
    """Step size of SGD."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 penalty."""
    seed: int = Field(default=0, ge=0)
    """Seed of the networks and batches, independent of the run's seed: runs share the scores."""

    @model_validator(mode="after")
    def _early_enough(self) -> RankingSettings:
        if self.early > self.epochs:
            raise ValueError(
                f"'ranking.early' ({self.early}) must not exceed 'ranking.epochs' ({self.epochs})"
            )
        return self
