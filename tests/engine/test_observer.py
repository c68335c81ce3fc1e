"""Observers: both sides are seen through one augmentation, every member of the pool has its turn,
gradients are exact.
"""

import pytest
import torch

from rayd import networks, seeding
from rayd.config import NetworkSettings, Recipe
from rayd.data import ImageData, load
from rayd.data.augmentation import augmentation
from rayd.engine import observer
from rayd.engine.gradients.feature_matching import GradientTask
from rayd.engine.network_ids import network_ids, turn
from rayd.engine.observer import DatasetInfo, Observer
from rayd.engine.observer_tasks import ObserverTasks
from rayd.engine.pool import LocalRef
from rayd.methods import build
from rayd.networks import Observation
from tests.conftest import tiny

DSA = "color_crop_cutout_scale_rotate"


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load(tiny().data)


def everything(data: ImageData) -> tuple[LocalRef, LocalRef, LocalRef]:
    """The whole training set as real images, and as a synthetic set: its state and its
    parameters.
    """
    images = data.normalization(torch.from_numpy(data.train.images))
    state = {"images": images, "labels": torch.from_numpy(data.train.labels)}
    return (
        LocalRef((data.train.images, data.train.labels)),
        LocalRef(state),
        LocalRef({"images": images}),
    )


def question(
    recipe: Recipe,
    state: LocalRef,
    parameters: LocalRef,
    real: LocalRef,
    step: int = 0,
    memory: dict | None = None,
) -> GradientTask:
    """The first observer of a step is asked; nothing is averaged, nobody is trained."""
    network_id = network_ids(recipe)[turn(recipe, step, 0)]
    return GradientTask(
        network_id, 0, 1, step, 0, state, parameters, None, None, 0.0, real, LocalRef(memory or {})
    )


def loss_on_itself(recipe: Recipe, data: ImageData, step: int) -> float:
    """The objective where the synthetic set is the real one."""
    real, state, parameters = everything(data)
    observers = ObserverTasks(recipe, DatasetInfo.of(data))
    if recipe.real == "measured":
        real = LocalRef(
            observers.measure_alone(network_ids(recipe)[turn(recipe, step, 0)], None, real)
        )
    return float(observers.gradient(question(recipe, state, parameters, real, step))[0]["loss"])


@pytest.mark.parametrize("real", ["measured", "sampled"])
@pytest.mark.parametrize("step", range(3))
def test_real_and_synthetic_images_are_seen_through_the_same_augmentation(data, real, step):
    assert loss_on_itself(tiny(real=real, observers={"augmentation": DSA}), data, step) < 1e-8


def test_members_of_the_pool_differ_by_network_and_by_augmentation(data):
    real, _, _ = everything(data)

    def means(augmentation: str | None) -> list[torch.Tensor]:
        recipe = tiny(observers={"augmentation": augmentation})
        observers = ObserverTasks(recipe, DatasetInfo.of(data))
        return [
            observers.measure_alone(network_id, None, real)["features.flat.Moments"][0]["mean"]
            for network_id in network_ids(recipe)
        ]

    plain = means(None)
    augmented = means(DSA)
    assert not torch.allclose(plain[0], plain[1])
    assert all(not torch.allclose(a, b) for a, b in zip(plain, augmented, strict=True))


def test_the_pool_is_asked_round_robin():
    recipe = tiny(observers={"pool": 3, "per_step": 2})
    asked = [turn(recipe, step, slot) for step in range(3) for slot in range(2)]
    assert asked == [0, 1, 2, 0, 1, 2]


