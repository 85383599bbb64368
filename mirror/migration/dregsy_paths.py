"""Converts the keys `from` and `to` of a mapping of dregsy, which may contain regular expressions."""

from __future__ import annotations

import re

from mirror.errors import ConfigError
from mirror.migration.peer_file import ToolMapping
from mirror.migration.references import parse_repository
from mirror.migration.tag_patterns import complete_anchors, pattern_for_search, pattern_for_text
from mirror.selection.locations import MATCHED
from mirror.selection.patterns import compile_pattern, has_alternative, replace_all
from mirror.util.structs import Struct

_PREFIX = "regex:"
# The literal beginning of an expression, up to its last slash.
_LITERAL_PATH = re.compile(r"\^?([a-z0-9](?:[a-z0-9_/-]|\\\.)*/)(?![?*+{])(.+)", re.DOTALL)
_LITERAL = re.compile(r"(?:[a-z0-9_/-]|\\\.)+")
_GROUP_REFERENCE = re.compile(r"\$(?:\{(\w+)\}|(\w+)|(\$))")


class Paths(Struct, frozen=True):
    """The source and the target of a mapping of dregsy, in the syntax of a `mirror` configuration.

    repositories: the patterns for `repositories.include` and `repositories.exclude`; empty for a single repository."""

    source: str
    target: str
    repositories: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def map_paths(peer: ToolMapping, source: str, target: str) -> Paths:
    """Convert the keys `from` and `to` of a mapping. source, target: the two registries. Raises NotConvertible."""
    old, new = peer.text("from"), peer.text("to") or ""
    if not old:
        peer.reject("from", "left out: a mapping needs `from`; correct the file")
    if old.startswith(_PREFIX):
        return _map_expression(peer, source, target, old.removeprefix(_PREFIX), new)
    path = "/" + old.lstrip("/")
    if new.startswith(_PREFIX):
        expression, replacement = _split_replacement(peer, new)
        mapped = replace_all(expression, lambda groups: _expand_groups(replacement, groups), path)
    else:
        mapped = new or path
    return Paths(
        parse_repository(peer, "from", f"{source}/{path.strip('/')}"),
        parse_repository(peer, "to" if new else "from", f"{target}/{mapped.strip('/')}"),
    )


def _map_expression(peer: ToolMapping, source: str, target: str, expression: str, new: str) -> Paths:
    """Convert a mapping whose `from` is a regular expression for the paths of repositories. Raises NotConvertible."""
    prefix, rest = "", complete_anchors(expression)
    found = None if has_alternative(expression) else _LITERAL_PATH.fullmatch(expression)
    if found is not None:
        prefix, rest = found[1].replace("\\", ""), complete_anchors(found[2])
    try:
        pattern = pattern_for_search(rest)
    except ConfigError as error:
        peer.reject("from", f"left out: {error}")
    include = () if pattern == ".*" else (pattern,)
    prefix = prefix.strip("/")
    if new.startswith(_PREFIX):
        prefix_on_target, repositories = _map_prefix(peer, prefix, include, new)
    else:
        repositories = (include, ())
        prefix_on_target = "/".join(part for part in (new.strip("/"), prefix) if part)
    below = f"{prefix}/" if prefix else ""
    below_on_target = f"{prefix_on_target}/" if prefix_on_target else ""
    return Paths(f"{source}/{below}*", f"{target}/{below_on_target}{MATCHED}", repositories)


def _map_prefix(
    peer: ToolMapping, prefix: str, include: tuple[str, ...], new: str
) -> tuple[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Convert a key `to` that replaces the literal beginning of `from`. Raises NotConvertible.

    Return the prefix on the target, and the patterns for repositories. dregsy also replaces later occurrences of the
    beginning in a path. Repositories with such paths are left out, with a note."""
    expression, replacement = _split_replacement(peer, new)
    literal = expression.removeprefix("^").replace("\\.", ".")
    whole = f"/{prefix}/"
    is_literal = _LITERAL.fullmatch(expression.removeprefix("^")) is not None and "$" not in replacement
    if not is_literal or not prefix or whole.count(literal) != 1:
        what = "left out: `to` can be converted only if it replaces a literal beginning of `from` up to a slash;"
        peer.reject("to", f"{what} write one mapping for each repository")
    mapped = whole.replace(literal, replacement)
    if not mapped.endswith("/"):
        peer.reject("to", "left out: the replacement must end with a slash; write one mapping for each repository")
    if expression.startswith("^") or literal.startswith("/"):
        return mapped.strip("/"), (include, ())
    again = f".*{pattern_for_text(literal)}.*"
    peer.note("to", f"repositories below {prefix} whose names contain {literal} again are left out")
    return mapped.strip("/"), (include, (again,))


def _split_replacement(peer: ToolMapping, text: str) -> tuple[str, str]:
    """Split `regex:EXPRESSION,REPLACEMENT` into the expression and the replacement. Raises NotConvertible."""
    expression, comma, replacement = text.removeprefix(_PREFIX).partition(",")
    try:
        compile_pattern(expression)
    except ConfigError as error:
        peer.reject("to", f"left out: {error}")
    if not comma:
        peer.reject("to", "left out: the replacement after the comma is missing; correct the file")
    return expression, replacement


def _expand_groups(replacement: str, groups: dict[str, str]) -> str:
    """Replace the group references (`$1`) in a Go replacement by the text of the groups. A missing group is empty."""

    def value(found: re.Match[str]) -> str:
        """Return the text for one group reference, or `$` for an escaped dollar sign."""
        return "$" if found[3] else groups.get(found[1] or found[2], "")

    return _GROUP_REFERENCE.sub(value, replacement)
