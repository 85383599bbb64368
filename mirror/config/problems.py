"""The problems in a configuration, each with a position, a key path and a message, and the exception for them."""

from __future__ import annotations

from collections.abc import Iterable

from mirror.errors import ConfigError, printable
from mirror.oci import reference
from mirror.util.config_key import KeyPath, format_key_path, quote_key
from mirror.util.structs import Struct

__all__ = [
    "SECRET_KEYS",
    "ConfigErrors",
    "ConfigProblem",
    "KeyPath",
    "Position",
    "format_key_path",
    "quote_key",
    "quote_value",
]

MOST_SHOWN = 50  # the maximum number of problems, and of warnings, that a message shows

# Keys whose values are not shown in messages.
SECRET_KEYS = frozenset({"password", "proxy", "env", "url"})
# The same for the configurations of other tools, which `mirror convert` reads.
SECRET_KEYS |= {"pass", "token", "clientKey", "auth", "identitytoken", "identityToken"}


class Position(Struct, frozen=True, order=True):
    """A position in a file. Lines and columns are counted from 1.

    For a value from the command line, `file` is the name of the argument, and `line` is 0."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


class ConfigProblem(Struct, frozen=True, order=True):
    """One problem in a configuration.

    path: the path of the key, such as `mirrors[2].tags`; empty for the file as a whole, and for a command-line
    argument. message: includes a remedy, but no secrets."""

    position: Position
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.position}: {self.path}: {self.message}" if self.path else f"{self.position}: {self.message}"


class ConfigErrors(ConfigError):
    """An exception that contains all problems in a file, ordered by position.

    Its text has one line for each of the first 50 problems, and a line `and N more` if there are more. The warnings
    follow in the same form."""

    def __init__(self, problems: Iterable[ConfigProblem], warnings: Iterable[str] = ()) -> None:
        self.problems = tuple(sorted(set(problems)))
        self.warnings = tuple(warnings)
        super().__init__(str(self.problems[0]) if self.problems else "invalid configuration")

    def __str__(self) -> str:
        lines = _limit_lines([printable(problem, 1000) for problem in self.problems])
        lines += _limit_lines([printable(f"warning: {warning}", 1000) for warning in self.warnings])
        return "\n".join(lines)

    def with_subject(self, subject: str) -> ConfigErrors:
        """Return this error unchanged, because each line of its text already names the file."""
        return self


def _limit_lines(lines: list[str]) -> list[str]:
    """Return the first MOST_SHOWN lines. If lines are omitted, add a line with their number."""
    more = len(lines) - MOST_SHOWN
    return [*lines[:MOST_SHOWN], f"and {more} more"] if more > 0 else lines


def quote_value(value: object) -> str:
    """Return a value in quotes for a message, escaped and truncated. User information in a URL is hidden."""
    return f'"{reference.printable_reference(str(value))}"'
