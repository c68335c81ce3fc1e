"""Experts are what plain SGD makes of a network, epoch by epoch, however often they are
interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rayd import devices
from rayd.config import ExpertSettings, validate
from rayd.errors import ConfigError, RunError
from rayd.networks.flat import FlatNetwork
from rayd.seeding import generator
from rayd.training import training_run
from rayd.training.experts import flat_gradient, train_expert
from rayd.training.progress import EpochProgress, milestones
from rayd.training.trajectories import Trajectory
from tests.training.toys import BATCH_NORM, NORMALIZATION, REAL, network, of

EPOCHS = 4


def settings(**changes: Any) -> ExpertSettings:
    return ExpertSettings.model_validate(
        {"epochs": EPOCHS, "batch_size": 12, "learning_rate": 0.05, **changes}
    )


def events(
    path: Path, model: nn.Module | None = None, **changes: Any
) -> list[EpochProgress | Trajectory]:
    given = {
        name: changes.pop(name)
        for name in ("checkpoint", "index", "seed", "facts")
        if name in changes
    }
    model = network() if model is None else model
    given = {"index": 0, "seed": 1, "path": path, **given}
    return list(train_expert(model, of(REAL), settings(**changes), device="cpu", **given))


def expert(path: Path, **changes: Any) -> torch.Tensor:
    *_, one = events(path, **changes)
    return torch.stack([one[epoch] for epoch in range(len(one))])


def plain_descent(epochs: int, flat_radius: float = 0.0, flat_weight: float = 1.0) -> torch.Tensor:
    """Batches of twelve in the trainer's order, without views, one parameter after another."""
    model = network()
    images = NORMALIZATION(torch.from_numpy(REAL.images))
    labels = torch.from_numpy(REAL.labels)
    rows = [nn.utils.parameters_to_vector(model.parameters()).detach()]
    for epoch in range(epochs):
        order = torch.randperm(30, generator=generator(1, "expert 0 batches", epoch))
        for some in order.split(12):
            parameters = list(model.parameters())
            moves = torch.autograd.grad(
                cross_entropy(model(images[some]), labels[some]), parameters
            )
            if flat_radius:
                length = sum(move.square().sum() for move in moves).sqrt()
                before = [parameter.detach().clone() for parameter in parameters]
                with torch.no_grad():
                    for parameter, move in zip(parameters, moves, strict=True):
                        parameter += flat_radius * move / length
                there = torch.autograd.grad(
                    cross_entropy(model(images[some]), labels[some]), parameters
                )
                with torch.no_grad():
                    for parameter, old in zip(parameters, before, strict=True):
                        parameter.copy_(old)
                inner = sum((one * other).sum() for one, other in zip(moves, there, strict=True))
                share = inner / sum(other.square().sum() for other in there)
                moves = [
                    p - flat_weight * (g - share * p) for g, p in zip(moves, there, strict=True)
                ]
            with torch.no_grad():
                for parameter, move in zip(parameters, moves, strict=True):
                    parameter -= 0.05 * move
        rows.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    return torch.stack(rows)


def test_every_epoch_is_kept_and_is_that_of_plain_sgd(tmp_path):
    found = expert(tmp_path / "expert.safetensors", augmentation=None)
    torch.testing.assert_close(found, plain_descent(EPOCHS), rtol=1e-4, atol=1e-6)
    assert float((found[1:] - found[:-1]).norm(dim=1).min()) > 1e-2


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_flat_trajectories_are_those_of_gsam(tmp_path, monkeypatch, weight, layout):
    monkeypatch.setattr(devices, "layout", lambda *_: layout)
    changes = {"flat_radius": 0.2, "flat_weight": weight}
    found = expert(tmp_path / "expert.safetensors", augmentation=None, **changes)
    reference = plain_descent(EPOCHS, **changes)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
    assert float((reference - plain_descent(EPOCHS)).norm()) > 1e-2


def test_the_flat_gradient_keeps_what_is_along_the_perturbed_one():
    here, there = torch.randn(2, 9, dtype=torch.float64)
    moved = flat_gradient(here, there, 0.7) - there
    assert float(moved @ there) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(-moved / 0.7, here - (here @ there) / (there @ there) * there)
    assert torch.equal(flat_gradient(here, there, 0.0), there)
    torch.testing.assert_close(flat_gradient(there, there, 1.0), there)
    assert torch.equal(flat_gradient(torch.zeros(3), torch.zeros(3), 1.0), torch.zeros(3))


