"""Settings are validated, mistakes are named, and what is written is read back."""

from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
import yaml

from rayd import methods
from rayd.config import (
    Recipe,
    Settings,
    When,
    flat,
    lookup,
    merge,
    nested,
    parse_overrides,
    read_yaml,
    validate,
)
from rayd.config.reading import RENAMED_BY_METHOD
from rayd.errors import ConfigError
from rayd.recipes import assemble, names, resolve, restore

LEAST = {"method": "dm", "data": {"name": "digits"}}


def test_yaml_round_trip():
    recipe = validate(
        Recipe, merge(LEAST, {"observers": {"networks": "mlp"}, "terms": {"mean": {"weight": 2}}})
    )
    assert recipe.observers.networks[0].name == "mlp"
    assert validate(Recipe, yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("tree", "sentence"),
    [
        ({"ipx": 3}, "Unknown setting 'ipx'.*did you mean 'ipc'"),
        ({"synthesis": {"lerning_rate": 3}}, "did you mean 'synthesis.learning_rate'"),
        (
            {"evaluation": {"networks": [{"name": "mlp", "widht": 3}]}},
            "did you mean 'evaluation.networks.0.width'",
        ),
        ({"terms": {"mean": {"weight": -3}}}, "'terms.mean.weight'.*greater than or equal to 0"),
        ({"ipc": 0}, "'ipc'.*greater than or equal to 1.*Got 0"),
        ({"ipc": "many"}, "'ipc'.*integer.*Got 'many'"),
        # what YAML makes of `on` and `yes`
        ({"ipc": True}, "'ipc'.*integer.*Got 'true'"),
        ({"synthesis": {"learning_rate": False}}, "'synthesis.learning_rate'.*Got 'false'"),
        ({"data": {"name": "digits", "image_size": True}}, "'data.image_size'.*Got 'true'"),
        (
            {"data": {"name": "digits", "validation_fraction": 1.0}},
            "validation_fraction.*less than 1",
        ),
        ({"evaluation": {"learning_rate": float("inf")}}, "learning_rate.*finite"),
        ({"resources": {"device": "tpu"}}, "'resources.device'.*pattern"),
        ({"resources": {"address": "here:1"}}, "needs 'workers' above 0"),
        ({"synthesis": {"block": "clases"}}, "'synthesis.block'.*'classes'.*Got 'clases'"),
        ({"synthesis": {"block": 0}}, "'synthesis.block'.*of at least 1.*Got 0"),
        (
            {"synthesis": {"block": "classes", "order": "class"}},
            "one image of each class: set 'synthesis.order: turn'",
        ),
        ({"observers": {"pool": 2, "per_step": 3}}, "must not exceed the number of observers"),
    ],
)
def test_a_mistake_is_named(tree, sentence):
    with pytest.raises(ConfigError, match=sentence):
        validate(Recipe, merge(LEAST, tree))


def test_a_missing_setting_is_named():
    with pytest.raises(ConfigError, match="'method' is missing"):
        validate(Recipe, {"data": {"name": "digits"}})


def test_overrides_are_yaml_and_nest():
    tree = parse_overrides(
        [
            "synthesis.learning_rate=1e-3",
            "evaluation.networks=[mlp, convnet]",
            "real=sampled",
            "ipc=2",
        ]
    )
    assert tree == {
        "synthesis": {"learning_rate": 1e-3},
        "evaluation": {"networks": ["mlp", "convnet"]},
        "real": "sampled",
        "ipc": 2,
    }
    assert parse_overrides(["observers.augmentation=null", "a.b=1", "a.c=2"])["a"] == {
        "b": 1,
        "c": 2,
    }


def test_a_term_is_named_by_its_place_in_a_dotted_key():
    tree = parse_overrides(["terms.my_package.terms:Mine.weight=0.1", "terms.mean.weight=2"])
    assert tree == {"terms": {"my_package.terms:Mine": {"weight": 0.1}, "mean": {"weight": 2}}}
    assert lookup(tree, "terms.my_package.terms:Mine.weight") == 0.1
    assert nested(flat(tree)) == tree


