"""YAML to a tree, within limits (docs/configuration.md, "The file").

A scalar that YAML 1.1 or 1.2 takes for a number, a date or nothing is kept with its text, so that a tag that was
written as 1.10 is refused by name rather than copied as 1.1. Problems that hide nothing else (duplicate keys,
explicit tags) are collected; the others end the reading.
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
    KeyPath,
    Place,
    Problem,
    format_key_path,
    quote_key,
    value_shown,
)
from mirror.config.tree import Document, Mapping, Misread, Node, Scalar, Sequence, read_as
from mirror.errors import printable
from mirror.selection.locations import NO_VARIABLES, without_home
from mirror.util.structs import Struct

MAX_DEPTH = 32
MAX_ALIASES = 100
MAX_VALUES = 100_000  # aliases expanded

_PLAIN_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_LONGEST_NUMBER = 40
_PATTERNS = ("include", "exclude", "immutable")  # keys
_STAR = re.compile(r"\*[^\s,\]}]*")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_BRACES = re.compile(r"[^\s,\[\]{}\"']*\{[\w-]+\}[^\s,\[\]{}\"']*")
_TOO_DEEP = f"too deep: at most {MAX_DEPTH} levels"
_STANDARD_TAGS = "tag:yaml.org,2002:"
_TRUE = {"true", "yes", "on"}
_ON = "on"  # a key of the language (`notify`), for which YAML 1.1 reads true


def read(path: Path) -> Document:
    """The file at `path`. Raises ConfigErrors; LocalError where this machine does not let us read it."""
    data = file.read(path)
    name = printable(path)
    text = file.decode(data, name)
    document = Document(name, Mapping(0, 0), hashlib.sha256(data).hexdigest())
    composer = _Composer(text, document)
    root = composer.compose()
    if not isinstance(root, Mapping):
        composer.fail(root.line, root.column, "expected a mapping at the top, with `version: 1` and `mirrors:`")
    document.root = root
    return document


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's parser where there is one
    """PyYAML's parser and resolver; what YAML 1.2 alone takes for a number is no text either."""


