"""Progress: lines where there is no terminal, a bar where there is one."""

import io
import re

import pytest
from rich.console import Console

from rayd.engine import progress
from rayd.engine.progress import Progress, StageList, StageProgress, terms_text


def test_a_meter_tells_rate_time_left_and_terms(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = StageProgress("synthesize", 100, "steps", _began=100.0)
    meter.update(20)  # resumed here: these steps took no time now
    now[0] = 110.0
    meter.update(40, terms={"loss": 1.23456})
    assert meter.rate == 2.0
    assert meter.line() == "synthesize: 40/100 steps, 2/s, 0:00:30 left, loss 1.235"
    meter.update(100)
    assert meter.line() == "synthesize: 100/100 steps, loss 1.235"


def test_lines_come_now_and_then_and_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with Progress(console=Console(file=text, force_terminal=False, width=40)).stage(
        "measure", 10, "shards"
    ) as shown:
        for done in range(1, 11):
            now[0] += 4
            shown.update(done)
    lines = text.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]


def test_a_terminal_gets_a_bar():
    text = io.StringIO()
    with Progress(console=Console(file=text, force_terminal=True, width=120)).stage(
        "measure", 4, "shards"
    ) as shown:
        shown.update(4, terms={"loss": 2.0})
    assert "4/4" in text.getvalue()
    assert "loss 2" in text.getvalue()


def test_quiet_says_nothing(capsys):
    reporter = Progress(quiet=True)
    reporter.log("hello")
    with reporter.stage("measure", 1, "shards") as shown:
        shown.update(1)
    assert capsys.readouterr() == ("", "")


def at(monkeypatch, seconds: float) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0 + seconds)


def test_time_left_begins_with_the_forecast_and_follows_the_work(monkeypatch):
    """Nine tenths of the units are a tenth of the work: counted alike, they would promise a tenth
    of the time.
    """
    meter = StageProgress("evaluate", 100, "epochs", expected_seconds=40.0, _began=100.0)
    at(monkeypatch, 0.0)
    meter.update(0, share=0.0)
    assert meter.seconds_left == pytest.approx(40)
    at(monkeypatch, 4.0)
    meter.update(90, share=0.1)
    assert meter.seconds_left == pytest.approx(36)
    # the machine is half as fast as expected
    at(monkeypatch, 40.0)
    meter.update(95, share=0.5)
    assert 36 < meter.seconds_left < 41
    meter.update(100, share=1.0)
    assert meter.seconds_left is None


def test_time_left_of_a_resumed_stage_counts_what_was_done_here(monkeypatch):
    meter = StageProgress("squeeze", 10, "epochs", _began=100.0)
    at(monkeypatch, 0.0)
    meter.update(5, share=0.8)
    assert meter.seconds_left is None
    at(monkeypatch, 10.0)
    meter.update(6, share=0.9)
    assert meter.seconds_left == pytest.approx(10)


def test_stages_before_the_present_one_were_cached():
    stages = StageList(["squeeze", "measure", "synthesize", "evaluate"])
    stages.begin("squeeze")
    stages.end("squeeze")
    stages.begin("synthesize")
    assert stages.text() == "squeeze done · measure cached · synthesize running · evaluate"
    stages.end("synthesize")
    stages.finish()
    assert stages.text() == "squeeze done · measure cached · synthesize done · evaluate cached"


def test_a_loss_with_one_term_is_said_once():
    assert terms_text({"loss": 9.4, "mean": 9.4}) == "loss 9.4"
    assert terms_text({"loss": 9.4, "mean": 4.7}) == "loss 9.4 mean 4.7"
    assert (
        terms_text({"loss": 0.5, "step_size": 0.5, "skipped": 0})
        == "loss 0.5 step_size 0.5 skipped 0"
    )


def test_numbers_stay_whole_at_80_columns():
    text = io.StringIO()
    reporter = Progress(console=Console(file=text, force_terminal=True, width=80))
    terms = {f"a_long_name_of_a_term_{number}": 0.123456 for number in range(6)}
    stages = ["squeeze", "experts", "measure", "score", "synthesize", "relabel", "evaluate"]
    with reporter.stages(stages), reporter.stage("synthesize", 100_000, "steps", 36_000.0) as shown:
        shown.update(0)
        shown.update(98_765, terms=terms)
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n")
    assert "98765/100000 steps" in drawn
    assert "synthesize running" in " ".join(drawn.split())
    assert " left" in drawn
    # the last line, with all terms, is a plain one
    assert max(len(line) for line in drawn.strip().splitlines()[:-1]) <= 80


def test_what_is_cached_has_no_bar():
    text = io.StringIO()
    reporter = Progress(console=Console(file=text, force_terminal=True, width=80))
    with reporter.stages(["measure", "evaluate"]), reporter.stage("measure", 0, "shards") as shown:
        shown.update(0, 0)
    assert "0/0" not in text.getvalue()
