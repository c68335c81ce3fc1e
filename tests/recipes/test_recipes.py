"""Every built-in recipe is valid, cites its method, and says where its numbers come from."""

import re
from itertools import product

import pytest
import torchvision

from rayd import methods, recipes, results
from rayd.citations import DSA, NETWORKS, citations
from rayd.config import MeasuredResult, Recipe, packaged_yaml
from rayd.config.reading import nested, without
from rayd.errors import ConfigError
from rayd.evaluation.scores import label_robust_score
from rayd.networks import registry

CELL = re.compile(
    r"(?P<method>ls-mtt|iid-[a-z]+|[a-z0-9]+)-(?P<data>.+?)(-lt(?P<imbalance>\d+))?-ipc(?P<ipc>\d+)(-sampled)?"
)
LADDER = {
    "a b": {"synthetic.init", "synthetic.patches", "synthesis.steps"},
    "b c": {"evaluation.schedule.stretch"},
    "c d": {"terms.flatness.weight"},
    "d d-zeta": {"evaluation.schedule.stretch"},
    "d-zeta d-batch": {"evaluation.batch_size"},
    "d-batch d-observers": {"observers.networks"},
    "d-observers e": {"labels.networks"},
    "e f": {"terms.moments.alpha"},
    "f g": {"synthesis.transform.crop", "evaluation.average"},
}
"""What each configuration of EDC's ladder changes in the one before."""


def settings(recipe, prefix=""):
    """Every setting of a recipe, by its path; not what only describes it."""
    tree = (
        recipe.model_dump(mode="json", exclude={"name", "summary", "paper", "measured"})
        if isinstance(recipe, Recipe)
        else recipe
    )
    flat = {}
    for key, value in tree.items():
        whole = not isinstance(value, dict) or not value
        flat |= {prefix + key: value} if whole else settings(value, f"{prefix}{key}.")
    return flat


def changed(one, other):
    """The paths at which two recipes differ."""
    one = settings(recipes.resolve(one))
    other = settings(recipes.resolve(other))
    missing = object()
    return {key for key in one | other if one.get(key, missing) != other.get(key, missing)}


def number(name):
    """The accuracy of a recipe as its paper has it."""
    own = recipes.resolve(name).paper[0]
    assert own.of_recipe
    return own.value


def test_citations_are_of_experts_where_nothing_is_computed_in_observers():
    # an MLP everywhere, and no augmentation: the observers' ConvNet and DSA have no part in it
    assert not any(entry in (DSA, NETWORKS["convnet"]) for entry in cited("ls-mtt-digits"))
    followed = cited("ls-mtt-digits", {"experts.network.name": "convnet"})
    assert NETWORKS["convnet"] in followed
    augmented = cited("ls-mtt-digits", {"objective.augmentation": "crop_scale"})
    assert DSA in augmented


def cited(name, settings=None):
    """What a recipe with these settings, by dotted key, cites."""
    recipe = recipes.resolve(name, nested(settings) if settings else None)
    return citations(recipe, methods.get(recipe.method).citation)


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_whole(name):
    recipe = recipes.resolve(name)
    assert recipe.name == name
    assert recipe.summary
    assert citations(recipe, methods.get(recipe.method).citation)[0].startswith("@")
    if recipe.paper:
        assert "random" in recipe.evaluation.baselines
    assert (
        recipes.assemble(Recipe.model_validate_json(recipe.model_dump_json()).model_dump())
        == recipe
    )


@pytest.mark.parametrize("name", recipes.names())
def test_builtin_recipe_fits_its_method(name):
    """No layer of it says anything superfluous, but the observers that all methods of one table
    share.
    """
    tree = recipes.read(name)
    recipe = recipes.resolve(name)
    if "observers.networks" in methods.build(recipe).unused:
        tree = without(tree, ["observers.networks"])
    assert recipes.assemble(tree) == recipe


def test_headlines_are_those_of_whole_recipes():
    headlines = recipes.headlines()
    assert [headline.name for headline in headlines] == recipes.names()
    for headline in headlines:
        recipe = recipes.resolve(headline.name)
        wanted = {
            key: getattr(recipe, key)
            for key in ("name", "method", "ipc", "summary", "paper", "measured")
        }
        assert {**wanted, "data": recipe.data.name} == dict(headline)


