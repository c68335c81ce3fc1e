"""Images of which each holds smaller ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from rayd.config import Recipe, SyntheticSettings, validate
from rayd.data import load
from rayd.data.normalization import Standardization
from rayd.distilled import Distilled
from rayd.distilled import load as load_distilled
from rayd.errors import ArtifactError, ConfigError, DataError
from rayd.synthetic import Partitioned, initial
from rayd.synthetic.partitioned import expand, shrink


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_quadrants_come_column_by_column():
    """Top left, bottom left, top right, bottom right, as in the released code of IDM."""
    image = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).repeat_interleave(4, 0).repeat_interleave(4, 1)
    parts = expand(image[None, None], 2)
    assert parts.shape == (4, 1, 8, 8)
    assert [float(part.mean()) for part in parts] == [0.0, 1.0, 2.0, 3.0]
    assert all(float(part.std()) == 0 for part in parts)


def test_parts_are_enlarged_bilinearly():
    images = normal(2, 3, 8, 8)
    quadrant = functional.interpolate(
        images[1:, :, 4:, :4], (8, 8), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(expand(images, 2)[5], quadrant[0])


@pytest.mark.parametrize(("side", "factor"), [(8, 2), (9, 3), (32, 4)])
def test_what_is_shrunk_is_the_mean_of_its_pixels(side, factor):
    images = normal(2 * factor**2, 1, side, side)
    stored = shrink(images, factor)
    assert stored.shape == (2, 1, side, side)
    small = functional.avg_pool2d(images, factor)
    parts = [
        stored[:, :, y : y + side // factor, x : x + side // factor]
        for x in range(0, side, side // factor)
        for y in range(0, side, side // factor)
    ]
    torch.testing.assert_close(torch.stack(parts, 1).flatten(0, 1), small)


@pytest.mark.parametrize(("height", "width", "factor"), [(7, 10, 2), (8, 8, 3), (5, 4, 4)])
def test_sides_that_the_factor_does_not_divide(height, width, factor):
    flat = torch.arange(2.0 * factor**2).reshape(-1, 1, 1, 1).expand(-1, 1, height, width)
    assert expand(shrink(flat, factor), factor).shape == (2 * factor**2, 1, height, width)


def test_some_decoded_images_are_those_of_all():
    learned = Partitioned(normal(3, 1, 6, 6), torch.tensor([0, 1, 2]))
    images, labels = learned.batch()
    assert len(learned) == 12
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    chosen = torch.tensor([11, 0, 5, 5])
    some, their = learned.batch(chosen)
    torch.testing.assert_close(some, images[chosen])
    assert their.tolist() == [2, 0, 1, 1]


def test_decoding_has_a_gradient():
    assert torch.autograd.gradcheck(
        lambda x: expand(x, 2), normal(1, 1, 4, 4).double().requires_grad_()
    )


def test_storage_is_that_of_the_stored_images():
    learned = Partitioned(normal(3, 1, 6, 6), torch.tensor([0, 1, 2]))
    assert learned.storage().numbers == {"images": 3 * 36}


def test_stored_images_can_be_cut_apart_and_put_back():
    learned = Partitioned(normal(4, 1, 6, 6), torch.tensor([0, 0, 1, 1]))
    assert learned.samples.tolist() == [0, 0, 1, 1]
    part = learned.part(torch.tensor([1, 3]))
    assert part.batch()[1].tolist() == [0] * 4 + [1] * 4
    with torch.no_grad():
        part.images.zero_()
    learned.put(torch.tensor([1, 3]), part)
    assert [bool(image.any()) for image in learned.images] == [True, False, True, False]


def recipe(**synthetic: object) -> Recipe:
    return validate(
        Recipe, {"method": "idm", "data": {"name": "digits"}, "ipc": 2, "synthetic": synthetic}
    )


def test_the_first_images_hold_four_real_ones_each():
    settings = recipe(kind="partitioned")
    data = load(settings.data)
    learned = initial(settings, data)
    assert learned.images.shape == (20, 1, 8, 8)
    real = functional.avg_pool2d(
        data.normalization(torch.from_numpy(data.train.images[data.train.class_index[3]])), 2
    )
    for corner in (learned.images[6, :, :4, :4], learned.images[7, :, 4:, 4:]):
        assert min(float((corner - one).abs().max()) for one in real) < 1e-5


def test_more_real_images_than_a_class_has_are_refused():
    data = load(recipe().data)
    settings = recipe(kind="partitioned").model_copy(update={"ipc": 40})
    from rayd.synthetic.initialization import check_budget

    with pytest.raises(DataError, match="4 real images in each"):
        check_budget(settings, data)


def saved(tmp_path, settings: SyntheticSettings) -> Distilled:
    learned = Partitioned(normal(2, 1, 8, 8), torch.tensor([0, 1]), settings.factor)
    made = Distilled.of(
        learned,
        settings,
        ["a", "b"],
        Standardization(torch.zeros(1).double(), torch.ones(1).double()),
        {"ipc": 1},
    )
    made.save(tmp_path)
    return made


def test_a_saved_set_keeps_what_is_stored(tmp_path):
    made = saved(tmp_path, SyntheticSettings(kind="partitioned"))
    read = load_distilled(tmp_path)
    assert torch.equal(read.images, made.images)
    assert read.images.shape == (8, 1, 8, 8)
    assert read.labels.tolist() == [0] * 4 + [1] * 4
    assert (tmp_path / "data.safetensors").stat().st_size < 2 * 64 * 4 + 1000
    assert read.card["format"] == 2
    read.save(tmp_path / "again")
    assert (tmp_path / "again" / "data.safetensors").read_bytes() == (
        tmp_path / "data.safetensors"
    ).read_bytes()


def test_a_set_of_an_unknown_form_is_refused(tmp_path):
    import json

    saved(tmp_path, SyntheticSettings(kind="partitioned"))
    card = json.loads((tmp_path / "card.json").read_text())
    card["synthetic"]["kind"] = "wavelets"
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ArtifactError, match=r"synthetic\.kind"):
        load_distilled(tmp_path)


@pytest.mark.parametrize("factor", [0, -1, 5, 2.0, True])
def test_factors_beyond_the_image_are_refused(factor):
    with pytest.raises(ConfigError, match="whole number from 1 to 4"):
        Partitioned(torch.rand(2, 1, 4, 6), torch.tensor([0, 1]), factor)


def test_learned_labels_are_refused():
    """They would be repeated number by number."""
    with pytest.raises(ConfigError, match="must be class indices"):
        Partitioned(torch.rand(2, 1, 4, 4), torch.eye(2))
