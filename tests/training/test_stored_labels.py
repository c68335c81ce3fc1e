"""Stored labels come back as they were written, say what they cost, and refuse whatever they do not
fit.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rayd.artifacts import read_tensors, write_tensors
from rayd.config import EvaluationSettings, LabelSettings
from rayd.data import ImageSet
from rayd.errors import ArtifactError, ConfigError
from rayd.training import stored_labels as module
from rayd.training.sets import TrainingSet
from rayd.training.stored_labels import Labelled, StoredLabels, chunk_path, chunks, write_chunk
from tests.training.toys import CLASSES, NORMALIZATION, REAL, TEST, of

LABELS = LabelSettings(kind="stored")


def settings(**changes: object) -> EvaluationSettings:
    chosen = {"batch_size": 12, "mix": "cutmix", "loss": "kl", "augmentation": None, **changes}
    return EvaluationSettings.model_validate(chosen)


MADE_FOR = Labelled.of(of(REAL), CLASSES, settings(), LABELS)


def tensors(epochs: range) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(epochs.start)
    return {
        "labels.images.logits": torch.randn(len(epochs), 30, CLASSES, generator=draw).half(),
        "order": torch.stack([torch.randperm(30, generator=draw) for _ in epochs]).to(torch.int8),
    }


@pytest.fixture
def written(tmp_path: Path) -> Path:
    for epochs in (range(0, 2), range(2, 4), range(4, 5)):
        write_chunk(tmp_path, MADE_FOR, epochs, tensors(epochs))
    return tmp_path


def test_every_epoch_comes_back(written):
    labels = StoredLabels(written)
    assert (labels.epochs, labels.made_for) == (5, MADE_FOR)
    for epoch in (4, 1, 3):
        start = epoch // 2 * 2
        wanted = tensors(range(start, min(start + 2, 5)))
        got = labels.chunk(epoch).of(epoch)
        assert torch.equal(
            got["labels.images.logits"], wanted["labels.images.logits"][epoch - start]
        )
        assert torch.equal(got["order"], wanted["order"][epoch - start].long())
    assert sorted(path.name for path in written.iterdir())[0] == "epochs-00000-00001.safetensors"


def test_storage_is_counted_to_the_number(written):
    labels = StoredLabels(written)
    assert labels.numbers == 5 * 30 * (CLASSES + 1)
    assert labels.bytes == 5 * 30 * (2 * CLASSES + 1)


def test_opening_reads_no_tensors_and_a_chunk_only_its_own(written, monkeypatch):
    read = []
    monkeypatch.setattr(
        module, "read_tensors", lambda path: (read.append(path.name), read_tensors(path))[1]
    )
    labels = StoredLabels(written)
    assert read == []
    labels.chunk(3)
    assert read == ["epochs-00002-00003.safetensors"]


def test_the_fingerprint_is_of_the_labels_and_not_of_their_place(written, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for epochs in (range(0, 2), range(2, 4), range(4, 5)):
        write_chunk(other, MADE_FOR, epochs, tensors(epochs))
    assert StoredLabels(other).fingerprint == StoredLabels(written).fingerprint
    changed = tensors(range(4, 5))
    changed["labels.images.logits"][0, 0, 0] += 1
    write_chunk(other, MADE_FOR, range(4, 5), changed)
    assert StoredLabels(other).fingerprint != StoredLabels(written).fingerprint


def test_what_fits_is_taken(written):
    StoredLabels(written).check(
        of(REAL, "distilled"), CLASSES, settings(learning_rate=0.5), LABELS, 5
    )
    nameless = replace(of(REAL), class_names=())
    StoredLabels(written).check(
        nameless, CLASSES, settings(), LabelSettings(kind="stored", seed=0), 3
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 10}, "fit 'evaluation.batch_size' 12 only. Got 10 instead"),
        (
            {"transform": {"flip": True}},
            "fit 'evaluation.transform.flip' False only. Got True instead",
        ),
        ({"augmentation": "flip"}, "fit 'evaluation.augmentation' None only. Got flip instead"),
        ({"mix": "mixup"}, "fit 'evaluation.mix' cutmix only"),
        ({"mix_concentration": 0.8}, "fit 'evaluation.mix_concentration' 1.0 only"),
    ],
)
def test_another_protocol_is_refused(written, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        StoredLabels(written).check(of(REAL), CLASSES, settings(**changes), LABELS, 5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "float32"}, "'labels.precision' float16 only"),
        ({"seed": 1}, "'labels.seed' 0 only. Got 1"),
    ],
)
def test_other_labels_are_refused(written, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        StoredLabels(written).check(
            of(REAL), CLASSES, settings(), LabelSettings(kind="stored", **changes), 5
        )


def test_more_epochs_are_refused(written):
    with pytest.raises(ConfigError, match=r"last for 5 epochs\. Got 6 epochs"):
        StoredLabels(written).check(of(REAL), CLASSES, settings(), LABELS, 6)


def test_other_images_are_refused(written):
    with pytest.raises(
        ArtifactError,
        match=r"belong to other images than the set 'random': expected .*\(40 images\), found",
    ):
        StoredLabels(written).check(of(TEST, "random"), CLASSES, settings(), LABELS, 5)
    inverted = ImageSet(255 - REAL.images, REAL.labels, REAL.class_names)
    with pytest.raises(ArtifactError, match="belong to other images"):
        StoredLabels(written).check(of(inverted), CLASSES, settings(), LABELS, 5)


def test_another_class_order_is_refused(written):
    renamed = TrainingSet.from_images(
        ImageSet(REAL.images, REAL.labels, ("a", "c", "b")), NORMALIZATION
    )
    with pytest.raises(ArtifactError, match="expected class 1 to be 'c', found 'b'"):
        StoredLabels(written).check(renamed, CLASSES, settings(), LABELS, 5)
    with pytest.raises(ArtifactError, match="expected 4 classes, found 3"):
        StoredLabels(written).check(of(REAL), 4, settings(), LABELS, 5)


def test_labels_of_the_images_may_change(written):
    other = ImageSet(REAL.images, np.roll(REAL.labels, 1), REAL.class_names)
    StoredLabels(written).check(of(other), CLASSES, settings(), LABELS, 5)


def test_a_directory_without_labels_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="must hold stored labels"):
        StoredLabels(tmp_path / "none")


def test_missing_and_foreign_chunks_are_refused(written):
    gone = chunk_path(written, range(2, 4))
    kept = gone.read_bytes()
    gone.unlink()
    with pytest.raises(ArtifactError, match=r"must continue with epoch 2\. Got a chunk from 4 on"):
        StoredLabels(written)
    gone.write_bytes(kept)
    write_chunk(written, replace(MADE_FOR, seed=1), range(2, 4), tensors(range(2, 4)))
    with pytest.raises(ArtifactError, match="have different inputs from epoch 2 on"):
        StoredLabels(written)


@pytest.mark.parametrize("damage", ["truncated", "no note", "renamed", "other format"])
def test_a_damaged_chunk_is_refused_at_once(written, damage):
    path = chunk_path(written, range(4, 5))
    content, note = read_tensors(path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    if damage == "no note":
        write_tensors(path, content)
    if damage == "renamed":
        path.rename(chunk_path(written, range(4, 6)))
    if damage == "other format":
        write_tensors(path, content, note | {"format": 2})
    with pytest.raises(ArtifactError, match="epochs-00004"):
        StoredLabels(written)


def test_a_changed_logit_is_found_when_it_is_read(written):
    path = chunk_path(written, range(4, 5))
    content, note = read_tensors(path)
    content["labels.images.logits"][0, 0, 0] += 1
    write_tensors(path, content, note)
    labels = StoredLabels(written)
    labels.chunk(0)
    with pytest.raises(
        ArtifactError, match=r"epochs-00004-00004.safetensors' is damaged.* Move it away"
    ):
        labels.chunk(4)


def test_chunks_cover_the_epochs_within_bounds(monkeypatch):
    assert [len(part) for part in chunks(130, 10, 10, "float16")] == [64, 64, 2]
    monkeypatch.setattr(module, "CHUNK_BYTES", 10 * 10 * 2 * 7)
    for precision, longest in (("float16", 7), ("float32", 3)):
        parts = chunks(20, 10, 10, precision)
        assert [epoch for part in parts for epoch in part] == list(range(20))
        assert max(map(len, parts)) == longest
