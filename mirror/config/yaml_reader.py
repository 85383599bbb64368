"""Reads YAML into a tree, within limits (docs/configuration.md, "The file").

Scalars that YAML reads as a number, a date or null keep their text: the image tag 1.10 is an error, not the tag 1.1.
Duplicate keys and explicit YAML tags are collected as problems. Reading stops at any other error.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NoReturn, cast

import yaml

from mirror.config import file
from mirror.config.problems import (
    SECRET_KEYS,
    ConfigErrors,
    ConfigProblem,
    KeyPath,
    Position,
    format_key_path,
    quote_key,
    quote_value,
)
from mirror.config.tree import Document, Mapping, MisreadScalar, Node, Scalar, Sequence, describe_parsed_value
from mirror.errors import printable
from mirror.selection.shell_variables import NO_VARIABLES, replace_home
from mirror.util.structs import Struct

MAX_DEPTH = 32
MAX_ALIASES = 100
MAX_VALUES = 100_000  # values in a file after its aliases are expanded

_PLAIN_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_LONGEST_NUMBER = 40
_PATTERNS = ("include", "exclude", "immutable")  # keys whose values are patterns
_STAR = re.compile(r"\*[^\s,\]}]*")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_BRACES = re.compile(r"[^\s,\[\]{}\"']*\{[\w-]+\}[^\s,\[\]{}\"']*")
_TOO_DEEP = f"nested too deeply: at most {MAX_DEPTH} levels are allowed"
_STANDARD_TAGS = "tag:yaml.org,2002:"
_TRUE = {"true", "yes", "on"}
_ON = "on"  # YAML 1.1 reads this as true, but here it is also a key (under `notify`)


def read(path: Path) -> Document:
    """Read the configuration file at `path`. Raises ConfigErrors if it is invalid, ConfigError, LocalError."""
    data = file.read(path)
    document = Document(printable(path), Mapping(0, 0), hashlib.sha256(data).hexdigest())
    composer = _Composer(file.decode(data, document.file), document)
    root = composer.compose()
    if not isinstance(root, Mapping):
        composer.fail(root.line, root.column, "expected a mapping at the top, with `version: 1` and `mirrors:`")
    document.root = root
    return document


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's parser, if available
    """PyYAML's parser and resolver, extended by the number formats of YAML 1.2."""


