r"""Schedules of step sizes, and curricula of crops, filters and expert epochs.

All are functions of progress alone, in plain floats. Step sizes of the synthetic images follow
`step_size_factor`; those of networks in training follow `learning_rate_factor`: with i the index of
an epoch, 0 <= i < N, N the number of epochs, and :math:`\zeta \ge 1` the stretch (Shao et al., "Elucidating the Design
Space of Dataset Condensation", EDC, NeurIPS 2024):

| name | factor of the initial step size in epoch i |
|---|---|
| `constant` | 1 |
| `cosine` | :math:`h(i / \zeta N)` with the half cosine :math:`h(t) = (1 + \cos \pi t) / 2` |
| `linear` | :math:`1 - i / \zeta N` |
| `ssrs` | :math:`h(i / \zeta N)` up to i = 5N/6, then :math:`h(5 / 6 \zeta) (N - i) / N` |
| `multistep` | `factor` once for every milestone m with :math:`i \ge \lfloor m N \rfloor` |
| `restart` | `factor` once for every milestone m with :math:`i \ge \lfloor m N \rfloor + 1` |
| `alrs` | 1; the trainer multiplies its step size by `factor` after every stalled epoch |

`ssrs` is EDC's "early smoothing, later steep" schedule (Eq. 33): a drop to a sixth, then a line;
the drop is deliberate, as the released code has it, too. `restart` is one epoch late because the
released code of DSA (Zhao and Bilen, ICML 2021) decays after the epoch of that index.

ALRS (Chen et al., "Bootstrap Generalization Ability from Loss Landscape Perspective", ECCV
workshops 2022) considers an epoch stalled when its loss is near that of the previous epoch, both
absolutely and relatively. This is the variant of EDC's released code, where the distance is
relative to the newer loss and the factor is 0.9975; in the original, every increase is a stall.

The curriculum of crops is that of CDA (Yin and Shen, "Dataset Distillation via Curriculum Data
Synthesis in Large Data Era", TMLR 2024): whole synthetic images first, ever smaller crops later.

Trajectory matching has curricula of the expert epoch that students start from, first early, then
late. They give the epochs, as a `range`, from which the start of a step is drawn uniformly; MTT
uses `range(0, max_start)` throughout. With E expert epochs, of which M are matched, the latest
start is epoch E - M.

- LS-MTT ("low-rank space" matching, Eq. 9 and 10): :math:`\mathrm{Start} \sim \mathrm{rand}(u_i -
  w, u_i)` with the upper end :math:`u_i = (i / N) \cdot \mathrm{MaxStart} + \delta` at step i of N.
  There is no code; here both ends are rounded down, the upper one is excluded, as in MTT's code,
  and both are clipped to 0 and E - M, such that at least one epoch remains. With a whole
  :math:`\delta`, the latest start of all is :math:`\mathrm{MaxStart} + \delta - 2`, as the upper
  end stays below its last value.
- DATM (Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory
  Matching", ICLR 2024): from a fixed lower end to an upper end, excluded, of
  :math:`\min(c + (m - c) i / e, m)`, rounded down, which rises from c to m until step e.

Filters have the curriculum of CFM (Bo, Liu and Wang, "Understanding Dataset Distillation via
Spectral Filtering", ICLR 2026) and its variants. With b the initial parameter, m the minimum and t
the progress, 0 <= t < 1:

| name | parameter of the filter at t |
|---|---|
| `constant` | b |
| `cosine` | :math:`m + (b - m) h(t)`, with m = 0 the paper's Eq. 16 |
| `linear` | :math:`m + (b - m) (1 - t)` |
| `step` | b times `factor` once for every milestone that t has reached, but at least m |
| `reversed` | :math:`m + (b - m) h(1 - t)` |
| `cyclic` | :math:`m + (b - m) h(2 k t)` with k cycles, each from b to m and back |

The paper's Algorithm 1 has a minimum, which its Eq. 16 does not use: there b falls to m = 0.
"""

from __future__ import annotations

from math import cos, floor, pi
from typing import Literal

from rayd.config import FilterScheduleSettings, ScheduleSettings

ALRS_RELATIVE = 0.02
"""Relative distance of two epochs' losses (to the newer) below which the loss stalls."""

ALRS_ABSOLUTE = 0.02
"""Absolute distance of two epochs' losses below which the loss stalls."""


def half_cosine(progress: float) -> float:
    """Half cosine from 1 at progress 0 to 0 at progress 1, and 0 beyond.

    >>> half_cosine(0), half_cosine(0.5), half_cosine(1)
    (1.0, 0.5, 0.0)
    """
    return (1 + cos(pi * min(progress, 1.0))) / 2


def step_size_factor(schedule: Literal["constant", "cosine"], progress: float) -> float:
    """Factor of the initial step size of the synthetic images (`synthesis.schedule`).

    Args:
        schedule: `constant`, or `cosine`, half a cosine down to zero.
        progress: fraction of completed steps, from 0.

    >>> [step_size_factor("cosine", progress) for progress in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    """
    return half_cosine(progress) if schedule == "cosine" else 1.0


def learning_rate_factor(settings: ScheduleSettings, epoch: int, epochs: int) -> float:
    """Factor of a network's initial step size in one epoch, in (0, 1]; see the head of this module.

    Args:
        settings: name, stretch, milestones and factor of the schedule.
        epoch: index of the epoch, from 0.
        epochs: number of epochs.

    >>> linear = ScheduleSettings(name="linear", stretch=2)
    >>> [learning_rate_factor(linear, epoch, 4) for epoch in range(4)]
    [1.0, 0.875, 0.75, 0.625]
    """
    progress = epoch / (settings.stretch * epochs)
    match settings.name:
        case "cosine":
            return half_cosine(progress)
        case "linear":
            return 1 - progress
        case "ssrs":
            if 6 * epoch <= 5 * epochs:
                return half_cosine(progress)
            return half_cosine(5 / (6 * settings.stretch)) * (epochs - epoch) / epochs
        case "multistep" | "restart":
            reached = sum(epoch >= start for start in milestone_epochs(settings, epochs))
            return float(settings.factor**reached)
        case "constant" | "alrs":
            return 1.0


