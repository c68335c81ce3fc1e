"""Resizing keeps the aspect ratio and the middle."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import center_crop
from torchvision.transforms.v2.functional import resize as torchvision_resize

from rayd.data.resizing import fit_square, resize
from tests.data.files import some_images


def test_images_of_the_wanted_size_are_left_alone() -> None:
    images = some_images(2)
    assert resize(images, 4) is images


@pytest.mark.parametrize("size", [(8, 24), (20, 8), (12, 12)])
def test_resizing_is_torchvisions_resize_and_centre_crop(size: tuple[int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8)
    reference = center_crop(torchvision_resize(torch.from_numpy(images), [4]), [4])
    assert np.abs(resize(images, 4).astype(int) - reference.numpy()).max() <= 1


def test_shrinking_averages() -> None:
    checkerboard = (np.indices((8, 8)).sum(0) % 2 * 254).astype(np.uint8)[None, None]
    assert np.abs(resize(checkerboard, 4).astype(int) - 127).max() <= 16


def test_arrays_and_pictures_are_resized_alike() -> None:
    image = some_images(1, side=9)
    picture = fit_square(Image.fromarray(image[0].transpose(1, 2, 0)), 5)
    assert np.array_equal(resize(image, 5)[0], np.asarray(picture).transpose(2, 0, 1))