_Loader.add_implicit_resolver(
    f"{_STANDARD_TAGS}float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(f"{_STANDARD_TAGS}int", re.compile(r"0o[0-7]+\Z"), ["0"])


class _OpenCollection(Struct):
    """A sequence or mapping whose end the parser has not reached. key: the current key of a mapping."""

    node: Sequence | Mapping
    anchor: str | None
    key: Scalar | None = None


class _Composer:
    """Builds the tree of a document from the parser's events. No method is recursive, so the stack cannot overflow."""

    def __init__(self, text: str, document: Document) -> None:
        self._lines = text.split("\n")
        self._text = text
        self._document = document
        self._open: list[_OpenCollection] = []
        self._anchors: dict[str, Node] = {}
        self._aliases = 0
        self._last_key = ""
        self._root: Node | None = None

    def compose(self) -> Node:
        """Build the tree and return its root. Raises ConfigErrors if the text is not valid YAML or exceeds a limit."""
        loader = _Loader(self._text)
        try:
            documents = 0
            while True:
                event = loader.get_event()
                if isinstance(event, yaml.StreamEndEvent):
                    break
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self._fail_at(_mark(event), "expected one YAML document; remove the `---` of the second")
                else:
                    self._handle_event(event, loader)
        except yaml.MarkedYAMLError as error:
            if "maximum nesting depth" in (error.problem or ""):
                self._fail_too_deep()
            mark = error.problem_mark or error.context_mark
            self._fail_at(mark, self._explain(error, mark))
        finally:
            loader.dispose()
        if self._root is None or (isinstance(self._root, Scalar) and self._root.value is None):
            self.fail(0, 0, "the configuration is empty; it needs `version: 1` and `mirrors:`")
        return self._root

    def fail(self, line: int, column: int, message: str) -> NoReturn:
        """Raise ConfigErrors with all problems and a new one at a position, which is counted from 0."""
        position = Position(self._document.file, line + 1, column + 1)
        problem = ConfigProblem(position, format_key_path(self._key_path()), message)
        raise ConfigErrors([*self._document.problems, problem])

    def _fail_at(self, mark: yaml.Mark | None, message: str) -> NoReturn:
        """Raise ConfigErrors with all problems found so far and a new one at `mark`."""
        self.fail(mark.line if mark else 0, mark.column if mark else 0, message)

    def _fail_too_deep(self) -> None:
        """Raise the error for the first position nested deeper than MAX_DEPTH, which libyaml's error does not name."""
        depth = 0
        for event in yaml.parse(self._text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                self._fail_at(_mark(event), _TOO_DEEP)

    def _explain(self, error: yaml.MarkedYAMLError, mark: yaml.Mark | None) -> str:
        """Return the message for a syntax error in YAML."""
        line = self._lines[mark.line] if mark and mark.line < len(self._lines) else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return "tabs cannot indent YAML; use spaces"
        if mark:
            self._fail_unquoted(mark, line)
        problem = printable(error.problem or "it cannot be parsed", 120)
        context = f" {printable(error.context, 80)}" if error.context else ""
        patterns = "unknown escape" in problem or self._current_key() in _PATTERNS
        hint = "; put patterns in single quotes" if patterns else ""
        return f"not YAML: {problem}{context}{hint}"

    def _fail_unquoted(self, mark: yaml.Mark, line: str) -> None:
        """Raise an error if the string at `mark` needs quotes, because it begins with `*` or contains `{name}`."""
        found = _STAR.match(line, mark.column) or _STAR.match(line, max(mark.column - 1, 0))
        if found:
            text, why = self._suggest(found.group()), "a string that begins with * must be in quotes"
        else:
            found = next((one for one in _BRACES.finditer(line) if one.start() <= mark.column <= one.end()), None)
            if found is None or not self._open:
                return
            text, why = found.group(), "a string with { or } must be in quotes here"
        innermost = self._open[-1].node if self._open else None
        if isinstance(innermost, Sequence) and found.start() < mark.column:
            del innermost.items[-1:]  # the parser treated the text before the `{` as the whole string
        elif isinstance(innermost, Mapping) and found.start() < mark.column:
            self._open[-1].key = innermost.keys.get(self._last_key)
        self._fail_variable(mark, found.start(), text)
        if self._is_in_secret() or self._last_key in SECRET_KEYS:
            meant = "; write {env: NAME} for an environment variable"
        else:
            meant = f"; write {quote_value(text)}"
        self.fail(mark.line, found.start(), f"not YAML: {why}{meant}")

    def _fail_variable(self, mark: yaml.Mark, column: int, text: str) -> None:
        """Raise an error if `text` contains a shell variable, which would not be expanded inside quotes either."""
        variable = _VARIABLE.fullmatch(text)
        if self._is_in_secret() or self._last_key in SECRET_KEYS:
            if variable:
                self.fail(mark.line, column, f"write {{env: {variable['name']}}} for an environment variable")
        elif _VARIABLE.search(text) and self._last_key not in _PATTERNS:
            home = replace_home(text)
            meant = "" if _VARIABLE.search(home) else f"; write {quote_value(home)}"
            self.fail(mark.line, column, f"{NO_VARIABLES}{meant}")

    def _current_key(self) -> str:
        """Return the innermost key whose value the parser is reading, or an empty string."""
        return next((level.key.text for level in reversed(self._open) if level.key is not None), "")

    def _suggest(self, text: str) -> str:
        """Return the value that the user probably meant by `text`, which begins with `*`, under the current key."""
        key = self._current_key()
        before = {"source": "registry.example.com/", "targets": "registry.example.com/"} | dict.fromkeys(_PATTERNS, ".")
        return before.get(key, "") + text

    def _handle_event(self, event: yaml.Event, loader: _Loader) -> None:
        """Add the node for a parser event to the tree."""
        if isinstance(event, yaml.AliasEvent):
            self._add(self._resolve_alias(event), _mark(event), None)
        elif isinstance(event, yaml.ScalarEvent):
            self._refuse_tag(event)
            self._add(_make_scalar(event, loader), _mark(event), event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            self._refuse_tag(event)
            if len(self._open) >= MAX_DEPTH:
                self._fail_at(_mark(event), _TOO_DEEP)
            mark = _mark(event)
            kind = Sequence if isinstance(event, yaml.SequenceStartEvent) else Mapping
            self._open.append(_OpenCollection(kind(mark.line, mark.column), event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            ended = self._open.pop()
            if isinstance(ended.node, Mapping):
                _merge(ended.node)
            self._add(ended.node, _mark(event), ended.anchor)

    def _refuse_tag(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        """Add a problem if the node of an event has an explicit YAML tag."""
        if tag := event.tag:
            shown = f"!!{tag.removeprefix(_STANDARD_TAGS)}" if tag.startswith(_STANDARD_TAGS) else tag
            named = "a YAML tag" if self._is_in_secret() else f"the YAML tag {quote_key(shown)}"
            self._add_problem(_mark(event), f"{named} is not allowed; remove it, or put the string in quotes")

    def _resolve_alias(self, event: yaml.AliasEvent) -> Node:
        """Return the node to which a YAML alias refers."""
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self._fail_at(_mark(event), f"too many aliases: at most {MAX_ALIASES} are allowed")
        if any(level.anchor == event.anchor for level in self._open):
            self._fail_at(_mark(event), f"recursive alias *{printable(event.anchor, 80)}; remove it")
        if event.anchor not in self._anchors:
            why = "has no anchor before it; a string that begins with * must be in quotes"
            if self._is_in_secret():
                self._fail_at(_mark(event), f"an alias {why}")
            meant = quote_value(self._suggest(f"*{event.anchor}"))
            self._fail_at(_mark(event), f"alias *{printable(event.anchor, 80)} {why}; write {meant}")
        return self._anchors[event.anchor]

    def _is_in_secret(self) -> bool:
        """Return whether the current value is a secret. A secret may begin with `!` or `*` like a tag or alias."""
        return any(level.key is not None and level.key.text in SECRET_KEYS for level in self._open)

    def _add(self, node: Node, mark: yaml.Mark, anchor: str | None) -> None:
        """Add a node to the innermost open collection, as an item, key or value. anchor: the node's YAML anchor."""
        if anchor:
            self._anchors[anchor] = node
        if not self._open:
            self._root = node
            return
        level = self._open[-1]
        level.node.size += node.size
        level.node.height = max(level.node.height, node.height + 1)
        if level.node.size > MAX_VALUES:
            why = "too many aliases: they expand to" if self._aliases else "too big:"
            self._fail_at(mark, f"{why} more than {MAX_VALUES:,} values")
        if len(self._open) + node.height > MAX_DEPTH:
            self._fail_at(mark, _TOO_DEEP)
        if isinstance(level.node, Sequence):
            level.node.items.append(node)
        elif level.key is None:
            level.key = self._check_key(node)
        else:
            key, level.key = level.key, None
            self._add_entry(level.node, key, node)

    def _check_key(self, node: Node) -> Scalar:
        """Return a node as the key of a mapping. Raises ConfigErrors if it is not a scalar."""
        if not isinstance(node, Scalar):
            self.fail(node.line, node.column, "a key must be a string, not a list or a mapping; remove it")
        return node

    def _add_entry(self, mapping: Mapping, key: Scalar, node: Node) -> None:
        """Add a key and its value to a mapping."""
        name = self._last_key = key.text
        if name == "<<" and key.value == "<<":
            found = node.items if isinstance(node, Sequence) else [node]
            mapping.merged.extend(item for item in found if isinstance(item, Mapping))
            if not all(isinstance(item, Mapping) for item in found):
                self._add_problem(key, "<< needs a mapping, or a list of mappings, to merge")
        elif not isinstance(key.value, str) and name != _ON:
            what = f"unknown key {quote_key(name)}, read as {describe_parsed_value(key.value)}; remove it"
            if [level.key.text for level in self._open if level.key is not None] == ["registries"]:
                what = f"key read as {describe_parsed_value(key.value)}; write {quote_key(name)}"
            self._add_problem(key, what)
        elif name in mapping.keys:
            first = mapping.keys[name].line + 1
            self._add_problem(key, f"duplicate key {quote_key(name)}, first on line {first}; keep one of them")
        else:
            mapping.items[name] = node
            mapping.keys[name] = key

    def _add_problem(self, at: yaml.Mark | Scalar, message: str) -> None:
        """Add a problem at a position, and continue reading. `fail` raises an exception instead."""
        position = Position(self._document.file, at.line + 1, at.column + 1)
        self._document.problems.append(ConfigProblem(position, format_key_path(self._key_path()), message))

    def _key_path(self) -> KeyPath:
        """Return the key path of the current entry. Between two entries, return the key path of their collection."""
        path: list[str | int] = []
        for level in self._open:
            if isinstance(level.node, Sequence):
                path.append(len(level.node.items))
            elif level.key is not None:
                path.append(level.key.text)
        return tuple(path)


def _mark(event: yaml.Event) -> yaml.Mark:
    """Return the position of an event. The marks of libyaml and PyYAML have the same attributes."""
    return cast(yaml.Mark, event.start_mark)


def _merge(mapping: Mapping) -> None:
    """Add the entries of the merged mappings (`<<`) to a mapping. Its own keys take precedence."""
    for other in mapping.merged:
        for name, node in other.items.items():
            if name not in mapping.items:
                mapping.items[name] = node
                mapping.keys[name] = other.keys[name]


def _make_scalar(event: yaml.ScalarEvent, loader: _Loader) -> Scalar:
    """Create the node for a scalar event. If the scalar is not quoted, resolve its type."""
    mark, text = _mark(event), event.value
    if event.style or event.tag:  # quoted or block
        return Scalar(mark.line, mark.column, text, text)
    tag = loader.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_STANDARD_TAGS)
    return Scalar(mark.line, mark.column, text, _scalar_value(tag, text, loader))


def _scalar_value(tag: str, text: str, loader: _Loader) -> object:
    """Return the value of an unquoted scalar. tag: the YAML type, such as `int`."""
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in _TRUE
    if tag == "timestamp":
        return MisreadScalar("a date")
    if tag == "int" and _PLAIN_INTEGER.fullmatch(text):
        return int(text)
    if tag in ("int", "float"):
        return MisreadScalar(_describe_number(tag, text, loader))
    return text


def _describe_number(tag: str, text: str, loader: _Loader) -> str:
    """Describe the number that YAML reads from a text which is not a plain decimal integer. tag: `int` or `float`."""
    if len(text) > _LONGEST_NUMBER:
        return "a number"
    if text.startswith("0o"):
        return f"the number {int(text, 8)}"
    node = yaml.ScalarNode(f"{_STANDARD_TAGS}{tag}", text)
    read = loader.construct_yaml_int(node) if tag == "int" else loader.construct_yaml_float(node)
    return f"the number {read}"
