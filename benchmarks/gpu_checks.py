"""Every method on a device against the CPU: tiny recipes on digits, in float32.

A check runs the stages of a recipe twice, once on each device, with the classes that `rayd distill`
uses. Both sides continue from the CPU's trained networks, statistics and initial images, so that
each part is checked separately, without accumulated rounding of earlier parts.

Deviations are relative, in the Euclidean norm of a tensor, or of tensors that belong together:
|found - expected| / |expected|. Integers and booleans must be equal.

With `--device cpu` the other side is the same CPU without oneDNN, whose convolutions use different
kernels: it shows the effect of float32 rounding alone.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import Clock, Result, say
from rayd import devices, networks
from rayd.artifacts import content_hash
from rayd.config import Recipe, merge
from rayd.config.reading import without
from rayd.data import ImageData, load
from rayd.engine.gradients.feature_matching import GradientResult
from rayd.engine.gradients.trajectory_matching import TrajectoryResult
from rayd.engine.job import Job
from rayd.engine.network_ids import NetworkId, groups, network_ids, teachers
from rayd.engine.observer import DatasetInfo
from rayd.engine.pool import LocalPool, ObjectRef
from rayd.engine.stages.experts import Experts
from rayd.engine.stages.initial_set import initial_set
from rayd.engine.stages.measure import Measure
from rayd.engine.stages.score import Score
from rayd.engine.stages.squeeze import Squeeze, TrainedObserver
from rayd.engine.store import Store
from rayd.engine.synthesizer import BlockTask, Synthesizer
from rayd.engine.worker import Worker
from rayd.evaluation.student import StudentResult, train
from rayd.recipes import assemble
from rayd.synthetic import SyntheticSet
from rayd.training.sets import TrainingSet
from rayd.training.trajectories import Trajectory

TOLERANCES = {
    "training": 3e-2,
    "statistics": 1e-4,
    "scores": 3e-4,
    "terms": 3e-4,
    "gradient": 1e-3,
    "memory": 1e-3,
    "synthesis": 2e-2,
    "labels": 3e-4,
    "student": 1e-2,
}
"""Largest deviation of each part.

Lower bound: at least ten times the deviation of any method with other kernels (`--device cpu`).
Upper bound: with the factors of all convolutions and matrix products rounded to TF32's ten bits,
each of the fourteen methods tried exceeded one of them, gradients by factors of 2 to 47. So
"float32" that is actually TF32 fails.
"""

CONVNET = {"name": "convnet", "depth": 2, "width": 16}
BATCH = {**CONVNET, "norm": "batch"}
EXACT = {"precision": "float32"}

BASE: dict[str, Any] = {
    "data": {"name": "digits"},
    "ipc": 2,
    "observers": {"networks": CONVNET, "batch_size": 256, **EXACT},
    "synthesis": {"steps": 4, "log_every": 1, "checkpoint_every": 1000, **EXACT},
    "evaluation": {"networks": [CONVNET], "seeds": 1, "epochs": 3, "baselines": [], **EXACT},
    "resources": {"threads": 1},
}
POOL = {"observers": {"pool": 2}}
SQUEEZE = {"epochs": 2, "batch_size": 128, "transform": {"shift": 1, "flip": False}, **EXACT}
TRAINED: dict[str, Any] = {
    "observers": {"networks": [BATCH, {**BATCH, "depth": 1}]},
    "squeeze": SQUEEZE,
    "synthesis": {"block": None, "learning_rate": 0.05},
    "evaluation": {"networks": [BATCH], "batch_size": 10},
    "labels": {"precision": "float32"},
}
FOLLOWING: dict[str, Any] = {
    "experts": {
        "network": CONVNET,
        "count": 1,
        "epochs": 3,
        "batch_size": 128,
        "learning_rate": 0.05,
        **EXACT,
    },
    "synthetic": {"step_size": 0.05},
    "synthesis": {"learning_rate": 0.1},
    "objective": {"steps": 4, "epochs": 1, "start": {"most": 2}},
}
GUIDES = {
    "classifiers": {"networks": {**CONVNET, "depth": 1}, "pool": 1, "squeeze": SQUEEZE, **EXACT}
}
REAL_BATCH = {"observers": {"real_batch": 16}, "synthesis": {"learning_rate": 0.05}}
FREQUENCIES = {"terms": {"characteristic_function": {"frequencies": 64}}}
QUEUE = {"observers": {"model_pool": {"train_steps": 2, "batch_size": 32}}}
NCFM: dict[str, Any] = {
    **FREQUENCIES,
    "synthetic": {"kind": "pixels"},
    "observers": {"pool": 2},
    "squeeze": SQUEEZE,
    "synthesis": {"learning_rate": 0.02},
}
FEW_CROPS = {"synthetic": {"candidates": 20, "crops": 3}}
LOW_RANK = {"synthetic": {"rank": 2}, "objective": {"start": {"offset": 1, "window": 1}}}


def laid(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge settings; later ones take precedence."""
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    return merged