def test_a_row_is_the_network_and_the_file_says_how_good_it_is(tmp_path):
    model = network()
    *progress, one = events(
        tmp_path / "expert.safetensors",
        model,
        epochs=40,
        augmentation=None,
        facts={"network": "toy"},
        index=3,
    )
    assert [event.epoch for event in progress] == list(milestones(40))
    assert list(one.shapes) == [name for name, _ in model.named_parameters()]
    images = NORMALIZATION(torch.from_numpy(REAL.images))
    labels = torch.from_numpy(REAL.labels)
    flat = FlatNetwork(network(9))
    # weights at another place in memory: matrix products may be summed in another order
    torch.testing.assert_close(flat(one[40], images), model.eval()(images), rtol=1e-5, atol=1e-5)
    accuracy = float((flat(one[40], images).argmax(1) == labels).float().mean())
    assert one.facts["train_accuracy"] == pytest.approx(accuracy)
    assert accuracy > 0.9
    assert (one.facts["network"], one.facts["index"], one.facts["seed"]) == ("toy", 3, 1)
    assert one.facts["seconds"] > 0


def test_bfloat16_rounds_what_is_kept_and_not_the_training(tmp_path):
    whole, half = (
        expert(tmp_path / f"{name}.safetensors", stored=name) for name in ("float32", "bfloat16")
    )
    assert torch.equal(half, whole.bfloat16().float())


@pytest.mark.parametrize(
    "changes", [{"index": 1}, {"seed": 2}, {"augmentation": None}, {"flat_radius": 0.1}]
)
def test_what_it_is_trained_with_changes_it(tmp_path, changes):
    path = tmp_path / "expert.safetensors"
    plain = expert(path)
    again = expert(path)
    other = expert(path, **changes)
    assert torch.equal(plain, again)
    assert torch.equal(plain[0], other[0])
    assert not torch.equal(plain[1], other[1])


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"flat_radius": 0.1, "momentum": 0.5, "stored": "bfloat16"}]
)
def test_a_resumed_expert_ends_as_the_uninterrupted_one(tmp_path, monkeypatch, at, changes):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "expert.safetensors"
    checkpoint = tmp_path / "unfinished.safetensors"
    whole = expert(path, **changes)
    path.unlink()
    running = train_expert(
        network(),
        of(REAL),
        settings(**changes),
        index=0,
        seed=1,
        device="cpu",
        path=path,
        checkpoint=checkpoint,
    )
    for event in running:
        if event.index == at:
            break
    assert checkpoint.exists()
    assert not path.exists()
    done = []
    advance = training_run.TrainingRun.advance
    monkeypatch.setattr(
        training_run.TrainingRun,
        "advance",
        lambda self: (done.append(self.trainer.epoch), advance(self))[1],
    )
    assert torch.equal(expert(path, checkpoint=checkpoint, **changes), whole)
    assert done == list(range(at + 1, EPOCHS))
    assert list(tmp_path.iterdir()) == [path]


def test_another_expert_s_checkpoint_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(training_run, "CHECKPOINT_SECONDS", 0.0)
    path = tmp_path / "expert.safetensors"
    checkpoint = tmp_path / "unfinished.safetensors"
    for event in train_expert(
        network(),
        of(REAL),
        settings(),
        index=7,
        seed=1,
        device="cpu",
        path=path,
        checkpoint=checkpoint,
    ):
        if event.index == 1:
            break
    assert torch.equal(expert(path, checkpoint=checkpoint), expert(path))
    assert "restarts from the beginning" in caplog.text


def test_the_defaults_are_those_of_mtt():
    chosen = ExpertSettings()
    assert (chosen.count, chosen.epochs, chosen.batch_size, chosen.learning_rate) == (
        100,
        50,
        256,
        0.01,
    )
    assert (chosen.momentum, chosen.weight_decay, chosen.schedule.name, chosen.flat_radius) == (
        0,
        0,
        "constant",
        0,
    )
    assert chosen.augmentation == "color_crop_cutout_flip_scale_rotate"


def test_networks_with_statistics_and_averages_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="norm 'instance'"):
        events(tmp_path / "expert.safetensors", network(0, BATCH_NORM))
    with pytest.raises(ConfigError, match="experts have no moving average"):
        validate(ExpertSettings, {"average": 0.9}, "the experts", "experts")


def test_divergence_names_the_expert_and_the_setting(tmp_path):
    with pytest.raises(
        RunError, match=r"The expert 0 .*with seed 1.* diverged.*'experts.learning_rate'"
    ):
        events(tmp_path / "expert.safetensors", learning_rate=1e30)
    assert list(tmp_path.iterdir()) == []
