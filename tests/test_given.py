"""rayd.distill on data sets, networks and methods that are given as objects."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset
from torchvision.datasets import FakeData
from torchvision.transforms import ToTensor

import rayd
from rayd import plugins
from rayd.config import DataSettings
from rayd.data import load
from rayd.data.objects import save
from rayd.errors import ConfigError, DataError, RaydError, RunError
from rayd.methods import Method
from rayd.objectives import MeanMatching
from rayd.objectives.terms import Term

QUICK = {
    "synthesis.steps": 3,
    "observers.pool": 2,
    "evaluation.epochs": 1,
    "evaluation.whole_epochs": 1,
    "evaluation.seeds": 1,
    "evaluation.baselines": [],
}


def pixels(count: int, size: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


TRAIN = TensorDataset(pixels(12), torch.arange(12) % 3)
TEST = TensorDataset(pixels(6, seed=1), torch.arange(6) % 3)


class Pairs:
    """A data set of the map style."""

    def __init__(self, items, classes=None):
        self.items = items
        if classes is not None:
            self.classes = classes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Table(Pairs):
    """What rayd uses of a Hugging Face data set."""

    column_names = ("image", "label")
    features = {"label": SimpleNamespace(names=["ant", "bee"])}  # noqa: RUF012


class Means(Method):
    """A method outside of the package."""

    name = "tests-means"
    citation = ""

    @classmethod
    def objective(cls, recipe):
        return (MeanMatching(),)


class Nameless(Method):
    """A method that nothing can call."""

    citation = ""

    @classmethod
    def objective(cls, recipe):
        return (MeanMatching(),)


def linear(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def test_data_sets_are_read_as_they_are(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(8) % 2
    given = [
        (images, labels),
        (torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels)),
        (images / 255, labels),
        Pairs([(image, int(label)) for image, label in zip(images, labels, strict=True)]),
        TensorDataset(torch.tensor(images), torch.tensor(labels)),
    ]
    for train in given:
        path = save(train, (images[:4] // 2, labels[:4]), cache=tmp_path)
        data = load(DataSettings(name=str(path)))
        assert np.array_equal(data.train.images, images.transpose(0, 3, 1, 2))
        assert data.train.labels.tolist() == labels.tolist()
    assert len(list(tmp_path.glob("given-data/*"))) == 1, "the same content is the same folder"


def test_class_names_and_normalized_images(tmp_path):
    images = pixels(8)
    normalized = (images - 0.5) / 0.25
    train = Pairs([(image, index % 2) for index, image in enumerate(normalized)], ["cat", "dog"])
    path = save(train, cache=tmp_path, normalization=([0.5] * 3, [0.25] * 3))
    data = load(DataSettings(name=str(path)))
    assert data.class_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"must lie in \[0, 1\].*normalization=\(means"):
        save(train, cache=tmp_path)


def test_splits_that_number_other_classes_are_refused(tmp_path):
    """Label 0 is another class in each: read as they are, accuracies would mean nothing."""
    train = Pairs([(image, row % 3) for row, image in enumerate(pixels(9))], ["ant", "bee", "cow"])
    test = Pairs([(image, row % 2) for row, image in enumerate(pixels(4, seed=1))], ["bee", "cow"])
    with pytest.raises(
        DataError,
        match=r"'test' must have the same classes as 'train', in the same order: 'ant', "
        r"'bee' and 'cow'. Got 'bee' and 'cow' instead",
    ):
        save(train, test, cache=tmp_path)
    assert save(train, test, cache=tmp_path, class_names=["a", "b", "c"]).exists()
    test.classes = train.classes
    assert save(train, test, cache=tmp_path).exists()


def test_a_store_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"Cannot write '.*file/store/given-data/"):
        save(TRAIN, cache=tmp_path / "file" / "store")


def test_tables_with_named_columns(tmp_path):
    rows = [{"image": image.numpy(), "label": index % 2} for index, image in enumerate(pixels(8))]
    path = save(Table(rows), cache=tmp_path)
    assert load(DataSettings(name=str(path))).class_names == ("ant", "bee")


def hugging_face(count, seed=0):
    """A real table of the library `datasets`, with PNG files and names of classes."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    array = (pixels(count, seed=seed).permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    columns = {"image": [Image.fromarray(image) for image in array], "label": [0, 1] * (count // 2)}
    return datasets.Dataset.from_dict(columns, features=features), array


