"""Files that rayd writes and reads: safetensors and JSON, never pickle.

Every file is written under a temporary name in its directory and renamed, so that readers never see
an incomplete one. Tensor files have one JSON string as metadata: with a single entry, their bytes
depend on the content only. It includes a hash of the tensors, so that corruption on disk or in
transfer is detected. Files under the mirror of a URL are uploaded before the rename, and fetched if
missing (`rayd.remote`).

Torch is imported with the first tensor, so that commands that only read JSON start quickly.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from rayd import plugins, remote
from rayd.errors import ArtifactError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

METADATA_KEY = "rayd"
HASH = "tensor hash"
"""Metadata key of the hash of the tensors."""
TEMPORARY = ".tmp"
"""Suffix of hidden files that are incomplete."""


def default_root() -> Path:
    """Root of the store shared by runs: `$RAYD_CACHE`, else `~/.cache/rayd/store`."""
    given = os.environ.get("RAYD_CACHE")
    return remote.local(given) if given else Path.home() / ".cache" / "rayd" / "store"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        RunError: the disk is full or the path is not writable.
    """
    _replace(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically."""
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write named tensors and JSON-able metadata as safetensors, atomically and reproducibly."""
    from safetensors.torch import save_file

    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    note = {
        METADATA_KEY: json.dumps({**(metadata or {}), HASH: tensor_hash(plain)}, sort_keys=True)
    }

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata=note)
        except RuntimeError:
            # the same memory under two names, as tied weights have it, is refused
            copies = {name: tensor.clone() for name, tensor in plain.items()}
            save_file(copies, temporary, metadata=note)

    _replace(path, write)


