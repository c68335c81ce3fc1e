"""Schedules at their beginnings, middles and ends, and the laws that all of them obey."""

from __future__ import annotations

from itertools import pairwise
from math import cos, pi, sqrt
from typing import Literal, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayd.config import FilterScheduleSettings, FilterSettings, ScheduleSettings
from rayd.schedules import (
    alrs,
    crop_floor,
    filter_parameter,
    half_cosine,
    learning_rate_factor,
    milestone_epochs,
    progressive_start,
    rising_start,
)

Curriculum = Literal["none", "cosine", "linear", "step"]
NAMES = ("constant", "restart", "multistep", "linear", "cosine", "ssrs", "alrs")


def test_the_half_cosine_falls_from_one_to_zero() -> None:
    assert [half_cosine(t) for t in (0, 0.5, 1, 1.5)] == pytest.approx([1, 0.5, 0, 0], abs=1e-15)
    assert half_cosine(0.25) == pytest.approx((1 + sqrt(0.5)) / 2)


@pytest.mark.parametrize(
    ("settings", "first", "middle", "last"),
    [
        (ScheduleSettings(name="constant"), 1, 1, 1),
        (ScheduleSettings(name="alrs"), 1, 1, 1),
        (ScheduleSettings(name="cosine"), 1, 0.5, 0),
        (ScheduleSettings(name="cosine", stretch=2), 1, (1 + sqrt(0.5)) / 2, 0.5),
        (ScheduleSettings(name="linear"), 1, 0.5, 0),
        (ScheduleSettings(name="linear", stretch=2), 1, 0.75, 0.5),
        (ScheduleSettings(name="ssrs", stretch=2), 1, (1 + sqrt(0.5)) / 2, 0),
        (ScheduleSettings(name="multistep", factor=0.5), 1, 0.5, 0.5),
        (ScheduleSettings(name="restart", factor=0.5), 1, 1, 0.5),
    ],
    ids=lambda value: value.summary if isinstance(value, ScheduleSettings) else "",
)
def test_factors_at_the_beginning_middle_and_end(
    settings: ScheduleSettings, first: float, middle: float, last: float
) -> None:
    found = [learning_rate_factor(settings, epoch, 1200) for epoch in (0, 600, 1200)]
    assert found == pytest.approx([first, middle, last], abs=1e-12)


@given(
    name=st.sampled_from(NAMES),
    stretch=st.floats(1, 4),
    milestones=st.lists(st.floats(0, 1), max_size=3),
    factor=st.floats(0.01, 1),
    epochs=st.integers(1, 400),
)
def test_factors_never_rise_and_stay_within_zero_and_one(
    name: str, stretch: float, milestones: list[float], factor: float, epochs: int
) -> None:
    settings = ScheduleSettings(
        name=name, stretch=stretch, milestones=tuple(milestones), factor=factor
    )
    factors = [learning_rate_factor(settings, epoch, epochs) for epoch in range(epochs)]
    assert all(0 < after <= before for before, after in pairwise([1.0, *factors]))


def test_ssrs_drops_to_a_sixth_after_five_sixths_of_the_epochs() -> None:
    settings = ScheduleSettings(name="ssrs", stretch=2)
    smooth = (1 + cos(pi * 5 / 12)) / 2
    assert learning_rate_factor(settings, 500, 600) == pytest.approx(smooth)
    assert learning_rate_factor(settings, 501, 600) == pytest.approx(smooth * 99 / 600)
    assert learning_rate_factor(settings, 599, 600) == pytest.approx(smooth / 600)


def test_milestones_multiply_and_restarts_come_one_epoch_later() -> None:
    steps = ScheduleSettings(name="multistep", milestones=(0.8, 0.9, 0.95), factor=0.5)
    starts = (799, 800, 899, 900, 949, 950)
    assert [learning_rate_factor(steps, epoch, 1000) for epoch in starts] == [
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
    ]
    restart = steps.model_copy(update={"name": "restart"})
    assert [learning_rate_factor(restart, epoch + 1, 1000) for epoch in starts] == [
        1,
        0.5,
        0.5,
        0.25,
        0.25,
        0.125,
    ]
    assert milestone_epochs(restart, 1000) == (801, 901, 951)


def test_milestones_are_exact_shares_of_the_epochs() -> None:
    assert milestone_epochs(ScheduleSettings(name="multistep", milestones=(0.29, 0.57)), 100) == (
        29,
        57,
    )
    assert milestone_epochs(ScheduleSettings(name="multistep"), 7) == (3,)
    assert milestone_epochs(ScheduleSettings(name="cosine"), 100) == ()