def test_data_are_named_by_a_word_or_a_path():
    under = {"data": {"name": "digits", "validation_fraction": 0.2}}
    wanted = {"data": {"name": "/my/images", "validation_fraction": 0.2}}
    assert merge(under, parse_overrides(["data=/my/images"])) == wanted
    assert merge(under, {"data": Path("/my/images")}) == wanted
    both = parse_overrides(["data=/my/images", "data.image_size=32"])
    assert both == parse_overrides(["data.name=/my/images", "data.image_size=32"])
    assert merge({}, {"data": "cifar10"}) == {"data": {"name": "cifar10"}}


@pytest.mark.parametrize(
    "name", ["photos #1", "2024", "2024-01-05", "1e3", "on", "[x]", "a: b", "@new"]
)
@pytest.mark.parametrize("key", ["data", "data.name"])
def test_names_of_data_are_taken_as_they_are_typed(key, name):
    assert resolve("digits", parse_overrides([f"{key}={name}"])).data.name == name


def test_quoted_names_of_data_and_colours_are_read():
    tree = parse_overrides(['data="photos #1"', "data.background=#00ff00"])
    assert tree == {"data": {"name": "photos #1", "background": "#00ff00"}}
    assert parse_overrides(["data={name: cifar10}"]) == {"data": {"name": "cifar10"}}


def test_a_key_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"must have the form key or key\.sub"):
        resolve("digits", {1: 2})


def test_a_value_in_place_of_a_list_is_refused_with_the_form_of_a_list():
    with pytest.raises(
        ConfigError, match=r"must fit: it is a list, as in evaluation\.epoch=\[\.\.\.\]"
    ):
        validate(Recipe, merge(LEAST, {"evaluation": {"epoch": 5}}))


@pytest.mark.parametrize(
    "tree", [{"data": {"path": "/x"}}, {"data_path": "/x"}, {"dataset": "/x"}, {"path": "/x"}]
)
def test_other_words_for_own_data_are_refused_with_the_right_one(tree):
    with pytest.raises(ConfigError, match=r"Unknown setting .* Use data=PATH for your own data"):
        validate(Recipe, merge(LEAST, tree))


def test_an_image_size_is_proposed_that_suits_the_networks():
    assert validate(Recipe, LEAST).usual_image_size == 32
    large = {"evaluation": {"networks": "torchvision/resnet18"}}
    assert validate(Recipe, merge(LEAST, large)).usual_image_size == 224


@pytest.mark.parametrize("argument", ["ipc", "=3", "a..b=3", ".a=3", "a=[1"])
def test_a_malformed_override_is_refused(argument):
    with pytest.raises(ConfigError, match="override"):
        parse_overrides([argument])


def test_a_network_named_by_a_word_takes_options():
    assert merge({"networks": ["convnet"]}, {"networks": {"width": 8}}) == {
        "networks": [{"name": "convnet", "width": 8}]
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- 1", "must hold a mapping"),
        ("a: 1\nb: [", "not valid YAML: .* in line 2"),
        ("a: 2020-13-45", "not valid YAML: month"),
        ("[" * 5000, "YAML"),
        (None, "Cannot read"),
    ],
)
def test_an_unreadable_recipe_file_is_refused(tmp_path, content, sentence):
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        read_yaml(path)


SOFT = {"labels": {"kind": "online"}, "evaluation": {"loss": "mse"}}
MOVING = {"filter": {"schedule": {"name": "step"}}}


