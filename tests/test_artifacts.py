"""Files are whole or not there, never pickles, and equal content gives equal bytes."""

import json
import pickle

import pytest
import torch

from rayd import artifacts
from rayd.artifacts import read_tensors, write_tensors
from rayd.errors import ArtifactError, RunError


def test_tensors_and_metadata_round_trip(tmp_path):
    tensors = {"b": torch.arange(3), "a": torch.rand(2, 2).bfloat16()}
    artifacts.write_tensors(
        tmp_path / "deep" / "x.safetensors", tensors, {"step": 3, "list": [1, "two"]}
    )
    back, metadata = artifacts.read_tensors(tmp_path / "deep" / "x.safetensors")
    assert metadata == {"step": 3, "list": [1, "two"]}
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_equal_content_gives_equal_bytes(tmp_path):
    metadata = {f"key{i}": i for i in range(20)}
    for name, order in (("x", 1), ("y", -1)):
        items = list({"a": torch.ones(2), "b": torch.zeros(3)}.items())[::order]
        artifacts.write_tensors(tmp_path / name, dict(items), dict(list(metadata.items())[::order]))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_no_temporary_file_is_left(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"x": 1})
    artifacts.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_all_files_are_as_readable_as_the_user_wants(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"x": 1})
    artifacts.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_failed_write_leaves_the_old_file_and_says_why(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises((TypeError, ValueError)):
        artifacts.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert artifacts.read_json(tmp_path / "a.json") == {"x": 1}
    with pytest.raises(RunError, match="Cannot write"):
        artifacts.write_json(tmp_path / "a.json" / "b.json", {})


@pytest.mark.parametrize("content", [b"", b"12345678", b"\x10\0\0\0\0\0\0\0{"])
def test_damaged_tensors_are_refused(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match="truncated or not a safetensors"):
        artifacts.read_tensors(tmp_path / "x.safetensors")


def test_truncated_tensors_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    artifacts.write_tensors(path, {"x": torch.rand(100)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="truncated"):
        artifacts.read_tensors(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_are_never_loaded(tmp_path, protocol):
    plain = tmp_path / "plain.safetensors"
    zipped = tmp_path / "zip.safetensors"
    plain.write_bytes(pickle.dumps({"x": 1}, protocol=protocol))
    torch.save({"x": torch.ones(1)}, zipped)
    for path in (plain, zipped):
        with pytest.raises(ArtifactError, match="pickle"):
            artifacts.read_tensors(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("{", "not JSON"), ("[1]", "must hold a JSON object"), (None, "is missing")],
)
def test_damaged_json_is_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    with pytest.raises(ArtifactError, match=sentence):
        artifacts.read_json(tmp_path / "x.json")


def test_content_hash_ignores_order_and_nothing_else():
    assert artifacts.content_hash({"a": 1, "b": [1, 2]}) == artifacts.content_hash(
        json.loads('{"b": [1, 2], "a": 1}')
    )
    assert artifacts.content_hash({"a": 1}) != artifacts.content_hash({"a": 1.5})


def test_metadata_is_read_without_tensors(tmp_path):
    path = tmp_path / "some.safetensors"
    artifacts.write_tensors(path, {"a": torch.zeros(3)}, {"note": [1, 2]})
    assert artifacts.read_metadata(path) == artifacts.read_tensors(path)[1] == {"note": [1, 2]}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="truncated"):
        artifacts.read_metadata(path)


def test_the_hash_of_tensors_is_of_names_types_shapes_and_bits():
    same = [
        {"a": torch.arange(4.0), "b": torch.tensor(1)},
        {"b": torch.tensor(1), "a": torch.arange(8.0)[:4]},
    ]
    others = [
        {"a": torch.arange(4.0), "c": torch.tensor(1)},
        {"a": torch.arange(4.0).bfloat16(), "b": torch.tensor(1)},
        {"a": torch.arange(4.0).reshape(2, 2), "b": torch.tensor(1)},
        {"a": torch.tensor([-0.0, 1, 2, 3]), "b": torch.tensor(1)},
        {"a": torch.arange(4.0), "b": torch.tensor(True)},
    ]
    assert len({artifacts.tensor_hash(tensors) for tensors in same}) == 1
    assert len({artifacts.tensor_hash(tensors) for tensors in (same[0], *others)}) == 6


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    """Headers of 640, 896, 1,152 and 1,408 bytes begin a file with the first two bytes of a
    pickle.
    """
    lengths = set()
    for size in range(1600):
        path = tmp_path / "file.safetensors"
        artifacts.write_tensors(path, {"x": torch.zeros(2)}, {"note": "a" * size})
        lengths.add(int.from_bytes(path.read_bytes()[:8], "little"))
        assert artifacts.read_metadata(path)["note"] == "a" * size
    assert lengths >= {640, 896, 1152, 1408}


def test_the_same_memory_under_two_names_is_written_twice(tmp_path):
    """Networks may have tied weights, and a normalisation one tensor for both of its parts."""
    shared = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared[1:]})
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    assert torch.equal(tensors["a"], shared)
    assert torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["c"], shared[1:])