def test_a_hugging_face_data_set_is_distilled_by_object(tmp_path):
    """And the result is one again."""
    train, array = hugging_face(12)
    test, _ = hugging_face(6, seed=1)
    path = save(train, test, cache=tmp_path)
    assert np.array_equal(
        load(DataSettings(name=str(path))).train.images.transpose(0, 2, 3, 1), array
    )
    run = rayd.distill(
        train=train,
        test=test,
        network=linear,
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        quiet=True,
        settings=QUICK,
    )
    assert run.distilled.class_names == ("a", "b")
    table = run.distilled.to_hf_dataset()
    assert table.features["label"].names == ["a", "b"]
    assert table[0]["image"].size == (8, 8)
    assert len(table) == len(run.distilled) == 2
    assert rayd.load(run.directory).to_hf_dataset()["label"][:] == table["label"][:]


def test_fake_data_of_torchvision_are_distilled_by_object(tmp_path):
    train = FakeData(size=12, image_size=(3, 8, 8), num_classes=2, transform=ToTensor())
    run = rayd.distill(
        train=train,
        network=linear,
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        quiet=True,
        settings={**QUICK, "data.copies": "keep"},
    )
    assert run.distilled.shape == (3, 8, 8)
    assert run.report.results


def test_images_of_pillow_are_read_as_files_are(tmp_path):
    """Transparency is white, bits beyond 8 are not cut off, floats are in [0, 1]."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    clear = np.dstack([grey, grey, grey, np.where(grey > 100, 255, 0).astype(np.uint8)])
    white = np.where(grey > 100, grey, 255)
    for image, expected in [
        (Image.fromarray(grey), grey[None]),
        (Image.fromarray(grey.astype(np.float32) / 255), grey[None]),
        (Image.fromarray(clear), np.stack([white] * 3)),
        (Image.fromarray(clear[..., [0, 3]]), np.stack([white] * 3)),
    ]:
        items = [(image, index % 2) for index in range(4)]
        data = load(
            DataSettings(
                name=str(save(Pairs(items), Pairs(items[:2]), cache=tmp_path)), copies="keep"
            )
        )
        assert np.array_equal(data.train.images[0], expected[: len(data.train.images[0])]), (
            image.mode
        )
    for deep in (grey.astype(np.uint16) * 257, grey.astype(np.int32) * 1000):
        items = [(Image.fromarray(deep), index % 2) for index in range(4)]
        with pytest.raises(DataError, match=r"must be uint8, bool or floats .* from 0 to \d{5,}"):
            save(Pairs(items), cache=tmp_path)


def test_masks_are_black_and_white(tmp_path):
    masks = np.eye(8, dtype=bool)[None].repeat(4, 0)
    path = save((masks, np.arange(4) % 2), cache=tmp_path)
    read = load(DataSettings(name=str(path), copies="keep"))
    assert {*np.unique(read.train.images)} == {0, 255}


def test_errors_name_what_was_given(tmp_path):
    """Not a file in the store, which its user has never seen."""
    train = (np.arange(64, dtype=np.uint8).reshape(1, 8, 8).repeat(4, 0), np.arange(4) % 2)
    path = save(train, (train[0], np.arange(4)), cache=tmp_path)
    with pytest.raises(
        DataError, match=r"^Labels of the data set given as 'test' must lie in 0\.\.1"
    ):
        load(DataSettings(name=str(path), copies="keep"))
    path = save(train, cache=tmp_path)
    assert load(DataSettings(name=str(path), copies="keep")).name == "arrays"
    with pytest.raises(DataError, match=r"'data\.test' for the data given"):
        load(DataSettings(name=str(path), test="held out"))


def test_low_precision_is_read(tmp_path):
    images = pixels(8).bfloat16()
    path = save((images, torch.arange(8) % 2), cache=tmp_path)
    read = load(DataSettings(name=str(path), copies="keep"))
    assert len(read.train.images) > 0


class Broken(Pairs):
    """A data set one of whose files is damaged."""

    def __getitem__(self, index):
        if index == 2:
            raise OSError("broken file")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("normalization", "sentence"),
    [
        (([0.5] * 3, [0.0] * 3), "positive standard deviations"),
        (([0.5] * 3, [-1.0] * 3), "positive standard deviations"),
        (([0.5] * 3, [float("nan")] * 3), "positive standard deviations"),
        (([0.5] * 2, [0.5] * 2), "3 each. Got 2 and 2 instead"),
        (([0.5] * 3,), "3 each. Got 3 instead"),
        (0.5, "must be a pair of means and standard deviations. Got float"),
    ],
)
def test_a_normalization_that_cannot_be_undone_is_refused(normalization, sentence, tmp_path):
    """Deviations of 0 would make all images one grey."""
    with pytest.raises(DataError, match=sentence):
        save((pixels(4), torch.arange(4) % 2), cache=tmp_path, normalization=normalization)


def test_floats_of_8_bits_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"Got floats from .* to .* instead: divide them by 255\."):
        save((pixels(4) * 255, torch.arange(4) % 2), cache=tmp_path)


class Stream(IterableDataset):
    """A data set without a length."""

    def __iter__(self):
        return iter(TRAIN)


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        (Pairs(list(pixels(4))), "must have items that are pairs of an image and a label"),
        ((pixels(4), torch.zeros(4, dtype=torch.long)), "at least two classes"),
        ((pixels(4) * 2, torch.arange(4) % 2), r"must lie in \[0, 1\]"),
        ((pixels(4), torch.arange(3)), "one label per image"),
        ((pixels(4), torch.rand(4)), "must be class indices"),
        (Stream(), "a map-style data set with a length"),
        (Pairs([]), "is empty"),
        ((torch.rand(4, 5, 8, 8), torch.arange(4) % 2), "with C of 1 or 3"),
        ((pixels(4), torch.arange(4) + 1), r"must cover 0\.\.4\. No image has label 0"),
        ((pixels(4), torch.arange(4) % 2 - 1), "Got int64 .*, minimum -1"),
        (Pairs([(pixels(1)[0], torch.eye(2)[0])] * 4), "class index. Got 2 numbers in item 0"),
        (
            Table([{"image": pixels(1)[0], "label": [0, 1][: 1 + row % 2]} for row in range(4)]),
            "class index. Got 2 numbers in item 1 instead: .* multiple labels per image",
        ),
        (Broken([(pixels(1)[0], 0)] * 4), r"Item 2 of .* cannot be read \(OSError: broken file"),
        (
            (
                torch.where(torch.arange(4)[:, None, None] == 2, torch.nan, pixels(4)[:, 0]),
                [0, 1] * 2,
            ),
            "finite numbers. Got NaN or infinity, first in image 2",
        ),
        ((np.eye(8, dtype=np.uint8)[None].repeat(4, 0), np.arange(4) % 2), "all 0 or 1, which"),
        (
            Pairs([(np.eye(size, dtype=np.uint8), size % 2) for size in (7, 8, 9, 10)]),
            "all 0 or 1, which",
        ),
        ("mnist", "must be an object. Got 'mnist' instead: pass a name or path as data='mnist'"),
        (7, "a map-style data set with a length"),
    ],
)
def test_unfit_data_are_refused(train, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        rayd.distill(train=train, cache=tmp_path, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_varying_sizes_need_a_size(tmp_path):
    items = [(pixels(1, 8 + index % 3)[0], index % 2) for index in range(8)]
    arguments = {"cache": tmp_path, "out": tmp_path / "run", "quiet": True, "settings": QUICK}
    with pytest.raises(DataError, match="image_size"):
        rayd.distill(train=Pairs(items), **arguments)
    run = rayd.distill(train=Pairs(items), network="mlp", **arguments, **{"data.image_size": 8})
    assert run.distilled.shape == (3, 8, 8)


class Small(nn.Module):
    """A network of one's own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(256, 3)

    def forward(self, images):
        return self.head(self.body(images))


