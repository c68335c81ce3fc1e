"""Errors of Ray's start are one sentence."""

import pytest
import ray

from rayd.engine.on_ray.cluster import connect
from rayd.errors import ResourceError


@pytest.mark.parametrize(
    ("address", "begin"),
    [(None, "Ray did not start on this machine"), ("10.0.0.1:6379", "Cannot join the Ray cluster")],
)
def test_ray_that_does_not_start_is_one_sentence(monkeypatch, address, begin):
    """Where a node does not start in time, Ray raises a bare Exception."""

    def init(**_):
        raise Exception("The current node timed out during startup.\nThis could happen.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("rayd.engine.on_ray.cluster._check_reachable", lambda _: None)
    with pytest.raises(ResourceError, match=f"{begin}.*timed out during startup") as caught:
        connect(address)
    assert "\n" not in str(caught.value)


def test_a_node_that_was_too_slow_is_started_once_more(monkeypatch):
    tries = []

    def init(**options):
        tries.append(options["address"])
        if len(tries) == 1:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: tries.append("shutdown"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("rayd.engine.on_ray.cluster.watch_head", lambda: None)
    connect(None)
    assert tries == ["local", "shutdown", "local"]


def test_the_last_cluster_of_this_machine_may_have_ended(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    said = r"No Ray cluster answers at '127\.0\.0\.1:9', which 'auto' stands for here"
    with pytest.raises(ResourceError, match=said):
        connect("auto")