CASES: dict[str, dict[str, Any]] = {
    "dm": laid({"method": "dm"}, POOL),
    "dm sampled": laid({"method": "dm", "real": "sampled"}, REAL_BATCH),
    "datadam": laid({"method": "datadam"}, POOL),
    "dm low rank": laid({"method": "dm", "synthetic": {"kind": "lowrank", "rank": 3}}, POOL),
    "csdm": laid({"method": "csdm"}, FREQUENCIES, POOL),
    "csdm sampled": laid({"method": "csdm", "real": "sampled"}, FREQUENCIES, REAL_BATCH),
    "idm": laid({"method": "idm"}, REAL_BATCH, QUEUE),
    "iid-dm": laid({"method": "iid-dm"}, POOL, GUIDES),
    "iid-idm": laid({"method": "iid-idm"}, REAL_BATCH, GUIDES, QUEUE),
    "dc": laid({"method": "dc"}, REAL_BATCH),
    "dsa": laid({"method": "dsa"}, REAL_BATCH),
    "dcc": laid({"method": "dcc"}, REAL_BATCH),
    "idc": laid({"method": "idc"}, REAL_BATCH),
    "cafe": laid({"method": "cafe"}, REAL_BATCH),
    "krr": laid({"method": "krr"}, REAL_BATCH),
    "kip": laid({"method": "kip"}, REAL_BATCH),
    "frepo": laid({"method": "frepo"}, REAL_BATCH),
    "ncfm": laid({"method": "ncfm"}, NCFM),
    "sre2l": laid({"method": "sre2l"}, TRAINED),
    "dwa": laid({"method": "dwa"}, TRAINED),
    "cda": laid({"method": "cda"}, TRAINED),
    "gvbsm": laid({"method": "gvbsm"}, TRAINED),
    "rded": laid({"method": "rded"}, TRAINED, FEW_CROPS, {"synthesis": {"steps": 0}}),
    "edc": laid({"method": "edc", "synthetic": {"init": "rded"}}, TRAINED, FEW_CROPS),
    "unidd": laid({"method": "unidd"}, TRAINED),
    "cfm": laid({"method": "cfm"}, TRAINED),
    "mtt": laid({"method": "mtt"}, FOLLOWING),
    "tesla": laid({"method": "tesla"}, FOLLOWING),
    "datm": laid({"method": "datm"}, FOLLOWING, {"objective": {"start": {"first": 1, "rise": 4}}}),
    "ls-mtt": laid({"method": "ls-mtt"}, FOLLOWING, LOW_RANK),
    "haba": laid({"method": "haba"}, FOLLOWING),
}
"""Tiny recipes of all methods, if possible with both measured and sampled real images."""
QUICK = ("dm", "edc", "mtt")


def run(
    result: Result,
    device: torch.device,
    quick: bool,
    out: Path,
    clock: Clock,
    share: float,
) -> None:
    """Run the checks that are missing in the result, until a share of the time is used."""
    result.set("tolerances", TOLERANCES)
    data = load(assemble(BASE | {"method": "dm"}).data)
    reference = torch.device("cpu")
    result.set("reference", "the same CPU without oneDNN" if device == reference else "the CPU")
    skipped = []
    for name in QUICK if quick else CASES:
        if result.has("checks", name):
            continue
        if clock.left(share) < 0:
            skipped.append(name)
            continue
        began = time.monotonic()
        entry = checked(name, data, device, out / "checks")
        result.put("checks", name, {**entry, "seconds": round(time.monotonic() - began, 3)})
        say(f"check {name}: {_told(entry)}")
    result.set("checks_not_run", skipped)