@pytest.mark.parametrize(
    ("method", "tree", "sentence"),
    [
        (
            "dm",
            {"synthetic": {"factor": 3}},
            "'synthetic.factor' has no effect.* 'synthetic.kind: partitioned'. Got '.*: pixels'",
        ),
        (
            "dm",
            {"synthetic": {"rank": 3}},
            "'synthetic.rank' has no effect.* 'synthetic.kind: lowrank'",
        ),
        (
            "dm",
            {"synthetic": {"patches": 3}},
            "'synthetic.patches' has no effect.* 'synthetic.init: rded'",
        ),
        (
            "dm",
            {"synthesis": {"second_momentum": 0.5}},
            "belongs to 'synthesis.optimizer: adam'. Got '.*: sgd'",
        ),
        (
            "dm",
            {"synthesis": {"shared_view": True}},
            "'synthesis.shared_view' has no effect without a view",
        ),
        (
            "dm",
            {"synthesis": {"curriculum_end": 0.5}},
            "'synthesis.curriculum: cosine' or 'synthesis.curriculum: linear' or",
        ),
        (
            "dm",
            {"synthesis": {"transform": {"magnitude": 3}}},
            "'synthesis.transform.rand_augment above 0'. Got .*: 0'",
        ),
        (
            "dm",
            {"evaluation": {"schedule": {"stretch": 2.0}}},
            "'evaluation.schedule.stretch' has no effect.* Got '.*name: restart'",
        ),
        (
            "dm",
            {"evaluation": {"mix_concentration": 2.0}},
            "'evaluation.mix: cutmix'.* Got 'evaluation.mix: none'",
        ),
        (
            "dm",
            {"evaluation": {"hard_weight": 0.5}},
            "belongs to 'evaluation.loss: kl' or 'evaluation.loss: mse'",
        ),
        (
            "dm",
            {"labels": {"networks": "mlp"}},
            "'labels.networks' has no effect.* 'labels.kind: online' or",
        ),
        (
            "dm",
            merge(SOFT, {"evaluation": {"temperature": 3}}),
            "belongs to 'evaluation.loss: kl'. Got 'evaluation.loss: mse'",
        ),
        (
            "dm",
            {"observers": {"real_batch": 8}},
            "'observers.real_batch' has no effect.* 'real: sampled'. Got 'real: measured'",
        ),
        (
            "dm",
            {"experts": {"epochs": 8}},
            "'experts' has no effect.* method 'dm' uses no experts",
        ),
        (
            "dm",
            {"synthesis": {"order": "class"}},
            "'synthesis.order' has no effect.* set 'synthesis.block'",
        ),
        (
            "dm",
            {"squeeze": {"epochs": 8}},
            "'squeeze' has no effect.* trains no observers here",
        ),
        (
            "dm",
            {"classifiers": {"pool": 2}},
            "'classifiers' has no effect.* is computed in classifiers",
        ),
        (
            "idm",
            {"observers": {"model_pool": {"train_epochs": 1, "train_steps": 2}}},
            "train_epochs: null'. Got '.*train_epochs: 1'",
        ),
        (
            "idm",
            {"observers": {"model_pool": {"trained": "used", "trained_per_step": 1}}},
            "'observers.model_pool.trained: drawn'",
        ),
        ("mtt", {"experts": {"flat_weight": 0.3}}, "'experts.flat_radius above 0'"),
        (
            "mtt",
            {"observers": {"networks": "mlp"}},
            "'observers.networks' has no effect.* are those of 'experts.network'",
        ),
        ("mtt", {"observers": {"pool": 3}}, "'observers.pool' has no effect"),
        ("mtt", {"observers": {"trained": True}}, "'observers.trained' has no effect"),
        ("mtt", {"observers": {"augmentation": "flip"}}, "have 'objective.augmentation'"),
        ("mtt", {"observers": {"per_step": 2}}, "averages over 'objective.per_step' students"),
        ("mtt", {"real": "sampled"}, "'real' has no effect.* is computed in observers"),
        (
            "mtt",
            {"objective": {"start": {"offset": 2}}},
            "'objective.start.schedule: progressive'. Got '.*: uniform'",
        ),
        (
            "csdm",
            {"terms": {"characteristic_function": {"smoothness": 0.5}}},
            "'terms.characteristic_function.kernel: matern'. Got 'terms.characteristic_function.kernel: gaussian'",
        ),
        (
            "csdm",
            {"terms": {"characteristic_function": {"kernel": "linear", "frequencies": 2}}},
            "'terms.characteristic_function.frequencies' has no effect",
        ),
        (
            "ncfm",
            {"terms": {"characteristic_function": {"sampling_rate": 0.1}}},
            "'terms.characteristic_function.sampling_network: true'. Got '.*: false'",
        ),
        (
            "unidd",
            {"terms": {"spectral_filter": {"filter": {"alpha": 0.1}}}},
            "'terms.spectral_filter.filter.name: gradient' or .* Got '.*: ridge'",
        ),
        (
            "unidd",
            {"terms": {"spectral_filter": merge(MOVING, {"filter": {"schedule": {"cycles": 3}}})}},
            "schedule.name: cyclic'. Got '.*: step'",
        ),
        (
            "unidd",
            {"terms": {"spectral_filter": {"signal_weight": 0, "signal": "mean"}}},
            "'terms.spectral_filter.signal_weight above 0'",
        ),
    ],
)
def test_a_setting_of_another_variant_is_refused(method, tree, sentence):
    least = {"method": method, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match=sentence):
        assemble(merge(least, tree))
    with pytest.raises(ConfigError, match=sentence):
        assemble(least, tree)


