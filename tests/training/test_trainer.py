"""One epoch after another against the same steps written out with torch's own parts, and the state
that carries all of it.
"""

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rayd.artifacts import read_tensors, write_tensors
from rayd.config import EvaluationSettings
from rayd.errors import RunError
from rayd.schedules import learning_rate_factor, milestone_epochs
from rayd.seeding import seeded
from rayd.training import trainer as module
from rayd.training.batches import Draws
from rayd.training.losses import kl, loss_of
from rayd.training.teacher_labels import Teachers
from rayd.training.trainer import Trainer
from tests.training.toys import (
    BATCH_NORM,
    CLASSES,
    NORMALIZATION,
    REAL,
    SHAPE,
    VIEWS,
    network,
    of,
    teachers,
)

EPOCHS = 6
IMAGES = NORMALIZATION(torch.from_numpy(REAL.images))
LABELS = torch.from_numpy(REAL.labels)
CPU = torch.device("cpu")


def settings(**changes: Any) -> EvaluationSettings:
    return EvaluationSettings.model_validate(
        {"augmentation": None, "batch_size": 12, "learning_rate": 0.05, **changes}
    )


def trainer(
    chosen: EvaluationSettings, of_network: nn.Module | None = None, **given: Any
) -> Trainer:
    draws = Draws(chosen, len(REAL), SHAPE, 3)
    loss = loss_of(chosen)
    given = {"epochs": EPOCHS, "seed": 3, "device": CPU, **given}
    return Trainer(
        network() if of_network is None else of_network, of(REAL), chosen, draws, loss, **given
    )


def trained(training: Trainer, epochs: int = EPOCHS) -> list[float]:
    return [training.advance().item() for _ in range(epochs)]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(
        model.parameters(), 0.05, momentum=0.8, weight_decay=0.01, fused=True
    ),
    "adam": lambda model: torch.optim.Adam(
        model.parameters(), 0.05, (0.8, 0.999), weight_decay=0.01, fused=True
    ),
    "adamw": lambda model: torch.optim.AdamW(
        model.parameters(), 0.05, (0.8, 0.999), weight_decay=0.01, fused=True
    ),
}


def test_biases_and_normalisations_can_be_exempt_from_weight_decay():
    """A step with loss zero moves what decays, and nothing else."""
    for name in ("sgd", "adamw"):
        model = network(0, BATCH_NORM)
        for parameter in model.parameters():
            nn.init.constant_(parameter, 2.0)
        chosen = settings(optimizer=name, weight_decay=0.5, momentum=0.0, weight_decay_of="weights")
        training = trainer(chosen, model)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        training._optimizer.step()
        moved = {key for key, parameter in model.named_parameters() if (parameter != 2).any()}
        assert moved == {
            f"{key}.weight"
            for key, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }


def test_momenta_are_named_by_their_parameters_where_biases_are_exempt_from_weight_decay():
    training = trainer(settings(momentum=0.9, weight_decay_of="weights"), network(0, BATCH_NORM))
    training.advance()
    tensors, _ = training.state()
    for name, parameter in training.network.named_parameters():
        assert tensors[f"optimizer.momentum_buffer.{name}"].shape == parameter.shape


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant"},
        {"name": "cosine", "stretch": 2},
        {"name": "multistep", "milestones": [0.3, 0.5], "factor": 0.2},
        {"name": "restart", "milestones": [0.3, 0.5], "factor": 0.2},
    ],
    ids=lambda schedule: schedule["name"],
)
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_steps_are_those_of_the_optimizer_and_the_schedule(name, schedule):
    chosen = settings(optimizer=name, momentum=0.8, weight_decay=0.01, schedule=schedule)
    training = trainer(chosen)
    losses = trained(training)

    model = network()
    optimizer = OPTIMIZERS[name](model)
    for epoch in range(EPOCHS):
        if schedule["name"] == "restart" and epoch in milestone_epochs(chosen.schedule, EPOCHS):
            optimizer = OPTIMIZERS[name](model)
        optimizer.param_groups[0]["lr"] = 0.05 * learning_rate_factor(
            chosen.schedule, epoch, EPOCHS
        )
        total = 0.0
        for batch in Draws(chosen, len(REAL), SHAPE, 3).epoch(epoch):
            loss = F.cross_entropy(model(IMAGES[batch.rows]), LABELS[batch.rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch.rows)
        assert losses[epoch] == pytest.approx(total / len(REAL), rel=1e-6)
    assert same(training.weights(), model.state_dict())


def test_alrs_lowers_the_step_size_for_good_when_the_loss_stalls(monkeypatch):
    asked = []
    stalls = iter([False, True, False, True, False, False])
    monkeypatch.setattr(
        module,
        "alrs",
        lambda previous, current: (asked.append((previous, current)), next(stalls))[1],
    )
    training = trainer(settings(schedule={"name": "alrs", "factor": 0.5}))
    rates = []
    losses = []
    for _ in range(EPOCHS):
        losses.append(training.advance().item())
        rates.append(training._optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025, 0.0125, 0.0125])
    assert asked == list(zip([None, *losses], losses, strict=False))


