"""Out-of-memory errors as one sentence: the stage that failed and the settings that reduce it.

Torch raises `torch.OutOfMemoryError` where its own allocator finds no memory on a GPU, and plain
`RuntimeError`s where CUDA's libraries find none, on the CPU and on MPS; numpy raises `MemoryError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rayd import methods
from rayd.config import NETWORK_GROUPS, Recipe, TrajectorySettings
from rayd.engine.network_ids import groups
from rayd.errors import DeviceFaultError, OutOfMemoryError, RaydError

_ON_HOST = ("can't allocate memory", "not enough memory", "out of memory")
"""Parts of torch's messages for errors without a separate class: Linux, Windows, MPS."""
_ON_GPU = re.compile(
    r"(CUDA|hip) ?error: out of memory|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS)_STATUS_ALLOC_FAILED",
    re.IGNORECASE,
)
"""Messages of CUDA and its libraries, which allocate memory besides torch's; usually another
process holds all of it.
"""


def out_of_memory(error: BaseException) -> str | None:
    """The beginning of a sentence on the device that ran out of memory; None for other errors."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        return error.what
    if gpu_out_of_memory(error):
        return f"The GPU ran out of memory{_requested(text)}"
    is_host_error = isinstance(error, RuntimeError) and any(
        part in text.lower() for part in _ON_HOST
    )
    if is_host_error or isinstance(error, MemoryError):
        device = "The GPU" if "MPS" in text else "This machine"
        return f"{device} ran out of memory{_requested(text)}"
    return None


def gpu_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a CUDA device ran out: that of torch's allocator, or of CUDA's libraries."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _ON_GPU.search(str(error)) is not None


_DEVICE_FAULTS = re.compile(r"CUDA (driver )?error|cuDNN error|CUBLAS_STATUS|NCCL error|hipError")


def device_fault(error: BaseException) -> str | None:
    """Description of a failure of a GPU or its driver, which its process cannot use again; else
    None.

    Running out of memory is no such failure, as the process can continue.
    """
    if isinstance(error, DeviceFaultError):
        return str(error)
    if out_of_memory(error) is not None or not isinstance(error, RuntimeError):
        return None
    text = str(error).strip()
    # torch before 2.8 has no class for them
    accelerator_errors = getattr(torch, "AcceleratorError", ())
    if not isinstance(error, accelerator_errors) and _DEVICE_FAULTS.search(text) is None:
        return None
    first_line = text.splitlines()[0].rstrip(".") if text else "unknown error"
    return f"A GPU failed ({first_line})"


def _requested(text: str) -> str:
    """The size of the failed allocation, where the message contains it."""
    found = re.search(r"tried to allocate ([\d.]+ ?(?:[KMGT]i?B|bytes))", text, re.IGNORECASE)
    return f" (another {found.group(1)} were needed)" if found else ""


@contextmanager
def explained(stage: str, recipe: Recipe) -> Iterator[None]:
    """Run the work of a stage; if memory runs out, name the settings to lower.

    Args:
        stage: its name, as in the log.
        recipe: the run.

    Raises:
        OutOfMemoryError: memory ran out, here or in a worker.
        DeviceFaultError: a GPU failed.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OutOfMemoryError) as error:
        fault = None if isinstance(error, RaydError) else device_fault(error)
        if fault is not None:
            raise DeviceFaultError(
                f"{fault} in stage '{stage}'; --resume continues, on another GPU or once "
                "'nvidia-smi' shows this one in order."
            ) from error
        what = out_of_memory(error)
        # an error that names a stage was explained by an inner one, which knows more
        if what is None or (isinstance(error, OutOfMemoryError) and error.where is not None):
            raise
        raise OutOfMemoryError(what, f"in stage '{stage}': {remedy(stage, recipe)}") from error


def remedy(stage: str, recipe: Recipe) -> str:
    """Advice on what to lower for a stage: the settings that its largest tensors grow with."""
    method = methods.build(recipe)
    match stage:
        case "squeeze":
            return _lower(recipe, *_squeezed_batches(recipe))
        case "experts":
            return _lower(recipe, "experts.batch_size")
        case "measure":
            return _lower(
                recipe, *(f"{group}.batch_size" for group in method.groups if method.specs(group))
            )
        case "rank":
            return _lower(recipe, "ranking.batch_size")
        case "score":
            return _lower(recipe, "synthetic.crops")
        case "synthesize" if method.trajectory_objective is not None:
            return _smaller_students(recipe, method.trajectory_objective.settings)
        case "synthesize":
            sampled = ["observers.real_batch"] if recipe.real == "sampled" else []
            lower = _lower(recipe, *sampled, "synthesis.block", "ipc")
            is_split = recipe.real == "measured" and recipe.synthesis.sam_radius == 0
            if is_split and all(term.splits for term in method.terms):
                parts = recipe.synthesis.split
                return f"{lower}, or raise 'synthesis.split' ({parts} now)"
            return lower
    return _lower(recipe, "evaluation.batch_size")


def _squeezed_batches(recipe: Recipe) -> list[str]:
    """The settings of the batches on which networks are trained."""
    names = []
    for group in NETWORK_GROUPS:
        if group in groups(recipe) and recipe.network_group(group).trained:
            prefix = "" if group == "observers" else "classifiers."
            names.append(f"{prefix}squeeze.batch_size")
    # if no group is trained, only the teachers are
    return names or ["squeeze.batch_size"]


def _smaller_students(recipe: Recipe, settings: TrajectorySettings) -> str:
    """Advice on students that match experts."""
    if settings.way == "full":
        return (
            "set 'objective.way' to 'reverse', which keeps one step of a student in memory at a "
            "time"
        )
    return _lower(recipe, "ipc") if settings.batch_size is None else "lower 'objective.batch_size'"


def _lower(recipe: Recipe, *names: str) -> str:
    """Advice to lower some settings, with their current values."""
    shown = []
    for name in names:
        value: Any = recipe.classifier_settings if name.startswith("classifiers.") else recipe
        for part in name.removeprefix("classifiers.").split("."):
            value = getattr(value, part)
        shown.append(f"'{name}' ({'not set, so all at once' if value is None else f'{value} now'})")
    return f"lower {' or '.join([', '.join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)}"
