"""What is wrong with a configuration: a place, the path of a key, one sentence. All of a file at once."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import ConfigError, printable
from mirror.oci import reference
from mirror.util.config_key import KeyPath, format_key_path, quote_key
from mirror.util.structs import Struct

__all__ = ["SECRET_KEYS", "ConfigErrors", "KeyPath", "Place", "Problem", "format_key_path", "quote_key", "value_shown"]

MOST_SHOWN = 50

# Keys whose values no message shows.
SECRET_KEYS = frozenset({"password", "proxy", "env"})


class Place(Struct, frozen=True, order=True):
    """Where something stands in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Problem(Struct, frozen=True, order=True):
    """path: of the key, like `mirrors[2].tags`, empty for the file as a whole. message: with a remedy, no secrets."""

    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.path}: {self.message}" if self.path else f"{self.place}: {self.message}"


class ConfigErrors(ConfigError):
    """All that is wrong with one file, in order of position. str(): one line each, at most 50, then `and N more`;
    then the warnings in the same way."""

    def __init__(self, problems: Iterable[Problem], warnings: Iterable[str] = ()) -> None:
        self.problems = tuple(sorted(set(problems)))
        self.warnings = tuple(warnings)
        super().__init__(str(self.problems[0]) if self.problems else "invalid configuration")

    def __str__(self) -> str:
        lines = _first([printable(problem, 1000) for problem in self.problems])
        lines += _first([printable(f"warning: {warning}", 1000) for warning in self.warnings])
        return "\n".join(lines)

    def about(self, subject: str) -> ConfigErrors:
        """The same: each line says what it is about."""
        return self


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_SHOWN
    return [*lines[:MOST_SHOWN], f"and {more} more"] if more > 0 else lines


def value_shown(value: object) -> str:
    """A scalar in quotes, escaped, cut to 80 characters, without what may be the user information of a URL."""
    return f'"{reference.shown(str(value))}"'
