"""One full run on a device, as far as the time allows: EDC on CIFAR-10, ten images per class.

The run lies in `<out>/cell` and shares the store in `<out>/cache`. When the time is over, it is
interrupted as by Ctrl-C; the next call resumes it.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import Clock, Result, say
from rayd.artifacts import read_json
from rayd.data.sources import locate
from rayd.engine.distill import distill
from rayd.engine.progress import Progress
from rayd.engine.runlog import RunLog
from rayd.errors import ArtifactError, RaydError
from rayd.recipes import resolve

RECIPE = "edc-cifar10-ipc10"
TRAIN = 50_000
TEST = 10_000
"""Images of CIFAR-10."""
SMALL = {"name": "convnet", "depth": 1, "width": 8, "norm": "batch"}
QUICK: dict[str, Any] = {
    "ipc": 1,
    "observers": {"networks": [SMALL]},
    "synthetic": {"init": "real"},
    "squeeze": {"epochs": 1},
    "synthesis": {"steps": 3},
    "evaluation": {"networks": [SMALL], "epochs": 2, "seeds": 1, "baselines": []},
}
GENERATED = "generated stripes with a colour for each class"
LEAST_SECONDS = 5.0
"""What is not begun with less time left."""


def run(
    result: Result,
    device: torch.device,
    quick: bool,
    out: Path,
    clock: Clock,
    data_root: Path | None,
) -> None:
    """Run the recipe, or resume it, until the time is over."""
    entry = result.content.get("cell") or {}
    if entry.get("finished") or clock.left() < LEAST_SECONDS:
        return
    overrides: dict[str, Any] = {**(QUICK if quick else {}), "resources": {"device": str(device)}}
    entry |= {"recipe": RECIPE, "changed": QUICK if quick else {}, "finished": False}
    if locate("cifar10", data_root) is None or quick:
        overrides["data"] = {"name": str(_generated(out, quick))}
        entry["data"] = f"{GENERATED}, not CIFAR-10: its accuracy says nothing"
    else:
        entry["data"] = "CIFAR-10"
    say(f"cell {RECIPE} on {entry['data']}, {clock.left():.0f} s left")
    began = time.monotonic()
    accuracies = None
    entry.pop("error", None)
    try:
        with interrupted_after(clock.left()):
            there = (out / "cell" / "config.yaml").exists()
            made = distill(
                resolve(RECIPE, overrides),
                out / "cell",
                data_root=data_root,
                cache=out / "cache",
                resume=there,
                progress=Progress(quiet=quick),
            )
        accuracies = {}
        for one in made.report.results:
            accuracies[f"{one.set}, {one.network}"] = one.test_accuracy.mean
        entry["finished"] = True
    except TimeOverError:
        say("cell: the time is over; run again with the same --out to continue")
    except (RaydError, RuntimeError) as error:
        entry["error"] = next(iter(str(error).splitlines()), type(error).__name__)
        say(f"cell: {entry['error']}")
    entry["seconds"] = round(entry.get("seconds", 0.0) + time.monotonic() - began, 3)
    entry["progress"] = _progress(out / "cell")
    if accuracies is not None:
        entry["accuracy"] = accuracies
    result.set("cell", entry)


class TimeOverError(Exception):
    """The time of a call is over."""


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Context that interrupts its block, as Ctrl-C does, when the time is over.

    Raises:
        TimeOverError: the time is over; a user's Ctrl-C remains a `KeyboardInterrupt`.
    """
    over = threading.Event()

    def interrupt() -> None:
        over.set()
        _thread.interrupt_main()

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt:
        if over.is_set():
            raise TimeOverError from None
        raise
    finally:
        timer.cancel()


def _progress(directory: Path) -> dict[str, Any]:
    """Seconds of every stage so far, and where the run stopped."""
    try:
        status = read_json(directory / "status.json")
    except ArtifactError:
        return {}
    log = RunLog(directory / "metrics.jsonl", directory / "tensorboard")
    told = {name: status.get(name) for name in ("state", "stage", "done", "total", "unit")}
    log.close()
    return {**told, "stage_seconds": log.spent()}


def _generated(out: Path, quick: bool) -> Path:
    """Generate a set of CIFAR-10's shapes, once: stripes with a colour and frequency per class."""
    path = out / "generated.npz"
    if path.exists():
        return path
    draws = np.random.default_rng(0)
    colours = draws.uniform(60, 195, (10, 3))
    arrays: dict[str, Any] = {}
    for split, count in (("train", 200 if quick else TRAIN), ("test", 100 if quick else TEST)):
        labels = np.arange(count) % 10
        images = np.empty((count, 3, 32, 32), np.uint8)
        for start in range(0, count, 1000):
            some = labels[start : start + 1000]
            phases = draws.uniform(0, 2 * np.pi, (len(some), 1, 1, 1))
            stripes = 30 * np.sin(phases + (some[:, None, None, None] + 1) * np.arange(32) / 5)
            noise = draws.normal(0, 40, (len(some), 3, 32, 32))
            pixels = colours[some][:, :, None, None] + stripes + noise
            images[start : start + 1000] = pixels.clip(0, 255)
        arrays |= {f"x_{split}": images, f"y_{split}": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(".generated.tmp.npz")
    np.savez(temporary, **arrays)
    temporary.rename(path)
    return path