def test_the_average_moves_after_every_step_and_leaves_batch_statistics_to_the_network():
    chosen = settings(average=0.9, schedule={"name": "constant"}, batch_size=30)
    training = trainer(chosen, network(0, BATCH_NORM))
    wanted = {name: value.clone() for name, value in network(0, BATCH_NORM).named_parameters()}
    for _ in range(4):
        training.advance()
        for name, value in training.network.named_parameters():
            wanted[name] = 0.9 * wanted[name] + 0.1 * value
    weights = training.weights()
    online = training.network.state_dict()
    assert weights.keys() == online.keys()
    for name, value in online.items():
        assert torch.allclose(weights[name], wanted.get(name, value), atol=1e-6)
    assert not torch.allclose(weights["classifier.weight"], online["classifier.weight"], atol=1e-6)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_mixed_batches_share_their_labels(mix):
    chosen = settings(mix=mix, batch_size=30, transform=VIEWS)
    training = trainer(chosen)
    (batch,) = Draws(chosen, len(REAL), SHAPE, 3).epoch(0)
    mixed, partners, kept = batch.mix(batch.view(IMAGES, NORMALIZATION))
    assert 0 < kept < 1
    model = network()
    own, other = (F.cross_entropy(model(mixed), labels) for labels in (LABELS, LABELS[partners]))
    assert training.advance().item() == pytest.approx(
        (kept * own + (1 - kept) * other).item(), rel=1e-5
    )


def test_teachers_are_asked_about_the_mixed_images():
    chosen = settings(mix="cutmix", batch_size=30, loss="kl", temperature=4.0)
    training = trainer(chosen, teachers=Teachers(teachers(), "float16"))
    (batch,) = Draws(chosen, len(REAL), SHAPE, 3).epoch(0)
    mixed, _, _ = batch.mix(IMAGES)
    wanted = kl(network()(mixed), Teachers(teachers(), "float16")(mixed), 4.0)
    assert training.advance().item() == pytest.approx(wanted.item(), rel=1e-5)


def test_teachers_that_diverged_end_the_epoch():
    broken = network(1)
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    training = trainer(settings(batch_size=12, loss="kl"), teachers=Teachers([broken], "float16"))
    with pytest.raises(
        RunError, match=r"The teachers' logits must be finite in float16\. Got up to nan"
    ):
        training.advance()


def statistics(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_clean_forward_updates_batch_statistics_first_and_changes_nothing_else(precision):
    chosen = settings(mix="mixup", batch_size=30, precision=precision)
    plain = trainer(chosen, network(0, BATCH_NORM))
    clean = trainer(chosen, network(0, BATCH_NORM), clean_forward=True)
    assert plain.advance().item() == clean.advance().item()
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.network.parameters(), clean.network.parameters(), strict=True)
    )
    if precision == "float32":
        (batch,) = Draws(chosen, len(REAL), SHAPE, 3).epoch(0)
        model = network(0, BATCH_NORM).train()
        model(IMAGES)
        model(batch.mix(IMAGES)[0])
        for wanted, got in zip(statistics(model), statistics(clean.network), strict=True):
            assert torch.allclose(wanted.running_mean, got.running_mean, atol=1e-6)
            assert torch.allclose(wanted.running_var, got.running_var, atol=1e-6)
            assert got.num_batches_tracked == 2


RESUMED = {
    "sgd": {"mix": "cutmix"},
    "sgd without momentum": {"momentum": 0.0},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "transform": VIEWS, "mix": "mixup"},
    "average": {"average": 0.9, "optimizer": "adamw", "learning_rate": 0.01},
    "restart": {"schedule": {"name": "restart", "milestones": [0.4]}},
    "adamw restart": {
        "schedule": {"name": "restart", "milestones": [0.4]},
        "optimizer": "adamw",
        "learning_rate": 0.01,
    },
    "alrs": {"schedule": {"name": "alrs", "factor": 0.5}},
    "exempt": {"weight_decay": 0.1, "weight_decay_of": "weights", "momentum": 0.9},
    "bfloat16": {"precision": "bfloat16", "optimizer": "adamw"},
}


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("changes", RESUMED.values(), ids=RESUMED.keys())
def test_a_resumed_training_ends_as_the_uninterrupted_one(tmp_path, monkeypatch, changes, at):
    monkeypatch.setattr(
        module, "alrs", lambda previous, current: previous is not None and current < previous
    )
    whole = trainer(settings(**changes), network(0, BATCH_NORM))
    losses = trained(whole)
    part = trainer(settings(**changes), network(0, BATCH_NORM))
    trained(part, at)
    write_tensors(tmp_path / "state.safetensors", *part.state())
    rest = trainer(settings(**changes), network(9, BATCH_NORM))
    rest.restore(*read_tensors(tmp_path / "state.safetensors"))
    assert trained(rest, EPOCHS - at) == losses[at:]
    assert same(rest.weights(), whole.weights())
    assert same(rest.state()[0], whole.state()[0])
    assert rest.state()[1] == whole.state()[1]


def test_every_epoch_has_its_own_stream_for_dropout():
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(CLASSES))
            self.drawn = []

        def forward(self, images: Tensor) -> Tensor:
            self.drawn.append(torch.rand(()).item())
            return self.weight.expand(len(images), -1)

    model = Drawing()
    trained(trainer(settings(batch_size=30), model, purpose="observer"))
    wanted = []
    for epoch in range(EPOCHS):
        with seeded(3, "observer dropout", epoch):
            wanted.append(torch.rand(()).item())
    assert model.drawn == wanted


def test_dropout_draws_from_the_seed_and_leaves_the_global_generator():
    start = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, CLASSES))

    def run(seed: int, purpose: str = "student") -> float:
        return trained(trainer(settings(), deepcopy(start), seed=seed, purpose=purpose), 2)[-1]

    before = torch.get_rng_state()
    assert run(1) == run(1)
    assert len({run(1), run(2), run(1, "observer")}) == 3
    assert torch.equal(before, torch.get_rng_state())
