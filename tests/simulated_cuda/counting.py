"""What steps and epochs cost a device: operations, synchronisations, and copies from the host."""

from __future__ import annotations

import gc
from collections import Counter
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from rayd.engine import driver, statistic_aggregation
from rayd.engine.observer import States
from rayd.engine.stages import blocks
from rayd.engine.synthesizer import BlockTask, Logged, Synthesizer
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
        """Counts of every step of the synthesis that is neither logged nor followed by a
        checkpoint.
        """
        self.lines: dict[str, int] = {}
        """Lines of rayd that waited or copied in the last of these steps, and how often."""
        self.passes: dict[str, dict[str, int]] = {}
        """Counts of the last epoch of a training, by what was trained; `batches` too."""
        self.held = -1
        """Bytes on the device when the evaluation of a run begins."""
        self.merged: set[str] = set()
        """Kinds of device where statistics of shards were merged."""

    def __enter__(self) -> Counting:
        advance = Synthesizer.advance
        epoch = Trainer._pass
        judge = driver.judge
        merge = statistic_aggregation.merged
        counting = self

        def counted_step(
            self: Synthesizer, task: BlockTask, since: int, until: int
        ) -> list[Logged]:
            before, lines = counting._now()
            logged = advance(self, task, since, until)
            counts, after = counting._now()
            # what is logged waits for the device, as does what a checkpoint holds
            if until == since + 1 and not logged:
                counting.steps.append({name: counts[name] - before[name] for name in counts})
                counting.lines = dict(after - lines)
            return logged

        def counted_pass(self: Trainer) -> Any:
            before, lines = counting._now()
            loss = epoch(self)
            counts, after = counting._now()
            batches = len(list(self._batches.epoch(self.epoch)))
            kind = f"{self._purpose.split()[0]}{' with teachers' if self._teachers is not None else ''}"
            entry: dict[str, Any] = {name: counts[name] - before[name] for name in counts}
            counting.passes[kind] = entry | {"batches": batches, "lines": dict(after - lines)}
            return loss

        def watched_merge(specs: Any, before: Any, part: States, *rest: Any) -> States:
            for layers in part.values():
                counting.merged |= {one.device.type for layer in layers for one in layer.values()}
            return merge(specs, before, part, *rest)

        def watched_judge(*args: Any, **kwargs: Any) -> Any:
            counting.held = held()
            return judge(*args, **kwargs)

        self._patches.enter_context(patch.object(driver, "judge", watched_judge))
        self._patches.enter_context(patch.object(statistic_aggregation, "merged", watched_merge))
        self._patches.enter_context(patch.object(Synthesizer, "advance", counted_step))
        # the driver asks for one step at a time
        self._patches.enter_context(patch.object(blocks, "ADVANCE_SECONDS", 0.0))
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
