"""Data sets, methods and networks that `rayd.distill` is given as objects, as settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rayd import methods, plugins
from rayd.config import Recipe
from rayd.errors import ConfigError


def own_settings(
    *,
    train: Any,
    test: Any,
    validation: Any,
    class_names: Sequence[str] | None,
    normalization: tuple[Sequence[float], Sequence[float]] | None,
    method: Any,
    ipc: int | None,
    cache: Path | None,
) -> dict[str, Any]:
    """Settings that stand for what is given; see `rayd.distill`.

    Raises:
        ConfigError: test data without training data, or what is no method.
        DataError: the data are unfit.
    """
    settings: dict[str, Any] = {}
    if train is not None:
        from rayd.data.objects import save

        path = save(
            train,
            test,
            validation,
            class_names=class_names,
            normalization=normalization,
            cache=cache,
        )
        settings["data"] = {"name": str(path)}
    elif test is not None or validation is not None:
        raise ConfigError("Data given as 'test' or 'validation' need those given as 'train'.")
    if method is not None:
        settings["method"] = _method(method)
    if ipc is not None:
        settings["ipc"] = ipc
    return settings


def network_settings(network: Any, recipe: Recipe) -> dict[str, Any]:
    """Settings that make a network a recipe's observer and student, and its expert if it has any.

    Raises:
        ConfigError: it is no network.
    """
    named = named_network(network)
    settings: dict[str, Any] = {"evaluation": {"networks": [named]}}
    if "observers.networks" not in methods.build(recipe).unused:
        settings["observers"] = {"networks": [named]}
    if methods.get(recipe.method).needs_experts:
        # students of a trajectory are compared with experts of their own architecture
        settings["experts"] = {"network": named}
    return settings


def named_network(network: Any) -> Any:
    """A network as settings name it: names and settings as they are, objects by a name of their own.

    Raises:
        ConfigError: it is no network.
    """
    return network if isinstance(network, str | Mapping) else _network(network)


def recipe_of(settings: Mapping[str, Any]) -> Recipe:
    """The recipe of settings that stand on no other recipe: the method's defaults under them.

    Raises:
        ConfigError: a setting does not exist or does not fit.
    """
    from rayd.recipes import assemble

    tree = {"method": "dm", **settings}
    method = str(tree["method"]).rpartition(":")[2].lower()
    data = Path(tree["data"]["name"]).stem
    tree.setdefault("name", f"{method}-{data}-ipc{tree.get('ipc', 1)}")
    return assemble(tree, where="the settings given")


def check_sendable(recipe: Recipe) -> None:
    """Refuse objects that cannot be sent to the workers that a recipe asks for.

    Raises:
        ConfigError: states which, and why.
    """
    if recipe.resources.workers == 0 or not plugins.OBJECTS:
        return
    from rayd.engine.on_ray.cluster import check_sendable as check

    named = recipe.model_dump_json()
    for name, (kind, part) in plugins.OBJECTS.items():
        if f'"{name}"' not in named:
            continue
        check(f"The {kind.removesuffix('s')} '{name}'", part)


def _method(method: Any) -> str:
    if isinstance(method, str):
        return method
    from rayd.methods import Method

    kind = method if isinstance(method, type) else type(method)
    if not issubclass(kind, Method):
        raise ConfigError(
            "'method' must be a name or a subclass of rayd.methods.Method. "
            f"Got {getattr(method, '__name__', None) or type(method).__name__} instead."
        )
    if not hasattr(kind, "name"):
        raise ConfigError(f"Method '{kind.__name__}' has no name: give its class a 'name'.")
    if kind.__module__.partition(".")[0] == "rayd":
        return kind.name
    return plugins.name_of("methods", kind)


def _network(network: Any) -> str:
    from torch import nn

    if not isinstance(network, nn.Module) and not callable(network):
        raise ConfigError(
            "'network' must be a name, a torch module, or a function or class that builds one. "
            f"Got {type(network).__name__} instead."
        )
    return plugins.name_of("networks", network)
