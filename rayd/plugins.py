"""Plug-ins: methods, terms, networks, statistics, data sets and callbacks from other packages.

They are found in three ways:

- entry points of installed packages, in the groups `rayd.methods`, `rayd.terms`, `rayd.networks`,
  `rayd.statistics`, `rayd.datasets` and `rayd.callbacks`;
- `package.module:Name` in a recipe or on the command line, as in `method=my_package.methods:Mine`;
- `--import my_method.py` (`rayd.plugins.load_file`): a file whose import registers its parts.

Workers get the same modules: their names, folders and files travel in an environment variable, and
the code itself in Ray's runtime environment. Keys of caches include the source of parts that they
name (`source_of`).
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from rayd.errors import ConfigError
from rayd.identity import identity, imports
from rayd.names import expanded

Kind = Literal["methods", "terms", "networks", "statistics", "datasets", "callbacks"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Groups of entry points, without `rayd.`."""
VARIABLE = "RAYD_IMPORT"
"""Environment variable that tells workers what to import: JSON, a list of `[module, file]`."""

_SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_NAMED = re.compile(rf'"({_SPEC.pattern})(?=")')


@dataclass(frozen=True)
class Found:
    """An entry point, loaded or not."""

    kind: Kind
    """Its group."""
    name: str
    """Its name."""
    value: str
    """Its target, `package.module:Name`."""
    part: Any = None
    """The loaded object; None if loading failed."""
    error: str | None = None
    """Reason why it could not be loaded."""


_LOADED: dict[str, Path | None] = {}
"""Own modules that were imported by name or file, with their files."""
_IMPORTED: list[str] = []
"""Files and names of modules that `load_file` imported."""
OBJECTS: dict[str, tuple[Kind, Any]] = {}
"""Parts that were given as objects and cannot be imported, by name."""
_DIGESTS: dict[str, str] = {}
"""Digests of the sources of these objects."""
_OWNERS: dict[str, str] = {}
"""Own modules by the names of the parts that they registered."""
_PARTS: dict[str, Any] = {}
"""These parts, by name."""
_MODULES: dict[str, tuple[dict[str, Any], str | None]] = {}
"""Digests of own modules, with the specs of all modules that they consist of, which a reload
replaces.
"""


def is_spec(name: str) -> bool:
    """Whether a name has the form `package.module:Name`.

    >>> is_spec("my_package.methods:Mine"), is_spec("dm"), is_spec("s3://bucket/data")
    (True, False, False)
    """
    return _SPEC.fullmatch(name) is not None


def load(kind: Kind, spec: str) -> Any:
    """Import what `package.module:Name` names.

    >>> load("networks", "math:pi")
    3.141592653589793

    Raises:
        ConfigError: the module cannot be imported or has no such name.
    """
    _from_environment()
    module_name, _, attribute = spec.partition(":")
    module = _module(module_name, f"'{spec}'")
    value: Any = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise ConfigError(
                f"Cannot load '{spec}' ({kind}): module '{module_name}' has no '{name}'."
            )
        value = getattr(value, name)
    return value


def load_file(path: str | Path) -> ModuleType:
    """Import a Python file, or a module by name, whose import registers parts.

    Args:
        path: a file, which is imported under its own name with its folder on `sys.path`; or the
            name of an importable module.

    Raises:
        ConfigError: there is none, it has the name of another module, or it fails.
    """
    text = str(path)
    if not text.endswith(".py"):
        module = _module(text, f"--import {text}")
        _remember(text)
        return module
    file = expanded(text).resolve()
    if not file.is_file():
        raise ConfigError(f"Cannot import '{text}': there is no such file.")
    known = sys.modules.get(file.stem)
    known_file = getattr(known, "__file__", None) or ""
    if known is not None and Path(known_file).resolve() != file:
        raise ConfigError(
            f"Cannot import '{text}': there is a module '{file.stem}' already; rename the file."
        )
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    module = _module(file.stem, f"'{text}'")
    _remember(str(file))
    return module


def import_options() -> tuple[str, ...]:
    """Values of `--import` that give a command the parts that `load_file` imported here."""
    return tuple(_IMPORTED)


def _remember(name: str) -> None:
    if name not in _IMPORTED:
        _IMPORTED.append(name)


@cache
def discovered() -> tuple[Found, ...]:
    """Entry points of installed packages; those that fail to load say why."""
    _from_environment()
    found = []
    for kind in KINDS:
        for point in sorted(entry_points(group=f"rayd.{kind}"), key=lambda point: point.name):
            try:
                part = point.load()
                _note(sys.modules[point.module])
                _OWNERS[point.name] = point.module
                found.append(Found(kind, point.name, point.value, part))
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                found.append(Found(kind, point.name, point.value, error=why))
    return tuple(found)