def unfinished(path: Path) -> bool:
    """Whether a file is the incomplete output of a writer that was killed."""
    return path.name.startswith(".") and path.suffix == TEMPORARY


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors creates files that only their owner can read
        remote.send(temporary, path)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RunError(f"Cannot write '{path}': {reason}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping from a JSON file.

    Raises:
        ArtifactError: the file is missing, truncated, no JSON mapping, or holds a key twice.
    """
    remote.need(path)
    check_regular(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise ArtifactError(f"'{path}' is missing.") from error
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror}.") from error
    except KeyError as error:
        raise ArtifactError(f"'{path}' holds the key {error} twice; remove one of them.") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is truncated or not JSON.") from error
    if not isinstance(content, dict):
        raise ArtifactError(
            f"'{path}' must hold a JSON object. Got {type(content).__name__} instead."
        )
    return content


def check_regular(path: Path) -> None:
    """Refuse existing paths that are not regular files; opening a FIFO would block.

    Raises:
        ArtifactError: the path is a directory, a FIFO, a socket or a device.
    """
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "a FIFO, socket or device"
        raise ArtifactError(f"'{path}' must be a file. Got {kind} instead.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must be unique, as json itself would keep the last duplicate."""
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise KeyError(next(name for name in names if names.count(name) > 1))
    return content


def parse(kind: type[T], content: Any, where: str) -> T:
    """Check JSON content that was read from a file, and convert it.

    Types must be those of JSON: the text "3" is no number.

    >>> parse(dict[str, int], {"steps": "3"}, "'card.json'")
    Traceback (most recent call last):
    rayd.errors.ArtifactError: 'steps' in 'card.json' must be a valid integer. Got '3' instead.

    Args:
        kind: a pydantic model, a dataclass, or another type with annotations.
        content: what `json` returned.
        where: name of the file, for error messages.

    Raises:
        ArtifactError: a field is missing, unknown, or has another type or value.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        missing = [
            str(e["loc"][-1]) for e in found if e["type"] == "missing" and len(e["loc"]) == 1
        ]
        if missing:
            raise ArtifactError(f"{where} lacks {', '.join(missing)}.") from error
        raise ArtifactError(_sentence(dict(found[0]), where)) from error


def _sentence(error: Mapping[str, Any], where: str) -> str:
    """Describe the fault of a field."""
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{where} lacks '{key}'."
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where} holds '{key}', which rayd does not know; remove it."
    # pydantic says "Input should be ...", "List should have ..."
    wanted, count = re.subn(r"^\w+ should ", "", str(error["msg"]))
    wanted = wanted if count else f"fit: {wanted}"
    got = repr(error["input"])
    got = got if len(got) <= 60 else f"{got[:60]}..."
    place = f"'{key}' in {where}" if key else where
    return f"{place} must {wanted}. Got {got} instead."


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read named tensors and metadata of a safetensors file.

    Raises:
        ArtifactError: the file is missing, truncated, damaged, or not safetensors (a pickle is
            never loaded).
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        note = _metadata(file)
    if note.pop(HASH, None) not in (None, tensor_hash(tensors)):
        raise ArtifactError(f"'{path}' is damaged: its tensors are not those that were written.")
    return tensors, note


def check_tensors(path: Path) -> None:
    """Check that a safetensors file is complete and undamaged, without keeping its tensors.

    Raises:
        ArtifactError: the file is missing, truncated, damaged, or not safetensors.
    """
    with _opened(path) as file:
        wanted = _metadata(file).get(HASH)
        tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
        found = _hash_of(tensors)
    if wanted not in (None, found):
        raise ArtifactError(f"'{path}' is damaged: its tensors are not those that were written.")


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata of a safetensors file, without its tensors.

    Raises:
        ArtifactError: the file is missing, truncated, or not safetensors (a pickle is never
            loaded).
    """
    with _opened(path) as file:
        note = _metadata(file)
    note.pop(HASH, None)
    return note


def read_hash(path: Path) -> str | None:
    """Hash of a file's tensors as they were written (see `tensor_hash`), None in an old file.

    Raises:
        ArtifactError: the file is missing, truncated, or not safetensors.
    """
    with _opened(path) as file:
        return _metadata(file).get(HASH)


def read_row(path: Path, name: str, row: int) -> Tensor:
    """Read one entry along the first axis of a tensor in a safetensors file, without the others.

    Raises:
        ArtifactError: the file is missing, truncated, not safetensors, or has no such row.
    """
    with _opened(path) as file:
        if name not in file.keys():  # noqa: SIM118 (not a mapping)
            raise ArtifactError(f"'{path}' has no tensor '{name}'.")
        rows = file.get_slice(name)
        count = rows.get_shape()[0]
        if not 0 <= row < count:
            raise ArtifactError(
                f"'{name}' of '{path}' has the rows 0 to {count - 1}. Got {row} instead."
            )
        found: Tensor = rows[row]
        return found


def _metadata(file: Any) -> dict[str, Any]:
    note = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    if not isinstance(note, dict):
        raise json.JSONDecodeError("no JSON object", METADATA_KEY, 0)
    return note


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    remote.need(path)
    check_regular(path)
    if not path.is_file():
        raise ArtifactError(f"'{path}' is missing.")
    try:
        with path.open("rb") as file:
            first = file.read(9)
        # a safetensors file begins with the length of its header, which can equal the first bytes
        # of a pickle
        pickles = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
        if first[8:] != b"{" and first[:2] in pickles:
            raise ArtifactError(
                f"'{path}' is a pickle, which rayd never loads; convert it to safetensors."
            )
        with safe_open(path, framework="pt") as tensors:
            yield tensors
    except OSError as error:
        raise ArtifactError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (SafetensorError, json.JSONDecodeError, RecursionError) as error:
        raise ArtifactError(f"'{path}' is truncated or not a safetensors file.") from error


def file_hash(path: Path) -> str:
    """Compute the SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Compute a hash of named tensors on any device: names, types, shapes and bits; hex."""
    return _hash_of(sorted(tensors.items()))


def _hash_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """The hash of tensors that come one after another, sorted by name."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_hash(content: Mapping[str, Any]) -> str:
    """Compute a hash of a JSON-able mapping, independent of the order of its keys; hex.

    If it names parts from outside the package, it also depends on their source.
    """
    canonical = _canonical(content)
    if sources := plugins.source_of(canonical):
        canonical += json.dumps(sources, sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def text_hash(content: Mapping[str, Any]) -> str:
    """Compute a hash of a JSON-able mapping alone, on every machine the same; hex.

    It is that of `content_hash` where no parts from outside the package are named.
    """
    return hashlib.blake2b(_canonical(content).encode(), digest_size=16).hexdigest()


def _canonical(content: Mapping[str, Any]) -> str:
    """JSON of a mapping, independent of the order of its keys."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
