"""Typed access to a mapping in a configuration. A value for which a problem was reported is treated as missing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from mirror.config.problems import KeyPath, quote_value
from mirror.config.tree import Document
from mirror.errors import ConfigError
from mirror.selection.shell_variables import NO_VARIABLES, VARIABLE, replace_home

T = TypeVar("T")


class Section:
    """A mapping in a configuration, with typed access to its values.

    path: the key path of the mapping. base: the directory to which paths in the configuration are relative. warnings:
    the list to which warnings are added."""

    def __init__(self, document: Document, value: object, path: KeyPath, base: Path, warnings: list[str]) -> None:
        self.document = document
        self.path = path
        self._base = base
        self._warnings = warnings
        self._values: dict[str, object] = value if isinstance(value, dict) else {}

    def keys(self) -> Iterable[str]:
        """Return the keys of the mapping."""
        return self._values

    def has_key(self, key: str) -> bool:
        """Return whether the mapping contains a key."""
        return key in self._values

    def section(self, key: str) -> Section:
        """Return the mapping under a key as a Section, which is empty if the key is missing."""
        return Section(self.document, self._values.get(key), (*self.path, key), self._base, self._warnings)

    def sections(self, key: str) -> list[Section]:
        """Return a Section for each mapping in the list under a key."""
        found = self._values.get(key)
        items = found if isinstance(found, list) else []
        return [
            Section(self.document, item, (*self.path, key, number), self._base, self._warnings)
            for number, item in enumerate(items)
        ]

    def text(self, key: str) -> str | None:
        """Return the string under a key, or None if it is missing or invalid."""
        value = self._valid_value(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """Return the integer under a key, or None if it is missing or invalid."""
        value = self._valid_value(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flag(self, key: str, default: bool) -> bool:
        """Return the boolean under a key, or `default` if it is missing or invalid."""
        value = self._valid_value(key)
        return value if isinstance(value, bool) else default

    def file(self, key: str) -> Path | None:
        """Return the path under a key as an absolute path, or None if it is missing or invalid.

        A leading `~` is expanded. `resolve_path` describes relative paths."""
        text = self.text(key)
        if text is None:
            return None
        return self._parse(text, self.resolve_path, (*self.path, key))

    def resolve_path(self, text: str) -> Path:
        """Convert a path in the configuration to an absolute path. It is relative to the directory of the file.

        The result consists of the same bytes as in the file, regardless of the locale's encoding. Raises ConfigError
        for a shell variable, a null character, or a `~` without a home directory."""
        if VARIABLE.search(text):
            home = replace_home(text)
            meant = f"; write {quote_value(home)}" if home.startswith("~") and "$" not in home else ""
            raise ConfigError(f"{NO_VARIABLES}{meant}")
        if "\0" in text:
            raise ConfigError("a path cannot contain the character \\0; remove it")
        try:
            return self._base / Path(os.fsdecode(text.encode("utf-8"))).expanduser()
        except RuntimeError:
            raise ConfigError(
                "`~` cannot be expanded, because there is no home directory; use an absolute path"
            ) from None

    def parse(self, key: str, parse: Callable[[str], T]) -> T | None:
        """Parse the string under a key. Return None if it is missing or invalid.

        If `parse` raises ConfigError, the error's text is added as a problem."""
        text = self.text(key)
        return None if text is None else self._parse(text, parse, (*self.path, key))

    def parse_list(self, key: str, parse: Callable[[str], T]) -> list[tuple[int, T]]:
        """Parse the strings in the list under a key. Return the valid values, each with its index in the list.

        If `parse` raises ConfigError, the error's text is added as a problem."""
        found = self._values.get(key)
        parsed: list[tuple[int, T]] = []
        for number, item in enumerate(found if isinstance(found, list) else []):
            path = (*self.path, key, number)
            if isinstance(item, str) and self.document.is_valid(path):
                value = self._parse(item, parse, path)
                if value is not None:
                    parsed.append((number, value))
        return parsed

    def add_problem(self, message: str, *, key: str | None = None, below: str | None = None) -> None:
        """Add a problem about the value under the key `below`, or about the whole mapping if `below` is None.

        key: if given, the position of the problem is that of this key."""
        self.document.add(self.path if below is None else (*self.path, below), message, key=key)

    def add_warning(self, message: str, *, below: str, item: int | None = None) -> None:
        """Add a warning about the value under the key `below`. item: the index of an item, if the value is a list."""
        path: KeyPath = (*self.path, below) if item is None else (*self.path, below, item)
        self._warnings.append(str(self.document.problem(path, message)))

    def _valid_value(self, key: str) -> object:
        """Return the value under a key, or None if it is missing or invalid."""
        return self._values.get(key) if self.document.is_valid((*self.path, key)) else None

    def _parse(self, text: str, parse: Callable[[str], T], path: KeyPath) -> T | None:
        """Return `parse(text)`. If this raises ConfigError, add a problem for `path` and return None."""
        try:
            return parse(text)
        except ConfigError as error:
            self.document.add(path, str(error))
            return None
