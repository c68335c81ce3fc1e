"""Settings of recipes that follow a paper or its released code in one value each."""

from typing import Any

import pytest

from rayd import methods
from rayd.recipes import resolve

VALUES: list[tuple[str, str, Any]] = [
    ("tesla-cifar10-ipc1", "data.normalization", "standard"),
    ("tesla-cifar10-ipc1", "synthesis.learning_rates.log_step_size", 0.001),
    ("tesla-cifar10-ipc1", "synthesis.steps", 10_000),
    ("tesla-cifar100-ipc50", "synthesis.steps", 10_000),
    ("tesla-cifar100-ipc50", "data.normalization", "zca"),
    ("tesla-cifar100-ipc50", "synthesis.learning_rates.log_step_size", 0.1),
    ("edc-cifar10-ipc10", "evaluation.weight_decay_of", "weights"),
    ("edc-imagenet-1k-ipc10", "evaluation.weight_decay_of", "weights"),
    ("rded-cifar10-ipc10", "evaluation.weight_decay_of", "weights"),
    ("sre2l-imagenet-1k-ipc10", "evaluation.weight_decay_of", "weights"),
    ("sre2l-tiny-imagenet-ipc10", "evaluation.weight_decay_of", "weights"),
    ("sre2l-cifar100-ipc10", "evaluation.weight_decay_of", "all"),
    ("cda-imagenet-1k-ipc10", "evaluation.weight_decay_of", "weights"),
    ("cfm-cifar10-ipc10", "evaluation.weight_decay_of", "all"),
    ("ncfm-cifar10-ipc10", "evaluation.weight_decay_of", "all"),
    ("dc-cifar10-ipc1", "evaluation.epochs", 300),
    ("dc-cifar10-ipc50", "evaluation.augmentation", None),
    ("dsa-cifar10-ipc10", "evaluation.epochs", 1000),
    ("datm-cifar10-ipc10", "evaluation.average", None),
    ("datm-cifar10-ipc50", "evaluation.average", None),
    ("datm-cifar10-ipc10", "evaluation.batch_size", 128),
    ("datm-cifar10-ipc50", "evaluation.batch_size", 128),
    ("gvbsm-cifar10-ipc10", "evaluation.weight_decay", 0),
    ("gvbsm-cifar10-ipc50", "evaluation.weight_decay", 0),
    ("gvbsm-cifar100-ipc10", "evaluation.weight_decay_of", "weights"),
    ("gvbsm-tiny-imagenet-ipc50", "evaluation.weight_decay_of", "weights"),
    ("gvbsm-imagenet-1k-ipc10", "evaluation.weight_decay_of", "weights"),
    ("idm-tiny-imagenet-ipc1", "observers.model_pool.push_every", 30),
    ("idm-cifar10-ipc1", "observers.model_pool.push_every", 5),
    ("csdm-cifar10-lt10-ipc10", "terms.characteristic_function.root", False),
    ("iid-idm-cifar10-ipc10", "synthesis.learning_rate", 1.0),
    ("iid-idm-svhn-ipc1", "observers.real_batch", 256),
    ("iid-idm-cifar10-ipc1", "observers.real_batch", 5000),
    ("iid-idm-svhn-ipc10", "classifiers.squeeze.epochs", 30),
    ("iid-dm-cifar10-ipc50", "classifiers.squeeze.epochs", 30),
    ("iid-dm-cifar10-ipc50", "evaluation.seeds", 5),
    ("cfm-cifar10-ipc10", "synthesis.transform.roll", 0),
    ("cfm-cifar10-ipc10-code", "synthesis.transform.roll", 4),
    ("cfm-imagenet-1k-ipc10", "synthesis.block", 500),
    ("cfm-cifar100-ipc10-convnet", "squeeze.epochs", 100),
    ("ncfm-cifar10-ipc10", "observers.augmentation", "color+crop+cutout"),
    ("ncfm-cifar10-ipc10", "squeeze.augmentation", "color+crop"),
    ("ncfm-cifar10-ipc10", "evaluation.batch_size", 128),
    (
        "ncfm-cifar10-ipc10",
        "evaluation.augmentation",
        "flip+color+crop_flip+color+scale_flip+color+rotate",
    ),
    ("ncfm-cifar10-ipc10", "squeeze.transform.shift", 4),
    ("ncfm-cifar10-ipc10", "squeeze.transform.flip", True),
    ("ncfm-cifar10-ipc10", "synthesis.learning_rate", 0.025),
    ("ncfm-cifar10-ipc10", "terms.calibration.weight", 1.0),
    ("frepo-cifar10-ipc10", "data.normalization", "zca-scaled"),
    ("frepo-cifar10-ipc10-code", "observers.networks.0.norm", "batch"),
    ("krr-cifar100-ipc10", "data.normalization", "zca-scaled"),
    ("mtt-cifar10-ipc10", "data.normalization", "zca"),
    ("mtt-cifar10-ipc50", "data.normalization", "standard"),
    ("mtt-cifar10-ipc1", "objective.start.most", 2),
    ("mtt-cifar10-ipc10", "objective.start.most", 20),
    ("mtt-cifar10-ipc10", "synthetic.step_size", 0.001),
    ("mtt-cifar10-ipc10", "synthesis.learning_rate", 100.0),
    ("mtt-cifar10-ipc10", "synthesis.learning_rates.log_step_size", 10.0),
    ("mtt-cifar100-ipc1", "data.normalization", "zca"),
    ("mtt-cifar100-ipc10", "data.normalization", "standard"),
    ("mtt-cifar100-ipc50", "data.normalization", "zca"),
    ("mtt-cifar100-ipc50", "objective.batch_size", 125),
    ("dm-cifar10-ipc50-sampled", "synthesis.learning_rate", 1.0),
    ("dm-cifar10-ipc100-sampled", "synthesis.learning_rate", 10.0),
    ("dm-cifar10-ipc1000-sampled", "synthesis.learning_rate", 10.0),
    ("dm-cifar100-ipc50-sampled", "synthesis.learning_rate", 1.0),
    ("haba-cifar10-ipc10", "synthetic.step_size", 0.001),
    ("haba-cifar10-ipc10", "synthesis.learning_rates.log_step_size", 10.0),
    ("haba-cifar10-ipc50", "synthetic.step_size", 0.01),
    ("haba-cifar100-ipc50", "objective.batch_size", 5000),
    ("edc-cifar10-ipc1", "evaluation.batch_size", 10),
    ("edc-cifar10-ipc10", "evaluation.batch_size", 25),
    ("edc-cifar10-ipc10", "squeeze.epochs", 10),
    ("edc-imagenet-1k-ipc40", "evaluation.schedule.name", "ssrs"),
    ("edc-imagenet-1k-ipc50", "evaluation.schedule.name", "ssrs"),
    ("edc-imagenet-10-ipc50", "evaluation.schedule.name", "ssrs"),
    ("edc-tiny-imagenet-ipc50", "evaluation.schedule.name", "ssrs"),
    ("edc-cifar100-ipc50", "evaluation.schedule.name", "ssrs"),
    ("edc-cifar100-ipc10", "evaluation.schedule.name", "cosine"),
    ("edc-cifar100-ipc10-code", "evaluation.schedule.name", "ssrs"),
    ("edc-cifar100-ipc10-code", "evaluation.optimizer", "sgd"),
    ("edc-cifar100-ipc10-code", "evaluation.momentum", 0.875),
    ("edc-imagenet-10-ipc10-code", "evaluation.schedule.name", "ssrs"),
    ("edc-config-f", "synthesis.transform.crop", [0.08, 1.0]),
    ("edc-config-g", "synthesis.transform.crop", [0.5, 1.0]),
    ("edc-config-f", "evaluation.transform.crop", [0.5, 1.0]),
    ("edc-imagenet-1k-ipc10", "observers.networks.1.weights", "torchvision/IMAGENET1K_V1"),
    ("iid-dm-cifar10-ipc10", "terms.centralization.weight", 0.05),
    ("iid-dm-cifar10-ipc50", "terms.centralization.weight", 0.003),
    ("iid-dm-cifar10-ipc50-code", "terms.centralization.weight", 0.05),
    ("iid-idm-cifar10-ipc10-code", "terms.covariance.weight", 0.03),
    ("iid-dm-cifar10-ipc10", "classifiers.order", "random"),
    ("edc-config-c", "terms.moments.alpha", 1.0),
    ("edc-config-f", "terms.moments.alpha", 0.5),
    ("dwa-cifar100-ipc10", "evaluation.epochs", 400),
    ("dwa-tiny-imagenet-ipc50", "synthesis.steps", 2000),
    ("dwa-tiny-imagenet-ipc50", "synthesis.block", "classes"),
    ("dwa-tiny-imagenet-ipc50", "terms.moments.weight", 0.01),
    ("dwa-tiny-imagenet-ipc50", "evaluation.epochs", 200),
    ("dwa-tiny-imagenet-ipc50", "evaluation.temperature", 1.0),
    ("dwa-imagenet-1k-ipc10", "synthesis.steps", 2000),
    ("dwa-imagenet-1k-ipc10", "evaluation.batch_size", 128),
    ("idc-cifar10-ipc10", "terms.gradient.distance", "squared"),
    ("dcc-cifar10-ipc10", "terms.gradient.warm_up.networks", 250),
    ("cafe-cifar10-ipc10", "evaluation.epochs", 600),
    ("cafe-cifar10-ipc10-dsa", "evaluation.epochs", 1000),
    ("cafe-cifar10-ipc10-code", "terms.discrimination.weight", 25.6),
    ("iid-dm-cifar10-ipc10-exponential", "terms.centralization.form", "exponential"),
    ("csdm-cifar100-lt200-ipc50", "terms.characteristic_function.root", False),
    ("csdm-cifar10-lt10-ipc10", "terms.characteristic_function.head_amplitude_weight", 0.8),
    (
        "unidd-cifar10-ipc10-mtt",
        "terms.spectral_filter.signal_filter.name",
        "gradient-sum",
    ),
    (
        "unidd-cifar10-ipc10-mtt",
        "terms.spectral_filter.real_signal_filter.power",
        20,
    ),
    ("cfm-cifar10-ipc10", "evaluation.temperature", 30.0),
    ("cfm-tiny-imagenet-ipc10", "terms.spectral_filter.filter.beta", 1.0),
    ("rded-cifar10-ipc1", "evaluation.batch_size", 10),
    ("rded-tiny-imagenet-ipc10", "evaluation.batch_size", 100),
    ("rded-imagenet-1k-ipc50", "evaluation.clean_forward", True),
]


