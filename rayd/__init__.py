"""Dataset distillation: a small synthetic set that trains networks almost as well as the data.

run = rayd.distill("digits", out="runs/digits2", ipc=2)
distilled = rayd.load("runs/digits2")
report = rayd.evaluate(distilled, networks=["mlp"], seeds=3)
report.plot()
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd.errors import ConfigError, RaydError, errors_for_python
from rayd.names import expanded
from rayd.version import __version__

if TYPE_CHECKING:
    from typing import Unpack

    from torch import nn

    from rayd import (
        analyses,
        applications,
        methods,
        networks,
        recipes,
        schedules,
        statistics,
        synthetic,
        terms,
    )
    from rayd import callbacks as callbacks
    from rayd.config import Recipe
    from rayd.distilled import Distilled
    from rayd.engine.plan import Plan
    from rayd.engine.run import Run
    from rayd.evaluation.compare import Comparison
    from rayd.evaluation.report import Report
    from rayd.keywords import Keywords, RecipeKeywords
    from rayd.methods import Method
    from rayd.step_iterator import Steps
    from tuning import Space, Sweep

__all__ = [
    "Distilled",
    "Plan",
    "RaydError",
    "Recipe",
    "Report",
    "Run",
    "__version__",
    "analyses",
    "applications",
    "callbacks",
    "compare",
    "distill",
    "evaluate",
    "load",
    "methods",
    "networks",
    "plan",
    "recipes",
    "report",
    "schedules",
    "statistics",
    "synthesize",
    "synthetic",
    "terms",
    "tune",
]


_MODULES = frozenset(
    {
        "analyses",
        "applications",
        "callbacks",
        "methods",
        "networks",
        "recipes",
        "schedules",
        "statistics",
        "synthetic",
        "terms",
    }
)
_LATER = {
    "Distilled": "rayd.distilled",
    "Plan": "rayd.engine.plan",
    "Recipe": "rayd.config",
    "Report": "rayd.evaluation.report",
    "Run": "rayd.engine.run",
}


def __getattr__(name: str) -> Any:
    """Import modules on first use."""
    if name in _MODULES:
        return import_module(f"rayd.{name}")
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'rayd' has no attribute '{name}'")


def distill(
    name: str | Path | None = None,
    *,
    out: str | Path | None = None,
    workers: int | None = None,
    address: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool | str | Path = False,
    overwrite: bool = False,
    quiet: bool = False,
    train: Any = None,
    test: Any = None,
    validation: Any = None,
    class_names: Sequence[str] | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    method: str | type[Method] | Method | None = None,
    network: str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module] | None = None,
    ipc: int | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] | None = (),
    **overrides: Unpack[Keywords],
) -> Run:
    """Distil a data set, evaluate the result, and write both to `out`.

    A recipe sets everything; further arguments override it:

        run = rayd.distill("digits", out="runs/digits5", ipc=5)
        run = rayd.distill("dm-cifar10-ipc10", settings={"synthesis.steps": 500}, workers=4)

    Data, network and method may be objects. Without a recipe, the method's defaults apply:

        run = rayd.distill(train=data, test=test_data, method="dm", network=build, ipc=10)

    A run that was interrupted or failed continues with its own recipe:

        run = rayd.distill(resume="runs/digits5")

    `run.distilled` is a torch `Dataset`, `run.report` has the test accuracies, and both have a method
    `.plot()`. In a notebook, either is displayed as the last line of a cell.

    | question | answer |
    |---|---|
    | which recipes are there? | `rayd.recipes.names()`, or `rayd recipes` in a shell |
    | which settings? | `rayd.recipes.resolve("digits")` and its `to_yaml()`, the page "Settings" |
    | how long will it take? | `rayd.plan("digits")` |
    | on a GPU? | a GPU is used if there is one; `resources={"device": "cpu"}` turns it off |
    | on several GPUs or machines? | `workers=8`, `resources={"gpus_per_worker": 1}`, `address=` |
    | less output? | `quiet=True` |
    | my own loss, network, data? | `method=`, `network=`, `train=`; `rayd.terms` in your own loop |
    | step by step? | `rayd.synthesize`, or `callbacks=` |

    Args:
        name: a built-in recipe or a YAML file; may be absent where `train` is given.
        out: the run's directory, or its URL (`s3://`, `gs://`); `data_root` and `cache` may be
            URLs, too. By default `runs/<name of the recipe>`.
        workers: number of Ray actors; 0 runs in this process, without Ray; by default the recipe's.
        address: Ray cluster to join; by default a private one on this machine.
        data_root: folder of named data, before `$RAYD_DATA` and `~/.cache/rayd/data`.
        cache: store of finished work shared by runs; by default `$RAYD_CACHE`, else
            `~/.cache/rayd/store`.
        resume: continue the run in `out`. A directory in place of `name` and `out`, as in
            `rayd.distill(resume="runs/a")`, continues its run with its own recipe and settings.
        overwrite: replace the run in `out`.
        quiet: show no progress.
        train: the training split: a torch data set with a length whose items are pairs of an image
            and a class index, a pair of images and labels (arrays or tensors), or a Hugging Face
            data set. Images are PIL images, uint8, or floats in [0, 1].
        test: the same for the test split; if absent, a fifth of each class of `train` is set aside.
        validation: the same for the validation split.
        class_names: names of the classes; by default those of the data set, or else numbers.
        normalization: means and standard deviations with which float images were normalised.
        method: name or class of the method; by default the recipe's, else `dm`.
        network: architecture of observers and students, and of experts if the method matches
            trajectories: a name; a function or class that takes the shape of the images (channels,
            height, width) and the number of classes, or nothing; or a module, which is copied with
            new initial weights. By default the recipe's.
        ipc: images per class.
        callbacks: called throughout the run; see `rayd.callbacks`.
        settings: settings of the recipe, nested or by dotted key: `{"synthesis.steps": 500}`.
        overrides: settings of the recipe by keyword, such as `seed=1`, `data="path/to/images"` or
            `synthesis={"steps": 500}`; `rayd.keywords` lists them.

    Returns:
        The run: its directory, its recipe, the distilled set and the report.

    Raises:
        RaydError: any error that the user can fix, in one sentence, before long work starts where
            that is possible. Ctrl-C raises `KeyboardInterrupt`, and the run can be resumed.
    """
    from rayd.callbacks import Callbacks
    from rayd.config import given_resources, lookup, merge, nested
    from rayd.engine.distill import distill as run
    from rayd.engine.progress import Progress
    from rayd.engine.rundir import RunDirectory, default_directory
    from rayd.given import check_sendable, network_settings, own_settings, recipe_of
    from rayd.recipes import resolve

    with errors_for_python():
        told = Callbacks(() if callbacks is None else callbacks)
        own = own_settings(
            train=train,
            test=test,
            validation=validation,
            class_names=class_names,
            normalization=normalization,
            method=method,
            ipc=ipc,
            cache=_path(cache),
        )
        given = merge(
            merge(nested(settings or {}), nested(overrides)), given_resources(workers, address)
        )
        if train is not None and (named := lookup(given, "data.name")) is not None:
            raise ConfigError(
                f"Data are given as 'train', and by name, '{named}': leave one of them out."
            )
        if isinstance(resume, str | Path):
            if name is not None or out is not None:
                raise ConfigError(
                    "resume=DIRECTORY takes recipe and directory from there: "
                    "omit the recipe's name and out."
                )
            out = resume
            resume = True

        def recipe_with(settings: Mapping[str, Any]) -> Recipe:
            if name is not None:
                return resolve(name, settings)
            if train is not None:
                return recipe_of(settings)
            if resume and out is not None:
                return RunDirectory(Path(out)).recipe(settings)
            raise ConfigError(
                "Name a recipe, such as rayd.distill('digits'), "
                "data with train=..., or a run to continue with resume=DIRECTORY."
            )

        recipe = recipe_with(merge(own, given))
        if network is not None:
            # which sections contain a network depends on the method, which the recipe determines
            own = merge(own, network_settings(network, recipe))
            recipe = recipe_with(merge(own, given))
        check_sendable(recipe)
        directory = Path(out) if out is not None else default_directory(recipe)
        try:
            return run(
                recipe,
                directory,
                data_root=_path(data_root),
                cache=_path(cache),
                resume=resume,
                overwrite=overwrite,
                progress=Progress(quiet),
                callbacks=told,
            )
        except KeyboardInterrupt as interrupt:
            if RunDirectory(directory).holds_run():
                interrupt.add_note(
                    f"Finished work is kept; to continue: rayd.distill(resume={str(directory)!r})"
                )
            raise


def synthesize(name: str | Path | None = None, **arguments: Any) -> Steps:
    """Synthesize a set step by step, in your own loop; the set is not evaluated.

        steps = rayd.synthesize("digits", out="runs/mine")
        for step in steps:
            print(step.step, step.metrics["loss"])
        steps.distilled

    Args:
        name: a built-in recipe or a YAML file.
        arguments: as for `rayd.distill`; `rayd.distill(resume=out)` continues with the evaluation.

    Returns:
        An iterator over the logged steps (every `synthesis.log_every`); the run waits in between.
        There are none for a set that is already cached.

    Raises:
        RaydError: as `distill`, with the first step.
    """
    from rayd.callbacks import Callbacks
    from rayd.step_iterator import Steps as Loop

    given = arguments.pop("callbacks", None)
    own = Callbacks(() if given is None else given)
    return Loop(lambda handover: distill(name, callbacks=(*own, handover), **arguments))


def plan(
    name: str | Path,
    *,
    workers: int | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    **overrides: Unpack[RecipeKeywords],
) -> Plan:
    """Predict the stages of a run and their time, memory and disk, without running it.

    Args:
        name: a built-in recipe or a YAML file.
        workers: number of Ray actors; 0 runs in this process.
        data_root: folder of named data, searched first; a known data set may be missing.
        cache: store of finished work shared by runs.
        settings: settings of the recipe, nested or by dotted key.
        overrides: the same, by keyword.

    Raises:
        RaydError: as `distill` does before long work starts.
    """
    from rayd.config import given_resources, merge, nested
    from rayd.engine.plan import plan as make_plan
    from rayd.recipes import resolve

    with errors_for_python():
        given = merge(nested(settings or {}), nested(overrides))
        recipe = resolve(name, merge(given, given_resources(workers, None)))
        return make_plan(recipe, _path(data_root), _path(cache))


def load(path: str | Path) -> Distilled:
    """Load the distilled set of a run directory: a torch `Dataset` with images, labels and card.

    Warns if students of the set are meant to learn from teachers' labels, which the `Dataset`
    lacks.

    Raises:
        ArtifactError: it is missing or damaged.
        ConfigError: the argument is not a path, such as a run, whose set is `run.distilled`.
    """
    from rayd.distilled import load as read

    with errors_for_python():
        distilled = read(_place(path))
    if distilled.needs_teachers:
        warnings.warn(f"'{path}': {distilled.needs[-1]}.", stacklevel=2)
    return distilled


def evaluate(
    distilled: Distilled | str | Path,
    *,
    networks: str
    | Mapping[str, Any]
    | nn.Module
    | Callable[..., nn.Module]
    | Sequence[str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module]]
    | None = None,
    seeds: int | None = None,
    workers: int | None = None,
    address: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **overrides: Unpack[RecipeKeywords],
) -> Report:
    """Train students on a distilled set and on its baselines, and test them on the real test split.

    Args:
        distilled: the set, or its directory.
        networks: one or more architectures of the students, each as `distill` takes them: names,
            modules of torch, or functions that build one; by default those of its recipe
            (`distilled.card["config"]`).
        seeds: students per architecture; by default as in its recipe.
        workers: number of Ray actors; 0 runs in this process, without Ray; by default the recipe's.
        address: Ray cluster to join.
        data_root: folder of named data that is searched first.
        cache: store of finished work shared by runs.
        quiet: show no progress.
        settings: settings that override the set's recipe, nested or by dotted key:
            `{"evaluation.epochs": 300}`.
        overrides: the same, by keyword, such as `evaluation={"epochs": 300}`.

    Raises:
        RaydError: any error that the user can fix, in one sentence.
    """
    from rayd.config import given_resources, merge, nested
    from rayd.distilled import Distilled as Set
    from rayd.distilled import load as read
    from rayd.engine.evaluate import evaluate_distilled
    from rayd.engine.progress import Progress
    from rayd.given import named_network

    with errors_for_python():
        several = networks if isinstance(networks, list | tuple) else [networks]
        students: dict[str, Any] = {}
        if networks is not None:
            students["networks"] = [named_network(network) for network in several]
        if seeds is not None:
            students["seeds"] = seeds
        given = merge(nested(settings or {}), nested(overrides))
        tree = merge(given_resources(workers, address), given)
        tree = merge(tree, {"evaluation": students})
        chosen = distilled if isinstance(distilled, Set) else read(_place(distilled))
        return evaluate_distilled(chosen, tree, _path(data_root), _path(cache), Progress(quiet))


def compare(*runs: str | Path | Run) -> Comparison:
    """Compare finished runs: means over distillations, deviations over these and over students.

        print(rayd.compare("runs/digits-0", "runs/digits-1").text())

    Args:
        runs: at least one run, its directory, or the directory of a distilled set with a report;
            those of equal recipe and settings are grouped.

    Raises:
        RaydError: there is none, or a directory holds no report.
    """
    from rayd.evaluation.compare import compare as compared

    with errors_for_python():
        if not runs:
            raise ConfigError("Name runs to compare, such as rayd.compare('runs/a', 'runs/b').")
        return compared([_directory(run) for run in runs])


def report(run: str | Path | Run, to: str | Path | None = None) -> Path:
    """Write a run as one HTML page that works offline: accuracies, images, curves, settings.

    Args:
        run: a run or its directory; it may be unfinished.
        to: file to be written; by default `report.html` in the directory.

    Returns:
        The file.

    Raises:
        RaydError: the directory holds no run, or the page cannot be written.
    """
    from rayd.page import write

    with errors_for_python():
        return write(_directory(run), _path(to))


def tune(
    space: str | Path | Space,
    *,
    out: str | Path | None = None,
    samples: int | None = None,
    workers: int | None = None,
    concurrent: int | None = None,
    address: str | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    settings: Mapping[str, Any] | None = None,
    **overrides: Unpack[RecipeKeywords],
) -> Sweep:
    """Search for better settings of a recipe; trials share common work and use no test images.

        sweep = rayd.tune("csdm-digits", samples=20)
        sweep.summary.settings

    Args:
        space: a built-in search space, a YAML file, or a `tuning.Space`.
        out: the sweep's directory; by default `sweeps/<name of the space>`.
        samples: trials to draw; by default the space's, or those of a resumed sweep.
        workers: Ray actors of each trial; 0 computes in the trial's own process.
        concurrent: most trials at a time; by default as many as fit.
        address: Ray cluster to join; by default a private one on this machine.
        data_root: folder of named data, searched first.
        cache: store of finished work shared by trials.
        resume: continue the sweep in `out`.
        quiet: show no progress.
        settings: settings that override the space's recipe, nested or by dotted key.
        overrides: the same, by keyword.

    Returns:
        The sweep: its directory, the best settings with their test accuracy, and all trials.

    Raises:
        RaydError: any error that the user can fix, in one sentence.
    """
    from rayd.config import merge, nested
    from rayd.engine.progress import Progress
    from rayd.errors import ResourceError
    from tuning import load as load_space

    with errors_for_python():
        given = merge(nested(settings or {}), nested(overrides))
        chosen = load_space(space) if isinstance(space, str | Path) else space
        try:
            import tuning.driver as tuning
        except ImportError as error:
            raise ResourceError(
                "Sweeps need Ray Tune and Optuna; install 'ray[tune]' and 'optuna'."
            ) from error
        directory = Path(out if out is not None else Path("sweeps") / chosen.name)
        grid = tuning.sweep(
            chosen,
            out=directory,
            samples=samples,
            resume=resume,
            overrides=given,
            workers=workers,
            concurrent=concurrent,
            address=address,
            data_root=_path(data_root),
            cache=_path(cache),
            progress=Progress(quiet),
        )
        return tuning.Sweep.of(directory, grid)


def _directory(run: str | Path | Run) -> Path:
    if not isinstance(run, str | Path) and not hasattr(run, "directory"):
        raise ConfigError(f"Expected a run or its directory. Got {type(run).__name__} instead.")
    return expanded(run if isinstance(run, str | Path) else run.directory)


def _place(path: str | Path) -> str | Path:
    """The path of a set, checked for its type."""
    if not isinstance(path, str | Path):
        has_set = ", whose set is its 'distilled'" if hasattr(path, "distilled") else ""
        raise ConfigError(
            f"Expected a distilled set or its directory. Got {type(path).__name__}{has_set} "
            "instead."
        )
    return path


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else expanded(path)