def test_a_recipe_that_a_run_wrote_down_is_read_with_settings_without_effect():
    least = {"method": "mtt", "data": {"name": "digits"}, "synthetic": {"step_size": 0.1}}
    written = merge(least, {"observers": {"augmentation": "flip"}})
    assert restore(written) == assemble(least)


def test_an_override_says_what_counts_even_where_it_says_the_default():
    with pytest.raises(ConfigError, match=r"'synthetic.factor' has no effect"):
        assemble(LEAST, {"synthetic": {"factor": 2}})
    assert assemble(LEAST, {"synthetic": {"budget": None}}) == assemble(LEAST)


@pytest.mark.parametrize(
    ("name", "switch", "dropped"),
    [
        ("ncfm-cifar10-ipc1", {"synthetic": {"kind": "pixels"}}, ("synthetic", "factor", 2)),
        (
            "sre2l-cifar10-ipc1",
            {"synthesis": {"optimizer": "sgd"}},
            ("synthesis", "second_momentum", 0.999),
        ),
        (
            "edc-digits",
            {"evaluation": {"schedule": {"name": "constant"}}},
            ("evaluation", "schedule", "stretch", 1.0),
        ),
        (
            "edc-digits",
            {"labels": {"kind": "hard"}, "evaluation": {"loss": "cross-entropy"}},
            ("evaluation", "hard_weight", 0.0),
        ),
        ("datm-cifar10-ipc10", {"experts": {"flat_radius": 0}}, ("experts", "flat_weight", 1.0)),
    ],
)
def test_what_a_recipe_says_of_the_variant_that_an_override_leaves_is_dropped(
    name, switch, dropped
):
    switched = resolve(name, switch)
    found = switched.model_dump(mode="json")
    *path, value = dropped
    for key in path:
        found = found[key]
    assert found == value
    assert assemble(yaml.safe_load(switched.to_yaml())) == switched


@pytest.mark.parametrize("name", names())
def test_what_a_run_writes_down_is_a_recipe_again(name):
    recipe = resolve(name)
    assert assemble(yaml.safe_load(recipe.to_yaml())) == recipe


