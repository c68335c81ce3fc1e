"""IDM, IID, and terms that any method may add."""

from __future__ import annotations

import pytest

from rayd import methods
from rayd.config import Recipe
from rayd.errors import ConfigError
from rayd.networks import LayerRole
from rayd.recipes import assemble


def recipe(method: str, **overrides: object) -> Recipe:
    return assemble({"method": method, "data": {"name": "digits"}, "ipc": 10, **overrides})


def weights(method: str, **overrides: object) -> dict[str, float]:
    made = methods.build(recipe(method, **overrides))
    return {term.name: made.weight(term) for term in made.terms}


def test_weights_are_the_papers_for_the_number_of_images():
    assert weights("iid-dm") == {"mean": 1, "centralization": 0.05, "covariance": 0.01}
    assert weights("iid-dm", ipc=50) == {"mean": 1, "centralization": 0.003, "covariance": 0.01}
    assert weights("iid-idm", ipc=1) == {
        "mean": 1,
        "class_aware": 50,
        "centralization": 0.05,
        "covariance": 0.01,
    }
    assert weights("iid-dm", terms={"centralization": {"weight": 0}}) == {
        "mean": 1,
        "covariance": 0.01,
    }
    assert weights("iid-dm", terms={"covariance": {"weight": 0.5}})["covariance"] == 0.5
    assert (
        weights("iid-dm", terms={"centralization": {"form": "exponential"}})["centralization"]
        == 0.05
    )


def test_idm_looks_through_a_queue_at_expanded_images():
    made = recipe("idm")
    assert (made.real, made.synthetic.kind, made.synthetic.expansion) == (
        "sampled",
        "partitioned",
        4,
    )
    assert made.observers.model_pool is not None
    assert (
        made.observers.model_pool.start,
        made.observers.model_pool.push_every,
        made.observers.model_pool.capacity,
    ) == (3, 30, 100)


def test_terms_look_through_their_panels():
    made = methods.build(recipe("iid-dm"))
    assert made.groups == ("observers", "classifiers")
    assert [need.key for need in made.specs()] == [
        "features.flat.Moments",
        "last_map.channels.LocalCovariance",
    ]
    assert made.specs("classifiers") == ()
    assert made.layer_roles("classifiers") == {LayerRole.FEATURES}


def test_a_term_that_does_not_count_needs_nobody():
    made = methods.build(recipe("iid-dm", terms={"centralization": {"weight": 0}}))
    assert made.groups == ("observers",)


def test_any_method_may_add_a_term():
    made = methods.build(
        recipe("dm", terms={"centralization": {"weight": 0.05, "form": "exponential", "beta": 0.7}})
    )
    assert [term.name for term in made.terms] == ["mean", "centralization"]
    assert made.groups == ("observers", "classifiers")


def test_trained_observers_are_guides_enough():
    made = methods.build(recipe("edc", terms={"centralization": {"weight": 0.05}}))
    assert made.groups == ("observers",)
    other = {"networks": ["convnet"], "pool": 1}
    assert (
        methods.build(
            recipe("edc", terms={"centralization": {"weight": 0.05}}, classifiers=other)
        ).groups[-1]
        == "classifiers"
    )


def test_guides_know_the_classes_where_observers_do_not():
    groups = {
        method: methods.build(recipe(method, terms={"cross_entropy": {"weight": 1}})).groups
        for method in ("dm", "edc", "idm")
    }
    assert groups == {
        "dm": ("observers", "classifiers"),
        "edc": ("observers",),
        "idm": ("observers",),
    }


def test_a_term_brings_its_moving_average():
    flat = {"flatness": {"weight": 1, "decay": 0.5}}
    assert methods.build(recipe("sre2l", terms=flat)).averaging == 0.5


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        ("dm", {"terms": {"centralisation": {"weight": 1}}}, "did you mean 'centralization'"),
        (
            "dm",
            {"terms": {"centralization": {"wait": 1}}},
            "did you mean 'terms.centralization.weight'",
        ),
        (
            "dm",
            {"terms": {"centralization": {"alpha": 0}}},
            "'terms.centralization.alpha'.*greater than 0",
        ),
        ("dm", {"terms": {"mean": {"wait": 1}}}, "did you mean 'terms.mean.weight'"),
        (
            "dm",
            {"terms": {"cross_entropy": {}}, "classifiers": {"trained": False}},
            "set 'classifiers.trained: true'",
        ),
        (
            "dm",
            {"terms": {"centralization": {}}, "classifiers": {"trained": False}},
            "set 'classifiers.trained: true'",
        ),
        ("iid-dm", {"ipc": 1}, "at least two images of a class.*iid-idm"),
        ("iid-dm", {"synthesis": {"block": "classes"}}, "in a block.*'synthesis.block: null'"),
        ("idm", {"real": "measured"}, "networks that change cannot be measured"),
        (
            "dm",
            {"classifiers": {"pool": 1, "per_step": 2}},
            "must not exceed the number of classifiers",
        ),
        (
            "dm",
            {"classifiers": {"squeeze": {"workers": 2}}},
            "'squeeze.workers' holds for classifiers too",
        ),
    ],
)
def test_what_cannot_be_followed_is_refused(method, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        recipe(method, **changes)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("iid-dm", {"ipc": 1, "synthetic": {"kind": "lowrank", "rank": 2}}),
        ("iid-idm", {"synthesis": {"block": "classes"}}),
    ],
)
def test_several_images_of_a_class_may_have_a_covariance(method, given):
    """Low-rank images are more than `ipc` of a class, and a partitioned one is four."""
    assert "covariance" in weights(method, **given)


def test_one_image_of_a_class_is_enough_where_it_is_expanded():
    assert methods.build(recipe("iid-idm", ipc=1)).terms
    assert methods.build(recipe("iid-dm", ipc=1, synthetic={"kind": "partitioned"})).terms