def test_the_gradient_is_that_of_the_loss(data):
    """A central difference along the gradient, through network, augmentation and statistic."""
    recipe = tiny(observers={"augmentation": DSA})
    observers = ObserverTasks(recipe, DatasetInfo.of(data))
    images = data.normalization(torch.from_numpy(data.train.images[:40]))
    state = LocalRef({"images": images, "labels": torch.from_numpy(data.train.labels[:40])})
    measured = LocalRef(
        observers.measure_alone(
            network_ids(recipe)[0], None, LocalRef((data.train.images, data.train.labels))
        )
    )

    def at(x: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        return observers.gradient(question(recipe, state, LocalRef({"images": x}), measured))[:2]

    gradient = at(images)[1]["images"]
    along = gradient / gradient.norm()
    difference = (
        at(images + 1e-2 * along)[0]["loss"] - at(images - 1e-2 * along)[0]["loss"]
    ) / 2e-2
    torch.testing.assert_close(difference, gradient.norm(), rtol=2e-2, atol=0)


def sampled_recipe(network: dict[str, object] | list[str], **observers: object) -> Recipe:
    return tiny(
        real="sampled",
        observers={"networks": network, "augmentation": DSA, "real_batch": 8} | observers,
    )


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_fresh_network_does_not_depend_on_steps_before(data, norm):
    """The observer of an architecture is kept; its network of a step is the one that a new worker
    builds.
    """
    recipe = sampled_recipe({"name": "convnet", "width": 4, "depth": 2, "norm": norm})
    _, state, parameters = everything(data)
    real = LocalRef((data.train.images[::9], data.train.labels[::9]))
    seasoned = ObserverTasks(recipe, DatasetInfo.of(data))
    for step in range(3):
        asked = question(recipe, state, parameters, real, step)
        _, ours, _ = seasoned.gradient(asked)
        _, wanted, _ = ObserverTasks(recipe, DatasetInfo.of(data)).gradient(asked)
        assert torch.equal(ours["images"], wanted["images"])
        assert float(ours["images"].abs().sum()) > 0


def test_fresh_network_with_batch_statistics_has_no_dropout(data):
    """Dropout would draw from the global generator, which differs between workers."""
    recipe = sampled_recipe(["torchvision/mobilenet_v2"], real_batch=2)
    images = data.normalization(torch.from_numpy(data.train.images[:10]))
    labels = torch.from_numpy(data.train.labels[:10])
    state = LocalRef({"images": images, "labels": labels})
    parameters = LocalRef({"images": images})
    real = LocalRef((data.train.images[::40], data.train.labels[::40]))
    asked = question(recipe, state, parameters, real)
    observers = ObserverTasks(recipe, DatasetInfo.of(data))
    network = observers._networks.of_task(asked).network
    assert networks.normalizes_by_batch(network)
    torch.manual_seed(1)
    first = observers.gradient(asked)
    torch.manual_seed(2)
    again = observers.gradient(asked)
    assert torch.equal(first[1]["images"], again[1]["images"])


def test_each_class_has_one_draw_for_real_and_synthetic_images(data):
    """What a class gets is drawn from its own generator of the step and slot, however the batch is
    made up.
    """
    recipe = sampled_recipe({"name": "convnet", "width": 4, "depth": 2})
    real, state, parameters = everything(data)
    asked = question(recipe, state, parameters, real, step=4)
    observers = ObserverTasks(recipe, DatasetInfo.of(data))
    batch = data.normalization(torch.from_numpy(data.train.images[:60]))
    labels = torch.from_numpy(data.train.labels[:60])
    ours = observers._draws.by_class(asked, labels, {})(batch, slice(None))
    for label in labels.unique().tolist():
        draws = seeding.generator(recipe.seed, "siamese augmentation", 4, 0, label)
        wanted = augmentation(DSA)(batch[labels == label], draws, siamese=True)
        torch.testing.assert_close(ours[labels == label], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
def test_tiles_change_nothing(data, name, monkeypatch):
    """Images that are forwarded a few at a time give what the whole batch gives."""
    recipe = tiny()
    network = networks.build(
        NetworkSettings(name=name, width=8), data.shape, data.classes, seed=1
    ).eval()
    images = data.normalization(torch.from_numpy(data.train.images[:70]))

    def seen(tile_bytes: int) -> Observation:
        monkeypatch.setattr(observer, "TILE_BYTES", tile_bytes)
        looking = Observer(
            network, build(recipe), DatasetInfo.of(data), torch.device("cpu"), "float32"
        )
        with torch.no_grad():
            assert (len(looking._tiles(images)) > 1) == (tile_bytes < 2**20)
            return looking.forward(images)

    tiled = seen(2**10)
    whole = seen(2**30)
    torch.testing.assert_close(tiled.logits, whole.logits, rtol=1e-5, atol=1e-6)
    for tap, layers in whole.layers.items():
        for ours, wanted in zip(tiled.layers[tap], layers, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_networks_that_normalise_by_the_batch_are_not_tiled(data):
    """In training mode an image's features depend on all images of the batch."""
    settings = NetworkSettings(name="convnet", width=8, norm="batch")
    network = networks.build(settings, data.shape, data.classes, seed=1).train()
    looking = Observer(network, build(tiny()), DatasetInfo.of(data), torch.device("cpu"), "float32")
    with torch.no_grad():
        assert len(looking._tiles(torch.zeros(10_000, *data.shape))) == 1


@pytest.mark.parametrize("real", ["measured", "sampled"])
def test_gradient_of_sharpness_aware_steps_is_that_uphill(data, real):
    """The plain gradient at images that were moved by hand; loss and images stay as they were."""
    plain = tiny(real=real, observers={"augmentation": DSA})
    uphill = tiny(real=real, observers={"augmentation": DSA}, synthesis={"sam_radius": 0.7})
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(20, *data.shape, generator=draws)
    state = LocalRef({"images": images, "labels": torch.arange(20) % 10})
    given, _, _ = everything(data)
    if real == "measured":
        observers = ObserverTasks(plain, DatasetInfo.of(data))
        given = LocalRef(observers.measure_alone(network_ids(plain)[0], None, given))

    def asked(recipe: Recipe, now: torch.Tensor):
        observers = ObserverTasks(recipe, DatasetInfo.of(data))
        return observers, question(recipe, state, LocalRef({"images": now}), given)

    observers, task = asked(plain, images)
    first = observers.gradient(task)
    slope = first.gradients["images"]
    observers, task = asked(plain, images + 0.7 * slope / slope.norm())
    expected = observers.gradient(task).gradients["images"]
    observers, task = asked(uphill, images)
    for _ in range(2):  # the second call finds the images where they were
        result = observers.gradient(task)
        torch.testing.assert_close(result.gradients["images"], expected, rtol=1e-4, atol=1e-7)
        assert result.values["loss"] == first.values["loss"]
    assert not torch.allclose(expected, slope, rtol=1e-2)
