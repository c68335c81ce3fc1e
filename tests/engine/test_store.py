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
