"""Blocks take the classes in turn, hold every image once, and put it back where it was."""

import pytest
import torch

from rayd.synthetic import Pixels, blocks


@pytest.mark.parametrize("size", [1, 3, 4, 7, 10, 100, None])
def test_every_image_is_in_one_block(size):
    labels = torch.arange(5).repeat_interleave(2)
    parts = blocks(labels, size)
    assert torch.cat(parts).sort().values.tolist() == list(range(10))
    assert all(len(part) <= (size or 10) for part in parts)


def test_a_block_of_as_many_images_as_classes_holds_one_of_each():
    labels = torch.arange(4).repeat_interleave(3)
    for number, part in enumerate(blocks(labels, 4)):
        assert labels[part].tolist() == [0, 1, 2, 3]
        assert (part % 3 == number).all()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_block_can_be_an_image_of_each_class_however_many_there_are(classes):
    labels = torch.arange(classes).repeat_interleave(3)
    found = blocks(labels, "classes")
    wanted = blocks(labels, classes)
    assert [part.tolist() for part in found] == [part.tolist() for part in wanted]
    assert all(labels[part].tolist() == list(range(classes)) for part in found)


def test_classes_of_different_sizes_take_turns_as_long_as_they_last():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    assert [part.tolist() for part in blocks(labels, 3)] == [[0, 3, 4], [1, 5, 2]]


def test_parts_come_back_to_their_places():
    images = torch.randn(6, 1, 2, 2)
    whole = Pixels(images, torch.tensor([0, 0, 1, 1, 2, 2]))
    for part in blocks(whole.labels, 3):
        cut = whole.part(part)
        assert cut.labels.tolist() == whole.labels[part].tolist()
        with torch.no_grad():
            cut.images.add_(1)
        assert torch.equal(whole.images.detach()[part], images[part])
        whole.put(part, cut)
    assert torch.equal(whole.images, images + 1)
