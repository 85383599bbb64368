"""Reads the configuration of another tool, and collects notes about the keys that are not converted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NoReturn

from mirror.config.problems import KeyPath, format_key_path
from mirror.config.tree import Mapping, Node, Scalar, Sequence
from mirror.errors import MirrorError, printable
from mirror.util.structs import Struct

_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")


class Note(Struct, frozen=True, order=True):
    """A note about a key in a file of another tool.

    line: the line of the key, counted from 1. path: the path of the key. text: describes the difference, and a remedy.
    lost: whether the new file therefore does not copy images that the other tool copies, or lacks a setting that they
    need. file: the name of the file that contains the key, if it is not the file to convert."""

    line: int
    path: str
    text: str
    lost: bool = False
    file: str = ""


class NotConvertible(MirrorError):
    """Raised if a part of a file cannot be converted. note: describes the reason and a remedy."""

    def __init__(self, note: Note) -> None:
        super().__init__(f"{note.path}: {note.text}")
        self.note = note


class ToolMapping:
    """A YAML mapping in a file of another tool, which records the keys that were read.

    `note_unknown_keys` reports all other keys. node, path: the mapping and its key path. notes: the list to which notes
    are added. file: the name of the file that contains the mapping, if it is not the file to convert."""

    def __init__(self, node: Mapping, path: KeyPath, notes: list[Note], file: str = "") -> None:
        self.file = file
        self.node = node
        self.path = path
        self.notes = notes
        self._read: set[str] = set()

    @property
    def line(self) -> int:
        """The line of the mapping, counted from 1."""
        return self.node.line + 1

    def with_notes(self, notes: list[Note]) -> ToolMapping:
        """Return a copy of the mapping that adds its notes to another list, and in which no key is marked as read."""
        return ToolMapping(self.node, self.path, notes, self.file)

    def read_keys(self) -> list[str]:
        """Return the keys of the mapping, and mark them as read."""
        self._read.update(self.node.items)
        return list(self.node.items)

    def has(self, key: str) -> bool:
        """Return whether a key is present and not null. Marks the key as read."""
        return self._value(key) is not None

    def text(self, key: str) -> str | None:
        """Return the text of the scalar under a key, or None if the key is missing. Raises NotConvertible."""
        node = self._value(key)
        if node is None:
            return None
        if not isinstance(node, Scalar):
            self.reject(key, "expected a string; correct the file")
        return node.text

    def texts(self, key: str) -> list[str]:
        """Return the strings in the list under a key, or an empty list if the key is missing. Raises NotConvertible."""
        node = self._value(key)
        if node is None:
            return []
        items = node.items if isinstance(node, Sequence) else [node]
        if not all(isinstance(item, Scalar) for item in items):
            self.reject(key, "expected a list of strings; correct the file")
        return [item.text for item in items if isinstance(item, Scalar)]

    def flag(self, key: str) -> bool | None:
        """Return the boolean under a key, or None if the key is missing. Raises NotConvertible."""
        text = self.text(key)
        if text is None:
            return None
        if text.lower() not in ("true", "false", "yes", "no", "on", "off"):
            self.reject(key, "expected true or false; correct the file")
        return text.lower() in ("true", "yes", "on")

    def number(self, key: str) -> float | None:
        """Return the number under a key, or None if the key is missing. Raises NotConvertible."""
        text = self.text(key)
        if text is None:
            return None
        if not _NUMBER.fullmatch(text):
            self.reject(key, "expected a number; correct the file")
        return float(text)

    def mapping(self, key: str) -> ToolMapping | None:
        """Return the mapping under a key, or None if the key is missing. Raises NotConvertible."""
        node = self._value(key)
        if node is None:
            return None
        if not isinstance(node, Mapping):
            self.reject(key, "expected a mapping; correct the file")
        return ToolMapping(node, (*self.path, key), self.notes, self.file)

    def mappings(self, key: str) -> Iterator[ToolMapping]:
        """Yield the mappings in the list under a key. Raises NotConvertible."""
        node = self._value(key)
        items = node.items if isinstance(node, Sequence) else []
        if (node is not None and not isinstance(node, Sequence)) or not all(isinstance(one, Mapping) for one in items):
            self.reject(key, "expected a list of mappings; correct the file")
        for number, item in enumerate(items):
            if isinstance(item, Mapping):
                yield ToolMapping(item, (*self.path, key, number), self.notes, self.file)

    def note(self, key: str | None, text: str, *, lost: bool = False) -> None:
        """Add a note about a key, or about the mapping if `key` is None. Marks the key as read."""
        self.notes.append(self._note(key, text, lost=lost))

    def note_if_present(self, key: str, text: str, *, lost: bool = False) -> None:
        """Add a note about a key if it is present. Marks the key as read."""
        if self.has(key):
            self.note(key, text, lost=lost)

    def reject(self, key: str | None, text: str) -> NoReturn:
        """Raise NotConvertible with a note about a key, or about the mapping if `key` is None."""
        raise NotConvertible(self._note(key, text, lost=True))

    def note_unknown_keys(self, tool: str) -> None:
        """Add a note about each key that was not read. tool: the name of the tool to which the file belongs."""
        for key in self.node.items:
            if key not in self._read:
                self.note(key, f"not converted: this is not a known key of {tool}")

    def _value(self, key: str) -> Node | None:
        """Return the node under a key, or None if the key is missing or null. Marks the key as read."""
        self._read.add(key)
        node = self.node.items.get(key)
        return None if isinstance(node, Scalar) and node.value is None else node

    def _note(self, key: str | None, text: str, *, lost: bool) -> Note:
        """Create a note about a key, or about the mapping if `key` is None."""
        if key is None:
            return Note(self.line, format_key_path(self.path), printable(text, 1000), lost, self.file)
        self._read.add(key)
        position = self.node.keys.get(key, self.node)
        return Note(position.line + 1, format_key_path((*self.path, key)), printable(text, 1000), lost, self.file)
