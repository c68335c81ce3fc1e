"""Callbacks of a run: custom loggers, pictures or stopping rules.

    class Printer(rayd.callbacks.RunCallback):
        def on_step(self, step):
            print(step.step, step.metrics["loss"])

    rayd.distill("digits", callbacks=[Printer()])

A recipe names them: `callbacks: [csv, {name: early-stopping, patience: 5}, my_module:Printer]`.

Callbacks run in the driver's process. TensorBoard logs and metrics.jsonl are always written.
"""

from __future__ import annotations

import csv
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayd import plugins, remote
from rayd.artifacts import parse, read_json, write_json
from rayd.errors import ArtifactError, ConfigError, RaydError, RunError, unknown
from rayd.names import expanded

if TYPE_CHECKING:
    from rayd.config import Recipe
    from rayd.config.callbacks import CallbackSettings
    from rayd.distilled import Distilled
    from rayd.engine.run import Run
    from rayd.evaluation.report import SetResult

log = logging.getLogger(__name__)

HOOKS = ("on_run_start", "on_stage", "on_step", "on_result", "on_run_end")
"""Methods that a callback may have."""
SNAPSHOTS = "snapshots"
"""Folder of a run with sets of earlier steps."""
EARLY_STOPPING = "early-stopping"
"""Folder of a run with the tests of `EarlyStopping`, and the best set."""
TESTS = "tests.json"
"""Its steps and their accuracies."""


class StopRun(Exception):  # noqa: N818
    """Raised in a callback to end the run; `resume=True` continues it."""


class EndSynthesis(Exception):  # noqa: N818
    """Raised in `on_step` to end the synthesis; the run continues with the set of an earlier step.

    The set is kept in the run's directory only, not in the store that runs share.

    Args:
        distilled: the set, from `Step.distilled`.
        step: the step of that set.
    """

    def __init__(self, distilled: Distilled, step: int):
        super().__init__(f"The synthesis ended early; the set is that of step {step}.")
        self.distilled = distilled
        self.step = step


@dataclass(frozen=True)
class Step:
    """A logged step of a stage; `synthesis.log_every` sets the interval."""

    stage: str
    """Name of the stage, such as `synthesize` or `evaluate`."""
    step: int
    """Steps done, from 1, counted through all blocks."""
    metrics: Mapping[str, float]
    """The loss and the unweighted terms, by name."""
    seconds: float
    """Seconds since the stage began or was resumed."""
    distilled: Callable[[], Distilled] | None = field(default=None, repr=False)
    """Returns the current set; None in stages without one. For blocks that are optimised in
    parallel, it contains their last finished state.
    """
    validation_accuracy: Callable[[], float] | None = field(default=None, repr=False)
    """Trains the recipe's students on the current set, in the driver, and returns their mean
    accuracy on the validation split, a fraction; None in stages without a set.
    """


class RunCallback:
    """Base class of callbacks: override the methods of interest."""

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """The run begins or is resumed, in its directory."""

    def on_stage(self, stage: str) -> None:
        """A stage begins; not called for stages whose results are cached."""

    def on_step(self, step: Step) -> None:
        """A step was logged; the run waits."""

    def on_result(self, result: SetResult) -> None:
        """Students of a set and an architecture were tested."""

    def on_run_end(self, run: Run | None, error: BaseException | None) -> None:
        """The run is finished, or failed with an error."""