def _told(entry: Mapping[str, Any]) -> str:
    if "error" in entry:
        return f"FAILED, {entry['error']}"
    name, part = max(entry["parts"].items(), key=lambda part: _ratio(part[1]))
    verdict = "passed" if entry["passed"] else "FAILED"
    return f"{verdict}, {name} is closest to its tolerance: {part['deviation']}"


def _ratio(part: Mapping[str, Any]) -> float:
    deviation = part["deviation"]
    return math.inf if deviation is None else float(deviation / part["tolerance"])


def checked(name: str, data: ImageData, device: torch.device, folder: Path) -> dict[str, Any]:
    """One case on the CPU and on a device: the largest deviation of each part, with its tolerance.

    A case that raises an error has failed; its entry has the error instead of the parts.
    """
    case = CASES[name]
    # trajectory methods compute nothing in observers
    base = without(BASE, ["observers.networks"]) if "experts" in case else BASE
    recipe = assemble({"name": name, **merge(base, case)})
    try:
        parts = _compare(recipe, data, device, folder / name.replace(" ", "-"))
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        sentence = next(iter(str(error).splitlines()), "")
        where = f"{Path(place.filename).name}:{place.lineno}"
        return {"passed": False, "error": f"{type(error).__name__}: {sentence} ({where})"}
    return {"passed": all(_ratio(part) <= 1 for part in parts.values()), "parts": parts}


def _compare(recipe: Recipe, data: ImageData, device: torch.device, folder: Path) -> dict[str, Any]:
    same = device.type == "cpu"
    cpu = Side(recipe, data, torch.device("cpu"), folder / "cpu")
    other = Side(recipe, data, device, folder / "device", without_onednn=same)
    found: dict[str, Any] = {}

    def compare(work: Callable[[Side], dict[str, Any]]) -> None:
        """Compute on both sides, and record the largest deviation of each part of the results."""
        expected = cpu.within(work)
        results = other.within(work)
        for part, value in expected.items():
            deviation, where = worst(value, results.get(part))
            entry = {
                "deviation": _digits(deviation),
                "tolerance": TOLERANCES[part],
                "where": where,
            }
            if where is not None and (part not in found or _ratio(entry) > _ratio(found[part])):
                found[part] = entry

    compare(lambda side: {"training": side.trained()})
    given = cpu.given()
    compare(lambda side: {"statistics": side.measured(given)})
    compare(lambda side: {"scores": side.scored(given)})
    start = cpu.started(given)
    if recipe.synthesis.steps > 0:
        statistics = cpu.measured(given)
        compare(lambda side: side.synthesized(given, start, statistics))
    compare(lambda side: {"labels": side.labelled(given, start)})
    compare(lambda side: {"student": side.student(given, start)})
    return found


def _digits(deviation: float) -> float | None:
    """Round to three digits; None for NaN, which JSON cannot represent."""
    return float(f"{deviation:.3g}") if math.isfinite(deviation) else None


@dataclass(frozen=True)
class Given:
    """Results of the CPU from which both sides continue."""

    trained: Mapping[NetworkId, TrainedObserver]
    """Trained networks."""
    experts: tuple[Path, ...]
    """Files of the experts."""


class Recording(LocalPool):
    """A pool in this process that records its worker's results in the steps of a synthesis."""

    def __init__(self, recipe: Recipe, facts: DatasetInfo):
        """Host a worker of the recipe."""
        super().__init__(recipe.resources, Worker, recipe, facts)
        self.answers: list[Any] = []

    def map(
        self,
        method: str,
        items: Sequence[tuple[Any, ...]],
        affinity: Sequence[int] | None = None,
    ) -> Iterator[Any]:
        """Run the items one after another."""
        for answer in super().map(method, items, affinity):
            if method == "compute":
                self.answers.append(answer)
            yield answer