def test_alrs_has_the_factor_of_the_released_code_and_others_a_tenth() -> None:
    assert ScheduleSettings(name="alrs").factor == 0.9975
    assert ScheduleSettings(name="alrs", factor=0.5).factor == 0.5
    assert ScheduleSettings(name="multistep").factor == 0.1
    dumped = ScheduleSettings(name="alrs").model_dump()
    assert ScheduleSettings(**dumped) == ScheduleSettings(name="alrs")


def test_a_loss_stalls_only_when_near_both_absolutely_and_relatively() -> None:
    assert not alrs(None, 1.0)
    assert alrs(5.0, 4.985)
    assert alrs(4.985, 5.0)
    assert not alrs(5.0, 4.97), "0.6 % away, but 0.03"
    assert not alrs(0.1, 0.09), "0.01 away, but 11 %"
    assert not alrs(1.0, 2.0), "a loss that leaps up does not stall"
    assert not alrs(1.0, float("nan"))


def test_a_loss_is_compared_with_the_newer_one() -> None:
    # 0.01 is 1.98 % of 0.5051 but 2.02 % of 0.4951
    assert alrs(0.4951, 0.5051)
    assert not alrs(0.5051, 0.4951)


@pytest.mark.parametrize(
    ("curriculum", "shares"),
    [
        ("none", [0.2, 0.2, 0.2, 0.2, 0.2]),
        ("linear", [1, 0.6, 0.2, 0.2, 0.2]),
        ("cosine", [1, 0.6, 0.2, 0.2, 0.2]),
        ("step", [1, 1, 0.2, 0.2, 0.2]),
    ],
)
def test_the_curriculum_ends_at_its_end(curriculum: Curriculum, shares: list[float]) -> None:
    assert [crop_floor(curriculum, 0.2, t / 4, end=0.5) for t in range(5)] == pytest.approx(shares)


def test_the_cosine_curriculum_is_that_of_cda() -> None:
    for step in range(0, 4001, 250):
        assert crop_floor("cosine", 0.08, step / 4000, end=1.0) == pytest.approx(
            0.08 + 0.92 * (1 + cos(pi * step / 4000)) / 2
        )


@given(
    curriculum=st.sampled_from(get_args(Curriculum)),
    least=st.floats(0.01, 1),
    end=st.floats(0.01, 1),
    steps=st.integers(1, 400),
)
def test_crops_never_grow_and_stay_between_the_least_and_the_whole(
    curriculum: Curriculum, least: float, end: float, steps: int
) -> None:
    floors = [crop_floor(curriculum, least, step / steps, end) for step in range(steps + 1)]
    assert all(before >= after - 1e-12 for before, after in pairwise(floors))
    assert floors[-1] == least
    assert all(least <= share <= 1 + 1e-12 for share in floors)


def test_the_progressive_window_is_that_of_the_paper_at_the_beginning_middle_and_end() -> None:
    found = [progressive_start(step, 5000, 40, 10, 10, last=48) for step in (0, 2500, 5000)]
    assert found == [range(0, 10), range(20, 30), range(40, 49)]


def test_the_progressive_window_of_whole_epochs_moves_by_one_less_until_the_last_step() -> None:
    found = [progressive_start(step, 1000, 3, 4, 4, last=18) for step in (0, 333, 334, 667, 999)]
    assert found == [range(0, 4), range(0, 4), range(1, 5), range(2, 6), range(2, 6)]


def test_the_progressive_window_moves_an_epoch_every_steps_over_max_start_steps() -> None:
    assert [progressive_start(step, 100, 10, 3, 2, last=50) for step in (9, 10, 19, 20)] == [
        range(1, 3),
        range(2, 4),
        range(2, 4),
        range(3, 5),
    ]


def test_the_progressive_window_rounds_down_and_keeps_an_epoch() -> None:
    assert progressive_start(0, 10, 20, 2.7, 0.5, last=30) == range(2, 3)
    assert progressive_start(0, 10, 20, 0, 5, last=30) == range(0, 1), (
        "nothing is before the first epoch"
    )
    assert progressive_start(10, 10, 20, 50, 5, last=30) == range(30, 31), (
        "the window is beyond the last start"
    )
    assert progressive_start(29, 100, 100, 0, 1, last=50) == range(28, 29), "29 / 100 of 100 is 29"


def test_datm_s_upper_end_rises_to_its_limit_and_stays() -> None:
    ends = [
        rising_start(step, 20, 40, 2000, lower=10, last=98)
        for step in (0, 99, 100, 1000, 1999, 2000, 10_000)
    ]
    assert [(epochs.start, epochs.stop) for epochs in ends] == [
        (10, n) for n in (20, 20, 21, 30, 39, 40, 40)
    ]
    assert rising_start(0, 5, 40, 2000, lower=10, last=98) == range(10, 11), (
        "the lower end is beyond the upper one"
    )
    assert rising_start(2000, 20, 40, 2000, lower=10, last=30) == range(10, 31)


