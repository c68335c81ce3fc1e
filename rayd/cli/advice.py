"""Suggested corrections of command lines that were refused, ready to be copied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rayd.errors import nearest

ASSUMED = "digits"
"""Recipe whose settings are looked up if the command line names no existing one."""


def corrected(given: Sequence[str], root: Any) -> str | None:
    """The command that was probably intended; None if there is no good guess.

    Misspelt commands are replaced by the nearest name, and settings that were written like options
    (`--ipc 5`, `--ipc=5`) or as two words (`ipc 5`) become `ipc=5`.

    Args:
        given: the words after `rayd`.
        root: click's group of all commands.
    """
    words = list(given)
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), None)
    if place is None:
        return None
    command = root.commands.get(words[place])
    if command is None:
        near = nearest(words[place], root.commands)
        if not near:
            return None
        words[place] = near[0]
        command = root.commands[near[0]]
    if hasattr(command, "commands"):
        return _line(given, words)
    names = {parameter.name for parameter in command.params}
    if "overrides" in names:
        words[place + 1 :] = _with_settings(words[place + 1 :], _options(command))
    return _line(given, words)


def _line(given: Sequence[str], words: Sequence[str]) -> str | None:
    """The words as a command; None if they are those that were given."""
    return None if list(given) == list(words) else shlex.join(["rayd", *words])


def _options(command: Any) -> Mapping[str, bool]:
    """Options of a command, and whether each is followed by a value."""
    found = {"--help": False, "--import": True}
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            found[name] = not getattr(parameter, "is_flag", False)
    return found


def _with_settings(words: Sequence[str], options: Mapping[str, bool]) -> list[str]:
    """Rewrite settings among the words as `key=value`."""
    keys = _keys(words)
    kept: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in options:
            kept.append(word)
            if options[name] and not equals and rest:
                kept.append(rest.pop(0))
            continue
        is_bare = not equals and bool(kept)
        key = _key(name, keys) if name.startswith("--") or is_bare else None
        if key is None:
            kept.append(word)
        elif equals:
            kept.append(f"{key}={value}")
        elif rest and not rest[0].startswith("-") and "=" not in rest[0]:
            kept.append(f"{key}={rest.pop(0)}")
        else:
            kept.append(word)
    return kept


def _keys(words: Sequence[str]) -> list[str]:
    """Keys of all settings of the recipe that the words name."""
    from rayd import recipes
    from rayd.config import flat

    names = recipes.names()
    recipe = next((word for word in words if word in names), ASSUMED)
    return list(flat(recipes.resolve(recipe).model_dump(mode="json")))


def _key(word: str, keys: Sequence[str]) -> str | None:
    """The setting that a word refers to: the one of that name, or the only one that ends in it."""
    name = word.lstrip("-").replace("-", "_")
    if name in keys or any(key.startswith(f"{name}.") for key in keys):
        return name
    ending = [key for key in keys if key.endswith(f".{name}") and key.count(".") == 1]
    return ending[0] if len(ending) == 1 else None