class Callbacks:
    """A group of callbacks; an error in one of them ends the run with a one-sentence message.

    Args:
        callbacks: objects with at least one of the methods of `RunCallback`.

    Raises:
        ConfigError: one of them is not a callback, or they are not a list.
    """

    def __init__(self, callbacks: Sequence[Any] = ()):
        if not isinstance(callbacks, list | tuple):
            raise ConfigError(
                "Callbacks must be a list, such as callbacks=[rayd.callbacks.EarlyStopping()]. Got "
                f"{type(callbacks).__name__} instead."
            )
        for callback in callbacks:
            if isinstance(callback, type) or not any(hasattr(callback, hook) for hook in HOOKS):
                name = callback.__name__ if isinstance(callback, type) else repr(callback)
                raise ConfigError(
                    "A callback must be an object with one of the methods "
                    f"{', '.join(HOOKS)}. Got {name} instead."
                )
        self._callbacks = tuple(callbacks)

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._callbacks)

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a method of all callbacks that have it.

        Raises:
            RunError: one of them failed, stopped the run, or ended a synthesis when none was
                running.
            EndSynthesis: one of them ends the synthesis.
        """
        ended: EndSynthesis | None = None
        goes_on = hook == "on_step" and arguments[0].stage == "synthesize"
        for callback in self._callbacks:
            method = getattr(callback, hook, None)
            if method is None:
                continue
            name = type(callback).__name__
            try:
                method(*arguments)
            except StopRun as stop:
                why = f": {stop}" if str(stop) else ""
                raise RunError(
                    f"Callback '{name}' stopped the run{why}; add --resume to continue it."
                ) from stop
            except EndSynthesis as end:
                if not goes_on:
                    raise RunError(
                        f"Callback '{name}' ends the synthesis in {hook} while none goes on: raise "
                        "EndSynthesis only in on_step, where step.stage is 'synthesize'; finished "
                        "work is kept: add --resume to continue it."
                    ) from end
                # the other callbacks get the step first, so that loggers have it
                ended = end
            except RaydError:
                raise
            except Exception as error:
                raise RunError(
                    f"Callback '{name}' failed in {hook} ({type(error).__name__}: {error}); "
                    "finished work is kept: add --resume to continue it."
                ) from error
        if ended is not None:
            raise ended

    @contextmanager
    def around(self, directory: Path, recipe: Recipe) -> Iterator[list[Run]]:
        """Call callbacks at the start and the end of a run; append the run to the yielded list."""
        self.call("on_run_start", directory, recipe)
        finished: list[Run] = []
        try:
            yield finished
        except BaseException as error:
            # show the error of the run, not one of callbacks that follows from it
            try:
                self.call("on_run_end", None, error)
            except RaydError as second:
                error.add_note(str(second))
            raise
        self.call("on_run_end", finished[0], None)


class _EveryLogged(RunCallback):
    """Base of callbacks that act at every n-th logged step.

    Steps are numbered from the start of the synthesis, so that a resumed run acts at the same steps
    as an uninterrupted one.

    Args:
        every: logged steps (`synthesis.log_every`) from one to the next.
    """

    def __init__(self, every: int):
        self._every = every
        self._steps: int | None = None
        self._log_every = 1

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Note which steps are logged."""
        self._steps = recipe.synthesis.steps
        self._log_every = recipe.synthesis.log_every

    def is_due(self, step: Step) -> bool:
        """Whether to act at a logged step of the synthesis."""
        # steps are counted through the blocks; the last step of each block is also logged
        steps = self._steps or step.step
        block, before = divmod(step.step - 1, steps)
        number = block * -(-steps // self._log_every) + before // self._log_every + 1
        return number % self._every == 0


class EarlyStopping(_EveryLogged):
    """Ends the synthesis when the validation accuracy stops rising, with the best set.

    Students are trained on the unfinished set, and tested on the validation split
    (`data.validation_fraction`); the test split is not used. Blocks that are optimised in parallel
    (`synthesis.block`) are refused, as there is no whole set after a step.

    The accuracies so far and the best set are kept in the run's `early-stopping`, from which a
    resumed run continues.

    Args:
        patience: number of consecutive tests without improvement after which the synthesis ends.
        every: number of logged steps (`synthesis.log_every`) between tests.
        min_delta: smallest improvement that counts, a fraction.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, patience: int = 3, every: int = 1, min_delta: float = 0.0):
        for name, value, least in (
            ("patience", patience, 1),
            ("every", every, 1),
            ("min_delta", min_delta, 0),
        ):
            if not value >= least:
                raise ConfigError(
                    f"'{name}' of early stopping must be at least {least}. Got {value} instead."
                )
        super().__init__(every)
        self._patience = patience
        self._min_delta = min_delta
        self._folder: Path | None = None
        self._tests: list[tuple[int, float]] = []
        self._best: Distilled | None = None
        self._is_new = True

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Reset; earlier tests of a resumed run are read at its first step."""
        super().on_run_start(directory, recipe)
        self._folder = Path(directory) / EARLY_STOPPING
        self._tests = []
        self._best = None
        self._is_new = True

    def on_step(self, step: Step) -> None:
        """Test the set; end the synthesis after `patience` tests without improvement."""
        if step.distilled is None or step.validation_accuracy is None:
            return
        if self._is_new:
            self._is_new = False
            self._resume(step.step)
            # interrupted between the end of the synthesis and the writing of the set
            self._end_if_due()
        if not self.is_due(step):
            return
        self._tests.append((step.step, step.validation_accuracy()))
        best_step, _ = self._standing()
        if best_step == step.step:
            self._best = step.distilled()
        self._keep(best_step)
        self._end_if_due()

    def _end_if_due(self) -> None:
        """End the synthesis if the last tests did not improve on an earlier one."""
        # there is no set if that of the best test was lost and no later one was better
        if self._best is None:
            return
        best_step, since = self._standing()
        if since >= self._patience:
            raise EndSynthesis(self._best, best_step)

    def _standing(self) -> tuple[int, int]:
        """The step of the best set, and the number of tests since then."""
        best_step, best = self._tests[0]
        since = 0
        for step, accuracy in self._tests[1:]:
            since += 1
            if accuracy > best + self._min_delta:
                best_step, best = step, accuracy
                since = 0
        return best_step, since

    def _keep(self, best_step: int) -> None:
        """Save the tests and the best set in the run's directory."""
        if self._folder is None:
            return
        path = self._folder / f"step-{best_step:08d}"
        if self._best is not None and self._tests[-1][0] == best_step:
            self._best.save(path, overwrite=True)
        # after the set to which they refer, and before sets that are no longer the best are removed
        write_json(self._folder / TESTS, {"tests": self._tests})
        for other in remote.listed(self._folder, "step-*"):
            if other != path:
                remote.remove(other)

    def _resume(self, first: int) -> None:
        """Continue from the tests before the first step that arrives; later ones are repeated."""
        from rayd.distilled import load

        if self._folder is None or not remote.bring(self._folder / TESTS):
            return
        try:
            known = read_json(self._folder / TESTS).get("tests")
            tests = parse(list[tuple[int, float]], known, f"'{self._folder / TESTS}'")
            # steps of blocks that are optimised in parallel arrive in no particular order
            if tests != sorted(tests):
                return
            self._tests = [(step, accuracy) for step, accuracy in tests if step < first]
            if not self._tests:
                return
            path = self._folder / f"step-{self._standing()[0]:08d}"
            # it was removed if a later one was better, which will then be repeated before the end
            if path.exists():
                self._best = load(path)
                # properties of the file, which are added again when the set is written
                self._best.card.pop("sha256", None)
        except ArtifactError as error:
            log.warning("%s Early stopping starts over.", error)
            self._tests = []


class Snapshots(_EveryLogged):
    """Saves the unfinished set during the synthesis, in the run's `snapshots/step-<step>`.

    `rayd analyse DIR steps` draws the accuracy over the steps from them.

    Args:
        every: number of logged steps (`synthesis.log_every`) between sets.

    Raises:
        ConfigError: the number is below 1.
    """

    def __init__(self, every: int = 1):
        if every < 1:
            raise ConfigError(f"'every' of snapshots must be at least 1. Got {every} instead.")
        super().__init__(every)
        self._folder: Path | None = None

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Note the directory of the sets."""
        super().on_run_start(directory, recipe)
        self._folder = Path(directory) / SNAPSHOTS

    def on_step(self, step: Step) -> None:
        """Save the set at every n-th logged step."""
        if step.distilled is None or self._folder is None:
            return
        if self.is_due(step):
            # steps that are repeated after a resume replace the earlier ones
            step.distilled().save(self._folder / f"step-{step.step:08d}", overwrite=True)


class CSVLogger(RunCallback):
    """Writes a line for each logged value: stage, step, name, value.

    Args:
        path: the file; by default `metrics.csv` in the run's directory.
    """

    def __init__(self, path: str | Path | None = None):
        self._given = None if path is None else expanded(path)
        self._path: Path | None = None
        self._before: set[tuple[str, ...]] = set()

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Start the file; a resumed run appends to it."""
        self._path = self._given or Path(directory) / "metrics.csv"
        self._before = set()
        if not self._path.exists():
            self._write(["stage", "step", "name", "value"])
        elif self._given is None:
            # steps that are repeated after a resume already have lines; a user's file may hold
            # equal lines of several runs
            with self._path.open(newline="", encoding="utf-8") as file:
                self._before = {tuple(row) for row in csv.reader(file)}

    def on_step(self, step: Step) -> None:
        """Write the metrics of a step."""
        for name, value in step.metrics.items():
            self._write([step.stage, step.step, name, value])

    def on_result(self, result: SetResult) -> None:
        """Write a test accuracy."""
        mean = result.test_accuracy.mean
        self._write(["result", "", f"{result.set}/{result.network}", mean])

    def _write(self, row: Sequence[Any]) -> None:
        assert self._path is not None
        if tuple(map(str, row)) in self._before:
            return
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row)