@pytest.mark.parametrize("name", [name for name in recipes.names() if CELL.fullmatch(name)])
def test_a_cell_is_the_one_that_it_is_named_for(name):
    cell = CELL.fullmatch(name)
    recipe = recipes.resolve(name)
    assert (recipe.method, recipe.ipc) == (cell["method"], int(cell["ipc"]))
    assert recipe.data.imbalance == float(cell["imbalance"] or 1)
    if cell["data"] == "imagenet-10":
        assert (recipe.data.name, recipe.data.image_size, len(set(recipe.data.classes))) == (
            "imagenet-1k",
            224,
            10,
        )
        assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in recipe.data.classes)
    else:
        assert (recipe.data.name, recipe.data.classes) == (cell["data"], None)


@pytest.mark.parametrize("name", recipes.names())
def test_every_network_of_a_recipe_exists(name):
    recipe = recipes.resolve(name)
    models = torchvision.models.list_models(module=torchvision.models)
    for spec in (
        *recipe.observers.networks,
        *recipe.evaluation.networks,
        *(recipe.labels.networks or ()),
    ):
        prefix, _, model = spec.name.rpartition("/")
        assert model in (models if prefix == "torchvision" else registry.names())


def test_only_pretrained_observers_are_not_squeezed():
    for name in recipes.names():
        recipe = recipes.resolve(name)
        if methods.get(recipe.method).needs_trained_observers:
            given = {spec.weights is not None for spec in recipe.observers.networks}
            assert given == {recipe.squeeze.epochs == 0}, name


@pytest.mark.parametrize("step", LADDER)
def test_a_step_of_edcs_ladder_changes_what_it_names(step):
    before, after = step.split()
    assert changed(f"edc-config-{before}", f"edc-config-{after}") == LADDER[step]


def test_edcs_ladder_is_whole_and_ends_in_edc():
    names = {name for name in recipes.names() if name.startswith("edc-config-")}
    assert names == {f"edc-config-{one}" for step in LADDER for one in step.split()}
    accuracies = [number(f"edc-config-{letter}") for letter in "abcdefg"]
    assert accuracies == sorted(accuracies)
    # the same meaning; which terms a file names besides may differ
    assert not changed("edc-config-g", "edc-imagenet-1k-ipc10") - {"terms.flatness.weight"}
    assert number("edc-config-g") == number("edc-imagenet-1k-ipc10")


def test_results_are_of_recipes_and_whole():
    assert set(results.entries()) <= set(recipes.names())
    for name, entries in results.entries().items():
        measured = recipes.resolve(name).measured
        assert [MeasuredResult(**entry) for entry in entries] == list(measured), name
        assert all(name in entry.command for entry in measured), name


def test_scores_of_results_agree_with_their_accuracies():
    for name, entries in results.entries().items():
        for entry in entries:
            if {"ior", "random"} <= entry.keys():
                assert entry["ior"] == pytest.approx(
                    entry["accuracy"] - entry["random"], abs=2e-3
                ), name
            if {"ior", "hlr", "lrs"} <= entry.keys():
                lrs = label_robust_score(entry["ior"], entry["hlr"])
                assert entry["lrs"] == pytest.approx(lrs, abs=2e-3), name


def test_a_table_has_the_results_of_its_cells():
    for path in results.FOLDER.glob("*.yaml"):
        tables = {recipes.find(name).name for name in packaged_yaml(path)}
        assert tables == {path.name}


def test_csdm_has_every_long_tailed_cell():
    cells = product(("cifar10", "cifar100"), (10, 20, 50, 100, 200), (10, 20, 50))
    wanted = {f"csdm-{data}-lt{imbalance}-ipc{ipc}" for data, imbalance, ipc in cells}
    assert wanted == {
        name
        for name in recipes.names()
        if name.startswith("csdm-cifar") and not name.endswith(("-reduced", "-equal"))
    }
    for name in wanted:
        recipe = recipes.resolve(name)
        tail = {"cifar10": 5000, "cifar100": 500}[recipe.data.name] / recipe.data.imbalance
        assert ("gives them repeatedly" in recipe.summary) == (tail < recipe.ipc), name


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: dm\ndata: {name: digits}\nsynthesis: {steps: 7, momentum: 0.1}\n")
    recipe = recipes.resolve(path, {"synthesis": {"steps": 9}})
    assert (recipe.name, recipe.synthesis.steps, recipe.synthesis.momentum, recipe.ipc) == (
        "mine",
        9,
        0.1,
        1,
    )


