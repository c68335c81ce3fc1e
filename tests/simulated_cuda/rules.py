"""What CUDA refuses and what it allows, tried on the simulated device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.simulated_cuda import device


def tried() -> dict[str, Any]:
    """Which rules raised, by name, and what a few operations cost."""
    with device.simulated() as record:
        there = torch.arange(6.0, device="cuda").reshape(2, 3)
        here = torch.tensor([0, 1])
        optimizer = torch.optim.SGD(
            [torch.nn.Parameter(there.clone())], lr=0.1, momentum=0.9, fused=True
        )
        for pool in optimizer.param_groups:
            pool["params"][0].grad = torch.ones_like(there)
        attempts: dict[str, Callable[[], object]] = {
            "product with a CPU matrix": lambda: there @ torch.ones(3, 3),
            "sum with a CPU matrix": lambda: there + torch.ones(2, 3),
            "index_copy_ at CPU indices": lambda: there.clone().index_copy_(
                0, here, torch.zeros_like(there)
            ),
            "index_add_ at CPU indices": lambda: there.clone().index_add_(
                0, here, torch.zeros_like(there)
            ),
            "index_select at CPU indices": lambda: there.index_select(0, here),
            "cat with a CPU tensor": lambda: torch.cat([there, torch.ones(1, 3)]),
            "CPU tensor at CUDA indices": lambda: torch.ones(2, 3)[here.to("cuda")],
            "draw with a CPU generator": lambda: torch.rand(
                3, device="cuda", generator=torch.Generator()
            ),
            "numpy": there.numpy,
            "two devices": lambda: there + torch.ones(2, 3, device="cuda:1"),
            "sum with a CPU scalar": lambda: there + torch.ones(()),
            "CPU indices": lambda: there[here],
            "fused optimizer": optimizer.step,
            "backward pass": lambda: torch.nn.Linear(3, 1).to("cuda")(there).sum().backward(),
            "draw on the CPU": lambda: torch.rand(3, generator=torch.Generator()).to("cuda"),
        }
        raised = []
        for name, attempt in attempts.items():
            try:
                attempt()
            except RuntimeError:
                raised.append(name)

        def costs(work: Callable[[], object]) -> list[int]:
            before = record.counts()
            work()
            after = record.counts()
            return [after[name] - before[name] for name in ("syncs", "copies", "blocking")]

        return {
            "attempts": list(attempts),
            "raised": raised,
            "item": costs(lambda: float(there.sum())),
            "mask": costs(lambda: there[there > 1]),
            "nonzero": costs(lambda: (there > 1).nonzero()),
            "unique": costs(lambda: torch.unique(there)),
            "to host": costs(there.cpu),
            "to device": costs(lambda: torch.ones(3).to("cuda")),
            "to device at leisure": costs(lambda: torch.ones(3).to("cuda", non_blocking=True)),
            "made there": costs(lambda: torch.tensor([1.0, 2.0], device="cuda")),
            "arithmetic": costs(lambda: (there * 2 + 1).sum(0).softmax(0)),
            "values": (there * 2).cpu().tolist(),
        }
