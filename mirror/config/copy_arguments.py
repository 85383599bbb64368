"""Builds a configuration from the arguments of `mirror copy`. It passes the same checks as a configuration file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from mirror.config.loader import Config, build_config, file_warnings, read_document, state_directory, state_home
from mirror.config.problems import KeyPath
from mirror.config.tree import Document, Mapping, Node, Scalar, Sequence
from mirror.config.values import host as parse_host
from mirror.errors import ConfigError
from mirror.util.structs import Struct, replace

COMMAND_LINE = "the command line"

# Keys that apply only to `mirror sync`. `mirror copy` must not replace the metrics of a sync, or send notifications.
_SYNC_KEYS = ("metrics", "notify")
_MIRROR: KeyPath = ("mirrors", 0)

Value = str | int | bool | list[str]


class CopyArguments(Struct, frozen=True):
    """The arguments of `mirror copy` that define a mirror.

    keys: the value and the name of the argument for each key of the mirror, by key path, such as ("tags", "include").
    config: the configuration file with the settings of the registries, the defaults and the state directory.
    plain_http: the hosts to contact over http. directory: the current directory, to which paths in the values are
    relative."""

    keys: dict[tuple[str, ...], tuple[Value, str]]
    config: Path | None = None
    plain_http: tuple[str, ...] = ()
    directory: Path = Path()

    @property
    def folder(self) -> str:
        """The name of the folder in the state directory for copies with these arguments."""
        values = sorted((path, value) for path, (value, _) in self.keys.items())
        text = json.dumps(values)
        if "oci:" in text or ".tar" in text:
            text += str(self.directory)
        return f"copy-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


def load_copy(arguments: CopyArguments) -> Config:
    """Build the configuration for `mirror copy`. Messages about the keys of its mirror name the arguments.

    Raises ConfigErrors with all problems, ConfigError if the configuration file does not exist, and LocalError."""
    if arguments.config is None:
        document, path, warnings = Document(COMMAND_LINE, Mapping(0, 0), ""), arguments.directory / COMMAND_LINE, []
    else:
        document, path, warnings = read_document(arguments.config), arguments.config, file_warnings(arguments.config)
    root = document.root
    for key in _SYNC_KEYS:
        root.items.pop(key, None)
    _set_value(root, ("version",), root.items.get("version", _make_node(1)))
    _add_plain_http(document, arguments.plain_http)
    mirror = Mapping(0, 0)
    for key_path, (value, name) in arguments.keys.items():
        _set_value(mirror, key_path, _make_node(value))
        document.arguments[(*_MIRROR, *key_path)] = name
        document.arguments.setdefault((*_MIRROR, *key_path[:1]), name)
    _set_value(root, ("mirrors",), Sequence(0, 0, [mirror]))
    document.arguments[_MIRROR] = COMMAND_LINE
    document.text_hash = hashlib.sha256(f"{document.text_hash} {arguments.folder}".encode()).hexdigest()
    config = build_config(document, path, secrets=True, warnings=warnings, mirrors_base=arguments.directory)
    state = state_home() / "copies" if arguments.config is None else state_directory(config)
    return replace(config, path=Path(COMMAND_LINE), state=state)


def _add_plain_http(document: Document, hosts: tuple[str, ...]) -> None:
    """Set `plain-http` for each host in a document. Other settings of the host in the configuration file are kept."""
    for text in hosts:
        registries = document.root.items.get("registries")
        names = registries.items if isinstance(registries, Mapping) else {}
        in_file = next((name for name in names if _is_same_host(name, text)), None)
        path = ("registries", in_file or text, "plain-http")
        document.arguments[path if in_file else path[:2]] = "--plain-http"
        _set_value(document.root, path, _make_node(True))


def _is_same_host(name: str, other: str) -> bool:
    """Return whether two spellings of a host are equal in their canonical form."""
    try:
        return parse_host(name) == parse_host(other)
    except ConfigError:  # a later check reports it
        return name == other


def _set_value(mapping: Mapping, path: tuple[str, ...], node: Node) -> None:
    """Set the value at a key path, and create missing mappings on the path.

    If a value on the path is not a mapping, do nothing, because the schema check reports it."""
    for key in path[:-1]:
        if key not in mapping.items:
            _set_value(mapping, (key,), Mapping(0, 0))
        below = mapping.items[key]
        if not isinstance(below, Mapping):
            return
        mapping = below
    mapping.items[path[-1]] = node
    mapping.keys.setdefault(path[-1], Scalar(0, 0, path[-1], path[-1]))


def _make_node(value: Value) -> Node:
    """Convert the value of an argument to a node of a configuration tree."""
    if isinstance(value, list):
        return Sequence(0, 0, [_make_node(item) for item in value])
    return Scalar(0, 0, str(value), value)