class Side:
    """The stages of a recipe on one device."""

    def __init__(
        self,
        recipe: Recipe,
        data: ImageData,
        device: torch.device,
        folder: Path,
        without_onednn: bool = False,
    ):
        """Start without results; `folder` receives the files of stages."""
        resources = recipe.resources.model_copy(update={"device": str(device)})
        self.recipe = recipe.model_copy(update={"resources": resources})
        self._data = data
        self._device = device
        self._folder = folder
        self._without_onednn = without_onednn
        self._store = Store(folder / "store")
        self._pool = Recording(self.recipe, DatasetInfo.of(data))

    def within(self, work: Callable[[Side], dict[str, Any]]) -> dict[str, Any]:
        """Compute with this side's kernels."""
        onednn: Any = torch.backends.mkldnn
        before = onednn.enabled
        onednn.enabled = before and not self._without_onednn
        try:
            with devices.thread_limit(1):
                return work(self)
        finally:
            onednn.enabled = before

    def trained(self) -> dict[str, Any]:
        """Weights of all networks that are trained on the real data, one vector a network."""
        found: dict[str, Any] = {}
        for network_id, one in self._squeezed().items():
            found[network_id.label] = _vector(one.state)
        for index, path in enumerate(self._experts()):
            trajectory = Trajectory(path)
            found[f"expert {index}"] = trajectory[trajectory.epochs]
        return found

    def given(self) -> Given:
        """Results of this side's training, for both sides."""
        return Given(self._squeezed(), self._experts())

    def _squeezed(self) -> dict[NetworkId, TrainedObserver]:
        return Squeeze(self._job).run(self._pool)

    def _experts(self) -> tuple[Path, ...]:
        experts = Experts(self._job)
        experts.run(self._pool)
        return experts.files()

    @property
    def _job(self) -> Job:
        return Job(self.recipe, self._data, self._store)

    def _weights(self, given: Given) -> dict[NetworkId, ObjectRef]:
        """Weights of the trained networks that compute features."""
        found: dict[NetworkId, ObjectRef] = {}
        for group in groups(self.recipe):
            if self.recipe.network_group(group).trained:
                for network_id in network_ids(self.recipe, group):
                    found[network_id] = self._pool.share(given.trained[network_id].state)
        return found

    def measured(self, given: Given) -> dict[NetworkId, Any]:
        """Statistics of the real images by network; empty if real images are sampled."""
        found = Measure(self._job, self._weights(given)).run(self._pool)
        return {network_id: stored.get() for network_id, stored in found.items()}

    def scored(self, given: Given) -> dict[str, Any]:
        """Scores of crops of two classes by the first network, if images are initialised from
        crops.
        """
        if self.recipe.synthetic.init != "rded":
            return {}
        first = network_ids(self.recipe)[0]
        weights = self._weights(given)[first]
        items = []
        for label in (0, 1):
            rows = self._data.train.class_index[label][:40]
            images = self._pool.share(self._data.train.part(rows).images)
            items.append((first, weights, label, images))
        return {f"class {index}": found for index, found in self._pool.stream("score", items)}

    def started(self, given: Given) -> SyntheticSet:
        """The synthetic set before the first step."""
        score = Score(self._job, self._weights(given))
        score.run(self._pool)
        return initial_set(self._job, self._pool, score, given.experts)

    def synthesized(
        self,
        given: Given,
        start: SyntheticSet,
        statistics: Mapping[NetworkId, Any],
    ) -> dict[str, Any]:
        """A few steps: results of the first one's networks, by part, and the final set."""
        pool = self._pool
        data = self._data
        weights = self._weights(given)
        accuracies = {one: float(given.trained[one].facts["train_accuracy"]) for one in weights}
        train = None
        if self.recipe.real == "sampled":
            train = pool.share((data.train.images, data.train.labels))
        work = BlockTask(
            recipe=self.recipe,
            key=content_hash({"of": self.recipe.name}),
            normalization=data.normalization,
            block=0,
            blocks=1,
            start=pool.share(dict(start.state_dict())),
            checkpoints=self._folder / "checkpoints",
            weights=weights,
            accuracies=accuracies,
            measured={network_id: pool.share(state) for network_id, state in statistics.items()},
            train=train,
            experts=given.experts,
        )
        synthesizer = Synthesizer(pool)
        synthesizer.advance(work, 0, 1)
        found: dict[str, Any] = {"terms": [], "gradient": [], "memory": [], "training": []}
        for answer in pool.answers:
            for part, value in _parted(answer).items():
                found[part].append(value)
        found["synthesis"] = synthesizer.state(work, self.recipe.synthesis.steps)
        return {part: value for part, value in found.items() if value}

    def labelled(self, given: Given, start: SyntheticSet) -> dict[str, Any]:
        """Soft labels of the first images for two epochs, with order, crops and mixes."""
        chosen = teachers(self.recipe)
        if not chosen:
            return {}
        weights = tuple(self._pool.share(given.trained[network_id].state) for network_id in chosen)
        images = self._pool.share(start.batch()[0].detach().cpu().numpy())
        (made,) = self._pool.map("label", [(chosen, weights, images, range(2))])
        return dict(made)

    def student(self, given: Given, start: SyntheticSet) -> dict[str, Any]:
        """The training loss of a student of the first images after a few epochs."""
        recipe = self.recipe
        data = self._data
        images, labels = (tensor.detach().cpu() for tensor in start.batch())
        taught = []
        for network_id in teachers(recipe):
            network = networks.build(network_id.architecture, data.shape, data.classes, seed=0)
            networks.restore(network, given.trained[network_id].state)
            taught.append(network)
        source = recipe.labels
        if taught:
            source = source.model_copy(update={"kind": "online"})
        *_, last = train(
            TrainingSet(images, labels, data.normalization),
            recipe.evaluation.networks[0],
            recipe.evaluation,
            data.shape,
            data.classes,
            seed=0,
            epochs=recipe.evaluation.epochs,
            device=self._device,
            test=TrainingSet.from_images(data.test, data.normalization),
            labels=source,
            teachers=taught or None,
        )
        assert isinstance(last, StudentResult)
        return {"loss": torch.tensor(last.train_loss)}


