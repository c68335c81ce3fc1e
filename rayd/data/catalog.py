"""Catalogue of known data sets: classes in canonical order, sizes, and download locations.

Listed data sets can be found by name, fetched, and checked. A copy whose classes are in a different
order trains just as well, but per-class results and the long tail refer to the wrong classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayd.data.arrays import ImageShape
from rayd.errors import DataError, unknown


@dataclass(frozen=True)
class Download:
    """A published file."""

    file: str
    """File name."""
    md5: str
    """Its published MD5, hex."""
    urls: tuple[str, ...]
    """URLs of the file; mirrors are tried in order."""


@dataclass(frozen=True)
class KnownSet:
    """A known data set."""

    name: str
    """Name in recipes."""
    classes: int
    """Number of classes."""
    shape: ImageShape | None
    """Shape of an image; None if images differ in size."""
    train: int
    """Number of training images."""
    test: int
    """Number of test images, or of validation images if `test_is_validation`; 0 if there are none
    and rayd carves a test split.
    """
    class_names: tuple[str, ...] | None = None
    """Classes in canonical order; None if copies spell them differently."""
    places: tuple[str, ...] = ()
    """Other locations under the data root: torchvision's folders and files."""
    pickled: tuple[str, ...] = ()
    """Locations of torchvision's pickles of the set, which are never loaded."""
    downloads: tuple[Download, ...] = ()
    """Files for `fetch`; empty if it cannot fetch the set."""
    remedy: str = ""
    """How to obtain the set if `fetch` cannot, as a clause."""
    train_counts: tuple[int, ...] | None = None
    """Training images per class, if they differ and are known."""
    test_counts: tuple[int, ...] | None = None
    """Test images per class, if they differ and are known."""
    test_is_validation: bool = False
    """Whether the images used for testing are published as a validation split."""

    @property
    def how(self) -> str:
        """How to obtain the set, as a clause."""
        return f"run 'rayd data fetch {self.name}'" if self.downloads else self.remedy


CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit",
    "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
    "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger",
    "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)
# fmt: on

# fmt: off
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)
# fmt: on

IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Class name of each WordNet synset, in canonical order."""

DIGITS = tuple(map(str, range(10)))


def _idx_files(mirrors: Sequence[str], md5: Mapping[str, str]) -> tuple[Download, ...]:
    downloads = []
    for file, digest in md5.items():
        urls = tuple(mirror + file for mirror in mirrors)
        downloads.append(Download(file, digest, urls))
    return tuple(downloads)


_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_FASHION_MNIST_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
_FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
_STANFORD = "http://ufldl.stanford.edu/housenumbers/"

_LICENSED = (
    "place its images in the data root as Parquet files in the Hugging Face layout or as an image "
    "folder"
)

_SETS = (
    KnownSet("digits", 10, ImageShape(1, 8, 8), 1_797, 0, DIGITS, remedy="install scikit-learn"),
    KnownSet(
        "mnist",
        10,
        ImageShape(1, 28, 28),
        60_000,
        10_000,
        DIGITS,
        places=("MNIST/raw",),
        downloads=_idx_files(_MNIST_MIRRORS, _MNIST_MD5),
        train_counts=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test_counts=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    KnownSet(
        "fashion_mnist",
        10,
        ImageShape(1, 28, 28),
        60_000,
        10_000,
        FASHION_MNIST_CLASSES,
        places=("FashionMNIST/raw",),
        downloads=_idx_files(_FASHION_MNIST_MIRRORS, _FASHION_MNIST_MD5),
    ),
    KnownSet(
        "svhn",
        10,
        ImageShape(3, 32, 32),
        73_257,
        26_032,
        DIGITS,
        places=("SVHN", "train_32x32.mat"),
        downloads=(
            Download(
                "train_32x32.mat",
                "e26dedcc434d2e4c54c9b2d4a06d8373",
                (_STANFORD + "train_32x32.mat",),
            ),
            Download(
                "test_32x32.mat",
                "eb5a983be6a315427106f1b164d9cef3",
                (_STANFORD + "test_32x32.mat",),
            ),
        ),
        train_counts=(4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659),
        test_counts=(1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
    ),
    KnownSet(
        "cifar10",
        10,
        ImageShape(3, 32, 32),
        50_000,
        10_000,
        CIFAR10_CLASSES,
        places=("cifar-10-batches-bin",),
        pickled=("cifar-10-batches-py",),
        downloads=(
            Download(
                "cifar-10-binary.tar.gz",
                "c32a1d4ab5d03f1284b67883e8d87530",
                (_TORONTO + "cifar-10-binary.tar.gz",),
            ),
        ),
    ),
    KnownSet(
        "cifar100",
        100,
        ImageShape(3, 32, 32),
        50_000,
        10_000,
        CIFAR100_CLASSES,
        places=("cifar-100-binary",),
        pickled=("cifar-100-python",),
        downloads=(
            Download(
                "cifar-100-binary.tar.gz",
                "03b5dce01913d631647c71ecec9e9cb8",
                (_TORONTO + "cifar-100-binary.tar.gz",),
            ),
        ),
    ),
    KnownSet(
        "tiny-imagenet",
        200,
        ImageShape(3, 64, 64),
        100_000,
        10_000,
        places=("tiny-imagenet-200",),
        remedy=_LICENSED,
        test_is_validation=True,
    ),
    KnownSet(
        "imagenette",
        10,
        None,
        9_469,
        3_925,
        tuple(IMAGENETTE_CLASSES.values()),
        places=("imagenette2",),
        remedy=_LICENSED,
        train_counts=(963, 955, 993, 858, 941, 956, 961, 931, 951, 960),
        test_counts=(387, 395, 357, 386, 409, 394, 389, 419, 399, 390),
        test_is_validation=True,
    ),
    KnownSet(
        "imagenet-1k",
        1000,
        None,
        1_281_167,
        50_000,
        places=("imagenet",),
        remedy=_LICENSED,
        test_is_validation=True,
    ),
)

KNOWN: Mapping[str, KnownSet] = {known.name: known for known in _SETS}
"""Known data sets by name."""

ALIASES: Mapping[str, Mapping[str, str]] = {"imagenette": IMAGENETTE_CLASSES}
"""Canonical class names by alternative spelling, for each set."""


def known_set(name: str) -> KnownSet:
    """Look up a known data set by name.

    Raises:
        DataError: there is no known data set of this name.
    """
    if name not in KNOWN:
        raise DataError(unknown("data set", name, KNOWN))
    return KNOWN[name]


def check_class_order(name: str, class_names: Sequence[str]) -> str | None:
    """Check the classes of a copy of a known data set; return the problem as a sentence, or None.

    >>> check_class_order("mnist", [*"0123456798"])  # doctest: +NORMALIZE_WHITESPACE
    "Class 8 of 'mnist' must be '8'. Got '9' instead: per-class results and the long tail would
    refer to the wrong classes."
    """
    known = KNOWN.get(name)
    if known is None:
        return None
    if len(class_names) != known.classes:
        return f"'{name}' must have {known.classes} classes. Got {len(class_names)} instead."
    canonical = known.class_names
    if canonical is None:
        # ImageNet's canonical order is that of the synsets; if a copy names classes by words
        # instead, their order cannot be checked
        synsets = all(_is_synset(spelled) for spelled in class_names)
        canonical = tuple(sorted(class_names)) if synsets else tuple(class_names)
    aliases = ALIASES.get(name, {})
    for label, (expected, spelled) in enumerate(zip(canonical, class_names, strict=True)):
        if _simplified(aliases.get(spelled, spelled)) != _simplified(expected):
            return (
                f"Class {label} of '{name}' must be '{expected}'. Got '{spelled}' instead: "
                "per-class results and the long tail would refer to the wrong classes."
            )
    return None


def _simplified(name: str) -> str:
    """Reduce a class name to lower-case letters and digits, as copies differ in everything else."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def _is_synset(name: str) -> bool:
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()