def milestone_epochs(settings: ScheduleSettings, epochs: int) -> tuple[int, ...]:
    """First epoch of every smaller step size, in the settings' order; `restart` and `multistep`.

    >>> milestone_epochs(ScheduleSettings(name="multistep", milestones=(0.8, 0.9, 0.95)), 1000)
    (800, 900, 950)
    >>> milestone_epochs(ScheduleSettings(name="restart"), 1000)
    (501,)
    """
    if settings.name not in ("multistep", "restart"):
        return ()
    late = 1 if settings.name == "restart" else 0
    # 1e-9: a fraction such as 0.29 of 100 epochs is 28.999999999999996 in floats
    return tuple(floor(share * epochs + 1e-9) + late for share in settings.milestones)


def alrs(previous: float | None, current: float) -> bool:
    """Whether the loss stalls, so that `alrs` decays the step size.

    Args:
        previous: mean training loss of the previous epoch; None after the first epoch, which is
            never stalled.
        current: mean training loss of the last epoch.

    >>> alrs(None, 1.0), alrs(1.0, 0.99), alrs(1.0, 1.01), alrs(1.0, 0.9), alrs(0.1, 0.09)
    (False, True, True, False, False)
    """
    if previous is None:
        return False
    distance = abs(previous - current)
    return distance < ALRS_ABSOLUTE and distance < ALRS_RELATIVE * abs(current)


def crop_floor(
    curriculum: Literal["none", "cosine", "linear", "step"],
    least: float,
    progress: float,
    end: float,
) -> float:
    """CDA's least fraction of an image's area kept by a crop, falling from 1 to `least`.

    Args:
        curriculum: `none` is `least` throughout; `cosine` and `linear` fall along a half cosine or
            a line; `step` is 1 before `end` and `least` from then on, as in the released code.
        least: the final value.
        progress: fraction of completed steps, from 0.
        end: fraction of the steps at which the final value is reached, in (0, 1]; CDA's milestone.

    >>> [crop_floor(name, 0.08, 0.25, end=0.5) for name in ("none", "cosine", "linear", "step")]
    [0.08, 0.54, 0.54, 1.0]
    """
    done = min(progress / end, 1.0)
    match curriculum:
        case "none":
            return least
        case "cosine":
            return least + (1 - least) * half_cosine(done)
        case "linear":
            return least + (1 - least) * (1 - done)
        case "step":
            return 1.0 if done < 1 else least


def progressive_start(
    step: int, steps: int, max_start: int, offset: float, window: float, last: int
) -> range:
    """Expert epochs that LS-MTT's students start from: a window that moves from early to late.

    Args:
        step: index of the step, from 0.
        steps: number of steps, N.
        max_start: distance that the window moves.
        offset: upper end of the window at the first step, delta.
        window: width of the window, w.
        last: the latest epoch to start from, E - M.

    >>> [progressive_start(step, 100, 30, 5, 10, last=28) for step in (0, 50, 100)]
    [range(0, 5), range(10, 20), range(25, 29)]
    """
    upper = step * max_start / steps + offset
    return _epochs(upper - window, upper, last)


def rising_start(step: int, first: int, upper: int, end: int, lower: int, last: int) -> range:
    """Expert epochs that DATM's students start from: a range with a rising upper end.

    Args:
        step: index of the step, from 0.
        first: upper end at the first step, c, excluded.
        upper: upper end from step `end` on, m, excluded.
        end: step at which it is reached, e.
        lower: earliest epoch, at every step.
        last: the latest epoch to start from, E - M.

    >>> [rising_start(step, 10, 20, 1000, lower=0, last=38) for step in (0, 550, 1000, 9999)]
    [range(0, 10), range(0, 15), range(0, 20), range(0, 20)]
    """
    return _epochs(lower, first + (upper - first) * min(step, end) / end, last)


def _epochs(lower: float, upper: float, last: int) -> range:
    """Integer epochs from `lower` to `upper`, excluded, none after `last`, and at least one."""
    # 1e-9: a fraction such as 29 / 100 of 100 epochs can be 28.999999999999996 in floats
    start = min(max(floor(lower + 1e-9), 0), last)
    return range(start, max(start, min(floor(upper + 1e-9) - 1, last)) + 1)


def filter_parameter(settings: FilterScheduleSettings, first: float, progress: float) -> float:
    """Parameter of a filter; see the head of this module.

    Args:
        settings: name, minimum, milestones, factor and cycles of the schedule.
        first: initial parameter, its maximum.
        progress: fraction of completed blocks or steps, in [0, 1].

    >>> [filter_parameter(FilterScheduleSettings(name="cosine"), 0.1, t) for t in (0, 0.5, 1)]
    [0.1, 0.05, 0.0]
    """
    span = first - settings.least
    match settings.name:
        case "constant":
            return first
        case "cosine":
            return settings.least + span * half_cosine(progress)
        case "linear":
            return settings.least + span * (1 - progress)
        case "step":
            reached = sum(progress >= milestone for milestone in settings.milestones)
            return max(settings.least, float(first * settings.factor**reached))
        case "reversed":
            return settings.least + span * half_cosine(1 - progress)
        case "cyclic":
            return settings.least + span * (1 + cos(2 * pi * settings.cycles * progress)) / 2
