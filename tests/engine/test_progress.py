"""Progress: lines where there is no terminal, a bar where there is one."""

import io

from rich.console import Console

from rayd.engine import progress
from rayd.engine.progress import Meter, Reporter


def test_a_meter_tells_rate_time_left_and_terms(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    meter = Meter("synthesize", 100, "steps", _began=100.0)
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
    with Reporter(console=Console(file=text, force_terminal=False, width=40)).stage("measure", 10, "shards") as shown:
        for done in range(1, 11):
            now[0] += 4
            shown.update(done)
    lines = text.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["3/10", "6/10", "9/10", "10/10"]


def test_a_terminal_gets_a_bar():
    text = io.StringIO()
    with Reporter(console=Console(file=text, force_terminal=True, width=120)).stage("measure", 4, "shards") as shown:
        shown.update(4, terms={"loss": 2.0})
    assert "4/4" in text.getvalue()
    assert "loss 2" in text.getvalue()


def test_quiet_says_nothing(capsys):
    reporter = Reporter(quiet=True)
    reporter.say("hello")
    with reporter.stage("measure", 1, "shards") as shown:
        shown.update(1)
    assert capsys.readouterr() == ("", "")
