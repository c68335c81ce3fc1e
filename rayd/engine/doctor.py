"""Checks of the installation: problems, and how to fix them."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from rayd import devices, plugins, remote
from rayd.config import ResourceSettings
from rayd.data import check_class_order, data_roots, known_sources
from rayd.data.sources import open_source
from rayd.engine import arithmetic
from rayd.engine.rundir import writable
from rayd.engine.store import default_root
from rayd.errors import RaydError

PACKAGES = (
    "rayd",
    "torch",
    "torchvision",
    "numpy",
    "ray",
    "pydantic",
    "safetensors",
    "pyarrow",
    "scikit-learn",
    "tensorboard",
    "optuna",
    "matplotlib",
)
LEAST_FREE = 5 * 10**9
"""Bytes of free disk below which the doctor warns."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    subject: str
    """Subject of the check."""
    status: Literal["good", "note", "wrong"]
    """`note` is for information; only `wrong` needs fixing."""
    detail: str
    """The finding, and how to fix it."""

    def to_json(self) -> dict[str, str]:
        """A JSON-able mapping."""
        return asdict(self)

    def text(self) -> str:
        """A line for the terminal."""
        return f"{self.status:<5}  {self.subject:<15} {self.detail}"


def examine(
    data_root: Path | None = None, cache: Path | None = None, address: str | None = None
) -> list[Finding]:
    """Check versions, devices, disk, data and Ray.

    Args:
        data_root: folder of named data that is searched first.
        cache: root of the shared store.
        address: Ray cluster to join; None starts and stops a private one.
    """
    return [
        _versions(),
        *_devices(),
        _directory("cache", remote.local(cache or default_root())),
        _directory("data root", data_roots(data_root)[0]),
        *_data(data_root),
        *_parts(),
        _ray(address),
    ]


def _parts() -> list[Finding]:
    """Plug-ins of installed packages."""
    findings = []
    for found in plugins.discovered():
        subject = f"rayd.{found.kind}"
        if found.error is None:
            findings.append(Finding(subject, "good", f"{found.name} ({found.value})"))
        else:
            detail = f"{found.name} ({found.value}) failed to load: {found.error}"
            findings.append(Finding(subject, "wrong", detail))
    return findings


def _versions() -> Finding:
    found = [f"python {sys.version.split()[0]}"]
    missing = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        remedy = (
            f"missing: {', '.join(missing)}; run 'pip install -e .' again, in the clone of rayd."
        )
        return Finding("versions", "wrong", f"{remedy} Found: {', '.join(found)}")
    return Finding("versions", "good", ", ".join(found))


def _devices() -> list[Finding]:
    findings = [
        Finding("cpu", "good", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads")
    ]
    findings.append(_arithmetic())
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        memory = torch.cuda.get_device_properties(index).total_memory
        findings.append(Finding(f"cuda:{index}", "good", f"{name}, {memory / 1e9:.1f} GB"))
    if torch.backends.mps.is_available():
        findings.append(Finding("mps", "good", "Apple GPU"))
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        findings.append(Finding("gpu", "note", "none seen by torch; everything runs on the CPU"))
    return findings


def _arithmetic() -> Finding:
    """Resolution of `precision: auto` and `resources.layout: auto` on the device of a local run."""
    found = arithmetic.measure(devices.choose(ResourceSettings()), anew=True)
    chosen = "tf32" if found.tf32 else "float32"
    if found.bfloat16 <= arithmetic.WORTH:
        chosen = "bfloat16"
    return Finding(
        "arithmetic",
        "good",
        f"'precision: auto' means {chosen} here: {found.summary}; channels last takes "
        f"{found.channels_last:.2g} times as long as contiguous, so 'resources.layout: auto' means "
        f"{found.layout}",
    )


def _directory(subject: str, path: Path) -> Finding:
    if (address := remote.url(path)) is not None:
        return _checked(subject, f"{address}, worked on in {path}", lambda: _unreachable(path))
    if not writable(path):
        return Finding(
            subject,
            "wrong",
            f"'{path}' cannot be written; set RAYD_CACHE or RAYD_DATA to a directory of yours",
        )
    existing = path
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    status: Literal["good", "note"] = "good" if free >= LEAST_FREE else "note"
    place = f"{path}" if path.exists() else f"{path}, not there yet"
    return Finding(subject, status, f"{place}, {free / 1e9:.1f} GB free")


def _unreachable(path: Path) -> None:
    """Raise an error if the storage at a URL cannot be reached, even if it is empty."""
    remote.exists(path)


def _data(data_root: Path | None) -> list[Finding]:
    findings = []
    for source in known_sources(data_root):
        if source.name in plugins.offered("datasets"):
            # listed with the plug-ins of installed packages; reading it may take long
            continue
        if source.found is None:
            findings.append(Finding(source.name, "note", f"not here; {source.how}"))
            continue
        check = partial(_class_order, source.name, data_root)
        findings.append(_checked(source.name, str(source.found), check))
    return findings


def _class_order(name: str, data_root: Path | None) -> str | None:
    return check_class_order(name, open_source(name, data_root).class_names)


def _checked(subject: str, good: str, check: Callable[[], str | None]) -> Finding:
    try:
        fault = check()
    except RaydError as error:
        fault = str(error)
    return Finding(subject, "wrong", fault) if fault else Finding(subject, "good", good)


def _ray(address: str | None) -> Finding:
    try:
        from rayd.engine.on_ray.cluster import describe

        description = describe(address)
    except (RaydError, OSError) as error:
        return Finding("ray", "wrong", str(error))
    return Finding("ray", "good", description)
