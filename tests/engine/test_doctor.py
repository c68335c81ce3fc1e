"""The doctor names what is wrong and how to mend it."""

import numpy as np
import pytest

from rayd.data import KNOWN
from rayd.engine import doctor
from rayd.engine.doctor import _ray as look_at_ray
from rayd.engine.doctor import examine


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_ray", lambda address: doctor.Finding("ray", "good", "not looked at")
    )


def test_a_sound_installation_has_nothing_wrong(tmp_path):
    findings = {finding.subject: finding for finding in examine(tmp_path)}
    assert [
        f.text() for f in findings.values() if f.status == "wrong" and f.subject != "versions"
    ] == []
    assert findings["digits"].status == "good"
    assert "rayd data fetch cifar10" in findings["cifar10"].detail


def test_classes_in_another_order_are_found(tmp_path):
    assert "cifar10" in KNOWN
    images = np.zeros((20, 3, 32, 32), np.uint8)
    labels = np.arange(20) % 10
    names = np.array(["truck", *(f"class{i}" for i in range(9))])
    np.savez(tmp_path / "cifar10.npz", images=images, labels=labels, class_names=names)
    finding = next(f for f in examine(tmp_path) if f.subject == "cifar10")
    assert finding.status == "wrong"
    assert "truck" in finding.detail


def test_a_root_that_cannot_be_written_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "writable", lambda path: False)
    wrong = [
        f.subject for f in examine(tmp_path) if f.status == "wrong" and f.subject != "versions"
    ]
    assert wrong == ["cache", "data root"]


def test_a_home_that_cannot_be_used_is_a_finding(monkeypatch):
    def refused(address: str | None) -> str:
        raise NotADirectoryError(20, "Not a directory", ".ray")

    monkeypatch.setattr("rayd.engine.on_ray.cluster.describe", refused)
    assert look_at_ray(None) == doctor.Finding("ray", "wrong", "[Errno 20] Not a directory: '.ray'")
