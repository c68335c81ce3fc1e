"""Settings of callbacks that a recipe names."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict

from rayd.config.base import Settings


class CallbackSettings(Settings):
    """A callback by name, with its arguments; a bare name uses the default arguments."""

    model_config = ConfigDict(extra="allow")

    name: str
    """`csv`, `early-stopping`, `mlflow`, `snapshots`, `trackio` or `wandb`, the name of an entry
    point, or `package.module:Name`.
    """


def _from_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


NamedCallback = Annotated[CallbackSettings, BeforeValidator(_from_name)]
"""A callback, or its bare name."""
