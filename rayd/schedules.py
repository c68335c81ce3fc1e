r"""Schedules: step sizes over the epochs of a training or the steps of a synthesis, and the
curricula of crops, filters and experts.

All are functions of progress alone, in plain floats; with i the index of an epoch, 0 <= i < N, N
the number of epochs, and :math:`\zeta \ge 1` the stretch (Shao et al., "Elucidating the Design
Space of Dataset Condensation", EDC, NeurIPS 2024):

| name | factor on the first step size during epoch i |
|---|---|
| `constant` | 1 |
| `cosine` | :math:`h(i / \zeta N)` with the half cosine :math:`h(t) = (1 + \cos \pi t) / 2` |
| `linear` | :math:`1 - i / \zeta N` |
| `ssrs` | :math:`h(i / \zeta N)` up to i = 5N/6, then :math:`h(5 / 6 \zeta) (N - i) / N`: a drop to a sixth, then a line |
| `multistep` | `factor` once for every milestone m with :math:`i \ge \lfloor m N \rfloor` |
| `restart` | `factor` once for every milestone m with :math:`i \ge \lfloor m N \rfloor + 1`, one epoch later |
| `alrs` | 1 here; the trainer multiplies its step size by `factor` after every epoch that `alrs` calls stalled |

`ssrs` is EDC's "early smoothing, later steep" schedule (Eq. 33), and the drop is deliberate: the
released code has it too. `restart` is one epoch late because the released code of DSA (Zhao and
Bilen, ICML 2021) decays after the epoch of that index.

ALRS (Chen et al., "Bootstrap Generalization Ability from Loss Landscape Perspective", ECCV
workshops 2022) calls an epoch stalled when its loss is near that of the epoch before, both
absolutely and relatively. This is the variant of EDC's released code, where the relative distance
is that to the newer loss and the factor 0.9975; in the original, every increase is a stall.

The curriculum is that of CDA (Yin and Shen, "Dataset Distillation via Curriculum Data Synthesis in
Large Data Era", TMLR 2024): synthetic images are first seen whole, later through ever smaller
crops.

Trajectory matching has curricula of where on an expert's trajectory students start: first early,
later late. They say from which epochs the start of a step is drawn, uniformly, as a `range`; MTT
has `range(0, max_start)` throughout. An expert of E epochs can be followed for M of them from epoch
E - M at the latest.

- LS-MTT ("low-rank space" matching, Eq. 9 and 10): :math:`\mathrm{Start} \sim \mathrm{rand}(u_i -
  w, u_i)` with the upper end :math:`u_i = (i / N) \cdot \mathrm{MaxStart} + \delta` at step i of N.
  There is no code; here both ends are rounded down, the upper one is out of the range, as in MTT's
  code, and both are clipped to 0 and E - M, such that one epoch at least is left.
- DATM (Guo et al., "Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory
  Matching", ICLR 2024): from a fixed lower end up to, but without, :math:`\min(c + (m - c) i / e,
  m)`, rounded down, which rises from c to m until step e.

Filters have the curriculum of CFM (Bo, Liu and Wang, "Understanding Dataset Distillation via
Spectral Filtering", ICLR 2026) and its variants. With b the parameter at first, m the least value
and t the share of the way that is done, 0 <= t < 1:

| name | parameter of the filter at t |
|---|---|
| `constant` | b |
| `cosine` | :math:`m + (b - m) h(t)`, with m = 0 the paper's Eq. 16 |
| `linear` | :math:`m + (b - m) (1 - t)` |
| `step` | b times `factor` once for every milestone that t has reached, but m at least |
| `reversed` | :math:`m + (b - m) h(1 - t)` |
| `cyclic` | :math:`m + (b - m) h(2 k t)` with k cycles: b at first, between cycles and in the end, m in the middle of each |

The paper's Algorithm 1 takes a least value, which its Eq. 16 does not use: there b falls to m = 0.
"""

from __future__ import annotations

from math import cos, floor, pi
from typing import Literal

from rayd.config import FilterScheduleSettings, ScheduleSettings

ALRS_RELATIVE = 0.02
"""Distance of two epochs' losses, relative to the newer, below which the loss stalls."""

ALRS_ABSOLUTE = 0.02
"""Distance of two epochs' losses below which the loss stalls."""


def half_cosine(progress: float) -> float:
    """From 1 at progress 0 down to 0 at progress 1, and 0 from there on.

    >>> half_cosine(0), half_cosine(0.5), half_cosine(1)
    (1.0, 0.5, 0.0)
    """
    return (1 + cos(pi * min(progress, 1.0))) / 2