class WandbLogger(RunCallback):
    """Logs to Weights & Biases (`pip install wandb`), offline with `mode="offline"`.

    Args:
        options: of `wandb.init`, such as `project` and `mode`.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, **options: Any):
        self._wandb = _package("wandb")
        self._options = options
        self._run: Any = None

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Start a run named by the recipe, with its settings."""
        options = {
            "name": recipe.name,
            "dir": str(directory),
            "config": recipe.model_dump(mode="json"),
            **self._options,
        }
        self._run = self._wandb.init(**options)

    def on_step(self, step: Step) -> None:
        """Log the metrics of a step."""
        values = {f"{step.stage}/{name}": value for name, value in step.metrics.items()}
        self._run.log({**values, f"{step.stage}/step": step.step})

    def on_result(self, result: SetResult) -> None:
        """Save an accuracy in the summary."""
        name = f"{result.set}/{result.network}/test_accuracy"
        self._run.summary[name] = result.test_accuracy.mean

    def on_run_end(self, run: Run | None, error: BaseException | None) -> None:
        """Finish the run, as failed if it failed."""
        self._run.finish(exit_code=0 if error is None else 1)


class MLflowLogger(RunCallback):
    """Logs to MLflow (`pip install mlflow`).

    Args:
        tracking_uri: a server, a database (`sqlite:///runs.db`), or a folder as `file:` URI.
        experiment: name of the experiment.

    Raises:
        ConfigError: mlflow is not installed.
    """

    def __init__(self, tracking_uri: str | None = None, experiment: str = "rayd"):
        self._mlflow = _package("mlflow")
        self._uri = tracking_uri
        self._experiment = experiment

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Start a run named by the recipe."""
        if self._uri is not None:
            if self._uri.startswith("file:"):
                # MLflow refuses folders unless they are explicitly enabled
                os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            self._mlflow.set_tracking_uri(self._uri)
        self._mlflow.set_experiment(self._experiment)
        self._mlflow.start_run(run_name=recipe.name)
        shown = {"method": recipe.method, "data": recipe.data.name, "ipc": recipe.ipc}
        self._mlflow.log_params(shown)

    def on_step(self, step: Step) -> None:
        """Log the metrics of a step."""
        values = {f"{step.stage}/{name}": float(value) for name, value in step.metrics.items()}
        self._mlflow.log_metrics(values, step=step.step)

    def on_result(self, result: SetResult) -> None:
        """Log a test accuracy."""
        name = f"{result.set}/{result.network}/test_accuracy"
        self._mlflow.log_metric(name, result.test_accuracy.mean)

    def on_run_end(self, run: Run | None, error: BaseException | None) -> None:
        """End the run, as failed if it failed."""
        self._mlflow.end_run("FINISHED" if error is None else "FAILED")


class TrackioLogger(RunCallback):
    """Logs to Trackio (`pip install trackio`): a local dashboard, which `trackio show` opens.

    Args:
        project: name of the project.
        options: of `trackio.init`, such as `space_id`.

    Raises:
        ConfigError: trackio is not installed.
    """

    def __init__(self, project: str = "rayd", **options: Any):
        self._trackio = _package("trackio")
        self._options = {"project": project, "resume": "allow", **options}
        self._run: Any = None

    def on_run_start(self, directory: Path, recipe: Recipe) -> None:
        """Start or continue a run named by the directory, with the recipe's settings."""
        options = {
            "name": f"{recipe.name}-{Path(directory).name}",
            "config": recipe.model_dump(mode="json"),
            **self._options,
        }
        # standard output is reserved for the command, which may print JSON
        with redirect_stdout(sys.stderr):
            self._run = self._trackio.init(**options)

    def on_step(self, step: Step) -> None:
        """Log the metrics of a step."""
        values = {f"{step.stage}/{name}": float(value) for name, value in step.metrics.items()}
        self._run.log({**values, f"{step.stage}/step": step.step})

    def on_result(self, result: SetResult) -> None:
        """Log a test accuracy."""
        name = f"{result.set}/{result.network}/test_accuracy"
        self._run.log({name: result.test_accuracy.mean})

    def on_run_end(self, run: Run | None, error: BaseException | None) -> None:
        """Send the remaining values."""
        with redirect_stdout(sys.stderr):
            self._trackio.finish()


READY: Mapping[str, type[RunCallback]] = {
    "csv": CSVLogger,
    "early-stopping": EarlyStopping,
    "mlflow": MLflowLogger,
    "snapshots": Snapshots,
    "trackio": TrackioLogger,
    "wandb": WandbLogger,
}
"""Callbacks by the names that recipes use."""


def build(settings: Sequence[CallbackSettings]) -> list[Any]:
    """Create the callbacks that a recipe names.

    Args:
        settings: name and arguments of each.

    Raises:
        ConfigError: a name is unknown, is not callable, or takes other arguments.
    """
    built = []
    for one in settings:
        kind = READY.get(one.name) or plugins.find("callbacks", one.name)
        if kind is None:
            raise ConfigError(unknown("callback", one.name, [*READY, *plugins.names("callbacks")]))
        try:
            built.append(kind(**(one.model_extra or {})))
        except TypeError as error:
            raise ConfigError(
                f"Callback '{one.name}' cannot be created: {error}. Name a class or a function, "
                "with the arguments that it takes."
            ) from error
    return built


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"This callback needs {name}: pip install {name}.") from error
