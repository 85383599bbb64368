"""A mapping of the checked tree, read into typed values; what is unsound is passed over: it has its problem already."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from mirror.config.problems import KeyPath, format_key_path, value_shown
from mirror.config.tree import Document
from mirror.errors import ConfigError
from mirror.selection.locations import NO_VARIABLES, VARIABLE, without_home

T = TypeVar("T")


class Section:
    """A mapping at `path`. base: directory that relative paths belong to; warnings: grows."""

    def __init__(self, document: Document, value: object, path: KeyPath, base: Path, warnings: list[str]) -> None:
        self.document = document
        self.path = path
        self._base = base
        self._warnings = warnings
        self._values: dict[str, object] = value if isinstance(value, dict) else {}

    def names(self) -> Iterable[str]:
        """The keys."""
        return self._values

    def has(self, key: str) -> bool:
        return key in self._values

    def section(self, key: str) -> Section:
        """The mapping under `key`; an empty one where there is none."""
        return Section(self.document, self._values.get(key), (*self.path, key), self._base, self._warnings)

    def sections(self, key: str) -> list[Section]:
        """The mappings in the list under `key`."""
        found = self._values.get(key)
        items = found if isinstance(found, list) else []
        return [
            Section(self.document, item, (*self.path, key, number), self._base, self._warnings)
            for number, item in enumerate(items)
        ]

    def text(self, key: str) -> str | None:
        value = self._sound(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        value = self._sound(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def flag(self, key: str, default: bool) -> bool:
        value = self._sound(key)
        return value if isinstance(value, bool) else default

    def file(self, key: str) -> Path | None:
        """A path, absolute; `~` at its beginning is the home directory."""
        text = self.text(key)
        if text is None:
            return None
        return self._parse(text, self.resolved, (*self.path, key))

    def resolved(self, text: str) -> Path:
        """A path, absolute: of the bytes that stand in the file, whatever the locale takes names to be encoded in.
        Raises ConfigError."""
        if VARIABLE.search(text):
            home = without_home(text)
            meant = f"; write {value_shown(home)}" if home.startswith("~") and "$" not in home else ""
            raise ConfigError(f"{NO_VARIABLES}{meant}")
        if "\0" in text:
            raise ConfigError("a path cannot have the character \\0 in it; remove it")
        try:
            return self._base / Path(os.fsdecode(text.encode("utf-8"))).expanduser()
        except RuntimeError:
            raise ConfigError("there is no home directory for `~`; give the whole path") from None

    def parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """The text under `key`, parsed; None where there is none, or a problem, which is noted."""
        text = self.text(key)
        return None if text is None else self._parse(text, parse, (*self.path, key))

    def parsed_list(self, key: str, parse: Callable[[str], T]) -> list[tuple[int, T]]:
        """The sound texts of a list, parsed, each with its index."""
        found = self._values.get(key)
        parsed: list[tuple[int, T]] = []
        for number, item in enumerate(found if isinstance(found, list) else []):
            path = (*self.path, key, number)
            if isinstance(item, str) and self.document.sound(path):
                value = self._parse(item, parse, path)
                if value is not None:
                    parsed.append((number, value))
        return parsed

    def problem(self, message: str, *, key: str | None = None, below: str | None = None) -> None:
        """Note one of this section, of the name of its `key`, or of the value `below` it."""
        self.document.add(self.path if below is None else (*self.path, below), message, key=key)

    def warn(self, message: str, *, below: str, item: int | None = None) -> None:
        path: KeyPath = (*self.path, below) if item is None else (*self.path, below, item)
        self._warnings.append(f"{self.document.place(path)}: {format_key_path(path)}: {message}")

    def _sound(self, key: str) -> object:
        return self._values.get(key) if self.document.sound((*self.path, key)) else None

    def _parse(self, text: str, parse: Callable[[str], T], path: KeyPath) -> T | None:
        try:
            return parse(text)
        except ConfigError as error:
            self.document.add(path, str(error))
            return None
