"""What trials reserve and see, and how many run at a time, also in a sweep that goes on."""

import pytest

from rayd.config import ResourceSettings
from rayd.engine.on_ray.cluster import capacity
from rayd.errors import ConfigError
from rayd.recipes import resolve
from tests.tuning.spaces import small
from tuning.search import UNLIMITED, algorithm
from tuning.space import ResolvedSpace
from tuning.trial import own_resources


@pytest.mark.parametrize("before", [None, 1])
@pytest.mark.parametrize("now", [None, 3])
def test_a_sweep_that_goes_on_runs_as_many_trials_at_a_time_as_asked_now(tmp_path, before, now):
    resolved = ResolvedSpace(small(algorithm="optuna"))
    begun = algorithm(resolved, tmp_path, before)
    begun.searcher.searcher.set_search_properties("m", "max", {})
    begun.save_to_dir(str(tmp_path), "1")
    resumed = algorithm(resolved, tmp_path, now)
    resumed.restore_from_dir(str(tmp_path))
    assert resumed.searcher.max_concurrent == (now or UNLIMITED)


@pytest.mark.parametrize(
    ("settings", "workers", "device"),
    [
        ({}, 0, "cpu"),
        ({"gpus_per_worker": 0.5}, 0, "auto"),
        ({"device": "cuda:1"}, 0, "cuda:1"),
        ({}, 2, "auto"),
        ({"device": "cuda:1"}, 2, "auto"),
    ],
)
def test_a_trial_uses_the_gpu_that_it_reserved_and_no_other(settings, workers, device):
    recipe = resolve("digits", {"resources": settings})
    assert own_resources(recipe, workers).device == device


@pytest.mark.parametrize("gpus", [1.5, 2, 64])
def test_more_than_one_gpu_for_a_worker_is_refused(gpus):
    with pytest.raises(ConfigError, match=r"must be 0, 1, or a fraction below 1.*more 'workers'"):
        resolve("digits", {"resources": {"workers": 1, "gpus_per_worker": gpus}})


@pytest.mark.parametrize(("fraction", "fitting"), [(0.6, 4), (0.5, 8), (0.25, 16), (1, 4)])
def test_a_fraction_of_a_gpu_fits_into_one_device(monkeypatch, fraction, fitting):
    node = {"Alive": True, "Resources": {"CPU": 64, "GPU": 4}}
    monkeypatch.setattr("ray.nodes", lambda: [node])
    resources = ResourceSettings(workers=6, gpus_per_worker=fraction)
    assert capacity(resources)[1] == fitting
