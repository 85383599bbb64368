"""Patterns that select tags and repositories. They are RE2 regular expressions, which match in linear time."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

import re2

from mirror.errors import ConfigError, printable

LONGEST = 1000  # maximum length of a pattern in characters
_RANGE_BYTES = 300  # the length of the bounds of a range of names; longer than any name of a repository

# Matches strings with only the characters of shell patterns, and with a `*` that does not follow a `.` (as in `.*`).
_SHELL_PATTERN = re.compile(r"(?=[A-Za-z0-9_.*?-]+\Z)(?:.*[^.])?\*.*")
_ESCAPED = re.compile(r"\\(?:[pPx]\{[^}]*\}|.)", re.DOTALL)
_ESCAPED_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]])*\]", re.DOTALL)
# RE2 treats braces that are not a repetition as literal characters, but no tag contains one.
_STRAY_BRACE = re.compile(r"\{(?!\d+(?:,\d*)?\})[^}]*\}?")
_HINTS = {
    **dict.fromkeys(
        ("(?!", "(?=", "(?<!", "(?<="),
        "look-around is not supported: write a pattern for tags to select under `include`, to reject under `exclude`",
    ),
    **dict.fromkeys(("(?P", r"\1", r"\2", r"\3"), "backreferences are not supported: write out the alternatives"),
    **dict.fromkeys(("(?>", "*+", "++", "?+"), "leave out the `+` or `?>`: matching takes linear time anyway"),
    r"\Z": r"leave out `\Z`: a pattern must match the whole tag anyway",
    "(?x": "write the pattern without spaces, comments and the flag `x`",
    "(?#": "write the comment in YAML, after `#`",
}


class Pattern:
    """A compiled pattern for names of tags or repositories. Thread-safe."""

    def __init__(self, text: str) -> None:
        """Compile a pattern. Raises re2.error if the syntax is invalid, and UnicodeError for lone surrogates."""
        options = re2.Options()
        options.log_errors = False
        options.never_capture = True  # doubles the speed of matching
        self.text = text
        self._regexp = re2.compile(text, options)
        self._fullmatch = self._regexp.fullmatch

    def matches(self, name: str) -> bool:
        """Return whether the pattern matches the whole name."""
        return self._fullmatch(name) is not None

    def may_match_prefix(self, prefix: str) -> bool:
        """Return whether the pattern may match a name that begins with a prefix. False is certain, True is not."""
        wanted = prefix.encode()
        try:
            least, greatest = self._regexp.possiblematchrange(_RANGE_BYTES)
        except re2.error:  # there is no upper bound
            return True
        return bool(least[: len(wanted)] <= wanted <= greatest)


@lru_cache(maxsize=10_000)
def compile_pattern(text: str) -> Pattern:
    """Compile a pattern. Raises ConfigError if it is invalid. The hint shows the correct form if it is known.

    Syntax: https://github.com/google/re2/wiki/Syntax."""
    if len(text) > LONGEST:
        raise ConfigError(f"the pattern is too long: {len(text)} characters; at most {LONGEST} are allowed")
    brace = _STRAY_BRACE.search(_ESCAPED.sub("", text))
    if brace is not None:
        hint = "a repetition has the form {2}, {2,} or {0,2}"
        raise _invalid_pattern(text, f"{printable(brace.group(), 20)} is not a repetition", hint)
    try:
        return Pattern(text)
    except UnicodeError:
        raise _invalid_pattern(text, "not valid Unicode", "") from None
    except re2.error as error:
        # For example "invalid perl operator: (?!".
        reason = error.args[0].decode("utf-8", "replace") if error.args else ""
        instead = regex_for_shell_pattern(text)
        what = reason.partition(": ")[2]
        hint = _HINTS.get(what, "") if instead is None else f"it looks like a shell pattern; write '{instead}'"
        raise _invalid_pattern(text, reason.replace("perl operator", "operator"), hint) from None


def rejecting_rule(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Return the rule that excludes a name, as written in the configuration, or None if the name is selected.

    A name is selected if it matches a pattern of `include` and no pattern of `exclude`. An empty `include` matches
    every name."""
    if include and not any(compile_pattern(text).matches(name) for text in include):
        return "include"
    return next((f"exclude {text}" for text in exclude if compile_pattern(text).matches(name)), None)


def replace_all(pattern: str, replacement: Callable[[dict[str, str]], str], text: str) -> str:
    """Replace all matches of a pattern in a text. Raises re2.error if the pattern is invalid.

    replacement: a function that is called with the texts of the groups, by number and by name, and returns the new
    text."""

    def replace_match(match: re.Match[str]) -> str:
        """Return the replacement for one match."""
        groups = [match.group(0), *match.groups()]
        named = {name: found or "" for name, found in match.groupdict().items()}
        return replacement({str(number): found or "" for number, found in enumerate(groups)} | named)

    return str(re2.sub(pattern, replace_match, text))


def regex_for_shell_pattern(text: str) -> str | None:
    """Convert a string that looks like a shell pattern (`v*`) to a regular expression, or return None."""
    if not _SHELL_PATTERN.match(text):
        return None
    return re.sub(r"[.*?]", lambda match: {".": r"\.", "*": ".*", "?": "."}[match.group()], text)


def has_alternative(pattern: str) -> bool:
    """Return whether a pattern contains a `|` outside of parentheses, or may contain one."""
    depth = 0
    for mark in _ESCAPED_OR_CLASS.sub("", pattern):
        depth += {"(": 1, ")": -1}.get(mark, 0)
        if mark == "|" and depth == 0:
            return True
    return depth != 0


def _invalid_pattern(text: str, reason: str, hint: str) -> ConfigError:
    """Return the error for an invalid pattern."""
    return ConfigError(f'not a regular expression: {printable(reason, 80)}, in "{printable(text, 80)}"', hint=hint)