def find(kind: Kind, name: str) -> Any:
    """The plug-in of a name: `package.module:Name`, or that of an entry point; None if there is
    none.

    Raises:
        ConfigError: it fails to load, or two packages have an entry point of this name.
    """
    if is_spec(name):
        return load(kind, name)
    if name in OBJECTS and OBJECTS[name][0] == kind:
        return OBJECTS[name][1]
    found = [one for one in discovered() if one.kind == kind and one.name == name]
    if len(found) > 1:
        values = " and ".join(f"'{one.value}'" for one in found)
        raise ConfigError(f"There are two {kind} '{name}', {values}: uninstall one of them.")
    if not found:
        return None
    if found[0].error is not None:
        raise ConfigError(
            f"Entry point '{name}' of rayd.{kind} ({found[0].value}) failed to load: "
            f"{found[0].error}"
        )
    return found[0].part


def names(kind: Kind) -> list[str]:
    """Names of entry points of a kind that could be loaded."""
    return [one.name for one in discovered() if one.kind == kind and one.error is None]


def offered(kind: Kind) -> dict[str, str]:
    """Entry points of a kind, `package.module:Name` by name, without loading them."""
    points = sorted(entry_points(group=f"rayd.{kind}"), key=lambda point: point.name)
    return {point.name: point.value for point in points}


def own(name: str, part: Any) -> None:
    """Note which module registered a part under a name; modules of rayd are not own ones."""
    module = getattr(part, "__module__", None) or ""
    if module and _is_own(module):
        _OWNERS[name] = module
        _PARTS[name] = part


def _is_own(module: str) -> bool:
    """Whether a module is neither rayd's nor Python's."""
    top = module.partition(".")[0]
    return top not in ("rayd", "tuning") and top not in sys.stdlib_module_names


def name_of(kind: Kind, part: Any) -> str:
    """The name by which settings know a part that is given as an object.

    What can be imported is named `package.module:Name`. What cannot (a module, a lambda, what a
    notebook defines) is kept for this process, and travels to workers by value.
    """
    module = getattr(part, "__module__", None)
    name = getattr(part, "__qualname__", None)
    if isinstance(module, str) and isinstance(name, str) and "<" not in name:
        found: Any = sys.modules.get(module)
        for attribute in name.split("."):
            found = getattr(found, attribute, None)
        if found is part and module != "__main__":
            _note(sys.modules[module])
            return f"{module}:{name}"
    digest = _by_value(part)
    own_name = getattr(part, "name", None) if kind == "methods" else None
    if own_name is None:
        label = getattr(part, "__name__", None) or type(part).__name__
        own_name = f"{re.sub(r'[^A-Za-z0-9_]+', '', label).lower()}-{digest[:8]}"
    OBJECTS[own_name] = (kind, part)
    _DIGESTS[own_name] = digest
    return str(own_name)


def _by_value(part: Any) -> str:
    """Digest of what an object computes; see `rayd.identity`."""
    return identity(part, _digest, lambda module: _is_own(module) and not _is_installed(module))


def _is_installed(module: str) -> bool:
    """Whether a module belongs to an installed package, or is written in C."""
    if module == "__main__":
        return False
    found = sys.modules.get(module)
    file = getattr(found, "__file__", None)
    if found is None:
        # the package alone: to look for a module inside it would import it
        spec = _spec(module.partition(".")[0])
        file = None if spec is None else spec.origin
        # a module that cannot be found cannot be installed
        return file is not None and (not file.endswith(".py") or "site-packages" in file)
    # a module that was made by hand has neither file nor spec
    return "site-packages" in file if file else getattr(found, "__spec__", None) is not None


class Sent:
    """A factory that another process calls, with what that process must know of plug-ins.

    Keys are computed in every process, and must be the same in all of them.

    Args:
        factory: creates a worker, or another object of an actor.
        objects: objects of the driver that can be sent.
        scripted: parts that a script or a notebook registered, by name.
    """

    def __init__(
        self, factory: Any, objects: dict[str, tuple[Kind, Any]], scripted: Mapping[str, Any]
    ):
        self._factory = factory
        self._objects = objects
        self._scripted = scripted
        self._digests = _of_scripts() | _DIGESTS
        self._imported = imported()
        self.__name__ = getattr(factory, "__name__", "host")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Keep the objects and import the modules here, then create the object."""
        adopt(self._imported)
        OBJECTS.update(self._objects)
        _DIGESTS.update(self._digests)
        for name, part in self._scripted.items():
            # a class that comes by value is filled in after it was made, too late to register
            for base in getattr(part, "__mro__", ()):
                if isinstance(registry := vars(base).get("registry"), dict):
                    registry.setdefault(name, part)
        return self._factory(*arguments, **options)


def source_of(text: str) -> dict[str, str]:
    """Digests of the modules of plug-ins that a JSON text names, by the name of the plug-in."""
    _from_environment()
    found = {name: digest for name, digest in _DIGESTS.items() if f'"{name}"' in text}
    for spec in set(_NAMED.findall(text)):
        if (digest := _digest(spec.partition(":")[0])) is not None:
            found[spec] = digest
    for name, module in _OWNERS.items():
        # in a worker, which may lack the sources, what the driver found holds
        if name not in found and f'"{name}"' in text:
            found[name] = _digest(module) or _by_value(_PARTS[name])
    return found


def scripted() -> dict[str, Any]:
    """Parts that a script or a notebook registered, by name: their module cannot be imported."""
    return {name: _PARTS[name] for name, module in _OWNERS.items() if module == "__main__"}


def _of_scripts() -> dict[str, str]:
    """Digests of these parts, whose module has none."""
    return {name: _by_value(part) for name, part in scripted().items()}


def sources(*kinds: type) -> dict[str, str]:
    """Digests of the modules of those classes that are not rayd's, by `package.module:Name`."""
    found = {}
    for kind in kinds:
        if _is_own(kind.__module__):
            name = f"{kind.__module__}:{kind.__qualname__}"
            found[name] = _DIGESTS.get(kind.__name__) or _digest(kind.__module__) or _by_value(kind)
    return found