_Loader.add_implicit_resolver(
    f"{_STANDARD_TAGS}float",
    re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(f"{_STANDARD_TAGS}int", re.compile(r"0o[0-7]+\Z"), ["0"])


class _Open(Struct):
    """A sequence or mapping whose end has not come yet."""

    node: Sequence | Mapping
    anchor: str | None
    key: Scalar | None = None


class _Composer:
    """Builds the tree from the parser's events; iterative, so that depth costs no stack."""

    def __init__(self, text: str, document: Document) -> None:
        self._lines = text.split("\n")
        self._text = text
        self._document = document
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._aliases = 0
        self._last_key = ""
        self._root: Node | None = None

    def compose(self) -> Node:
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
                        self._fail_at(_mark(event), "one document expected, a second begins here; remove the `---`")
                else:
                    self._take(event, loader)
        except yaml.MarkedYAMLError as error:
            if "maximum nesting depth" in (error.problem or ""):
                self._fail_too_deep()
            mark = error.problem_mark or error.context_mark
            self._fail_at(mark, self._explained(error, mark))
        finally:
            loader.dispose()
        if self._root is None or (isinstance(self._root, Scalar) and self._root.value is None):
            self.fail(0, 0, "config is empty; it needs `version: 1` and `mirrors:`")
        return self._root

    def fail(self, line: int, column: int, message: str) -> NoReturn:
        problem = Problem(Place(self._document.file, line + 1, column + 1), format_key_path(self._path()), message)
        raise ConfigErrors([*self._document.problems, problem])

    def _fail_at(self, mark: yaml.Mark | None, message: str) -> NoReturn:
        self.fail(mark.line if mark else 0, mark.column if mark else 0, message)

    def _fail_too_deep(self) -> None:
        """libyaml looks ahead and gives up by itself, at its own limit, before we have seen where ours was passed."""
        depth = 0
        for event in yaml.parse(self._text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                self._fail_at(_mark(event), _TOO_DEEP)

    def _explained(self, error: yaml.MarkedYAMLError, mark: yaml.Mark | None) -> str:
        line = self._lines[mark.line] if mark and mark.line < len(self._lines) else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return "tabs cannot indent YAML; use spaces"
        if mark:
            self._fail_unquoted(mark, line)
        problem = printable(error.problem or "it cannot be parsed", 120)
        context = f" {printable(error.context, 80)}" if error.context else ""
        patterns = "unknown escape" in problem or self._key_being_read() in _PATTERNS
        hint = "; put patterns in single quotes" if patterns else ""
        return f"not YAML: {problem}{context}{hint}"

    def _fail_unquoted(self, mark: yaml.Mark, line: str) -> None:
        """For a text that YAML cannot read without quotes: it begins with `*`, or has `{` in it in a list."""
        found = _STAR.match(line, mark.column) or _STAR.match(line, max(mark.column - 1, 0))
        if found:
            text, why = self._meant(found.group()), "a text that begins with * goes in quotes"
        else:
            around = (one for one in _BRACES.finditer(line) if one.start() <= mark.column <= one.end())
            found = next(around, None)
            if found is None or not self._open:
                return
            text, why = found.group(), "a text with { or } goes in quotes here"
        innermost = self._open[-1].node if self._open else None
        if isinstance(innermost, Sequence) and found.start() < mark.column:
            del innermost.items[-1:]  # what comes before the `{` was taken for the whole text
        elif isinstance(innermost, Mapping) and found.start() < mark.column:
            self._open[-1].key = innermost.keys.get(self._last_key)
        self._fail_variable(mark, found.start(), text)
        if self._secret() or self._last_key in SECRET_KEYS:
            meant = "; an environment variable is named by {env: NAME}"
        else:
            meant = f"; write {value_shown(text)}"
        self.fail(mark.line, found.start(), f"not YAML: {why}{meant}")

    def _fail_variable(self, mark: yaml.Mark, column: int, text: str) -> None:
        """For a variable of a shell, which would be refused with quotes too."""
        variable = _VARIABLE.fullmatch(text)
        if self._secret() or self._last_key in SECRET_KEYS:
            if variable:
                self.fail(mark.line, column, f"an environment variable is named by {{env: {variable['name']}}}")
        elif _VARIABLE.search(text) and self._last_key not in _PATTERNS:
            home = without_home(text)
            meant = "" if _VARIABLE.search(home) else f"; write {value_shown(home)}"
            self.fail(mark.line, column, f"{NO_VARIABLES}{meant}")

    def _key_being_read(self) -> str:
        return next((level.key.text for level in reversed(self._open) if level.key is not None), "")

    def _meant(self, text: str) -> str:
        """What a text that begins with `*` was to say, by the key that it stands under."""
        key = self._key_being_read()
        before = {"source": "registry.example.com/", "targets": "registry.example.com/"} | dict.fromkeys(_PATTERNS, ".")
        return before.get(key, "") + text

    def _take(self, event: yaml.Event, loader: _Loader) -> None:
        if isinstance(event, yaml.AliasEvent):
            self._add(self._alias(event), _mark(event), None)
        elif isinstance(event, yaml.ScalarEvent):
            self._tagless(event)
            self._add(_scalar(event, loader), _mark(event), event.anchor)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            self._tagless(event)
            if len(self._open) >= MAX_DEPTH:
                self._fail_at(_mark(event), _TOO_DEEP)
            mark = _mark(event)
            kind = Sequence if isinstance(event, yaml.SequenceStartEvent) else Mapping
            self._open.append(_Open(kind(mark.line, mark.column), event.anchor))
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            ended = self._open.pop()
            if isinstance(ended.node, Mapping):
                _merge(ended.node)
            self._add(ended.node, _mark(event), ended.anchor)

    def _tagless(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag:
            tag = event.tag
            shown = f"!!{tag.removeprefix(_STANDARD_TAGS)}" if tag.startswith(_STANDARD_TAGS) else tag
            named = "a tag" if self._secret() else f"tag {quote_key(shown)}"
            self._note(_mark(event), f"{named} is not allowed; remove it, or put the text in quotes")

    def _alias(self, event: yaml.AliasEvent) -> Node:
        self._aliases += 1
        if self._aliases > MAX_ALIASES:
            self._fail_at(_mark(event), f"too many aliases: at most {MAX_ALIASES}")
        if any(level.anchor == event.anchor for level in self._open):
            self._fail_at(_mark(event), f"recursive alias *{printable(event.anchor, 80)}")
        if event.anchor not in self._anchors:
            why = "has no anchor before it; a text that begins with * goes in quotes"
            if self._secret():
                self._fail_at(_mark(event), f"an alias {why}")
            meant = value_shown(self._meant(f"*{event.anchor}"))
            self._fail_at(_mark(event), f"alias *{printable(event.anchor, 80)} {why}; write {meant}")
        return self._anchors[event.anchor]

    def _secret(self) -> bool:
        """Whether a password is being read, which may look like a tag or an alias."""
        return any(level.key is not None and level.key.text in SECRET_KEYS for level in self._open)

    def _add(self, node: Node, mark: yaml.Mark, anchor: str | None) -> None:
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
            level.key = self._key(node)
        else:
            key, level.key = level.key, None
            self._entry(level.node, key, node)

    def _key(self, node: Node) -> Scalar:
        if not isinstance(node, Scalar):
            self.fail(node.line, node.column, "a key must be a text, not a list or a mapping; remove it")
        return node

    def _entry(self, mapping: Mapping, key: Scalar, node: Node) -> None:
        name = self._last_key = key.text
        if name == "<<" and key.value == "<<":
            found = node.items if isinstance(node, Sequence) else [node]
            mapping.merged.extend(item for item in found if isinstance(item, Mapping))
            if not all(isinstance(item, Mapping) for item in found):
                self._note(key, "<< needs a mapping, or a list of mappings, to merge")
        elif not isinstance(key.value, str) and name != _ON:
            what = f"unknown key {quote_key(name)}, read as {read_as(key.value)}; remove it"
            if [level.key.text for level in self._open if level.key is not None] == ["registries"]:
                what = f"key read as {read_as(key.value)}; write {quote_key(name)}"
            self._note(key, what)
        elif name in mapping.keys:
            first = mapping.keys[name].line + 1
            self._note(key, f"duplicate key {quote_key(name)}, first on line {first}; keep one of them")
        else:
            mapping.items[name] = node
            mapping.keys[name] = key

    def _note(self, at: yaml.Mark | Scalar, message: str) -> None:
        place = Place(self._document.file, at.line + 1, at.column + 1)
        self._document.problems.append(Problem(place, format_key_path(self._path()), message))

    def _path(self) -> KeyPath:
        """Of what is being read: an entry of the innermost open sequence or mapping, or that itself between entries."""
        path: list[str | int] = []
        for level in self._open:
            if isinstance(level.node, Sequence):
                path.append(len(level.node.items))
            elif level.key is not None:
                path.append(level.key.text)
        return tuple(path)


def _mark(event: yaml.Event) -> yaml.Mark:
    """Where it begins: libyaml's marks and PyYAML's own are alike."""
    return cast(yaml.Mark, event.start_mark)


def _merge(mapping: Mapping) -> None:
    for other in mapping.merged:
        for name, node in other.items.items():
            if name not in mapping.items:
                mapping.items[name] = node
                mapping.keys[name] = other.keys[name]


def _scalar(event: yaml.ScalarEvent, loader: _Loader) -> Scalar:
    mark, text = _mark(event), event.value
    line, column = mark.line, mark.column
    if event.style or event.tag:  # quoted or block
        return Scalar(line, column, text, text)
    tag = loader.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_STANDARD_TAGS)
    return Scalar(line, column, text, _value(tag, text, loader))


def _value(tag: str, text: str, loader: _Loader) -> object:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in _TRUE
    if tag == "timestamp":
        return Misread("a date")
    if tag == "int" and _PLAIN_INTEGER.fullmatch(text):
        return int(text)
    if tag in ("int", "float"):
        return Misread(_number(tag, text, loader))
    return text


def _number(tag: str, text: str, loader: _Loader) -> str:
    if len(text) > _LONGEST_NUMBER:
        return "a number"
    if text.startswith("0o"):
        return f"the number {int(text, 8)}"
    node = yaml.ScalarNode(f"{_STANDARD_TAGS}{tag}", text)
    read = loader.construct_yaml_int(node) if tag == "int" else loader.construct_yaml_float(node)
    return f"the number {read}"
