"""Monitoring of the cluster during a run: loss of the head, and nodes that drain."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress

import ray

from rayd.errors import ClusterLostError

INTERVAL = 3.0
"""Seconds between checks of the head."""
FAILURES = 3
"""Number of consecutive failed checks after which the head counts as gone."""
GRACE = 5.0
"""Seconds that the driver has to shut down cleanly, before the watch ends the process."""
DRAIN_INTERVAL = 5.0
"""Seconds between checks for draining nodes."""


class HeadWatch(threading.Thread):
    """Detects within seconds that the head of the cluster is gone.

    Ray itself waits for a minute, then ends the driver with its own log. The driver calls `check`
    between its waits; if it cannot, because it waits inside Ray, the watch prints the error and
    ends the process.

    Args:
        address: host and port of the head (its global control store).
    """

    def __init__(self, address: str):
        super().__init__(name="rayd-head-watch", daemon=True)
        self.address = address
        host, _, port = address.rpartition(":")
        self._place = (host.strip("[]"), int(port))
        self._lost = threading.Event()
        self._told = threading.Event()

    def check(self) -> None:
        """Raise an error if the head is gone.

        Raises:
            ClusterLostError: it is gone.
        """
        if self._lost.is_set():
            self._told.set()
            raise ClusterLostError(self._sentence())

    def run(self) -> None:
        """Poll until the head is gone, or this process has left the cluster."""
        failures = 0
        while failures < FAILURES:
            time.sleep(INTERVAL)
            if not ray.is_initialized():
                return
            # several failures in a row, as a head under load may miss one
            failures = 0 if self._answers() else failures + 1
        self._lost.set()
        if not self._told.wait(GRACE) and ray.is_initialized():
            sys.stderr.write(f"rayd: {self._sentence()}\n")
            sys.stderr.flush()
            # not sys.exit: the main thread is inside Ray's C++, and would not notice
            os._exit(ClusterLostError.exit_code)

    def _answers(self) -> bool:
        """Whether the head, and Ray's process on this node (the raylet), accept connections."""
        try:
            socket.create_connection(self._place, timeout=INTERVAL).close()
            raylet = _raylet_socket()
            if raylet is not None:
                with socket.socket(socket.AF_UNIX) as local:
                    local.settimeout(INTERVAL)
                    local.connect(raylet)
        except OSError:
            return False
        return True

    def _sentence(self) -> str:
        return (
            f"The head of the Ray cluster at '{self.address}' is gone, and all its workers with "
            "it; finished work is kept: start a cluster again, and --resume continues."
        )


_watch: HeadWatch | None = None


def watch_head() -> None:
    """Watch the head of the cluster that this process has joined, from now on."""
    global _watch
    address = str(ray.get_runtime_context().gcs_address)
    if _watch is not None and _watch.is_alive() and _watch.address == address:
        return
    _watch = HeadWatch(address)
    _watch.start()


def check_head() -> None:
    """Raise an error if the head that this process watches is gone.

    Raises:
        ClusterLostError: it is gone.
    """
    if _watch is not None:
        _watch.check()


def head_is_lost() -> bool:
    """Whether the head that this process watches is gone, so that calls to it would block."""
    return _watch is not None and _watch._lost.is_set()


def _raylet_socket() -> str | None:
    """Path of this node's raylet socket, from a private attribute; None without one."""
    with suppress(AttributeError):
        path = str(ray._private.worker._global_node.raylet_socket_name)
        return path if hasattr(socket, "AF_UNIX") and path.startswith("/") else None
    return None


class Draining:
    """Ids of the nodes that drain, after a spot notice or `ray drain-node`."""

    def __init__(self) -> None:
        self._looked = -DRAIN_INTERVAL
        self._nodes: frozenset[str] = frozenset()

    def nodes(self) -> frozenset[str]:
        """Hex ids of the nodes, refreshed every few seconds; empty if Ray does not provide them."""
        if time.monotonic() - self._looked >= DRAIN_INTERVAL:
            self._looked = time.monotonic()
            # not a public interface of Ray; without it tasks of such a node are repeated elsewhere
            with suppress(Exception):
                client = ray._private.worker.global_worker.gcs_client
                found = client.get_draining_nodes(timeout=DRAIN_INTERVAL)
                self._nodes = frozenset(_hex(node) for node in found)
        return self._nodes


def _hex(node: object) -> str:
    return node.hex() if isinstance(node, bytes) or hasattr(node, "hex") else str(node)
