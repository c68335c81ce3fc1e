"""A distilled set as a data set repository of the Hugging Face Hub.

    README.md           the data set card: a header that the Hub reads, accuracies, how to use it
    data/               train-00000-of-00001.parquet, as `rayd export --format parquet` writes it
    images.png          contact sheet
    distillation.json   the set's own card
    recipe.yaml         the recipe

`rayd.load` reads the folder, too. It is written first, and uploaded on request alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rayd.config import lookup
from rayd.errors import ConfigError, ResourceError, RunError
from rayd.names import data_title
from rayd.version import __version__

if TYPE_CHECKING:
    from rayd.distilled import Distilled
    from rayd.evaluation.report import Report

README = "README.md"
PICTURE = "images.png"
CARD = "distillation.json"
RECIPE = "recipe.yaml"
FILES = (README, PICTURE, CARD, RECIPE)
"""Files of a repository in addition to its data."""
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
)
"""The Hub's categories of size, with their upper bounds."""


def write_texts(distilled: Distilled, folder: Path) -> None:
    """Write the files of a repository beside its data.

    Args:
        distilled: the set; its report is looked for beside it.
        folder: where to; it exists.
    """
    from rayd.evaluation.run_report import report_of_set
    from rayd.pictures import picture

    report = None if distilled.directory is None else report_of_set(distilled.directory)
    (folder / PICTURE).write_bytes(picture(distilled))
    (folder / CARD).write_text(json.dumps(distilled.card, indent=1), encoding="utf-8")
    if config := distilled.card.get("config"):
        text = yaml.safe_dump(config, sort_keys=False)
        (folder / RECIPE).write_text(text, encoding="utf-8")
    (folder / README).write_text(readme(distilled, report), encoding="utf-8")


def readme(distilled: Distilled, report: Report | None = None) -> str:
    """The data set card, in Markdown with a header of YAML.

    Args:
        distilled: the set.
        report: accuracies of students that were trained on it.
    """
    header = yaml.safe_dump(_header(distilled), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join(_body(distilled, report)) + "\n"


def _header(distilled: Distilled) -> dict[str, Any]:
    """The metadata that the Hub reads."""
    count = len(distilled)
    size = next((name for most, name in SIZES if count < most), "n>1M")
    method = distilled.card.get("method")
    tags = ["dataset-distillation", "rayd", *([str(method)] if method else [])]
    return {
        "pretty_name": _title(distilled),
        "task_categories": ["image-classification"],
        "tags": tags,
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*"}],
            }
        ],
    }


def _title(distilled: Distilled) -> str:
    return f"{_data_name(distilled)}, distilled to {len(distilled)} images"


def _data_name(distilled: Distilled) -> str:
    """Name of the real data, without the folders of the machine that read them."""
    return data_title(str(lookup(distilled.card, "data.name") or "images"))


def _body(distilled: Distilled, report: Report | None) -> Iterator[str]:
    """Lines of the card below its header."""
    from rayd.evaluation.matrix import words_of

    card = distilled.card
    size = "x".join(map(str, distilled.shape))
    made = f" by {card['method']}" if card.get("method") else ""
    yield f"# {_title(distilled)}"
    yield ""
    yield (
        f"{len(distilled)} synthetic images of {size} in {distilled.classes} classes, distilled"
        f"{made} from {_data_name(distilled)} with rayd {card.get('versions', {}).get('rayd', __version__)}."
        " A network that is trained on them alone classifies real images."
    )
    yield ""
    yield f"![the images]({PICTURE})"
    yield ""
    # a trial of a sweep has seen the validation split alone
    results = () if report is None else tuple(r for r in report.results if not r.is_on_validation)
    if results:
        yield "## Test accuracy"
        yield ""
        yield "Fractions of the real test images, means and deviations over students."
        yield ""
        yield "| trained on | network | test accuracy | students |"
        yield "|---|---|---|---|"
        for result in results:
            accuracy = result.test_accuracy.text()
            words = words_of(result, results)
            yield f"| {words} | {result.network} | {accuracy} | {len(result.seeds)} |"
        yield ""
    yield "## Use"
    yield ""
    yield "```python"
    yield "import datasets"
    yield ""
    yield 'table = datasets.load_dataset(REPOSITORY, split="train")  # image, label'
    yield "```"
    yield ""
    yield "With the network input and labels that the set was learned with:"
    yield ""
    yield "```python"
    yield "import huggingface_hub, rayd"
    yield ""
    yield 'folder = huggingface_hub.snapshot_download(REPOSITORY, repo_type="dataset")'
    yield "distilled = rayd.load(folder)  # a torch Dataset"
    yield "```"
    yield ""
    for need in distilled.needs:
        yield f"- {need[0].upper()}{need[1:]}."
    if card.get("citation"):
        yield ""
        yield "## Citation"
        yield ""
        yield "```bibtex"
        yield str(card["citation"]).strip()
        yield "```"


