"""Synthetic sets: their parameterisations and initialisation."""

from rayd.synthetic.base import Storage, SyntheticSet
from rayd.synthetic.blocks import blocks
from rayd.synthetic.initialization import image_count, initial
from rayd.synthetic.kinds import restore
from rayd.synthetic.lowrank import LowRank
from rayd.synthetic.partitioned import Partitioned
from rayd.synthetic.pixels import Pixels

__all__ = [
    "LowRank",
    "Partitioned",
    "Pixels",
    "Storage",
    "SyntheticSet",
    "blocks",
    "image_count",
    "initial",
    "restore",
]