def _parted(answer: Any) -> dict[str, Any]:
    """Parts of a task's result: of feature matching, trajectory matching, or training."""
    if isinstance(answer, TrajectoryResult):
        return {"terms": answer.loss, "gradient": answer.gradients}
    if isinstance(answer, GradientResult):
        return {"terms": answer.values, "gradient": answer.gradients, "memory": answer.memory}
    state, _ = answer
    return {"training": _vector(state)}


def _vector(state: Mapping[str, Tensor]) -> Tensor:
    """A network as one vector, as individual tensors, such as biases before a normalisation, may
    consist of rounding only.
    """
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    return torch.cat([tensor.detach().cpu().flatten() for tensor in floating])


def worst(expected: Any, found: Any) -> tuple[float, str | None]:
    """The largest deviation between two trees of tensors, and its path; None without tensors."""
    ones = dict(_leaves(expected))
    others = dict(_leaves(found))
    if ones.keys() != others.keys():
        return math.inf, f"only on one side: {sorted(ones.keys() ^ others.keys())[0]}"
    largest = 0.0
    where = None
    for name, one in ones.items():
        deviation = _deviation(one, others[name])
        if where is None or deviation > largest or math.isnan(deviation):
            largest = deviation
            where = name
    return largest, where


def _deviation(expected: Tensor, found: Tensor) -> float:
    expected = expected.detach().cpu()
    found = found.detach().cpu()
    if expected.shape != found.shape:
        return math.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, found) else math.inf
    difference = (found.double() - expected.double()).norm()
    # a tensor of zeros is compared relative to the other side's
    return float(difference / expected.double().norm().clamp(min=1e-6))


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested mappings and sequences, by path."""
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            label = key.label if isinstance(key, NetworkId) else str(key)
            yield from _leaves(value, f"{name}/{label}" if name else label)
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{name}/{index}")
