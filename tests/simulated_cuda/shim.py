"""Building and loading the shim (`shim.cpp`). Nothing here imports torch: the shim must be loaded
before torch is.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")


class CannotBuildError(RuntimeError):
    """There is no compiler, or it fails; the sentence says which."""


def build(folder: Path) -> Path:
    """The shim as a shared library in a folder, compiled if the folder does not hold it yet.

    Raises:
        CannotBuildError: there is no `g++`, or it refuses the source (torch's headers change
            between versions).
    """
    home = _torch()
    tag = hashlib.sha256(
        f"{SOURCE.read_text()}{home}{home.stat().st_mtime_ns}".encode()
    ).hexdigest()[:16]
    library = folder / f"simulated_cuda_{tag}.so"
    if library.exists():
        return library
    if shutil.which("g++") is None:
        raise CannotBuildError("simulating CUDA needs g++, which is not installed")
    part = library.with_suffix(f".{os.getpid()}")
    command = [
        "g++",
        "-O0",
        "-std=c++20",
        "-shared",
        "-fPIC",
        f"-I{home}/include",
        str(SOURCE),
        "-o",
        str(part),
    ]
    made = subprocess.run(
        [*command, f"-L{home}/lib", "-lc10", "-ltorch_cpu"], capture_output=True, text=True
    )
    if made.returncode != 0:
        errors = [line for line in made.stderr.splitlines() if "error" in line] or ["g++ failed"]
        raise CannotBuildError(f"the shim does not compile against torch in '{home}': {errors[0]}")
    os.replace(part, library)
    return library


def load(library: Path) -> None:
    """Load the shim into this process, which must not have imported torch."""
    if "torch" in sys.modules:
        raise RuntimeError("The shim must be loaded before torch is imported.")
    home = _torch()
    # its symbols are torch's: they must be there, and visible to it
    for name in ("libc10.so", "libtorch_cpu.so", "libtorch_cuda.so", "libtorch.so"):
        if (home / "lib" / name).exists():
            ctypes.CDLL(str(home / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _torch() -> Path:
    """The folder of torch, found without importing it."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