def test_the_papers_number_stays_with_its_cell():
    assert recipes.resolve("dm-cifar10-ipc10", {"synthesis": {"steps": 9}}).paper
    assert recipes.resolve("dm-cifar10-ipc10", {"ipc": 20}).paper == ()
    assert recipes.resolve("dm-cifar10-ipc10", {"data": {"name": "svhn"}}).paper == ()


def test_unknown_recipe_names_the_nearest_and_not_all():
    with pytest.raises(ConfigError) as refused:
        recipes.resolve("edc-cifar10-ipc100")
    sentence = str(refused.value)
    assert (
        "did you mean 'edc-cifar10-ipc10', 'dc-cifar10-ipc100' or 'edc-cifar100-ipc10'?" in sentence
    )
    assert "'rayd recipes' lists all of them" in sentence
    assert len(sentence) < 250


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"ipc": 20}, "dm-cifar10-ipc20"),
        ({"method": "rded"}, "rded-cifar10-ipc10"),
        ({"data": "/pictures/my flowers.npz"}, "dm-my-flowers-ipc10"),
        ({"data.imbalance": 50, "ipc": 1}, "dm-cifar10-lt50-ipc1"),
        ({"ipc": 20, "name": "mine"}, "mine"),
    ],
)
def test_another_cell_is_named_by_what_it_is(overrides, name):
    recipe = recipes.resolve("dm-cifar10-ipc10", overrides)
    assert recipe.name == name
    if name != "mine":
        assert recipe.summary.startswith("Recipe 'dm-cifar10-ipc10' with other settings: ")


def test_settings_that_leave_the_cell_leave_the_name():
    for overrides in ({"synthesis.steps": 9}, {"data": {"stream": True}}, {"seed": 4}):
        recipe = recipes.resolve("dm-cifar10-ipc10", overrides)
        assert (recipe.name, bool(recipe.paper)) == ("dm-cifar10-ipc10", True)


def test_defaults_said_aloud_do_not_leave_the_cell():
    recipe = recipes.resolve("dm-cifar10-ipc10", {"data": {"classes": None, "imbalance": 1}})
    assert recipe == recipes.resolve("dm-cifar10-ipc10")


def test_data_may_be_left_to_the_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("method: dm\n")
    recipe = recipes.resolve(path, {"data": "digits"})
    assert (recipe.data.name, recipe.ipc) == ("digits", 1)


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        (None, 1),
        ({"synthesis.steps": 5}, 1),
        ({"ipc": 5}, 1),
        # once more without what the recipe says of another parameterisation
        ({"synthetic.kind": "pixels"}, 2),
    ],
)
def test_recipe_is_validated_once(monkeypatch, overrides, times):
    validated = []
    validate = Recipe.model_validate
    monkeypatch.setattr(
        Recipe, "model_validate", lambda tree: validated.append(validate(tree)) or validated[-1]
    )
    recipes.resolve("ls-mtt-digits", overrides)
    assert len(validated) == times


def test_a_directory_is_no_recipe_but_may_be_data_or_a_run(tmp_path):
    advice = f"'rayd distill digits data={tmp_path}', and .* interrupted run, use --resume"
    with pytest.raises(ConfigError, match=advice):
        recipes.resolve(tmp_path)
    (tmp_path / "config.yaml").write_text("method: dm\n")
    with pytest.raises(ConfigError, match=f"its recipe is '{tmp_path}/config.yaml'"):
        recipes.resolve(tmp_path)


def test_names_near_and_far():
    with pytest.raises(ConfigError, match="did you mean 'dm-cifar10-ipc1'"):
        recipes.resolve("dm-cifar10-ipc2")
    with pytest.raises(ConfigError, match="Cannot read the recipe"):
        recipes.resolve("there/is/none.yaml")
