"""Commands and options that have no effect yet: each is refused as such, never as one that nobody knows."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mirror.errors import ConfigError

COMMANDS = {
    "prune": "deletes what is no longer selected",
    "convert": "makes a configuration from another tool's",
    "copy": "copies one image or repository without a configuration",
    "lock": "writes the selected tags with their digests to a file",
    "explain": "shows which rule selects a reference or leaves it out",
    "report": "shows or merges reports",
}
# By command: what an option's value is called; None: it has none.
OPTIONS: dict[str, dict[str, str | None]] = {
    "sync": {
        "--trace-http": "FILE",
        "--locked": "FILE",
        "--every": "DURATION",
        "--listen": "HOST:PORT",
        "--deadline": "TIME-OR-DURATION",
        "--dask": "ADDRESS",
        "--json-events": None,
    },
    "plan": {"--json": None, "--locked": "FILE"},
    "verify": {"--report": "FILE"},
}


def refuse_command(command: str) -> None:
    """Raises ConfigError for a command of a later version."""
    if command in COMMANDS:
        raise ConfigError(f"`mirror {command}` is not in this version", hint=f"a later one {COMMANDS[command]}")


def add_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Have the parser of a command refuse the options of later versions. No help lists them."""
    for option, value in OPTIONS.get(command, {}).items():
        nargs = 0 if value is None else None
        parser.add_argument(option, metavar=value, nargs=nargs, action=_Refuse, help=argparse.SUPPRESS)


class _Refuse(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise ConfigError(f"`{parser.prog} {self.option_strings[0]}` is not in this version", hint="leave it out")
