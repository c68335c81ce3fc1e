"""A distilled set as a repository of the Hugging Face Hub, and its upload to a stand-in server."""

import base64
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

import rayd
from rayd import hub
from rayd.artifacts import write_json
from rayd.cli import main
from rayd.errors import ConfigError, OutputError, RunError
from rayd.evaluation.report import Accuracy, Report, SetResult
from rayd.export import export
from tests.evaluation.test_scores import soft_report
from tests.test_export import distilled

huggingface_hub = pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """Answers what an upload asks: a repository, how to send files, a commit."""

    def do_POST(self):
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            header = json.loads(body)["content"].split("---\n")[1]
            assert yaml.safe_load(header)["task_categories"] == ["image-classification"]
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path:
            self.commit(body)
        else:
            self.answer(404, {"error": f"no {self.path}"})

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        if self.headers.get("Authorization") != "Bearer good":
            self.answer(401, {"error": "Invalid username or password."})
        elif name in self.server.repositories:
            address = f"{self.server.address}/datasets/{name}"
            self.answer(409, {"error": "You already created this repo", "url": address})
        else:
            self.server.repositories[name] = {}
            self.server.wanted = wanted
            self.answer(200, {"url": f"{self.server.address}/datasets/{name}"})

    def commit(self, body):
        name = self.path.split("/api/datasets/")[1].split("/commit/")[0]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                content = base64.b64decode(entry["value"]["content"])
                self.server.repositories[name][entry["value"]["path"]] = content
        address = f"{self.server.address}/datasets/{name}/commit/{'0' * 40}"
        self.answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": address})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server():
    found = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    found.address = f"http://127.0.0.1:{found.server_port}"
    found.asked = []
    found.repositories = {}
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.fixture
def folder(tmp_path):
    export(distilled(), "hub", tmp_path / "repository")
    return tmp_path / "repository"


def test_a_repository_is_read_by_datasets_and_by_rayd(folder):
    datasets = pytest.importorskip("datasets")
    made = distilled()
    table = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "c"))
    assert table.features["label"].names == list(made.class_names)
    assert table["label"][:] == made.hard_labels.tolist()
    again = rayd.load(folder)
    assert torch.equal(again.images, made.images)


def test_the_card_says_what_the_set_is_and_how_to_use_it(tmp_path):
    card = {
        "recipe": "dm-flowers",
        "method": "dm",
        "data": {"name": "/home/me/flowers", "read": {"where": "/home/me/flowers"}},
        "citation": "@misc{dm}",
        "config": {"method": "dm", "ipc": 2},
    }
    made = distilled()
    made.card |= card
    result = SetResult(
        set="distilled",
        network="convnet",
        test_accuracy=Accuracy.of([0.5, 0.6]),
        seeds=(0, 1),
        protocol="300 epochs",
        epoch="last",
        per_class=(0.5, 0.6, 0.55),
        head_accuracy=None,
        tail_accuracy=None,
        seconds=1.0,
    )
    report = Report("dm-flowers", "dm", "flowers", 2, {}, {}, (result,))
    text = hub.readme(made, report)
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert "flowers, distilled to 6 images" in text
    assert "/home" not in text
    assert "| distilled | convnet | 0.550 ± 0.071 | 2 |" in text
    assert "rayd.load(folder)" in text
    assert "@misc{dm}" in text


def test_accuracies_on_the_card_are_those_of_the_set(tmp_path):
    """A set that was saved elsewhere in a run's directory has none of the run's."""
    write_json(tmp_path / "evaluation.json", soft_report().to_json())
    for name, has_accuracies in (("distilled", True), ("mine", False)):
        made = distilled()
        made.save(tmp_path / name)
        export(made, "hub", tmp_path / "hub", overwrite=True)
        card = (tmp_path / "hub" / hub.README).read_text()
        assert ("0.750 ± 0.071" in card) == has_accuracies