def closure():
    """A function that no worker can import."""
    scale = 1.0

    def local(shape, classes):
        network = linear(shape, classes)
        with torch.no_grad():
            network[1].bias.mul_(scale)
        return network

    return local


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(Small(), id="module"),
        pytest.param(closure(), id="closure", marks=pytest.mark.slow),
    ],
)
def test_objects_with_and_without_workers_give_the_same_bytes(tmp_path, network):
    """Observer and student are the user's network."""
    files = []
    for workers in (0, 2):
        run = rayd.distill(
            train=TRAIN,
            test=TEST,
            method=Means,
            network=network,
            ipc=2,
            workers=workers,
            out=tmp_path / f"run{workers}",
            cache=tmp_path / f"cache{workers}",
            quiet=True,
            settings=QUICK,
        )
        files.append((run.directory / "distilled" / "data.safetensors").read_bytes())
        assert len(run.distilled) == 6
        assert run.report.results
    assert files[0] == files[1]


def test_a_module_is_drawn_anew_for_each_observer(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    name = plugins.name_of("networks", module)
    first, second = (
        rayd.networks.build(rayd.config.NetworkSettings(name=name), (3, 8, 8), 3, seed)
        for seed in (0, 1)
    )
    assert not torch.equal(first[1].weight, second[1].weight)
    assert name == plugins.name_of("networks", nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    assert name != plugins.name_of("networks", nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))


def test_a_network_is_the_expert_of_a_method_that_follows_trajectories(tmp_path):
    """Students would otherwise be compared with experts of another architecture."""
    run = rayd.distill(
        train=TRAIN,
        test=TEST,
        method="mtt",
        network=linear,
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        quiet=True,
        settings={
            **{key: value for key, value in QUICK.items() if key != "observers.pool"},
            "experts.count": 1,
            "experts.epochs": 2,
            "objective.steps": 2,
            "objective.epochs": 1,
            "objective.start.most": 1,
        },
    )
    assert run.recipe.experts.network.name == plugins.name_of("networks", linear)
    (file,) = (tmp_path / "cache" / "experts").glob("*.safetensors")
    assert load_file(file)["epochs"].shape == (3, 192 * 3 + 3)


def test_a_set_is_evaluated_with_own_networks(tmp_path):
    run = rayd.distill(
        train=TRAIN,
        test=TEST,
        network=linear,
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        quiet=True,
        settings=QUICK,
    )
    for networks, names in [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), ["sequential"]),
        (linear, ["linear"]),
        (["mlp", Small()], ["mlp", "small"]),
    ]:
        report = rayd.evaluate(
            run.distilled, networks=networks, cache=tmp_path / "cache", quiet=True
        )
        found = [result.network for result in report.results if result.set == "distilled"]
        assert len(found) == len(names)
        assert all(name in one for one, name in zip(sorted(found), names, strict=True))
    with pytest.raises(ConfigError, match=r"must be a name, a torch module.* Got int instead"):
        rayd.evaluate(run.distilled, networks=[7])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: rayd.compare(["runs/a", "runs/b"]), "Expected a run or its directory. Got list"),
        (lambda: rayd.report(None), "Expected a run or its directory. Got NoneType"),
        (
            lambda: rayd.distill("digits", settings=[("ipc", 1)]),
            "Settings must be a mapping, .* Got list instead",
        ),
        (
            lambda: rayd.evaluate(SimpleNamespace(distilled=None)),
            "directory. Got SimpleNamespace, whose set is its 'distilled'",
        ),
        (lambda: rayd.load(3), "Expected a distilled set or its directory. Got int instead"),
        (
            lambda: rayd.distill("digits", callbacks=rayd.callbacks.RunCallback()),
            r"Callbacks must be a list, .* Got RunCallback instead",
        ),
        (
            lambda: rayd.synthesize("digits", callbacks=rayd.callbacks.RunCallback()),
            r"Callbacks must be a list, .* Got RunCallback instead",
        ),
    ],
)
def test_arguments_of_another_type_are_named(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()


class Raw(nn.Module):
    """A module whose weights nothing can draw."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(192, 3))

    def forward(self, images):
        return images.flatten(1) @ self.weight


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"network": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}, r"Got \(2, 4\) instead"),
        ({"network": Raw()}, "cannot be reset: 'weight'"),
        ({"network": 7}, "'network' must be a name, a torch module"),
        ({"method": nn.Linear}, "'method' must be a name or a subclass"),
        ({"method": "dn"}, "Unknown method"),
        ({"method": Nameless}, "Method 'Nameless' has no name"),
        ({"method": "no_such_module:Mine"}, "No module named 'no_such_module'"),
        ({"callbacks": [print]}, "A callback must be an object with one of the methods"),
        ({"train": None, "test": TEST}, "need those given as 'train'"),
        ({"settings": {"synthesis.stepz": 3}}, "did you mean 'synthesis.steps'"),
        ({"data": "digits"}, "given as 'train', and by name, 'digits'"),
    ],
)
def test_unfit_parts_are_refused(arguments, sentence, tmp_path):
    given = {"train": TRAIN, "test": TEST, "settings": QUICK, **arguments}
    with pytest.raises(RaydError, match=sentence):
        rayd.distill(**given, cache=tmp_path / "cache", out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def _method_of(value):
    """A method whose only term returns what a function makes of the images."""

    class Odd(Term):
        name = "odd"

        def __call__(self, real, seen, labels, context):
            return value(seen.images)

    class OddMethod(Method):
        name = "tests-odd"
        citation = ""

        @classmethod
        def objective(cls, recipe):
            return (Odd(),)

    return OddMethod


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda images: images.flatten(1).mean(1), r"'odd' must return a scalar.*float32 \(3,\)"),
        (lambda images: 3.0, "'odd' must return a scalar.* Got float instead"),
        (lambda images: None, "'odd' must return a scalar.* Got NoneType instead"),
        (lambda images: (images > 0).sum(), r"'odd' must return a scalar.*int64 \(\)"),
        (lambda images: images.detach().mean(), "No term has a gradient for the images: 'odd'"),
        (
            lambda images: images.mean() + images.detach().mul_(2).mean(),
            r"'odd' changed 'seen\.images'",
        ),
    ],
)
def test_what_a_term_returns_is_checked(value, sentence, tmp_path):
    with pytest.raises(RunError, match=sentence):
        rayd.distill(
            train=TRAIN,
            test=TEST,
            method=_method_of(value),
            network=linear,
            out=tmp_path / "run",
            cache=tmp_path / "cache",
            quiet=True,
            settings=QUICK,
        )


def test_what_cannot_be_sent_to_workers_is_refused_with_the_reason(tmp_path):
    lock = threading.Lock()
    arguments = {"train": TRAIN, "test": TEST, "settings": QUICK, "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match=r"cannot be sent to workers \(TypeError.*workers=0"):
        rayd.distill(
            **arguments,
            network=lambda shape, classes: linear(shape, classes) if lock else None,
            workers=2,
            cache=tmp_path,
        )
    assert not (tmp_path / "run").exists()