def learning_rate_factor(settings: ScheduleSettings, epoch: int, epochs: int) -> float:
    """The factor on the first step size during one epoch, in (0, 1]; see the head of this module.

    Args:
        settings: name, stretch, milestones and factor of the schedule.
        epoch: index of the epoch, from 0.
        epochs: number of epochs.

    >>> [round(learning_rate_factor(ScheduleSettings(name="linear", stretch=2), i, 4), 3) for i in range(4)]
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
            return float(
                settings.factor
                ** sum(epoch >= start for start in milestone_epochs(settings, epochs))
            )
        case "constant" | "alrs":
            return 1.0


def milestone_epochs(settings: ScheduleSettings, epochs: int) -> tuple[int, ...]:
    """Index of the first epoch at every smaller step size, in the settings' order; none but for
    `restart` and `multistep`.

    >>> milestone_epochs(ScheduleSettings(name="multistep", milestones=(0.8, 0.9, 0.95)), 1000)
    (800, 900, 950)
    >>> milestone_epochs(ScheduleSettings(name="restart"), 1000)
    (501,)
    """
    if settings.name not in ("multistep", "restart"):
        return ()
    late = 1 if settings.name == "restart" else 0
    # 1e-9: a share such as 0.29 of 100 epochs is 28.999999999999996 in floats
    return tuple(floor(share * epochs + 1e-9) + late for share in settings.milestones)


def alrs(previous: float | None, current: float) -> bool:
    """Whether the loss stalls, so that `alrs` decays the step size.

    Args:
        previous: mean training loss of the epoch before; None after the first epoch, which never
            counts as stalled.
        current: mean training loss of the epoch just ended.

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
    """CDA's least share of an image's area that a crop may keep: it falls from 1, the whole image,
    to `least`.

    Args:
        curriculum: `none` is `least` throughout; `cosine` and `linear` fall along a half cosine or
            a line; `step` is 1 before `end` and `least` from there on, as in the released code.
        least: the share at the end.
        progress: share of the steps done, from 0.
        end: share of the steps at which the fall ends, in (0, 1]; CDA's milestone.

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
    """The epochs that a student may start from in LS-MTT: a window that moves from early to late.

    Args:
        step: index of the step, from 0.
        steps: number of steps, N.
        max_start: how far the window moves.
        offset: its upper end at the first step, delta.
        window: its width, w.
        last: the latest epoch to start from, E - M.

    >>> [progressive_start(step, 100, 30, 5, 10, last=28) for step in (0, 50, 100)]
    [range(0, 5), range(10, 20), range(25, 29)]
    """
    upper = step * max_start / steps + offset
    return _epochs(upper - window, upper, last)


def rising_start(step: int, first: int, upper: int, end: int, lower: int, last: int) -> range:
    """The epochs that a student may start from in DATM: ever later ones join.

    Args:
        step: index of the step, from 0.
        first: upper end at the first step, c, itself left out.
        upper: upper end from step `end` on, m, itself left out.
        end: step at which it is reached, e.
        lower: earliest epoch, at every step.
        last: the latest epoch to start from, E - M.

    >>> [rising_start(step, 10, 20, 1000, lower=0, last=38) for step in (0, 550, 1000, 9999)]
    [range(0, 10), range(0, 15), range(0, 20), range(0, 20)]
    """
    return _epochs(lower, first + (upper - first) * min(step, end) / end, last)


def _epochs(lower: float, upper: float, last: int) -> range:
    """Whole epochs from `lower` up to, but without, `upper`, none after `last`, and one at
    least.
    """
    # 1e-9: a share such as 29 / 100 of 100 epochs can be 28.999999999999996 in floats
    start = min(max(floor(lower + 1e-9), 0), last)
    return range(start, max(start, min(floor(upper + 1e-9) - 1, last)) + 1)


def filter_parameter(settings: FilterScheduleSettings, first: float, progress: float) -> float:
    """The parameter of a filter; see the head of this module.

    Args:
        settings: name, least value, milestones, factor and cycles of the schedule.
        first: the parameter at first; the most that it is.
        progress: share of the blocks or steps that are done, in [0, 1].

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
            return max(
                settings.least,
                float(first * settings.factor ** sum(progress >= m for m in settings.milestones)),
            )
        case "reversed":
            return settings.least + span * half_cosine(1 - progress)
        case "cyclic":
            return settings.least + span * (1 + cos(2 * pi * settings.cycles * progress)) / 2
