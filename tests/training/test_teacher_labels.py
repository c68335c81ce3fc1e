"""Teachers label what the student sees, mixed images included, and no finer than labels are
stored.
"""

import pytest
import torch
from torch import Tensor, nn

from rayd.config import EvaluationSettings, LabelSettings
from rayd.errors import RunError
from rayd.training.batches import Draws
from rayd.training.teacher_labels import Teachers, label_epochs
from tests.training.toys import (
    BATCH_NORM,
    CLASSES,
    DSA,
    NORMALIZATION,
    REAL,
    SHAPE,
    VIEWS,
    network,
    teachers,
)

IMAGES = NORMALIZATION(torch.from_numpy(REAL.images))
STORED = LabelSettings(kind="stored")
SETTINGS = EvaluationSettings.model_validate(
    {"transform": VIEWS, "augmentation": DSA, "mix": "cutmix", "loss": "kl", "batch_size": 12}
)


class Spy(nn.Module):
    """Says nothing and remembers what it was shown."""

    def __init__(self, says: float = 0.0):
        super().__init__()
        self.says = says
        self.shown = []

    def forward(self, images: Tensor) -> Tensor:
        self.shown.append(images)
        return torch.full((len(images), CLASSES), self.says)


def test_the_label_is_the_mean_of_the_logits_in_eval_mode():
    one, other = teachers()
    label = Teachers([one.train(), other.train()], "float32")(IMAGES)
    with torch.no_grad():
        wanted = (one.eval()(IMAGES) + other.eval()(IMAGES)) / 2
    assert torch.allclose(label, wanted, rtol=1e-6, atol=1e-6)
    assert label.dtype == torch.float32
    assert not label.requires_grad


def test_a_teacher_does_not_change():
    teacher = network(0, BATCH_NORM).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    Teachers([teacher], "float16")(IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_labels_are_rounded_to_the_precision_that_is_stored():
    exact, rounded = (
        Teachers(teachers(), precision)(IMAGES) for precision in ("float32", "float16")
    )
    assert torch.equal(rounded, exact.half().float())
    assert not torch.equal(rounded, exact)


def test_arithmetic_of_teachers_is_that_of_the_student():
    exact, coarse = (
        Teachers(teachers(), "float32", arithmetic)(IMAGES)
        for arithmetic in ("float32", "bfloat16")
    )
    assert not torch.equal(exact, coarse)
    assert torch.allclose(exact, coarse, rtol=0.1, atol=0.3)


def test_teachers_see_mixed_images():
    spy = Spy()
    label_epochs(IMAGES, SETTINGS, STORED, [spy], NORMALIZATION, 4, range(2, 3), "cpu")
    batches = list(Draws(SETTINGS, len(REAL), SHAPE, 4).epoch(2))
    assert len(batches) > len(spy.shown) == 1, (
        "teachers were asked about every small batch by itself"
    )
    for shown, batch in zip(
        spy.shown[0].split([len(batch.rows) for batch in batches]), batches, strict=True
    ):
        view = batch.view(IMAGES[batch.rows], NORMALIZATION)
        assert torch.equal(shown, batch.mix(view)[0])
        assert not torch.equal(shown, view)


def test_an_epoch_s_labels_do_not_depend_on_the_chunk():
    whole, rest = (
        label_epochs(IMAGES, SETTINGS, STORED, teachers(), NORMALIZATION, 0, epochs, "cpu")
        for epochs in (range(4), range(2, 4))
    )
    assert whole.keys() == rest.keys()
    assert all(torch.equal(whole[name][2:], rest[name]) for name in whole)
    assert whole["labels.images.logits"].shape == (4, 30, CLASSES)
    assert whole["labels.images.logits"].dtype == torch.float16


def test_nothing_is_stored_that_is_not_drawn():
    plain = EvaluationSettings(augmentation=DSA, loss="kl")
    assert label_epochs(IMAGES, plain, STORED, teachers(), None, 0, range(1), "cpu").keys() == {
        "labels.images.logits"
    }


@pytest.mark.parametrize("says", [float("nan"), 1e6])
def test_a_label_that_is_not_finite_is_refused(says):
    with pytest.raises(RunError, match="must be finite in float16"):
        label_epochs(IMAGES, SETTINGS, STORED, [Spy(says)], NORMALIZATION, 0, range(3, 4), "cpu")
