"""A configuration as a tree that knows where each value stands, and what is wrong with it."""

from __future__ import annotations

from typing import TypeAlias

from mirror.config.problems import KeyPath, Place, Problem, format_key_path
from mirror.util.structs import Struct, field


class Misread(Struct, frozen=True):
    """What YAML made of an unquoted scalar that no key of ours can take. shown: like `the number 1.1`."""

    shown: str


class Scalar(Struct):
    """line, column: from 0. value: str, bool, int, None or Misread; text: as it was written."""

    line: int
    column: int
    text: str
    value: object
    size: int = 1
    height: int = 1


class Sequence(Struct):
    line: int
    column: int
    items: list[Node] = field(default_factory=list)
    size: int = 1
    height: int = 1


class Mapping(Struct):
    """keys: the scalars that are the keys of `items`."""

    line: int
    column: int
    items: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Scalar] = field(default_factory=dict)
    merged: list[Mapping] = field(default_factory=list)
    size: int = 1
    height: int = 1


Node: TypeAlias = Scalar | Sequence | Mapping


class Document:
    """A file, its tree and what is wrong with it so far. file: its name in messages; text_hash: sha256, hex."""

    def __init__(self, file: str, root: Mapping, text_hash: str) -> None:
        self.file = file
        self.root = root
        self.text_hash = text_hash
        self.problems: list[Problem] = []
        self._unsound: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str, *, key: str | None = None) -> None:
        """Note a problem of the value at `path`, or of its key `key`."""
        self.problems.append(Problem(self.place(path, key=key), format_key_path(path), message))
        self._unsound.update(path[:length] for length in range(len(path) + 1))

    def sound(self, path: KeyPath) -> bool:
        """Whether nothing is wrong with the value at `path`, or within it."""
        return path not in self._unsound

    def node(self, path: KeyPath) -> Node:
        """The value at `path`, or the innermost one that holds it."""
        node: Node = self.root
        for part in path:
            below = node.items.get(str(part)) if isinstance(node, Mapping) else None
            if isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
                below = node.items[part]
            if below is None:
                break
            node = below
        return node

    def place(self, path: KeyPath, *, key: str | None = None) -> Place:
        node = self.node(path)
        if key is not None and isinstance(node, Mapping) and key in node.keys:
            node = node.keys[key]
        return Place(self.file, node.line + 1, node.column + 1)


def plain(node: Node) -> object:
    """The tree as dicts, lists and scalars."""
    if isinstance(node, Mapping):
        return {key: plain(value) for key, value in node.items.items()}
    if isinstance(node, Sequence):
        return [plain(item) for item in node.items]
    return node.value


def read_as(value: object) -> str:
    """What YAML took an unquoted scalar for."""
    if isinstance(value, Misread):
        return value.shown
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else f"the number {value}"
