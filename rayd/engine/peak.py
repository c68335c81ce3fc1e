"""Peak memory of a process, for the log of a run and for the reports of its workers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of a process so far, in bytes."""

    host: int
    """Resident memory; 0 if the system does not provide it."""
    gpu: int = 0
    """Tensors on the GPU that it used most; 0 if it used none."""

    @classmethod
    def here(cls) -> PeakMemory:
        """The peak of this process."""
        return cls(_host(), _gpu())

    def largest(self, host: int, gpu: int) -> PeakMemory:
        """The maximum of two peaks, for each kind of memory."""
        return PeakMemory(max(self.host, host), max(self.gpu, gpu))


def _host() -> int:
    try:
        # on Linux, getrusage includes the peak of the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _gpu() -> int:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    devices = range(torch.cuda.device_count())
    return max((torch.cuda.max_memory_allocated(device) for device in devices), default=0)
