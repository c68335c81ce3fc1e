"""Hallucinated images against loops and layers of torch, and what a set of them may be asked."""

import pytest
import torch
from torch import Tensor, nn

from rayd.data import load
from rayd.data.images import ImageShape
from rayd.errors import ConfigError
from rayd.synthetic import initial, restore
from rayd.synthetic.hallucinated import (
    PARTS,
    Hallucinated,
    Hallucinators,
    hallucinate,
    initial_hallucinators,
)
from tests.conftest import tiny

SHAPE = ImageShape(2, 5, 6)


def drawn(count: int = 3, kernel: int = 3, seed: int = 0) -> Hallucinators:
    """Hallucinators whose scales and shifts differ from position to position."""
    draws = torch.Generator().manual_seed(seed)
    made = initial_hallucinators(count, kernel, SHAPE, draws)
    scale, shift = (torch.randn(made.scale.shape, generator=draws) for _ in range(2))
    return made._replace(scale=scale, shift=shift)


def bases(count: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def hallucinated(count: int = 4) -> Hallucinated:
    return Hallucinated(bases(count), torch.arange(count), drawn())


def by_loops(basis: Tensor, one: Hallucinators, number: int) -> Tensor:
    """What a hallucinator makes of a basis, number by number."""
    channels, height, width = basis.shape
    kernel = one.encoder.shape[-1]
    image = torch.zeros_like(basis)
    for top in range(height - kernel + 1):
        for left in range(width - kernel + 1):
            window = basis[:, top : top + kernel, left : left + kernel]
            for channel in range(channels):
                value = (one.encoder[number, channel] * window).sum()
                value = value + one.encoder_bias[number, channel]
                value = value * one.scale[number, channel, top, left]
                value = value + one.shift[number, channel, top, left]
                stamp = one.decoder[number, channel] * value
                image[:, top : top + kernel, left : left + kernel] += stamp
    return image + one.decoder_bias[number][:, None, None]


def test_images_are_those_of_the_formula():
    exact = Hallucinators(*(part.double() for part in drawn()))
    images = hallucinate(bases().double(), exact)
    assert images.shape == (4, 3, *SHAPE)
    for row, basis in enumerate(bases().double()):
        for number in range(3):
            torch.testing.assert_close(images[row, number], by_loops(basis, exact, number))


def test_images_are_those_of_a_convolution_and_a_transposed_one():
    """As the released code has them: layers of torch around a scale and a shift."""
    encoder = nn.Conv2d(2, 2, 3)
    decoder = nn.ConvTranspose2d(2, 2, 3)
    scale = torch.randn(2, 3, 4)
    shift = torch.randn(2, 3, 4)
    parts = (encoder.weight, encoder.bias, scale, shift, decoder.weight, decoder.bias)
    one = Hallucinators(*(part.detach()[None] for part in parts))
    expected = decoder(scale * encoder(bases()) + shift)
    torch.testing.assert_close(hallucinate(bases(), one)[:, 0], expected)


def test_gradient_of_bases_and_hallucinators():
    exact = [part.double().requires_grad_() for part in (bases(2), *drawn(2))]
    assert torch.autograd.gradcheck(
        lambda one, *rest: hallucinate(one, Hallucinators(*rest)), exact
    )


def test_images_of_a_basis_are_consecutive_and_any_can_be_made_alone():
    made = hallucinated()
    images, labels = made.batch()
    assert len(made) == len(images) == 12
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    some = torch.tensor([7, 0, 7, 11])
    alone, classes = made.batch(some)
    torch.testing.assert_close(alone, images[some])
    assert classes.tolist() == [2, 0, 2, 3]


def test_storage_counts_bases_and_hallucinators():
    shape = ImageShape(3, 32, 32)
    draws = torch.Generator().manual_seed(0)
    hallucinators = initial_hallucinators(5, 3, shape, draws)
    made = Hallucinated(torch.zeros(10, *shape), torch.arange(10), hallucinators)
    numbers = made.storage().numbers
    assert numbers.pop("images") == 10 * 3 * 32 * 32
    assert sum(numbers.values()) == 5 * (2 * 9 * 9 + 2 * 3 + 2 * 3 * 30 * 30) == 27_840
    assert set(numbers) == set(PARTS)


def test_hallucinators_start_as_layers_of_torch_do():
    draws = torch.Generator().manual_seed(0)
    made = initial_hallucinators(500, 3, ImageShape(3, 8, 8), draws)
    assert bool((made.scale == 1).all())
    assert bool((made.shift == 0).all())
    layer = nn.ConvTranspose2d(3, 3, 3)
    bound = 27**-0.5
    assert float(layer.weight.detach().abs().max()) <= bound
    for part in (made.encoder, made.encoder_bias, made.decoder, made.decoder_bias):
        assert float(part.abs().max()) <= bound
        assert float(part.std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_set_is_restored_and_its_replica_follows():
    recipe = tiny(
        method="haba", synthetic={"step_size": 0.1, "hallucinators": 2}, synthesis={"clip": False}
    )
    data = load(recipe.data)
    made = initial(recipe, data)
    images, labels = made.batch()
    assert images.shape == (20, *data.shape)
    assert labels.bincount().tolist() == [2] * 10
    copy = restore(recipe.synthetic, made.state_dict())
    assert torch.equal(copy.batch()[0], images)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1)
    copy.assign(dict(made.named_parameters()))
    assert torch.equal(copy.batch()[0], made.batch()[0])
    assert not torch.equal(copy.batch()[0], images)


def test_set_is_taken_whole():
    made = hallucinated()
    whole = torch.arange(4)
    part = made.part(whole)
    with torch.no_grad():
        part.images.zero_()
    made.put(whole, part)
    assert float(made.images.detach().abs().max()) == 0
    for indices in (whole[:2], whole.flip(0)):
        with pytest.raises(ConfigError, match=r"'synthesis\.block: null'"):
            made.part(indices)
    with pytest.raises(ConfigError, match=r"'synthesis\.clip: false'"):
        made.clip(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"synthesis": {"clip": True}}, r"'synthesis\.clip: false'"),
        ({"synthesis": {"block": 10}, "synthetic": {"step_size": None}}, r"'synthesis\.block'"),
        ({"synthetic": {"labels": "classes"}}, "has hard labels"),
        ({"synthetic": {"kernel_size": 9}}, "must not exceed the images' sides, 8 x 8"),
    ],
)
def test_what_cannot_be_is_refused(settings, words):
    def begun() -> None:
        recipe = tiny(method="haba", **settings)
        initial(recipe, load(recipe.data))

    with pytest.raises(ConfigError, match=words):
        begun()


def test_hallucinators_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="must scale maps of 2 channels and 3 x 4 positions"):
        Hallucinated(bases(), torch.arange(4), drawn()._replace(scale=torch.ones(3, 2, 5, 6)))
