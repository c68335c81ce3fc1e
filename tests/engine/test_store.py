"""The cache: found under equal inputs only, damaged entries are recomputed."""

import torch

from rayd.engine.store import Store, default_root


def test_found_under_equal_inputs_only(tmp_path):
    store = Store(tmp_path)
    store.put_tensors("measure", {"a": 1, "b": "x"}, {"t": torch.ones(2)})
    found = store.tensors("measure", {"b": "x", "a": 1})
    assert found is not None
    assert torch.equal(found["t"], torch.ones(2))
    assert store.tensors("measure", {"a": 2, "b": "x"}) is None
    assert store.tensors("other", {"a": 1, "b": "x"}) is None


def test_records_round_trip(tmp_path):
    Store(tmp_path).put_record("students", {"seed": 1}, {"accuracy": 0.5})
    assert Store(tmp_path).record("students", {"seed": 1}) == {"accuracy": 0.5}


def test_damaged_entries_count_as_absent(tmp_path, caplog):
    store = Store(tmp_path)
    store.put_tensors("measure", {"a": 1}, {"t": torch.ones(2)})
    store.put_record("students", {"a": 1}, {"accuracy": 0.5})
    for file in tmp_path.rglob("*.*"):
        file.write_bytes(file.read_bytes()[:-5])
    assert store.tensors("measure", {"a": 1}) is None
    assert store.record("students", {"a": 1}) is None
    assert "Recomputing it." in caplog.text


def test_the_root_can_be_set(monkeypatch, tmp_path):
    monkeypatch.setenv("RAYD_CACHE", str(tmp_path / "elsewhere"))
    assert Store().root == default_root() == tmp_path / "elsewhere"


def test_results_of_another_device_are_found_where_there_are_none_of_ones_own(tmp_path):
    Store(tmp_path).put_tensors("squeeze", {"a": 1, "device": "cuda"}, {"t": torch.ones(2)})
    Store(tmp_path).put_record("students", {"a": 1, "device": "cuda"}, {"accuracy": 0.5})
    store = Store(tmp_path)
    asked = {"a": 1, "device": "cpu"}
    assert store.resolve("squeeze", asked, "safetensors")["device"] == "cuda"
    assert store.has("squeeze", asked, "safetensors")
    assert store.tensors("squeeze", asked) is not None
    assert store.note("squeeze", asked)["inputs"]["device"] == "cuda"
    assert store.record("students", asked) == {"accuracy": 0.5}
    assert store.tensors("squeeze", {"a": 2, "device": "cpu"}) is None


def test_the_choice_of_a_device_holds_until_the_result_is_computed_here(tmp_path):
    """What was computed from a result is never filed under that of a concurrent run."""
    asked = {"device": "cpu"}
    Store(tmp_path).put_tensors("squeeze", {"device": "cuda"}, {"t": torch.ones(2)})
    store = Store(tmp_path)
    assert store.resolve("squeeze", asked, "safetensors")["device"] == "cuda"
    Store(tmp_path).put_tensors("squeeze", asked, {"t": torch.zeros(2)})
    assert store.resolve("squeeze", asked, "safetensors")["device"] == "cuda"
    assert Store(tmp_path).resolve("squeeze", asked, "safetensors") == asked
    store.put_tensors("squeeze", asked, {"t": torch.zeros(2)})
    assert store.resolve("squeeze", asked, "safetensors") == asked


def test_a_damaged_result_of_another_device_is_computed_here(tmp_path):
    Store(tmp_path).put_tensors("squeeze", {"device": "cuda"}, {"t": torch.ones(2)})
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-5])
    store = Store(tmp_path)
    assert store.tensors("squeeze", {"device": "cpu"}) is None
    assert store.resolve("squeeze", {"device": "cpu"}, "safetensors") == {"device": "cpu"}
