"""An observer learns the real data, is judged on images as they are, and ends the same however
often it is interrupted.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rayd.artifacts import read_tensors, write_tensors
from rayd.config import SqueezeSettings
from rayd.errors import RunError
from rayd.training import squeeze as module
from rayd.training import training_run
from rayd.training.batches import Draws
from rayd.training.losses import cross_entropy
from rayd.training.progress import EpochProgress, milestones
from rayd.training.squeeze import Squeezed, squeeze
from rayd.training.trainer import Trainer
from tests.training.toys import (
    BATCH_NORM,
    CLASSES,
    HELD_OUT,
    NORMALIZATION,
    REAL,
    SHAPE,
    image_set,
    network,
    of,
)


def events(model: nn.Module | None = None, **changes: Any) -> list[EpochProgress | Squeezed]:
    given = {
        name: changes.pop(name) for name in ("checkpoint", "validation", "seed") if name in changes
    }
    settings = SqueezeSettings.model_validate(
        {"epochs": 6, "batch_size": 12, "transform": {"roll": 1}, **changes}
    )
    model = network(0, BATCH_NORM) if model is None else model
    return list(
        squeeze(model, of(REAL), settings, device="cpu", classes=CLASSES, **{"seed": 1, **given})
    )


def same(first: Squeezed, second: Squeezed) -> bool:
    facts = [
        (each.train_accuracy, each.validation_accuracy, each.epochs) for each in (first, second)
    ]
    return facts[0] == facts[1] and all(
        torch.equal(value, second.state[name]) for name, value in first.state.items()
    )


def test_it_learns_and_says_how_far_it_is():
    *progress, result = events(
        epochs=20, transform={"shift": 0, "flip": False}, validation=of(HELD_OUT)
    )
    assert [event.epoch for event in progress] == list(milestones(20))
    assert all(event.validation_accuracy is None for event in progress)
    assert result.train_accuracy > 0.9
    assert result.validation_accuracy > 0.8
    assert (result.epochs, events()[-1].validation_accuracy) == (20, None)


def test_the_state_is_a_network_in_float32_on_the_cpu():
    model = network(0, BATCH_NORM)
    *_, result = events(model, average=0.5)
    other = network(5, BATCH_NORM)
    other.load_state_dict(result.state)
    with torch.no_grad():
        hits = other.eval()(NORMALIZATION(torch.from_numpy(REAL.images))).argmax(
            1
        ) == torch.from_numpy(REAL.labels)
    assert result.train_accuracy == int(hits.sum()) / 30
    assert {value.dtype for value in result.state.values()} == {torch.float32, torch.int64}
    assert not torch.equal(
        result.state["classifier.weight"], model.state_dict()["classifier.weight"]
    )


def test_the_state_stays_when_the_network_goes_on():
    model = network(0, BATCH_NORM)
    *_, result = events(model)
    with torch.no_grad():
        model.classifier.weight.zero_()
    assert result.state["classifier.weight"].any()


def test_its_draws_are_an_observer_s_own():
    settings = SqueezeSettings.model_validate(
        {"epochs": 6, "batch_size": 12, "transform": {"roll": 1}}
    )
    draws = Draws(settings, len(REAL), SHAPE, 1, "observer")
    model = network(0, BATCH_NORM)
    device = torch.device("cpu")
    trainer = Trainer(
        model,
        of(REAL),
        settings,
        draws,
        cross_entropy,
        epochs=6,
        seed=1,
        device=device,
        purpose="observer",
    )
    assert [event.loss for event in events()[:-1]] == [trainer.advance().item() for _ in range(6)]


def test_no_epochs_judge_the_network_as_it_is():
    before = {name: value.clone() for name, value in network(0, BATCH_NORM).state_dict().items()}
    (result,) = events(epochs=0, validation=of(HELD_OUT))
    assert all(torch.equal(value, before[name]) for name, value in result.state.items())
    assert result.epochs == 0
    assert 0 <= result.train_accuracy <= 1


def test_it_is_judged_on_some_images_evenly_spaced(monkeypatch):
    monkeypatch.setattr(module, "JUDGED", 7)
    judged = []
    monkeypatch.setattr(
        module,
        "hits",
        lambda net, weights, some, *rest: (judged.append(some), [torch.ones(len(some))])[1],
    )
    events(epochs=0)
    rows = [0, 4, 8, 12, 17, 21, 25]
    assert torch.equal(judged[0].images, torch.from_numpy(REAL.images[rows]))
    assert judged[0].labels.tolist() == REAL.labels[rows].tolist()


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"transform": {"flip": True}}, {"mix": "cutmix"}, {"learning_rate": 0.05}],
)
def test_what_it_is_trained_with_changes_it(changes):
    *_, plain = events()
    *_, again = events()
    *_, other = events(**changes)
    assert same(plain, again)
    assert not same(plain, other)


@pytest.mark.parametrize("at", [0, 3, 5])
def test_a_resumed_observer_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch, at):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "observer.safetensors"
    whole = events(optimizer="adamw", learning_rate=0.01, average=0.9)
    settings = SqueezeSettings.model_validate(
        {
            "epochs": 6,
            "batch_size": 12,
            "transform": {"roll": 1},
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "average": 0.9,
        }
    )
    for event in squeeze(
        network(0, BATCH_NORM),
        of(REAL),
        settings,
        seed=1,
        device="cpu",
        classes=CLASSES,
        checkpoint=checkpoint,
    ):
        if event.index == at:
            break
    assert checkpoint.exists()
    done = []
    advance = training_run.TrainingRun.advance
    monkeypatch.setattr(
        training_run.TrainingRun,
        "advance",
        lambda self: (done.append(self.trainer.epoch), advance(self))[1],
    )
    rest = events(optimizer="adamw", learning_rate=0.01, average=0.9, checkpoint=checkpoint)
    assert done == list(range(at + 1, 6))
    assert rest[:-1] == whole[:-1]
    assert same(rest[-1], whole[-1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["other initial weights", "other set", "no history"])
def test_a_checkpoint_that_cannot_be_used_is_left_and_the_initial_weights_are_taken(
    tmp_path, monkeypatch, caplog, damage
):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    checkpoint = tmp_path / "observer.safetensors"
    start = network(7 if damage == "other initial weights" else 0, BATCH_NORM)
    training = of(image_set(30, 9) if damage == "other set" else REAL)
    settings = SqueezeSettings.model_validate(
        {"epochs": 6, "batch_size": 12, "transform": {"roll": 1}}
    )
    for event in squeeze(
        start, training, settings, seed=1, device="cpu", classes=CLASSES, checkpoint=checkpoint
    ):
        if event.index == 3:
            break
    if damage == "no history":
        content, note = read_tensors(checkpoint)
        write_tensors(
            checkpoint, content, {key: value for key, value in note.items() if key != "history"}
        )
    anew = events(checkpoint=checkpoint)
    whole = events()
    assert anew[:-1] == whole[:-1]
    assert same(anew[-1], whole[-1])
    assert "restarts from the beginning" in caplog.text
    assert str(checkpoint) in caplog.text


def test_divergence_names_the_observer_and_the_setting():
    with pytest.raises(
        RunError,
        match=r"The observer '.*' with seed 1 on the set 'training' diverged.*'squeeze.learning_rate'",
    ):
        events(learning_rate=1e30)
