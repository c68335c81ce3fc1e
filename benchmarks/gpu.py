"""Check of a device: results against the CPU, timings, and a full run.

    python -m benchmarks.gpu --out DIR                       on a GPU, in ten minutes, without Ray
    python -m benchmarks.gpu --out DIR --minutes 30          continue where the last call stopped
    python -m benchmarks.gpu --out DIR --device cpu --quick  a smoke test on any machine

There are three parts, which can be selected (`--parts checks,timings`):

- checks: every method on scikit-learn's digits, on the device against the CPU, in float32 with TF32
  off, within stated tolerances: networks trained on real images, measured statistics, the gradient
  of one step, a few steps of synthesis, soft labels and a student;
- timings: steps, measuring and epochs of students, as ratios to the bare forward pass of the same
  network on the same batch, in float32, TF32 and bfloat16, contiguous and channels last, with
  images of CIFAR-10's shape;
- cell: `rayd distill edc-cifar10-ipc10`, as far as the time allows. If CIFAR-10 is not available, a
  generated set of the same shapes is used instead, which the result records.

`DIR/gpu.json` is written after every check, every timing and the cell, so an interrupted call loses
no results. Another call with the same `--out` skips existing results and resumes the cell.

Exit code: 0 if nothing failed, 1 if a check exceeded its tolerance or an error was raised, 2 for
invalid options.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import rayd
from rayd import devices, machine
from rayd.artifacts import read_json, write_json
from rayd.config import ResourceSettings, validate
from rayd.errors import ConfigError, OutputError, RaydError

RESULT = "gpu.json"
FORMAT = 1
"""Version of the file."""
PARTS = ("checks", "timings", "cell")
SHARES = {"checks": 0.4, "timings": 0.6}
"""Share of the time after which the next part starts; the cell has the rest."""


class Clock:
    """The time limit of a call."""

    def __init__(self, minutes: float):
        """Begin now."""
        self._began = time.monotonic()
        self.seconds = 60 * minutes

    def left(self, share: float = 1.0) -> float:
        """Seconds left until a share of the time is used; negative afterwards."""
        return share * self.seconds - (time.monotonic() - self._began)


class Result:
    """The JSON file of a benchmark: sections of entries by name, written after every change."""

    def __init__(self, path: Path, environment: dict[str, Any], options: dict[str, Any]):
        """Open the file at `path`, or create it.

        Raises:
            OutputError: it has results of another machine, another version or other options.
        """
        self._path = path
        made = {"format": FORMAT, "environment": environment, "options": options}
        if not path.exists():
            self.content: dict[str, Any] = made
            return
        self.content = read_json(path)
        for name in ("format", "environment", "options"):
            if self.content.get(name) != made[name]:
                raise OutputError(
                    f"'{path}' was written with another '{name}'; choose another --out."
                )

    def has(self, section: str, name: str) -> bool:
        """Whether an entry exists."""
        return name in self.content.get(section, {})

    def put(self, section: str, name: str, entry: Any) -> None:
        """Add an entry, and write the file."""
        self.content.setdefault(section, {})[name] = entry
        self.write()

    def set(self, section: str, entry: Any) -> None:
        """Replace a whole section, and write the file."""
        self.content[section] = entry
        self.write()

    def write(self) -> None:
        """Write the file atomically."""
        write_json(self._path, self.content)


def environment(device: torch.device) -> dict[str, Any]:
    """Description of this machine and its software for readers of the result."""
    facts: dict[str, Any] = {
        "rayd": rayd.__version__,
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "torch": torch.__version__,
        "processor": machine.processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": str(device),
    }
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        facts |= {
            "name": torch.cuda.get_device_name(device),
            "capability": list(torch.cuda.get_device_capability(device)),
            "memory_bytes": total,
            "cuda": torch.version.cuda,
            "cudnn": _cudnn(),
            "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        }
    return facts


def _cudnn() -> int | None:
    """The version of cuDNN; None if unavailable."""
    try:
        version: int | None = torch.backends.cudnn.version()
    except RuntimeError:
        return None
    return version


def _output(*command: str) -> str | None:
    """The first line that a command prints; None if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def say(sentence: str) -> None:
    """Print a line of progress."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code."""
    # these import this module
    from benchmarks import gpu_cell, gpu_checks, gpu_timings

    options = _options(arguments)
    try:
        device = devices.choose(validate(ResourceSettings, {"device": options.device}))
        parts = _parts(options.parts)
        clock = Clock(options.minutes)
        result = Result(options.out / RESULT, environment(device), {"quick": options.quick})
        result.write()
        name = result.content["environment"].get("name", device)
        say(f"rayd {rayd.__version__} on {name}: {options.out / RESULT}")
        common = (result, device, options.quick, options.out, clock)
        if "checks" in parts:
            gpu_checks.run(*common, SHARES["checks"])
        if "timings" in parts:
            gpu_timings.run(*common, SHARES["timings"])
        if "cell" in parts:
            gpu_cell.run(*common, options.data_root)
    except RaydError as error:
        say(f"error: {error}")
        return 2
    return _verdict(result.content)


def _verdict(content: Mapping[str, Any]) -> int:
    """Print failures; the exit code."""
    checks = content.get("checks", {})
    timings = content.get("timings", {})
    failed = [f"check {name}" for name, entry in checks.items() if not entry["passed"]]
    failed += [f"timing {name}" for name, entry in timings.items() if "error" in entry]
    if "error" in content.get("cell", {}):
        failed.append("cell")
    left = len(content.get("checks_not_run", ())) + len(content.get("timings_not_run", ()))
    done = f"{len(checks)} checks and {len(timings)} timings done, {left} not run for lack of time"
    say(f"{done}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    description = "Checks, timings and a full run of rayd on one device; see the head of this file."
    parser = argparse.ArgumentParser("benchmarks.gpu", description=description)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the result; run again to continue")
    add("--device", default="cuda", help="'cuda', 'cuda:1', 'mps' or 'cpu' (default: cuda)")
    add("--minutes", type=float, default=10.0, help="time of this call (default: 10)")
    add("--data-root", type=Path, help="where CIFAR-10 is looked for first")
    add("--parts", default=",".join(PARTS), help="what to run (default: all three)")
    add("--quick", action="store_true", help="a smoke test: few checks, tiny networks and cell")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    """The parts to run.

    Raises:
        ConfigError: there is no part of that name.
    """
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            known = ", ".join(PARTS)
            raise ConfigError(f"--parts takes {known}, separated by commas. Got '{part}' instead.")
    return parts


if __name__ == "__main__":
    # the other modules import this very module, not a second copy of it
    sys.modules["gpu"] = sys.modules["__main__"]
    sys.exit(main())