@given(
    step=st.integers(0, 400),
    steps=st.integers(1, 400),
    max_start=st.integers(0, 100),
    offset=st.floats(0, 100),
    window=st.floats(0, 100),
    last=st.integers(0, 100),
)
def test_starts_are_never_empty_within_the_trajectory_and_never_earlier_than_before(
    step: int, steps: int, max_start: int, offset: float, window: float, last: int
) -> None:
    windows = [
        progressive_start(at, steps, max_start, offset, window, last)
        for at in (min(step, steps), min(step + 1, steps))
    ]
    risen = [
        rising_start(
            at, min(max_start, last), max_start, steps, lower=min(int(offset), last), last=last
        )
        for at in (step, step + 1)
    ]
    for before, after in (windows, risen):
        assert 0 <= before.start <= after.start <= last
        assert before.start < before.stop <= after.stop <= last + 1


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"name": "constant"}, [0.8, 0.8, 0.8, 0.8, 0.8]),
        ({"name": "cosine"}, [0.8, 0.4 * (1 + sqrt(0.5)), 0.4, 0.4 * (1 - sqrt(0.5)), 0]),
        (
            {"name": "cosine", "least": 0.2},
            [0.8, 0.5 + 0.3 * sqrt(0.5), 0.5, 0.5 - 0.3 * sqrt(0.5), 0.2],
        ),
        ({"name": "linear"}, [0.8, 0.6, 0.4, 0.2, 0]),
        ({"name": "linear", "least": 0.2}, [0.8, 0.65, 0.5, 0.35, 0.2]),
        ({"name": "step", "factor": 0.5}, [0.8, 0.8, 0.4, 0.4, 0.4]),
        ({"name": "step", "milestones": [0.25, 0.75], "least": 0.2}, [0.8, 0.2, 0.2, 0.2, 0.2]),
        (
            {"name": "reversed", "least": 0.2},
            [0.2, 0.5 - 0.3 * sqrt(0.5), 0.5, 0.5 + 0.3 * sqrt(0.5), 0.8],
        ),
        ({"name": "cyclic", "least": 0.2}, [0.8, 0.2, 0.8, 0.2, 0.8]),
        ({"name": "cyclic", "least": 0.2, "cycles": 1}, [0.8, 0.5, 0.2, 0.5, 0.8]),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_filters_at_the_beginning_the_quarters_and_the_end(
    settings: dict[str, object], values: list[float]
) -> None:
    schedule = FilterScheduleSettings.model_validate(settings)
    assert [filter_parameter(schedule, 0.8, t / 4) for t in range(5)] == pytest.approx(
        values, abs=1e-15
    )


def test_the_curriculum_of_filters_is_that_of_cfm() -> None:
    """Eq. 16 over ten blocks: it begins at beta and ends above zero, at about beta pi^2 / (4
    T^2).
    """
    schedule = FilterScheduleSettings(name="cosine")
    found = [filter_parameter(schedule, 0.1, block / 10) for block in range(10)]
    assert found == pytest.approx(
        [0.1 * (1 + cos(pi * block / 10)) / 2 for block in range(10)], rel=1e-12
    )
    assert found[-1] == pytest.approx(0.1 * pi**2 / 400, rel=0.01)


@given(
    name=st.sampled_from(["constant", "cosine", "linear", "step", "reversed", "cyclic"]),
    first=st.floats(1e-3, 10),
    share=st.floats(0, 1),
    t=st.floats(0, 1),
)
def test_filters_stay_between_the_least_and_the_first(
    name: str, first: float, share: float, t: float
) -> None:
    schedule = FilterScheduleSettings.model_validate({"name": name, "least": share * first})
    assert share * first - 1e-12 <= filter_parameter(schedule, first, t) <= first * (1 + 1e-12)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"schedule": {"name": "reversed"}},
            "'schedule.name: reversed' takes beta down to 'schedule.least'",
        ),
        (
            {"schedule": {"name": "cyclic"}},
            "'schedule.name: cyclic' takes beta down to 'schedule.least'",
        ),
        (
            {"schedule": {"name": "cosine", "least": 0.2}},
            r"'schedule.least' \(0.2\) must not exceed the parameter \(0.1\)",
        ),
        (
            {"name": "low-pass", "schedule": {"name": "linear"}},
            "'low-pass' has no parameter that 'schedule' could change",
        ),
        ({"beta": 0.0}, "beta"),
        ({"name": "gradient", "power": -1}, "power"),
    ],
)
def test_filters_that_cannot_be_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FilterSettings.model_validate(settings)
    assert (
        FilterSettings.model_validate(
            {"name": "gradient", "schedule": {"name": "reversed"}}
        ).parameter
        == 0.01
    )