def environment() -> dict[str, Any]:
    """Ray's runtime environment with the own modules; empty without any."""
    if not (text := imported()):
        return {}
    roots = sorted({str(path) for path in map(_root, _LOADED) if path is not None})
    return {"env_vars": {VARIABLE: text}, "py_modules": roots}


def imported() -> str:
    """The own modules that were imported, for `VARIABLE` and `adopt`; empty without any."""
    _from_environment()
    entries = [[name, None if path is None else str(path)] for name, path in _LOADED.items()]
    return json.dumps(entries) if entries else ""


def adopt(text: str) -> None:
    """Import the own modules of another process, given what `imported` returned there.

    Raises:
        ConfigError: one of them cannot be imported here.
    """
    if text:
        os.environ[VARIABLE] = text
        _from_environment()


def _module(name: str, what: str) -> ModuleType:
    if name in ("__main__", ""):
        raise ConfigError(f"Cannot load {what}: '__main__' cannot be imported by workers.")
    try:
        module = importlib.import_module(name)
    except Exception as error:
        raise ConfigError(f"Cannot load {what}: {type(error).__name__}: {error}") from error
    _note(module)
    return module


def _note(module: ModuleType) -> None:
    """Remember an own module for workers."""
    path = getattr(module, "__file__", None)
    if _is_own(module.__name__):
        _LOADED[module.__name__] = None if path is None else Path(path).resolve()


def _from_environment() -> None:
    """Import what the driver has imported, in a worker."""
    for name, path in _entries(os.environ.get(VARIABLE, "[]")):
        if name in _LOADED:
            continue
        # on the driver's machine the file is where it was; elsewhere Ray put a copy on sys.path
        if path is not None and Path(path).is_file():
            folder = Path(path).parent
            for _ in range(name.count(".") + (Path(path).name == "__init__.py")):
                folder = folder.parent
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
        _module(name, f"'{name}'")


def _entries(text: str) -> Iterator[tuple[str, str | None]]:
    yield from (tuple(entry) for entry in json.loads(text))


def _root(name: str) -> Path | None:
    """File or folder of the top-level package of an own module, unless it is installed."""
    module = sys.modules.get(name.partition(".")[0])
    file = getattr(module, "__file__", None)
    if file is None or "site-packages" in file:
        return None
    path = Path(file).resolve()
    return path.parent if path.name == "__init__.py" else path


def _digest(module: str) -> str | None:
    """SHA-256 of the source of a module and of its own modules; None where it has none.

    Kept until one of them is reloaded, as notebooks do.
    """
    known, digest = _MODULES.get(module, (None, None))
    if known is None or any(_spec_of(name) is not spec for name, spec in known.items()):
        names = {module, *_related(module)}
        digest = _digest_of_files(module, sorted(names - {module}))
        _MODULES[module] = {name: _spec_of(name) for name in names}, digest
    return digest


def _spec_of(module: str) -> Any:
    """The spec of a module, which is another object after each reload."""
    return getattr(sys.modules.get(module), "__spec__", None)


def _digest_of_files(module: str, others: Sequence[str]) -> str | None:
    file = _source_file(module)
    if file is None:
        return None
    digest = hashlib.sha256(file.read_bytes())
    for name in others:
        other = _source_file(name)
        if other is not None:
            digest.update(f"\n{name}\n".encode())
            digest.update(other.read_bytes())
    return digest.hexdigest()


def _related(module: str) -> set[str]:
    """A module, and the modules of the same package or outside of installed packages that it
    imports anywhere in its source, directly or through others.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        file = None if name in found else _source_file(name)
        if file is None:
            continue
        found.add(name)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        used = imports(file.read_text(encoding="utf-8", errors="replace"), package)
        waiting += [one for one in used if _is_changed_with(one, module)]
    return found


def _is_changed_with(used: str, module: str) -> bool:
    """Whether a module that another one uses is likely to be edited along with it."""
    if not _is_own(used) or used == "__main__":
        return False
    return used.partition(".")[0] == module.partition(".")[0] or not _is_installed(used)


def _source_file(module: str) -> Path | None:
    """The file of a module's source; None where it has none."""
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin)


def _spec(module: str) -> ModuleSpec | None:
    """Spec of an importable module; None if there is none."""
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