@pytest.mark.parametrize("data", ["svhn", "cifar10", "cifar100"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_ls_mtt_and_mtt_see_the_same_images(data: str, ipc: int) -> None:
    cell = f"{data}-ipc{ipc}"
    assert resolve(f"ls-mtt-{cell}").data == resolve(f"mtt-{cell}").data


def value(recipe: str, path: str) -> Any:
    """A setting of a resolved recipe; those of terms are what its method makes of them."""
    chosen = resolve(recipe)
    found: Any = chosen.model_dump(mode="json")
    terms = methods.build(chosen).terms
    found["terms"] = {term.name: term.model_dump(mode="json") for term in terms}
    for key in path.split("."):
        found = found[int(key) if key.isdigit() else key]
    return found


def by_code(batch_size: int, epochs: int, view: str) -> tuple[Any, ...]:
    """Students of the released code of CFM."""
    return ("adamw", 1e-3, 0.01, batch_size, epochs, "cosine over 2x", 20.0, view)


CFM: dict[str, tuple[Any, ...]] = {
    "cifar10-ipc10": ("adam", 1e-3, 5e-4, 64, 1000, "cosine", 30.0, "shift 4, flip"),
    "cifar10-ipc50": ("adam", 1e-3, 5e-4, 64, 1000, "cosine", 30.0, "shift 4, flip"),
    "cifar100-ipc10": ("sgd", 0.1, 5e-4, 64, 1000, "cosine", 30.0, "shift 4, flip"),
    "cifar100-ipc50": ("sgd", 0.1, 5e-4, 64, 1000, "cosine", 30.0, "shift 4, flip"),
    "tiny-imagenet-ipc10": ("sgd", 0.2, 1e-4, 64, 100, "cosine", 20.0, "crop 0.08-1, flip"),
    "tiny-imagenet-ipc50": ("sgd", 0.2, 1e-4, 64, 100, "cosine", 20.0, "crop 0.08-1, flip"),
    "imagenet-1k-ipc10": ("adam", 1e-3, 1e-4, 128, 300, "cosine", 20.0, "crop 0.08-1, flip"),
    "imagenet-1k-ipc50": ("adam", 1e-3, 1e-4, 128, 300, "cosine", 20.0, "crop 0.08-1, flip"),
    "cifar10-ipc10-code": by_code(batch_size=50, epochs=1000, view="crop 0.08-1, flip"),
    "cifar10-ipc50-code": by_code(batch_size=100, epochs=1000, view="crop 0.08-1, flip"),
    "cifar100-ipc10-code": by_code(batch_size=100, epochs=1000, view="crop 0.08-1, flip"),
    "tiny-imagenet-ipc10-code": by_code(batch_size=100, epochs=300, view="crop 0.5-1, flip"),
    "imagenet-1k-ipc10-code": by_code(batch_size=100, epochs=300, view="crop 0.5-1, flip"),
}
"""Students of CFM: optimizer, step size, weight decay, batch size, epochs, schedule, temperature and
view, by the paper's supplement and by the released code.
"""


@pytest.mark.parametrize("cell", CFM)
def test_students_of_cfm_are_those_of_the_paper_or_of_the_code(cell: str) -> None:
    chosen = resolve(f"cfm-{cell}").evaluation
    assert (
        chosen.optimizer,
        chosen.learning_rate,
        chosen.weight_decay,
        chosen.batch_size,
        chosen.epochs,
        chosen.schedule.summary,
        chosen.temperature,
        chosen.transform.summary,
    ) == CFM[cell]


@pytest.mark.parametrize(("recipe", "path", "expected"), VALUES)
def test_recipe_has_the_value_of_its_source(recipe: str, path: str, expected: Any) -> None:
    assert value(recipe, path) == expected
