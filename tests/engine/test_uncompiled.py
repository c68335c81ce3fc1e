"""Plans do without torch's compiler, which is there for whoever asks for it."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
from rayd.engine.uncompiled import uncompiled

weight = torch.nn.Parameter(torch.ones(1))
with uncompiled():
    optimizer = torch.optim.SGD([weight], lr=0.5)
    weight.sum().backward()
    optimizer.step()
    assert not hasattr(sys.modules["torch._dynamo"], "__file__")
    {inside}
assert weight.item() == 0.5
assert "torch._dynamo" not in sys.modules or sys.modules["torch._dynamo"].__file__
assert not hasattr(torch.optim.Optimizer.add_param_group.__wrapped__, "__dynamo_disable")
# the real one tells these functions itself from now on
torch.optim.SGD([weight], lr=0.5)
assert sys.modules["torch._dynamo"].__file__
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
"""


def _runs(inside: str) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT.format(inside=inside)], check=True, timeout=120)


def test_an_optimizer_needs_no_compiler():
    _runs("pass")


def test_the_compiler_is_there_when_it_is_asked_for():
    _runs("assert torch._dynamo.config.__name__; assert sys.modules['torch._dynamo'].__file__")
