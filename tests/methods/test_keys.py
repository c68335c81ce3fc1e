"""Keys of the statistics that methods compare with: they are part of cache keys, and seeds of
frequencies are derived from them, so they must not change.
"""

from types import SimpleNamespace

import pytest

from rayd import methods
from rayd.engine.stages.synthesis import synthesis_hash
from rayd.recipes import assemble, names, resolve

MEANS = "features.flat.Moments"
LOCAL = "last_map.channels.LocalCovariance"
NORMALIZATIONS = "bn_inputs.channels.Moments"
SEVERAL = [NORMALIZATIONS, "conv_inputs.channels.Moments", "conv_inputs.patches4.Moments"]
FILTERED = ["conv_path.channels.LabelCorrelation", "conv_path.channels.pooled.Covariance"]
KEYS = {
    "cafe": ["block_outputs.flat.Moments"],
    "cda": [NORMALIZATIONS],
    "cfm": FILTERED,
    "csdm": ["features.flat.CharacteristicFunction.gaussian-median-1024"],
    "datadam": ["block_outputs.attention4.normalized.Moments", MEANS],
    "datm": [],
    "dc": [],
    "dcc": [],
    "dm": [MEANS],
    "dsa": [],
    "dwa": [NORMALIZATIONS],
    "edc": SEVERAL,
    "frepo": [],
    "gvbsm": SEVERAL,
    "haba": [],
    "idc": [],
    "idm": [MEANS],
    "iid-dm": [MEANS, LOCAL],
    "iid-idm": [MEANS, LOCAL],
    "kip": [],
    "krr": [],
    "ls-mtt": [],
    "mtt": [],
    "ncfm": ["last_map.flat.normalized.CharacteristicFunction.gaussian-1.0-4096"],
    "rded": [],
    "sre2l": [NORMALIZATIONS],
    "tesla": [],
    "unidd": FILTERED,
}


@pytest.mark.parametrize("name", methods.names())
def test_keys_of_a_methods_statistics(name):
    trained = {"trained": True} if methods.get(name).needs_trained_observers else {}
    tree = {"method": name, "data": {"name": "digits"}, "ipc": 10, "observers": trained}
    method = methods.build(assemble(tree))
    assert [need.key for need in method.specs("observers")] == KEYS[name]
    assert method.specs("classifiers") == ()


def test_keys_of_the_statistics_of_all_recipes():
    found = set()
    for name in names():
        method = methods.build(resolve(name))
        found |= {need.key for group in method.groups for need in method.specs(group)}
    assert found == {key for keys in KEYS.values() for key in keys} | {
        "conv_inputs.patches16.Moments",
        # the filter of UniDD with other methods' networks
        "features.channels.LabelCorrelation",
        "features.channels.pooled.Covariance",
        "last_map.flat.normalized.CharacteristicFunction.gaussian-1.0-512",
    }


def test_version_of_a_method_is_in_the_key_of_its_sets(monkeypatch):
    """Other defaults of terms change results, but no setting that keys know of."""
    recipe = assemble({"method": "dm", "data": {"name": "digits"}})

    def key() -> str:
        data = SimpleNamespace(fingerprint="data")
        job = SimpleNamespace(recipe=recipe, method=methods.build(recipe), data=data)
        return synthesis_hash(job)

    before = key()
    assert key() == before
    monkeypatch.setattr(methods.DistributionMatching, "version", 1)
    assert key() != before
    assert (methods.get("dc").version, methods.get("dcc").version, methods.get("idc").version) == (
        0,
        1,
        1,
    )


def test_settings_of_hallucinators_leave_the_keys_of_other_sets_as_they_were():
    plain = assemble({"method": "dm", "data": {"name": "digits"}}).identity()["synthetic"]
    assert not {"hallucinators", "kernel_size"} & plain.keys()
    tree = {"method": "haba", "data": {"name": "digits"}, "synthetic": {"hallucinators": 3}}
    assert assemble(tree).identity()["synthetic"]["hallucinators"] == 3
