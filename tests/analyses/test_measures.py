"""Functions of the analyses on plain tensors and networks, against dense or exact references."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from rayd.analyses.embedding import covered, embed, features
from rayd.analyses.gradients import cosine, gradient
from rayd.analyses.hessian import hessian_product, largest_eigenvalue, mean_losses
from rayd.analyses.images import differences
from rayd.analyses.landscape import directions, landscape
from rayd.analyses.lowrank import effective_rank
from rayd.analyses.spectra import covariances, missing
from rayd.errors import ConfigError, RunError
from rayd.layer_spectra import LayerSpectrum
from rayd.training.fitting import accuracy, fit


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def convnet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 4 * 4, 3),
    )


def labelled(n: int = 12, shape=(2, 2, 2), dtype=torch.float64):
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(n, *shape, generator=draws, dtype=dtype)
    return images, torch.arange(n) % 3


def dense_hessian(network: nn.Module, images, labels) -> torch.Tensor:
    """The Hessian of the mean cross-entropy by all parameters, entry by entry."""
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]
    flat = torch.cat([p.detach().flatten() for p in network.parameters()])

    def loss(vector):
        parts = vector.split([shape.numel() for shape in shapes])
        values = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(network, values, (images,)), labels)

    return torch.autograd.functional.hessian(loss, flat)


def test_largest_eigenvalue_is_that_of_the_dense_hessian():
    network = mlp()
    images, labels = labelled()
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(network, images, labels))
    expected = eigenvalues[eigenvalues.abs().argmax()].item()
    # batches of 5 of 12 images: the sum over them is the whole loss
    losses = mean_losses(network, images, labels, batch_size=5)
    found = largest_eigenvalue(losses, list(network.parameters()), iterations=2000, tolerance=1e-12)
    assert found.converged
    assert found.value == pytest.approx(expected, rel=1e-6)


def test_hessian_product_is_that_of_the_dense_matrix():
    network = mlp(2)
    images, labels = labelled()
    matrix = dense_hessian(network, images, labels)
    draws = torch.Generator().manual_seed(3)
    vector = [torch.randn(p.shape, generator=draws, dtype=p.dtype) for p in network.parameters()]
    product = hessian_product(
        mean_losses(network, images, labels), list(network.parameters()), vector
    )
    flat = torch.cat([part.flatten() for part in product])
    expected = matrix @ torch.cat([part.flatten() for part in vector])
    assert torch.allclose(flat, expected, atol=1e-12)


def test_negative_curvature_keeps_its_sign_and_none_is_zero():
    x = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    bent = largest_eigenvalue(lambda: [x[0] ** 2, -3 * x[1] ** 2], [x], tolerance=1e-10)
    assert bent.value == pytest.approx(-6.0)
    straight = largest_eigenvalue(lambda: [x.sum()], [x])
    assert (straight.value, straight.converged) == (0.0, True)
    with pytest.raises(ConfigError, match="needs parameters"):
        largest_eigenvalue(lambda: [x.sum()], [])


def test_gradient_over_batches_is_the_whole_gradient():
    network = mlp()
    images, labels = labelled(13)
    loss = cross_entropy(network(images), labels)
    parts = torch.autograd.grad(loss, list(network.parameters()))
    expected = torch.cat([part.flatten() for part in parts])
    found = gradient(network, images, labels, batch_size=4)
    assert torch.allclose(found, expected, atol=1e-14)
    assert cosine(found, expected) == pytest.approx(1)
    assert cosine(found, -expected) == pytest.approx(-1)
    assert cosine(found, torch.zeros_like(found)) == 0


def test_gradient_is_taken_in_eval_mode_and_the_mode_is_kept():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3)).double().train()
    images, labels = labelled()
    first = gradient(network, images, labels)
    assert torch.equal(first, gradient(network, images, labels))
    assert network.training


def test_directions_have_the_norms_of_the_filters():
    network = convnet()
    (one,) = directions(network, seed=1, count=1)
    weight = network[0].weight
    assert torch.allclose(one["0.weight"].flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))
    assert not one["0.bias"].any()


def test_landscape_of_a_square_is_its_values_and_the_weights_come_back():
    network = nn.Linear(2, 1, bias=False)
    before = network.weight.detach().clone()
    first = {"weight": torch.tensor([[1.0, 0.0]])}
    second = {"weight": torch.tensor([[0.0, 1.0]])}
    found = landscape(
        network, lambda: float(network.weight.square().sum()), first, second, points=5
    )
    for row, a in enumerate(found.places):
        for column, b in enumerate(found.places):
            expected = (before + torch.tensor([[a, b]])).square().sum()
            assert found.losses[row, column].item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(network.weight, before)
    # half the radius along either axis: 0.25 on average, where the linear parts cancel
    assert found.rise == pytest.approx(0.25, rel=1e-5)
    with pytest.raises(ConfigError, match="odd number"):
        landscape(network, lambda: 0.0, first, second, points=4)


@pytest.mark.parametrize("how", ["tsne", "pca"])
def test_embedding_keeps_groups_apart(how):
    draws = np.random.default_rng(0)
    groups = np.concatenate([draws.normal(20 * group, 1, (20, 6)) for group in range(2)])
    points = embed(torch.from_numpy(groups).float(), how, seed=0)
    assert points.shape == (40, 2)
    centres = points[:20].mean(0), points[20:].mean(0)
    spread = max(float(points[:20].std(0).max()), float(points[20:].std(0).max()))
    assert float((centres[0] - centres[1]).norm()) > 2 * spread


def test_embedding_names_what_it_can_do():
    with pytest.raises(ConfigError, match="tsne"):
        embed(torch.zeros(4, 2), "isomap")
    with pytest.raises(ConfigError, match="at least 3 points"):
        embed(torch.zeros(2, 2))


@pytest.mark.parametrize(
    "points",
    [torch.zeros(4), torch.zeros(4, 2).long(), torch.tensor([[1.0, 2.0], [0.0, torch.nan]])],
)
def test_what_is_no_point_is_refused(points):
    with pytest.raises(ValueError, match=r"^Points must be"):
        embed(points)


def test_images_without_their_labels_have_no_gradient():
    images, labels = labelled(13)
    with pytest.raises(ValueError, match="Labels must be class indices"):
        gradient(mlp(), images, labels[:5])
    with pytest.raises(ValueError, match="must have parameters"):
        gradient(nn.Flatten(), images, labels)


def test_embedding_without_umap_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    with pytest.raises(ConfigError, match="pip install umap-learn"):
        embed(torch.zeros(4, 2), "umap")


def test_features_are_inputs_of_the_classifier():
    network = convnet().eval()
    images = torch.randn(5, 1, 6, 6)
    with torch.no_grad():
        expected = network[:5](images)
    assert torch.allclose(features(network, images, batch_size=2), expected, atol=1e-6)


def test_covered_counts_nearest_neighbours_of_the_same_class():
    real = torch.tensor([[0.0], [1.0], [9.0], [6.0]])
    share = covered(
        real, torch.tensor([0, 0, 1, 0]), torch.tensor([[0.0], [10.0]]), torch.tensor([0, 1])
    )
    assert share == 0.75


def test_covariances_are_those_of_all_places():
    network = convnet().eval()
    images = torch.randn(7, 1, 6, 6)
    names, (pixels, maps) = covariances(network, images, batch_size=3)
    assert names == ["0", "2"]
    assert pixels.covariance.item() == pytest.approx(images.var(unbiased=False).item(), rel=1e-5)
    with torch.no_grad():
        vectors = network[:2](images).permute(0, 2, 3, 1).reshape(-1, 3)
    expected = torch.cov(vectors.T, correction=0).double()
    assert torch.allclose(maps.covariance[0], expected, atol=1e-6)


def test_missing_directions_are_counted_among_real_ones():
    real = torch.tensor([4.0, 2.0, 1.0, 0.0])
    synthetic = torch.tensor([4.0, 1.0, 0.001, 0.0])
    assert missing(LayerSpectrum("layer", real, synthetic)) == pytest.approx(1 / 3)


def test_effective_rank_counts_equal_singular_values():
    assert effective_rank(torch.eye(4)).item() == pytest.approx(4)
    one = torch.outer(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert effective_rank(one).item() == pytest.approx(1, abs=1e-6)


def test_settings_that_differ_are_found():
    configs = [
        {"name": "a", "ipc": 1, "terms": {"filter": {"name": "ridge"}}},
        {"name": "b", "ipc": 1, "terms": {"filter": {"name": "low-pass"}}},
    ]
    assert differences(configs) == [
        {"terms.filter.name": "ridge"},
        {"terms.filter.name": "low-pass"},
    ]


def test_a_fit_learns_is_repeated_and_stops_when_it_diverges():
    images, labels = labelled(60, (1, 6, 6), torch.float32)
    images += labels[:, None, None, None]
    seen = []
    first = fit(convnet(), images, labels, steps=80, batch_size=16, on_step=seen.append)
    assert seen == list(range(81))
    assert accuracy(first, images, labels) > 0.9
    second = fit(convnet(), images, labels, steps=80, batch_size=16)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RunError, match="smaller step size"):
        fit(convnet(), images * float("inf"), labels, steps=5)


def test_fit_with_dropout_depends_on_its_seed_alone():
    images, labels = labelled(20, (1, 6, 6), torch.float32)
    trained = []
    for global_seed in (1, 2):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3))
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        fit(network, images, labels, steps=5, batch_size=8)
        assert torch.equal(torch.get_rng_state(), before)
        trained.append(network[2].weight)
    assert torch.equal(trained[0], trained[1])