def test_the_card_tells_labels_apart():
    text = hub.readme(distilled(), soft_report())
    assert "| distilled | convnet | 0.750 ± 0.071 | 2 |" in text
    assert "| distilled, hard labels | convnet | 0.550 ± 0.071 | 2 |" in text


def test_upload_is_one_commit_of_a_private_repository(folder, server):
    address = hub.push(folder, "me/tiny", endpoint=server.address, token="good")
    assert address == f"{server.address}/datasets/me/tiny"
    assert server.wanted["type"] == "dataset"
    assert server.wanted.get("visibility") == "private" or server.wanted.get("private") is True
    sent = server.repositories["me/tiny"]
    local = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert set(sent) == local
    assert sent["README.md"] == (folder / "README.md").read_bytes()
    assert sum("/commit/" in path for path, _ in server.asked) == 1


def test_refusals_of_the_hub_are_sentences_and_keep_the_folder(folder, server):
    arguments = {"endpoint": server.address, "token": "good"}
    hub.push(folder, "me/tiny", **arguments)
    with pytest.raises(RunError, match=r"'me/tiny' exists already.*--overwrite"):
        hub.push(folder, "me/tiny", **arguments)
    hub.push(folder, "me/tiny", overwrite=True, **arguments)
    with pytest.raises(RunError, match=r"log in with 'hf auth login'.*can be uploaded later"):
        hub.push(folder, "me/other", endpoint=server.address, token="bad")
    with pytest.raises(ConfigError, match="must be named user/name"):
        hub.push(folder, "a/b/c", **arguments)
    server.shutdown()
    server.server_close()
    with pytest.raises(RunError, match="cannot be reached"):
        hub.push(folder, "me/third", **arguments)
    assert (folder / "README.md").exists()


def test_a_repository_on_disk_is_kept_unless_asked(folder):
    with pytest.raises(OutputError, match="exists already"):
        export(distilled(), "hub", folder)
    export(distilled(), "hub", folder, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds what no export writes"):
        export(distilled(), "hub", folder, overwrite=True)


def test_a_folder_in_the_home_directory_is_uploaded(tmp_path, server, monkeypatch, capsys):
    """A shell leaves `--to=~/hub` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "good")
    distilled().save(tmp_path / "set")
    with suppress(SystemExit):
        main(["push", str(tmp_path / "set"), "me/home", "--to=~/hub", "--endpoint", server.address])
    assert "README.md" in server.repositories["me/home"], capsys.readouterr().err


def test_the_command_writes_and_uploads_only_where_a_repository_is_named(
    tmp_path, server, monkeypatch, capsys
):
    made = distilled()
    made.save(tmp_path / "set")
    monkeypatch.setenv("HF_TOKEN", "good")
    arguments = ["push", str(tmp_path / "set"), "--endpoint", server.address, "--json"]
    for words in ([], ["me/tiny"]):
        folder = tmp_path / f"hub{len(words)}"
        with suppress(SystemExit):
            main([*arguments, *words, "--to", str(folder)])
        printed = json.loads(capsys.readouterr().out)
        assert printed["folder"] == str(folder)
        assert (folder / "data").is_dir()
        assert bool(server.repositories) == bool(words)
    assert printed["repository"] == f"{server.address}/datasets/me/tiny"
    written = ["--to", str(tmp_path / "hub0")]
    readme = tmp_path / "hub0" / "README.md"
    readme.write_text(readme.read_text() + "edited")
    with suppress(SystemExit):
        main([*arguments, "me/edited", *written])
    assert server.repositories["me/edited"]["README.md"].endswith(b"edited")
    made.labels = made.labels.roll(1)
    made.save(tmp_path / "set", overwrite=True)
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "me/another", *written])
    assert stop.value.code == 2
    assert "exists already" in capsys.readouterr().err
    for name in ("a/b/c", "tiny"):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, name, "--to", str(tmp_path / "nothing")])
        assert stop.value.code == 2
        assert "must be named user/name" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists(), "refused before anything is written"
