"""Observers: both sides are seen through one augmentation, every member of the pool has its turn, gradients are exact."""

import pytest
import torch

from rayd.config import Recipe
from rayd.data import ImageData, load
from rayd.engine.group import LocalShared
from rayd.engine.members import members, turn
from rayd.engine.observer import Facts
from rayd.engine.observers import Observers, Question
from tests.conftest import tiny

DSA = "color_crop_cutout_scale_rotate"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def everything(data: ImageData) -> tuple[LocalShared, LocalShared, LocalShared]:
    """The whole training set as real images, and as a synthetic set: its state and its parameters."""
    images = data.normalization(torch.from_numpy(data.train.images))
    state = {"images": images, "labels": torch.from_numpy(data.train.labels)}
    return LocalShared((data.train.images, data.train.labels)), LocalShared(state), LocalShared({"images": images})


def question(
    recipe: Recipe, state: LocalShared, parameters: LocalShared, real: LocalShared, step: int = 0, memory: dict | None = None
) -> Question:
    """The first observer of a step is asked; nothing is averaged, nobody is trained."""
    member = members(recipe)[turn(recipe, step, 0)]
    return Question(member, 0, 1, step, 0, state, parameters, None, None, 0.0, real, LocalShared(memory or {}))


def loss_on_itself(recipe: Recipe, data: ImageData, step: int) -> float:
    """The objective where the synthetic set is the real one."""
    real, state, parameters = everything(data)
    observers = Observers(recipe, Facts.of(data))
    if recipe.real == "measured":
        real = LocalShared(observers.measure_alone(members(recipe)[turn(recipe, step, 0)], None, real))
    return float(observers.gradient(question(recipe, state, parameters, real, step))[0]["loss"])


@pytest.mark.parametrize("real", ["measured", "sampled"])
@pytest.mark.parametrize("step", range(3))
def test_real_and_synthetic_images_are_seen_through_the_same_augmentation(data, real, step):
    assert loss_on_itself(tiny(real=real, observers={"augmentation": DSA}), data, step) < 1e-8


def test_members_of_the_pool_differ_by_network_and_by_augmentation(data):
    real, _, _ = everything(data)

    def means(augmentation: str | None) -> list[torch.Tensor]:
        recipe = tiny(observers={"augmentation": augmentation})
        observers = Observers(recipe, Facts.of(data))
        return [observers.measure_alone(member, None, real)["features.flat.Moments"][0]["mean"] for member in members(recipe)]

    plain, augmented = means(None), means(DSA)
    assert not torch.allclose(plain[0], plain[1])
    assert all(not torch.allclose(a, b) for a, b in zip(plain, augmented, strict=True))


def test_the_pool_is_asked_round_robin():
    recipe = tiny(observers={"pool": 3, "per_step": 2})
    asked = [turn(recipe, step, slot) for step in range(3) for slot in range(2)]
    assert asked == [0, 1, 2, 0, 1, 2]


def test_the_gradient_is_that_of_the_loss(data):
    """A central difference along the gradient, through network, augmentation and statistic."""
    recipe = tiny(observers={"augmentation": DSA})
    observers = Observers(recipe, Facts.of(data))
    images = data.normalization(torch.from_numpy(data.train.images[:40]))
    state = LocalShared({"images": images, "labels": torch.from_numpy(data.train.labels[:40])})
    measured = LocalShared(
        observers.measure_alone(members(recipe)[0], None, LocalShared((data.train.images, data.train.labels)))
    )

    def at(x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return observers.gradient(question(recipe, state, LocalShared({"images": x}), measured))[:2]

    gradient = at(images)[1]["images"]
    along = gradient / gradient.norm()
    difference = (at(images + 1e-2 * along)[0]["loss"] - at(images - 1e-2 * along)[0]["loss"]) / 2e-2
    torch.testing.assert_close(difference, gradient.norm(), rtol=2e-2, atol=0)
