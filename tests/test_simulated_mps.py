"""Mathematics on a device without float64, as Apple's GPUs are: the values are those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rayd import terms
from rayd.analyses.hessian import largest_eigenvalue
from rayd.applications.slimming import prune, scales, small_vgg
from rayd.data import ImageShape
from rayd.networks import LayerRole, Observation
from rayd.objectives import Context, SpectralFilterDistance
from rayd.objectives.factors import Filters
from rayd.objectives.filters import Ridge
from rayd.objectives.ridge import predictions
from tests.objectives.test_spectral_filter import CLASSES, real_side
from tests.simulated_mps import MPS, REFUSED, simulated, there

CPU = torch.device("cpu")


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def agree(work: Callable[[torch.device], Any]) -> None:
    """What is computed on both devices is equal but for rounding."""
    expected = work(CPU)
    with simulated():
        found = work(MPS)
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-6)


def test_the_device_refuses_what_apples_does():
    with simulated():
        tensor = torch.ones(2).to(MPS)
        refused: list[Callable[[], object]] = [
            lambda: torch.ones(2, dtype=torch.float64).to(MPS),
            tensor.double,
            lambda: tensor.to("cpu", torch.float64),
        ]
        for attempt in refused:
            with pytest.raises(TypeError, match=REFUSED):
                attempt()
        with pytest.raises(RuntimeError, match="on the host and on the GPU"):
            _ = tensor + torch.ones(2)
        assert tensor.cpu().double().tolist() == [1.0, 1.0]


def test_ridge_regression_is_solved_on_the_host():
    def work(device: torch.device) -> list[list[float]]:
        real, synthetic, targets = (drawn(*s).to(device) for s in ((4, 3), (2, 3), (2, 2)))
        found: list[list[float]] = predictions(real, synthetic, targets).cpu().tolist()
        return found

    agree(work)


@pytest.mark.parametrize("updating", [False, True])
def test_correlations_are_filtered_on_the_host(updating):
    """Over blocks of which each lacks a class."""
    real, seen, labels = real_side(torch.float32)
    layers = [layer.float() for layer in seen.layers[LayerRole.CONV_PATH]]
    counts = labels.bincount(minlength=CLASSES)

    def work(device: torch.device) -> list[float]:
        theirs = {spec: tuple(one.to(device) for one in of) for spec, of in real.items()}
        filters = Filters(Ridge(0.1), Ridge(0.1))
        term = SpectralFilterDistance(lambda _: filters, signal="class", updating=updating)
        memory: dict[str, Tensor] = {}
        values = []
        for block, held in enumerate([[0, 1], [2], [0, 1]]):
            rows = torch.isin(labels, torch.tensor(held))
            maps = tuple(layer[rows].to(device).requires_grad_() for layer in layers)
            logits = seen.logits[rows].float().to(device)
            part = Observation(logits, {LayerRole.CONV_PATH: maps}, logits)
            context = Context(memory=memory, block=block, blocks=3, class_counts=counts)
            value = term(theirs, part, labels[rows].to(device), context)
            gradients = torch.autograd.grad(value, maps)
            values += [float(value.detach()), *(float(one.norm()) for one in gradients)]
        return values

    agree(work)


@pytest.mark.parametrize("is_measured", [False, True])
@pytest.mark.parametrize(
    ("term", "shape"),
    [
        (terms.MeanMatching(), (5,)),
        (terms.CharacteristicFunctionMatching(frequencies=8), (5,)),
        (terms.CovarianceMatching(), (3, 4, 4)),
        (terms.SpectralFilterMatching(), (3, 4, 4)),
        (terms.NormalizationMatching(), (3, 4, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_terms_are_called_on_features_there(term, shape, is_measured):
    real = drawn(12, *shape)
    synthetic = drawn(6, *shape)

    def work(device: torch.device) -> list[float]:
        theirs = real.to(device)
        ours = synthetic.to(device).requires_grad_()
        real_labels = (torch.arange(12) % 2).to(device)
        labels = (torch.arange(6) % 2).to(device)
        draws = torch.Generator().manual_seed(1)
        given: dict[str, Any] = {"classes": 2, "generator": draws}
        if is_measured:
            halves = [(theirs[rows], real_labels[rows]) for rows in (slice(6), slice(6, 12))]
            value = term(term.measure(halves, **given), ours, labels=labels, **given)
        else:
            value = term(theirs, ours, real_labels, labels, **given)
        (gradient,) = torch.autograd.grad(value, [ours])
        return [float(value.detach()), float(gradient.norm())]

    agree(work)


def test_the_curvature_of_a_loss_is_found():
    def eigenvalue(device: torch.device) -> float:
        at = torch.tensor([1.0, 2.0]).to(device).requires_grad_()
        return largest_eigenvalue(lambda: [2 * at[0] ** 2 - 3 * at[1] ** 2], [at]).value

    agree(eigenvalue)


def test_a_network_is_pruned_where_it_is():
    """Of small VGG half of the channels, at scales that were drawn."""
    network = small_vgg(ImageShape(1, 8, 8), classes=3)
    for scale in scales(network):
        torch.nn.init.uniform_(scale, generator=torch.Generator().manual_seed(len(scale)))
    expected = [parameter.shape for parameter in prune(network, 0.5).parameters()]
    with simulated():
        for module in network.modules():
            for name, parameter in module.named_parameters(recurse=False):
                module._parameters[name] = torch.nn.Parameter(there(parameter.detach()))
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = there(buffer)
        found = prune(network, 0.5)
    assert [parameter.shape for parameter in found.parameters()] == expected
