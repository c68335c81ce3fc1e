"""Experts on disk: every epoch comes back, one at a time, and what is no expert is refused."""

from pathlib import Path

import pytest
import torch

from rayd import artifacts
from rayd.artifacts import read_json, write_tensors
from rayd.errors import ArtifactError
from rayd.training.trajectories import Library, Trajectory, write_trajectory

SHAPES = {"b.weight": (2, 3), "a.bias": (4,)}


def rows(seed: int = 0, epochs: int = 5) -> torch.Tensor:
    return torch.randn(epochs + 1, 10, generator=torch.Generator().manual_seed(seed))


def library(directory: Path, count: int = 3) -> list[Path]:
    paths = [directory / f"expert-{index}.safetensors" for index in range(count)]
    for index, path in enumerate(paths):
        write_trajectory(path, rows(index), SHAPES, {"index": index})
    return paths


def test_every_epoch_comes_back_with_what_is_known_of_it(tmp_path):
    written = write_trajectory(
        tmp_path / "one.safetensors", rows(), SHAPES, {"train_accuracy": 0.5}
    )
    again = Trajectory(written.path)
    assert (len(again), again.epochs, again.size) == (6, 5, 10)
    assert list(again.shapes.items()) == list(SHAPES.items()), (
        "in the order of a row, not of their names"
    )
    assert again.facts == {"train_accuracy": 0.5}
    assert all(torch.equal(again[epoch], row) for epoch, row in enumerate(rows()))


def test_bfloat16_takes_half_the_space_and_comes_back_as_float32(tmp_path):
    whole = write_trajectory(tmp_path / "whole.safetensors", rows().repeat(1, 400), {"w": (4000,)})
    half = write_trajectory(
        tmp_path / "half.safetensors", rows().repeat(1, 400).bfloat16(), {"w": (4000,)}
    )
    assert half.path.stat().st_size < 0.52 * whole.path.stat().st_size
    assert half[3].dtype == torch.float32
    torch.testing.assert_close(half[3], whole[3], rtol=2**-8, atol=0)


def test_an_epoch_is_read_without_the_others(tmp_path, monkeypatch):
    one = write_trajectory(tmp_path / "one.safetensors", rows(), SHAPES)
    opened = artifacts.safe_open
    asked = []

    class Opened:
        def __init__(self, *args, **kwargs):
            self._file = opened(*args, **kwargs)

        def __enter__(self):
            self._inner = self._file.__enter__()
            return self

        def __exit__(self, *error):
            return self._file.__exit__(*error)

        def __getattr__(self, name):
            asked.append(name)
            return getattr(self._inner, name)

    monkeypatch.setattr(artifacts, "safe_open", Opened)
    assert torch.equal(one[2], rows()[2])
    assert "get_slice" in asked
    assert "get_tensor" not in asked


@pytest.mark.parametrize("epoch", [-1, 6])
def test_other_epochs_are_refused(tmp_path, epoch):
    one = write_trajectory(tmp_path / "one.safetensors", rows(), SHAPES)
    with pytest.raises(IndexError, match=rf"has the epochs 0 to 5\. Got {epoch} instead"):
        one[epoch]


def test_what_is_no_expert_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(ArtifactError, match="is missing"):
        Trajectory(path)
    write_tensors(path, {"epochs": rows()}, {"key": "x"})
    with pytest.raises(ArtifactError, match="is not an expert trajectory"):
        Trajectory(path)
    write_tensors(path, {"rows": rows()}, {"shapes": [["w", [10]]], "epochs": 5, "facts": {}})
    with pytest.raises(ArtifactError, match="has no tensor 'epochs'"):
        Trajectory(path)[0]
    write_trajectory(path, rows(), {"w": (9,)})
    with pytest.raises(ArtifactError, match=r"rows of \(10,\) for 9 parameters"):
        Trajectory(path)[0]
    write_tensors(
        path, {"epochs": rows(epochs=3)}, {"shapes": [["w", [10]]], "epochs": 5, "facts": {}}
    )
    with pytest.raises(ArtifactError, match=r"has the rows 0 to 3\. Got 5 instead"):
        Trajectory(path)[5]


def test_an_index_names_the_experts_of_a_directory(tmp_path):
    Library(library(tmp_path)).write_index(tmp_path, {"network": "convnet"})
    found = Library.of(tmp_path)
    assert [one.facts["index"] for one in found] == [0, 1, 2]
    assert torch.equal(found[2][4], rows(2)[4])
    content = read_json(tmp_path / "experts.json")
    assert (content["epochs"], content["parameters"], content["facts"]) == (
        5,
        10,
        {"network": "convnet"},
    )


def test_a_library_holds_experts_of_one_kind(tmp_path):
    paths = library(tmp_path)
    write_trajectory(paths[1], rows(epochs=4), SHAPES)
    with pytest.raises(
        ArtifactError,
        match=r"'.*expert-1.*' is an expert of another network or length than '.*expert-0",
    ):
        Library(paths)[1]
    write_trajectory(paths[1], rows(), {"b.weight": (3, 2), "a.bias": (4,)})
    with pytest.raises(ArtifactError, match="of another network or length"):
        Library(paths).write_index(tmp_path)
    with pytest.raises(IndexError, match=r"the experts 0 to 2\. Got 3 instead"):
        Library(paths)[3]
    with pytest.raises(ArtifactError, match="at least one expert"):
        Library([])


@pytest.mark.parametrize(
    "content", ['{"experts": "all"}', '{"experts": ["../one.safetensors"]}', "{}"]
)
def test_an_index_names_files_beside_it_alone(tmp_path, content):
    (tmp_path / "experts.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"must list the files of experts next to it"):
        Library.of(tmp_path)
