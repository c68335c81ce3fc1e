"""A set with a step size: positive, learned, and no part of what is stored."""

import pytest
import torch

from rayd.errors import ConfigError
from rayd.synthetic import Pixels
from rayd.synthetic.learned_step_size import WithLearnedStepSize

LABELS = torch.tensor([0, 0, 1, 1])


def paced(step_size: float = 0.01) -> WithLearnedStepSize:
    return WithLearnedStepSize(
        Pixels(torch.linspace(-1, 2, 16).reshape(4, 1, 2, 2), LABELS), step_size
    )


def test_it_is_the_set_and_a_step_size():
    made = paced()
    images, labels = made.batch(torch.tensor([3, 0]))
    assert len(made) == 4
    assert torch.equal(images, made.learned.batch()[0][[3, 0]])
    assert labels.tolist() == [1, 0]
    assert float(made.step_size.detach()) == pytest.approx(0.01)
    assert [name for name, _ in made.named_parameters()] == ["log_step_size", "learned.images"]
    assert made.storage() == made.learned.storage()


def test_no_step_of_learning_makes_it_negative():
    made = paced()
    optimizer = torch.optim.SGD([made.log_step_size], lr=50.0)
    for _ in range(3):
        optimizer.zero_grad()
        (1 + made.step_size).square().backward()
        optimizer.step()
    assert 0 < float(made.step_size.detach()) < 0.01


def test_a_small_step_on_the_logarithm_is_one_on_the_step_size_scaled_by_its_square():
    made = paced(0.01)
    (3.0 * made.step_size).backward()
    with torch.no_grad():
        made.log_step_size -= 0.1 * made.log_step_size.grad
    assert float(made.step_size.detach()) == pytest.approx(0.01 - 1e-5 * 3.0, rel=1e-4)


def test_it_is_restored_to_the_bit():
    made = paced(0.0123)
    state = made.state_dict()
    images = {
        name.removeprefix("learned."): value
        for name, value in state.items()
        if name.startswith("learned.")
    }
    again = WithLearnedStepSize.restored(
        Pixels(images["images"], images["labels"]), state["log_step_size"]
    )
    assert torch.equal(again.log_step_size, made.log_step_size)
    assert torch.equal(again.batch()[0], made.batch()[0])
    with torch.no_grad():
        again.log_step_size += 1
    assert not torch.equal(again.log_step_size, made.log_step_size)


def test_clip_is_the_set_s():
    made = paced()
    made.clip(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert made.batch()[0].min() == 0
    assert made.batch()[0].max() == 1


def test_all_of_it_is_a_part():
    made = paced()
    rows = torch.arange(4)
    part = made.part(rows)
    with torch.no_grad():
        part.log_step_size += 1
        part.learned.images += 1
    assert not torch.equal(part.log_step_size, made.log_step_size)
    made.put(rows, part)
    assert torch.equal(part.log_step_size, made.log_step_size)
    assert torch.equal(part.batch()[0], made.batch()[0])


def test_it_cannot_be_cut_and_its_step_size_must_be_positive():
    with pytest.raises(ConfigError, match="cannot be cut apart"):
        paced().part(torch.tensor([0]))
    with pytest.raises(ConfigError, match=r"must be above 0. Got 0.0 instead"):
        paced(0.0)
