"""rayd in a notebook: one output that is rewritten, results that show themselves, interrupts."""

import sys
from types import SimpleNamespace

import pytest

from rayd.engine.notebook import KEPT, NotebookOutput, in_notebook
from tests.notebooks import executed, facts, of_cells, printed
from tests.test_cli import QUICK

SETUP = f"""
import json, os, signal
import rayd
from rayd.config import parse_overrides
settings = {{**parse_overrides({QUICK!r}), "evaluation.baselines": [], "synthesis.log_every": 1}}
settings["resources.threads"] = 1
arguments = dict(settings=settings)
"""
INTERRUPTED = """
class Interrupt(rayd.callbacks.RunCallback):
    def on_step(self, step):
        if step.stage == "synthesize" and step.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

try:
    rayd.distill("digits", out="stopped", cache="b", callbacks=[Interrupt()], **arguments)
except KeyboardInterrupt as interrupt:
    print(json.dumps(interrupt.__notes__))
"""
MISTAKE = """
from IPython import get_ipython

shown = []
shell = get_ipython()
before = shell._showtraceback
shell._showtraceback = lambda kind, error, lines: shown.extend(lines)
try:
    rayd.distill("digitss")
except rayd.RaydError:
    shell.showtraceback()
shell._showtraceback = before
print(json.dumps(shown))
"""
LEFT = """
for step in rayd.synthesize("digits", out="left", cache="c", **arguments):
    if step.step == 4:
        raise ValueError("enough")
"""


@pytest.mark.timeout(900)
def test_a_notebook_shows_one_output_and_a_stopped_run_goes_on(tmp_path):
    notebook = executed(
        of_cells(
            SETUP,
            'run = rayd.distill("digits", out="whole", cache="a", **arguments)\nrun',
            INTERRUPTED,
            'stopped = rayd.distill(resume="stopped", cache="b", quiet=True)',
            f"try:\n    {LEFT.strip().replace(chr(10), chr(10) + '    ')}\nexcept ValueError:\n    pass",
            'left = rayd.distill(resume="left", cache="c", quiet=True)',
            MISTAKE,
            "print(json.dumps([one.report.results[0].test_accuracy.mean"
            " for one in (run, stopped, left)]))",
        ),
        tmp_path,
    )
    _, shown, interrupted, _, _, _, mistake, last = notebook.cells
    progress = [output for output in shown.outputs if output.output_type == "display_data"]
    assert len(progress) == 1, "progress is one output"
    assert len(progress[0].data["text/plain"].splitlines()) <= KEPT + 2
    assert "synthesize: 6/6 steps" in progress[0].data["text/plain"]
    assert not printed(shown)
    result = next(output for output in shown.outputs if output.output_type == "execute_result")
    assert "data:image/png;base64," in result.data["text/html"]
    assert len(result.data["text/plain"]) < 200
    assert facts(interrupted) == [
        "Finished work is kept; to continue: rayd.distill(resume='stopped')"
    ]
    (sentence,) = facts(mistake)
    assert sentence.startswith("ConfigError: Unknown recipe 'digitss'; did you mean 'digits'")
    assert len(set(facts(last))) == 1, "interrupted runs end as the others"


def test_the_output_holds_the_last_lines_and_the_progress(monkeypatch):
    shown = []

    class Handle:
        def update(self, output):
            shown.append(repr(output))

    display = SimpleNamespace(
        display=lambda output, display_id: shown.append(repr(output)) or Handle()
    )
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    output = NotebookOutput()
    for number in range(300):
        output.log(f"line {number}")
    assert len(shown[-1].splitlines()) == KEPT
    assert shown[-1].endswith("line 299")
    output.show("synthesize: 1/2 steps", 0.5)
    output.show("synthesize: 2/2 steps", 1.0)
    output.end("synthesize: 2/2 steps in 0:00:01")
    assert shown[-1].endswith("in 0:00:01")
    assert len(shown) < 304, "steps in quick succession are shown together"
    assert not in_notebook()
    output.log("<b>")
    assert "&lt;b&gt;" in output._repr_html_()
