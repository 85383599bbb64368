"""The parsed YAML of a configuration: a tree of values with their positions, and the problems found so far."""

from __future__ import annotations

from typing import TypeAlias

from mirror.config.problems import ConfigProblem, KeyPath, Position, format_key_path
from mirror.util.structs import Struct, field


class MisreadScalar(Struct, frozen=True):
    """The value of an unquoted scalar that YAML reads as a type that no key accepts, such as a float.

    shown: the description of the value, such as `the number 1.1`."""

    shown: str


class Scalar(Struct):
    """A scalar in the parsed YAML tree.

    line, column: the position, counted from 0. text: the text in the file. value: the value that YAML reads: a str,
    bool, int, None or MisreadScalar. size, height: always 1, unlike those of collections."""

    line: int
    column: int
    text: str
    value: object
    size: int = 1
    height: int = 1


class Sequence(Struct):
    """A list in the parsed YAML tree.

    line, column: the position, counted from 0. size: the number of nodes, including the list itself. height: the number
    of levels."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)
    size: int = 1
    height: int = 1


class Mapping(Struct):
    """A mapping in the parsed YAML tree.

    line, column: the position, counted from 0. items, keys: the values and the scalars of the keys, by key. merged: the
    mappings to merge into this one (`<<`). size: the number of nodes, including the keys and the mapping itself.
    height: the number of levels."""

    line: int
    column: int
    items: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Scalar] = field(default_factory=dict)
    merged: list[Mapping] = field(default_factory=list)
    size: int = 1
    height: int = 1


Node: TypeAlias = Scalar | Sequence | Mapping


class Document:
    """A configuration file that is being checked: its tree, and the problems found so far.

    file: the name of the file in messages. text_hash: the SHA-256 of the file, in hex. arguments: the names of the
    command-line arguments whose values were added to the tree, by key path. Messages name them instead of a position in
    the file."""

    def __init__(self, file: str, root: Mapping, text_hash: str) -> None:
        self.file = file
        self.root = root
        self.text_hash = text_hash
        self.arguments: dict[KeyPath, str] = {}
        self.problems: list[ConfigProblem] = []
        self._invalid: set[KeyPath] = set()

    def add(self, path: KeyPath, message: str, *, key: str | None = None) -> None:
        """Add a problem about the value at a key path, or about one of its keys.

        key: the key that the problem is about, if the value is a mapping with a wrong key."""
        self.problems.append(self.problem(path, message, key=key))
        self._invalid.update(path[:length] for length in range(len(path) + 1))

    def problem(self, path: KeyPath, message: str, *, key: str | None = None) -> ConfigProblem:
        """Create a problem about the value at a key path, or about one of its keys, without adding the problem."""
        name = format_key_path(path) if self._argument(path if key is None else (*path, key)) is None else ""
        return ConfigProblem(self.position(path, key=key), name, message)

    def name(self, path: KeyPath) -> str:
        """Return the name of a value for messages: its key path, or the command-line argument that contains it."""
        return self._argument(path) or format_key_path(path)

    def _argument(self, path: KeyPath) -> str | None:
        """Return the name of the command-line argument that contains a value, or None if the value is in the file."""
        starts = (path[:length] for length in range(len(path), 0, -1))
        return next((self.arguments[start] for start in starts if start in self.arguments), None)

    def is_valid(self, path: KeyPath) -> bool:
        """Return whether no problem has been found so far in the value at a key path and in all values inside it."""
        return path not in self._invalid

    def node(self, path: KeyPath) -> Node:
        """Return the node at a key path. If there is none, return the innermost existing node on this path."""
        node: Node = self.root
        for part in path:
            below = node.items.get(str(part)) if isinstance(node, Mapping) else None
            if isinstance(node, Sequence) and isinstance(part, int) and part < len(node.items):
                below = node.items[part]
            if below is None:
                break
            node = below
        return node

    def position(self, path: KeyPath, *, key: str | None = None) -> Position:
        """Return the position of the value at a key path, or the position of its key `key`."""
        argument = self._argument(path if key is None else (*path, key))
        if argument is not None:
            return Position(argument, 0, 0)
        node = self.node(path)
        if key is not None and isinstance(node, Mapping) and key in node.keys:
            node = node.keys[key]
        return Position(self.file, node.line + 1, node.column + 1)


def to_plain(node: Node) -> object:
    """Convert a tree of nodes to dicts, lists and scalars."""
    if isinstance(node, Mapping):
        return {key: to_plain(value) for key, value in node.items.items()}
    if isinstance(node, Sequence):
        return [to_plain(item) for item in node.items]
    return node.value


def describe_parsed_value(value: object) -> str:
    """Describe the value that YAML reads from an unquoted scalar, for an error message."""
    if isinstance(value, MisreadScalar):
        return value.shown
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else f"the number {value}"
