"""Who looks: the fixed observers of a run, and those of them that label its images."""

from __future__ import annotations

from dataclasses import dataclass

from rayd import methods, seeding
from rayd.config import NetworkGroup, ObserverNetworkSettings, Recipe


@dataclass(frozen=True)
class NetworkId:
    """A fixed observer: the same network wherever and whenever it is made."""

    architecture: ObserverNetworkSettings
    """Its architecture, and the weights that it starts from."""
    index: int = 0
    """Which of the fixed observers of its architecture it is."""
    group: NetworkGroup = "observers"
    """Which panel it sits in: where its seed, and how it is trained, are written."""

    @property
    def label(self) -> str:
        """A short name for tables and errors."""
        return f"{self.architecture.label} #{self.index}"

    def seed(self, recipe: Recipe) -> int:
        """Seed of its initial weights."""
        return seeding.derive(recipe.network_group(self.group).seed, "pool observer", self.index)


def network_ids(recipe: Recipe, group: NetworkGroup = "observers") -> tuple[NetworkId, ...]:
    """The networks of a panel, in the order in which steps go round them."""
    settings = recipe.network_group(group)
    return tuple(
        NetworkId(settings.network_of(index), settings.copy_of(index), group)
        for index in range(settings.count)
    )


def teachers(recipe: Recipe) -> tuple[NetworkId, ...]:
    """The observers that label images; none where labels are hard."""
    if recipe.labels.kind == "hard":
        return ()
    networks = recipe.labels.networks or recipe.observers.networks
    return tuple(
        NetworkId(network, copy) for copy in range(recipe.observers.pool) for network in networks
    )


def trained_networks(recipe: Recipe) -> tuple[NetworkId, ...]:
    """All that are trained on the real data before anything else: observers, and teachers that are
    not among them.
    """
    looking = [
        network_id
        for group in groups(recipe)
        if recipe.network_group(group).trained
        for network_id in network_ids(recipe, group)
    ]
    return tuple(dict.fromkeys((*looking, *teachers(recipe))))


def groups(recipe: Recipe) -> tuple[NetworkGroup, ...]:
    """Who looks: the panels of the method's terms, and the observers where the first images are
    chosen by them.
    """
    looking = methods.build(recipe).groups
    chosen_by = ("observers",) if recipe.synthetic.init == "rded" else ()
    return tuple(dict.fromkeys((*chosen_by, *looking)))


def turn(recipe: Recipe, step: int, slot: int, group: NetworkGroup = "observers") -> int:
    """Index of the member of a panel that looks in a slot of a step: round robin."""
    settings = recipe.network_group(group)
    return (step * settings.per_step + slot) % settings.count
