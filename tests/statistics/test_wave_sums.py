"""Sums of waves are what a plain product gives, whatever the tiles, with its gradients and in
bounded memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from rayd.statistics import CharacteristicFunction, wave_sums
from tests.draws import normal

SAMPLES = 13
NUMBER = 17
DIMENSION = 5
CLASSES = 4


FEATURES = normal(SAMPLES, DIMENSION)
FREQUENCIES = normal(NUMBER, DIMENSION, seed=1)
LABELS = torch.arange(SAMPLES) % 3  # class 3 never occurs


def plain(
    features: Tensor, frequencies: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    angle = features @ frequencies.T
    member = (labels == torch.arange(classes, device=labels.device).unsqueeze(1)).to(features.dtype)
    return member @ angle.cos(), member @ angle.sin()


def at_once(monkeypatch: pytest.MonkeyPatch, angles: int) -> None:
    monkeypatch.setitem(wave_sums.IN_CACHE, "cpu", angles)


TILES = pytest.mark.parametrize("angles", [1, 6, 40, 10_000])


@TILES
def test_tiles_change_no_sum_and_no_gradient(monkeypatch, angles):
    at_once(monkeypatch, angles)
    towards = normal(2, CLASSES, NUMBER, seed=2)
    found = []
    for sums in (plain, wave_sums.wave_sums):
        leaves = [tensor.clone().requires_grad_() for tensor in (FEATURES, FREQUENCIES)]
        cosine, sine = sums(*leaves, LABELS, CLASSES)
        loss = (cosine * towards[0] + sine * towards[1]).sum()
        found.append([cosine, sine, *torch.autograd.grad(loss, leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-13)


@TILES
def test_gradcheck(monkeypatch, angles):
    at_once(monkeypatch, angles)
    leaves = [tensor.clone().requires_grad_() for tensor in (FEATURES[:4, :3], FREQUENCIES[:3, :3])]

    def sums(features: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        return wave_sums.wave_sums(features, frequencies, LABELS[:4], 3)

    assert torch.autograd.gradcheck(sums, leaves)
    assert torch.autograd.gradgradcheck(sums, leaves)


@pytest.mark.parametrize("wanted", [0, 1])
def test_one_side_may_be_without_gradient(wanted):
    leaves = [FEATURES.clone(), FREQUENCIES.clone()]
    leaves[wanted].requires_grad_()
    sum(sums.sum() for sums in wave_sums.wave_sums(*leaves, LABELS, CLASSES)).backward()
    assert leaves[wanted].grad is not None
    assert leaves[1 - wanted].grad is None


def test_no_samples_give_zeros():
    for sums in wave_sums.wave_sums(FEATURES[:0], FREQUENCIES, LABELS[:0], CLASSES):
        assert torch.equal(sums, torch.zeros(CLASSES, NUMBER, dtype=torch.float64))


def test_labels_go_with_the_vectors_of_a_sample():
    features = normal(6, 2, DIMENSION)
    labels = torch.tensor([0, 2, 1, 2, 0, 2])
    phi = CharacteristicFunction.of(features, labels, 3, FREQUENCIES)
    for c in range(3):
        angle = features[labels == c].reshape(-1, DIMENSION) @ FREQUENCIES.T
        torch.testing.assert_close(phi.real[c], angle.cos().mean(0))
        torch.testing.assert_close(phi.imaginary[c], angle.sin().mean(0))


class Live(TorchDispatchMode):
    """The most bytes of results that were alive at once, each storage counted once."""

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._alive[reference.cdata] = reference, storage.nbytes()
        self._alive = {
            key: (held, size) for key, (held, size) in self._alive.items() if not held.expired()
        }
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return result


def most_alive(sums: Any, samples: int, dimension: int, dtype: torch.dtype) -> int:
    """Bytes of a forward and a backward pass at 4,096 frequencies, inputs included; meta tensors,
    so nothing is computed.
    """
    features = torch.empty(samples, dimension, dtype=dtype, device="meta", requires_grad=True)
    frequencies = torch.empty(4096, dimension, dtype=dtype, device="meta")
    labels = torch.empty(samples, dtype=torch.long, device="meta")
    with Live() as live:
        cosine, sine = sums(features, frequencies, labels, 10)
        (cosine.square() + sine.square()).sum().backward()
    assert features.grad is not None
    return live.most + features.nbytes + frequencies.nbytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_frequency_product_is_bounded(dtype):
    """4,096 frequencies of 2,048 features for 5,000 vectors fit in 1 GB; angles that are laid out
    grow with the vectors.
    """
    assert most_alive(wave_sums.wave_sums, 5000, 2048, dtype) < 0.75 * 2**30
    tiled, laid_out = (
        [most_alive(sums, samples, 8, dtype) for samples in (5000, 50_000)]
        for sums in (wave_sums.wave_sums, plain)
    )
    assert tiled[1] - tiled[0] < 45_000 * 4 * (8 + 10 + 2) * dtype.itemsize
    assert laid_out[1] - laid_out[0] > 45_000 * 4096 * dtype.itemsize
