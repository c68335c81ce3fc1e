"""Identities of the fixed networks of a run: observers, classifiers and teachers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rayd import methods, seeding
from rayd.config import NetworkGroup, ObserverNetworkSettings, Recipe


@dataclass(frozen=True)
class NetworkId:
    """Identity of a fixed network: equal ids stand for equal networks, in any process."""

    architecture: ObserverNetworkSettings
    """Its architecture, and the origin of its initial weights."""
    index: int = 0
    """Its number among the fixed networks of its architecture."""
    group: NetworkGroup = "observers"
    """The group of settings that determines its seed and training."""

    @property
    def label(self) -> str:
        """A short name for tables and errors."""
        return f"{self.architecture.label} #{self.index}"

    def seed(self, recipe: Recipe) -> int:
        """Seed of its initial weights."""
        return seeding.derive(recipe.network_group(self.group).seed, "pool observer", self.index)


def network_ids(recipe: Recipe, group: NetworkGroup = "observers") -> tuple[NetworkId, ...]:
    """The networks of a group, in the order in which steps take turns (see `turn`)."""
    settings = recipe.network_group(group)
    return tuple(
        NetworkId(settings.network_of(index), settings.copy_of(index), group)
        for index in range(settings.count)
    )


def teachers(recipe: Recipe) -> tuple[NetworkId, ...]:
    """The observers that label images; none if labels are hard."""
    if recipe.labels.kind == "hard":
        return ()
    networks = recipe.labels.networks or recipe.observers.networks
    return tuple(
        NetworkId(network, copy) for copy in range(recipe.observers.pool) for network in networks
    )


def trained_networks(recipe: Recipe) -> tuple[NetworkId, ...]:
    """All networks that are trained on the real data: those of the groups, then other teachers."""
    trained: list[NetworkId] = []
    for group in groups(recipe):
        if recipe.network_group(group).trained:
            trained.extend(network_ids(recipe, group))
    # a dict removes duplicates and keeps the order
    return tuple(dict.fromkeys((*trained, *teachers(recipe))))


def groups(recipe: Recipe) -> tuple[NetworkGroup, ...]:
    """Groups of the method's terms, and the observers if they select the initial images."""
    of_terms = methods.build(recipe).groups
    of_init = ("observers",) if recipe.synthetic.init == "rded" else ()
    return tuple(dict.fromkeys((*of_init, *of_terms)))


def turn(recipe: Recipe, step: int, slot: int, group: NetworkGroup = "observers") -> int:
    """Index of the network of a group for a slot of a step: round robin, or drawn without
    replacement among the slots.
    """
    settings = recipe.network_group(group)
    if settings.order == "random":
        draws = seeding.generator(recipe.seed, "turn", group, step)
        return int(torch.randperm(settings.count, generator=draws)[slot])
    return (step * settings.per_step + slot) % settings.count