def check(repository: str | None) -> None:
    """Refuse an upload that cannot succeed, before anything is written.

    Raises:
        ConfigError: the name is no name of a repository.
        ResourceError: huggingface_hub is missing.
    """
    if repository is None:
        return
    try:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
    except ImportError as error:
        raise ResourceError(
            "Uploading needs the package huggingface_hub: pip install 'rayd[hub]'."
        ) from error
    refusal = (
        f"A repository must be named user/name, as in 'me/digits-ipc1'. Got '{repository}' instead."
    )
    if "/" not in repository:
        # it would be created under the user's name, and then not be found under this one
        raise ConfigError(refusal)
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(refusal) from error


def push(
    folder: Path,
    repository: str,
    *,
    public: bool = False,
    overwrite: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a folder that `rayd export --format hub` wrote, as one commit.

    Args:
        folder: the folder.
        repository: `user/name` of the data set repository, which is created.
        public: whether anyone can read a repository that is created.
        overwrite: add a commit to a repository that exists.
        endpoint: address of the Hub; by default `$HF_ENDPOINT`, else huggingface.co.
        token: of the user; by default `$HF_TOKEN`, else that of `hf auth login`.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the name is no name of a repository.
        ResourceError: huggingface_hub is missing.
        RunError: the Hub cannot be reached, or refuses; the folder stays.
    """
    check(repository)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=endpoint, token=token, library_name="rayd", library_version=__version__)
    try:
        address = api.create_repo(
            repository, repo_type="dataset", private=not public, exist_ok=overwrite
        )
        # one commit, so that a repository never holds half of a set
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        api.create_commit(
            repository,
            [CommitOperationAdd(str(file.relative_to(folder)), str(file)) for file in files],
            repo_type="dataset",
            commit_message=f"Distilled set, written by rayd {__version__}",
        )
    except HfHubHTTPError as error:
        raise RunError(_refusal(error, repository, folder)) from error
    except Exception as error:
        # of the HTTP client, whichever huggingface_hub uses
        if isinstance(error, OSError) or type(error).__module__.startswith(("httpx", "requests")):
            raise RunError(
                f"The Hub cannot be reached ({type(error).__name__}: {error}); "
                f"'{folder}' is written and can be uploaded later."
            ) from error
        raise
    return str(address)


def _refusal(error: Any, repository: str, folder: Path) -> str:
    """Explain why the Hub refused, with a remedy."""
    status = getattr(error.response, "status_code", None)
    kept = f"'{folder}' is written and can be uploaded later"
    if status == 409:
        return (
            f"The repository '{repository}' exists already: choose another name, or add "
            f"--overwrite to commit to it; {kept}."
        )
    if status in (401, 403):
        return (
            f"The Hub does not let you write to '{repository}': log in with 'hf auth login' or set "
            f"HF_TOKEN; {kept}."
        )
    reason = str(error).strip().splitlines()[0]
    return f"The Hub refused '{repository}': {reason}; {kept}."
