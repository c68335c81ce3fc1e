"""The blocks of a synthetic set through all their steps, on the workers of a group: one after
another, or side by side.

What was reached before, by checkpoints, is not done again. The whole set is kept up to date, for
those who look on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from rayd import synthetic
from rayd.distilled import Distilled, contact_sheet
from rayd.engine.network_ids import NetworkId
from rayd.engine.observers import Memory
from rayd.engine.pool import ActorHandle, WorkerPool
from rayd.engine.progress import Progress, Shown
from rayd.engine.runlog import RunLog
from rayd.engine.synthesize import BlockTask, Logged, State, Synthesizer, resumable
from rayd.synthetic import SyntheticSet

ADVANCE_SECONDS = 1.0
"""How long the driver lets the synthesizer work between two looks at it."""


@dataclass(frozen=True)
class Optimisation:
    """A synthesis that is going on. Steps are numbered through the blocks."""

    pool: WorkerPool
    """Who does the work."""
    assignments: Sequence[BlockTask]
    """The blocks."""
    learned: SyntheticSet
    """The whole set, as far as it is known here."""
    parts: Sequence[Tensor]
    """What of it each block is."""
    log: RunLog
    """Where logged steps are written."""
    progress: Progress
    """Where progress is shown."""
    pictured: Callable[[SyntheticSet], Distilled]
    """A set as it is to be seen."""
    look: Callable[[float], None]
    """Told at each pause of the blocks which share of the steps is done."""
    foreseen: Callable[[str], float | None] = lambda _: None
    """Seconds that a stage should take, where that is known."""

    @property
    def _steps(self) -> int:
        return self.assignments[0].recipe.synthesis.steps

    @property
    def _total(self) -> int:
        return self._steps * len(self.assignments)

    def _resumed(self) -> list[int]:
        """How far each block was before; lines of the steps that will be done again are
        forgotten.
        """
        steps = self._steps
        began = [
            resumable(assignment.checkpoints, assignment.key) for assignment in self.assignments
        ]
        self.log.forget(
            "synthesize", lambda step: (step - 1) % steps + 1 <= began[(step - 1) // steps]
        )
        return began

    def _shown(self) -> AbstractContextManager[Shown]:
        return self.progress.stage("synthesize", self._total, "steps", self.foreseen("synthesize"))

    def sequential(self) -> None:
        """All workers on one block after another: each step asks its observers side by side.

        Terms find in their memory what the block before left there.
        """
        synthesizer = self.pool.host(Synthesizer)
        steps = self._steps
        began = self._resumed()
        remembered: Mapping[NetworkId, Memory] = {}
        with self._shown() as shown:
            shown.update(sum(began))
            for assignment, reached in zip(self.assignments, began, strict=True):
                assignment = replace(assignment, remembered=remembered)
                block = assignment.block
                for pause in assignment.pauses:
                    if reached <= pause and not any(began[block + 1 :]):
                        self._advance(synthesizer, assignment, reached, pause, shown)
                        reached = pause
                        self._put(block, synthesizer.call("state", assignment, pause))
                        self.look((block * steps + pause) / self._total)
                self._advance(synthesizer, assignment, reached, steps, shown)
                self._put(block, synthesizer.call("state", assignment, steps))
                if block + 1 < len(self.assignments):
                    remembered = synthesizer.call("remembered", assignment, steps)

    def _advance(
        self, synthesizer: ActorHandle, assignment: BlockTask, reached: int, end: int, shown: Shown
    ) -> None:
        """One block, from the step that was reached before to a later one."""
        interval = assignment.recipe.synthesis.checkpoint_every
        before = self._steps * assignment.block
        step = reached
        stride = 1
        while step < end:
            until = min(step + stride, end, (step // interval + 1) * interval)
            started = time.monotonic()
            logged = synthesizer.call("advance", assignment, step, until)
            stride = _next_stride(until - step, time.monotonic() - started)
            step = until
            for line in logged:
                self.log.step("synthesize", before + line.step, line.seconds, line.terms)
            shown.update(before + step, terms=logged[-1].terms if logged else None)
            if step % interval == 0 and assignment.blocks == 1:
                now = synthetic.restore(
                    assignment.recipe.synthetic, synthesizer.call("state", assignment, step)
                )
                self.log.picture(
                    "synthetic images", step, np.asarray(contact_sheet(self.pictured(now)))
                )

    def parallel(self) -> None:
        """Blocks over workers: each worker optimises a block with its own observers."""
        steps = self._steps
        began = self._resumed()
        reached = list(began)
        with self._shown() as shown:
            shown.update(sum(reached))
            # all blocks come to a pause before any goes beyond it
            for end in (
                *(pause for pause in self.assignments[0].pauses if max(began) <= pause),
                steps,
            ):
                items = [(assignment, end) for assignment in self.assignments]
                for block, event in self.pool.stream("synthesize", items):
                    if isinstance(event, Logged):
                        reached[block] = max(reached[block], event.step)
                        if event.terms:
                            self.log.step(
                                "synthesize", block * steps + event.step, event.seconds, event.terms
                            )
                        shown.update(sum(reached), terms=event.terms or None)
                    else:
                        self._put(block, event)
                if end < steps:
                    self.look(end / steps)

    def _put(self, block: int, state: State) -> None:
        """Know how far a block is."""
        self.learned.put(
            self.parts[block], synthetic.restore(self.assignments[block].recipe.synthetic, state)
        )


def _next_stride(steps: int, seconds: float) -> int:
    """Steps that take about `ADVANCE_SECONDS`, growing at most fourfold at a time."""
    wanted = steps * ADVANCE_SECONDS / max(seconds, 1e-6)
    return max(1, min(int(wanted), 4 * steps))
