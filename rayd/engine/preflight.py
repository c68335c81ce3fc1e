"""Checks of a run before any long work starts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from torch import nn

from rayd import devices, methods, networks
from rayd.callbacks import Callbacks, EarlyStopping
from rayd.config import NetworkGroup, NetworkSettings, Recipe
from rayd.config.ranking import RANKED
from rayd.data import ImageData
from rayd.data.augmentation import augmentation
from rayd.data.images import ImageShape
from rayd.engine.network_ids import NetworkId, trained_networks
from rayd.engine.stages.experts import parameter_count
from rayd.engine.stages.measure import in_store
from rayd.engine.stages.students import WORKERS, team_of_student
from rayd.errors import ConfigError
from rayd.methods import Method
from rayd.networks import FeatureExtractor, registry, weights
from rayd.synthetic.initialization import check_budget
from rayd.synthetic.rded import check_candidates


def check_settings(recipe: Recipe) -> None:
    """Refuse networks and augmentations that do not exist.

    Needs neither data nor torchvision, so it runs before both are loaded.

    Raises:
        ConfigError: names the setting and the nearest existing value.
    """
    method = methods.build(recipe)
    used = [*recipe.evaluation.networks, *(recipe.labels.networks or ())]
    for group in method.groups:
        used.extend(recipe.network_group(group).networks)
    if method.needs_experts:
        used.append(recipe.experts.network)
    if {recipe.synthetic.init, *recipe.evaluation.baselines} & set(RANKED):
        used.append(recipe.ranking.network)
    for network in used:
        registry.check(network)
    for strategy in _strategies(recipe, method):
        augmentation(strategy)


def _strategies(recipe: Recipe, method: Method) -> list[str | None]:
    """The augmentation strategies of a recipe."""
    strategies = [recipe.network_group(group).augmentation for group in method.groups]
    strategies.append(recipe.evaluation.augmentation)
    if recipe.observers.model_pool is not None:
        strategies.append(recipe.observers.model_pool.augmentation)
    if method.needs_experts:
        strategies.append(recipe.experts.augmentation)
    if method.trajectory_objective is not None:
        strategies.append(method.trajectory_objective.settings.augmentation)
    return strategies


def preflight(recipe: Recipe, data: ImageData, trained: Iterable[NetworkId] | None = None) -> None:
    """Refuse a run that cannot work, before any long work starts.

    Args:
        recipe: the run.
        data: the real data.
        trained: networks that are trained or loaded; None for all networks of the run.

    Raises:
        RaydError: the budget exceeds a class, a network does not fit the images, or resources are
            missing.
    """
    check_settings(recipe)
    method = methods.build(recipe)
    _check_synthesis(recipe, method)
    check_validation(recipe, data.validation is not None, data.name)
    check_budget(recipe, data)
    _check_baselines(recipe, data)

    @cache
    def build(network: NetworkSettings) -> nn.Module:
        return networks.build(network, data.shape, data.classes, seed=0)

    for student in recipe.evaluation.networks:
        build(student)
    for group in method.groups:
        for network in recipe.network_group(group).networks:
            _check_observer(recipe, method, group, network, build(network), data.shape)
    for network_id in trained_networks(recipe) if trained is None else trained:
        build(network_id.architecture)
        _check_trained(recipe, network_id)
    if method.needs_experts:
        # it refuses networks with buffers, which trajectories cannot hold
        parameter_count(recipe, data.shape, data.classes)
    devices.choose(recipe.resources)
    if recipe.resources.workers > 0:
        _check_cluster(recipe, data)
    if recipe.evaluation.workers > 1:
        _check_students(recipe)


def _check_synthesis(recipe: Recipe, method: Method) -> None:
    """Refuse a synthesis with nothing to optimise, or with views that have no gradient."""
    if recipe.synthesis.transform.rand_augment:
        raise ConfigError(
            "RandAugment has no gradient for the synthetic images; set "
            "synthesis.transform.rand_augment to 0."
        )
    if recipe.synthesis.steps > 0 and not method.terms and method.trajectory_objective is None:
        raise ConfigError(f"Method '{recipe.method}' optimises nothing; set synthesis.steps to 0.")


def check_validation(recipe: Recipe, has_split: bool, name: str) -> None:
    """Refuse a selection on a validation split that does not exist.

    Args:
        recipe: the run.
        has_split: whether the data have a validation split.
        name: of the data.

    Raises:
        ConfigError: the recipe uses it to select an epoch, a step size or a step of the synthesis.
    """
    if has_split:
        return
    if "validation-best" in recipe.evaluation.epoch:
        raise ConfigError(
            "'evaluation.epoch: validation-best' needs 'data.validation_fraction' above 0: "
            f"'{name}' has no validation split of its own."
        )
    if recipe.evaluation.learning_rates:
        raise ConfigError(
            "'evaluation.learning_rates' are chosen from on a validation split, and "
            f"'{name}' has none: set 'data.validation_fraction' above 0, or "
            "'evaluation.learning_rates' to [] for the step size 'evaluation.learning_rate'."
        )
    if any(callback.name == "early-stopping" for callback in recipe.callbacks):
        raise ConfigError(
            "The callback 'early-stopping' needs 'data.validation_fraction' above 0: "
            f"'{name}' has no validation split of its own."
        )


def check_early_stopping(recipe: Recipe, data: ImageData, callbacks: Callbacks) -> None:
    """Refuse early stopping of blocks that are optimised in parallel.

    Unfinished blocks would be tested in their last finished state, which is the initial images.

    Raises:
        ConfigError: says which setting to change.
    """
    size = recipe.synthesis.block
    if size is None or methods.build(recipe).sequential:
        return
    size = data.classes if size == "classes" else size
    # a block of all stored images, or of more, is a single block
    is_cut = size < recipe.ipc * data.classes
    if is_cut and any(isinstance(one, EarlyStopping) for one in callbacks):
        raise ConfigError(
            "Early stopping needs the whole set as it is after a step, and the blocks of method "
            f"'{recipe.method}' are optimised in parallel: set 'synthesis.block: null', or leave the "
            "callback 'early-stopping' out."
        )


def _check_baselines(recipe: Recipe, data: ImageData) -> None:
    """Refuse the baseline `rded` without an observer that knows the classes."""
    if "rded" not in recipe.evaluation.baselines:
        return
    if not recipe.observers.trained:
        raise ConfigError(
            "The baseline 'rded' needs an observer that knows the classes, and those of this run "
            "are not trained: set 'observers.trained: true', or leave it out of "
            "'evaluation.baselines'."
        )
    check_candidates(data.train, recipe.synthetic, recipe.ipc)


def _check_observer(
    recipe: Recipe,
    method: Method,
    group: NetworkGroup,
    network: NetworkSettings,
    observer: nn.Module,
    shape: ImageShape,
) -> None:
    """Refuse an observer without the layers of its terms, or without fixed statistics."""
    settings = recipe.network_group(group)
    try:
        FeatureExtractor(
            observer,
            method.layer_roles(group),
            shape,
            optional=method.optional_layer_roles(group),
        )
    except ValueError as error:
        raise ConfigError(
            f"Network '{network.label}' does not fit images of "
            f"{shape.height} x {shape.width} pixels ({error}): choose others by "
            f"'{group}.networks', shallower or with norm: batch."
        ) from error
    if not networks.uses_batch_statistics(observer):
        return
    if recipe.real == "measured" and method.specs(group) and not settings.trained:
        raise ConfigError(
            f"Random observers with batch normalisation ('{network.label}') have no fixed "
            "statistics to be measured with; use real=sampled, observers.trained=true, or "
            "a network with norm: instance."
        )
    if settings.interpolate:
        raise ConfigError(
            f"'{group}.interpolate' moves weights, not the running statistics of batch "
            f"normalisation: '{network.label}' needs norm: instance."
        )


def _check_trained(recipe: Recipe, network_id: NetworkId) -> None:
    """Refuse an observer that has no weights and is not trained."""
    network = network_id.architecture
    weights.fingerprint(network)
    if recipe.squeezing(network_id.group).epochs == 0 and network.weights is None:
        raise ConfigError(
            f"Observer '{network.label}' would stay untrained: 'squeeze.epochs: 0' needs "
            "'weights' for each of the networks, or set squeeze.epochs above 0."
        )


def _check_cluster(recipe: Recipe, data: ImageData) -> None:
    """Refuse a run that exceeds the cluster's resources or memory."""
    from rayd.engine.on_ray.cluster import check_resources, check_store, connect

    connect(recipe.resources.address)
    remedy = (
        "ask for fewer resources.decoders"
        if data.train.streamed
        else "leave them in their files (data.stream=true)"
    )
    check_store(in_store(recipe, data.train), not data.train.streamed, remedy)
    if not recipe.resources.elastic:
        check_resources(recipe.resources)


def _check_students(recipe: Recipe) -> None:
    """Refuse students whose workers exceed the cluster's resources."""
    from rayd.engine.on_ray.cluster import check_resources, connect

    connect(recipe.resources.address)
    check_resources(team_of_student(recipe), WORKERS)
