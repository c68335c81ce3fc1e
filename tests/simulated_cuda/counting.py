"""What steps and epochs cost a device: operations, synchronisations, and copies from the host."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from rayd.engine import distill
from rayd.engine.synthesize import Synthesizer
from rayd.training.trainer import Trainer
from tests.simulated_cuda.device import Record, SimulatedTensor


class Counting:
    """Counts while it is entered.

    Args:
        record: of the simulated device.
    """

    def __init__(self, record: Record):
        self._record = record
        self._patches = ExitStack()
        self.steps: list[dict[str, int]] = []
        """Counts of every step of the synthesis."""
        self.lines: dict[str, int] = {}
        """Lines of rayd that waited or copied in the last step, and how often."""
        self.passes: dict[str, dict[str, int]] = {}
        """Counts of the last epoch of a training, by what was trained; `batches` too."""
        self.held = -1
        """Bytes on the device when the evaluation of a run begins."""

    def __enter__(self) -> Counting:
        step = Synthesizer._one_step
        epoch = Trainer._pass
        judge = distill.judge
        counting = self

        def counted_step(self: Synthesizer) -> Any:
            before, lines = counting._now()
            terms = step(self)
            counts, after = counting._now()
            counting.steps.append({name: counts[name] - before[name] for name in counts})
            counting.lines = dict(after - lines)
            return terms

        def counted_pass(self: Trainer) -> Any:
            before, lines = counting._now()
            loss = epoch(self)
            counts, after = counting._now()
            batches = len(list(self._batches.epoch(self.epoch)))
            kind = f"{self._purpose.split()[0]}{' with teachers' if self._teachers is not None else ''}"
            entry: dict[str, Any] = {name: counts[name] - before[name] for name in counts}
            counting.passes[kind] = entry | {"batches": batches, "lines": dict(after - lines)}
            return loss

        def watched_judge(*args: Any, **kwargs: Any) -> Any:
            counting.held = held()
            return judge(*args, **kwargs)

        self._patches.enter_context(patch.object(distill, "judge", watched_judge))
        self._patches.enter_context(patch.object(Synthesizer, "_one_step", counted_step))
        self._patches.enter_context(patch.object(Trainer, "_pass", counted_pass))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _now(self) -> tuple[dict[str, int], Counter[str]]:
        record = self._record
        lines: Counter[str] = Counter()
        for kinds in (record.syncs, record.copies):
            for (kind, line), count in kinds.items():
                lines[f"{kind}: {line}"] += count
        return record.counts(), lines


def held() -> int:
    """Bytes of the tensors on the device that anything refers to."""
    storages = {}
    for one in gc.get_objects():
        if type(one) is SimulatedTensor:
            storage = one.inner.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