def classes_in(annotation):
    """The settings that an annotation names, and those inside them."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
        for field in annotation.model_fields.values():
            yield from classes_in(field.annotation)
    for inner in get_args(annotation):
        yield from classes_in(inner)


def words_in(annotation):
    """The words that an annotation allows."""
    return {
        word
        for part in (annotation, *get_args(annotation))
        for word in get_args(part)
        if isinstance(word, str)
    }


def test_conditions_name_settings_and_words_that_exist():
    known = {*classes_in(Recipe)}.union(
        *(classes_in(methods.get(name).settings_type) for name in methods.names()),
        *(
            classes_in(type(term))
            for name in methods.names()
            for term in methods.get(name).objective(resolve("digits"))
        ),
    )
    conditions = 0
    for kind in known:
        for mark in chain.from_iterable(field.metadata for field in kind.model_fields.values()):
            if isinstance(mark, When):
                other = kind.model_fields[mark.key]
                words = {value for value in mark.values if isinstance(value, str)}
                assert words <= words_in(other.annotation)
                conditions += 1
    assert conditions > 30


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("csdm-digits", "characteristic_function"),
        ("ncfm-digits", "characteristic_function"),
        ("cfm-digits", "spectral_filter"),
    ],
)
def test_the_former_name_of_a_term_warns_and_counts(name, term, caplog):
    """In a recipe of the version before, and on a command line; identities stay what they were."""
    new = resolve(name, {f"terms.{term}.weight": 0.25})
    assert not caplog.records
    old = resolve(name, {"terms.spectral.weight": 0.25})
    (record,) = caplog.records
    assert f"'terms.spectral' in recipe '{name}' is called 'terms.{term}' now" in record.message
    assert old == new
    assert new.terms[term].weight == 0.25
    assert new.identity()["terms"] == {"spectral": {"weight": 0.25}}


def test_the_former_name_of_a_value_warns_and_counts(caplog):
    given = {"observers.model_pool.trained": "looking"}
    old = resolve("dc-digits", given)
    (record,) = caplog.records
    assert "The value 'looking' of 'observers.model_pool.trained'" in record.message
    assert "is called 'used' now" in record.message
    assert old.observers.model_pool.trained == "used"
    assert old == resolve("dc-digits", {"observers.model_pool.trained": "used"})
    assert old.identity()["observers"]["queue"]["trained"] == "looking"


def test_a_former_name_of_one_method_is_no_name_in_another():
    with pytest.raises(ConfigError, match="Unknown term 'spectral'"):
        resolve("digits", {"terms.spectral.weight": 1})


FORMER = {
    "csdm-digits": {"split": "rank", "scale": 2.0},
    "ncfm-digits": {"frequencies": 8, "sampling_network": True},
    "cfm-digits": {"filter": {"beta": 0.5}, "updating": False},
    "edc-digits": {"alpha": 0.25, "flatness_decay": 0.5, "densification_temperature": 2.0},
    "frepo-digits": {"relative_ridge": 0.5},
}
"""Settings of objectives that are those of terms now."""


@pytest.mark.parametrize("name", FORMER)
def test_former_settings_of_an_objective_are_settings_of_terms(name, caplog):
    """They warn, count as the new ones, and stand in the recipe's identity as they did."""
    old = resolve(name, {"objective": FORMER[name]})
    assert len(caplog.records) == len(FORMER[name])
    assert "will be refused by the next version" in caplog.text
    caplog.clear()
    renamed = RENAMED_BY_METHOD[old.method]
    new = resolve(name, {renamed[f"objective.{key}"]: value for key, value in FORMER[name].items()})
    assert not caplog.records
    assert old == new != resolve(name)
    identity = new.identity()
    for key, value in FORMER[name].items():
        kept = identity["objective"][key]
        assert (kept["beta"] if isinstance(value, dict) else kept) == (
            value["beta"] if isinstance(value, dict) else value
        )
    assert set(identity["terms"]) == {
        "spectral" if term in ("spectral_filter", "characteristic_function") else term
        for term, given in new.terms.items()
        if given.weight is not None
    }


@pytest.mark.parametrize("name", FORMER)
def test_a_resolved_recipe_reads_back_to_itself(name):
    """As the `config.yaml` of a run is read."""
    recipe = resolve(name)
    assert assemble(yaml.safe_load(recipe.to_yaml())) == recipe
    assert assemble(yaml.safe_load(recipe.to_yaml())).identity() == recipe.identity()


def test_what_reads_the_same_pixels_is_the_same_recipe():
    recipe = resolve("digits")
    for settings in ({"stream": True}, {"copies": "keep"}):
        other = recipe.data.model_copy(update=settings)
        assert recipe.model_copy(update={"data": other}).identity() == recipe.identity()
    grey = recipe.data.model_copy(update={"mode": "grey"})
    assert recipe.model_copy(update={"data": grey}).identity() != recipe.identity()


@pytest.mark.parametrize("given", [{"pool": 3}, {"squeeze": {"epochs": 30}}])
def test_classifiers_learn_from_images_as_they_are_whatever_else_is_set(given):
    """As in IID's released code; the shift and flip of `squeeze` are no defaults of theirs."""
    resolved = resolve(
        "dm-cifar10-ipc10", {"terms.centralization.weight": 0.1} | {"classifiers": given}
    )
    assert resolved.classifiers.squeeze.transform.summary == ""
