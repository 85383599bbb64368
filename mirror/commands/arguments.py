"""The command-line parser, based on argparse. An invalid argument raises a ConfigError that names the argument.

Options that are planned for later versions have their own error messages.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from mirror.commands.help_texts import EPILOGS
from mirror.errors import ConfigError
from mirror.output.console import print_lines


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that, instead of exiting, raises a ConfigError that names the first invalid argument.

    subcommands: the names of its subcommands, if it has any."""

    subcommands: Collection[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments as argparse does, but raise ConfigError for an invalid or unexpected argument."""
        self._check_names(args)
        parsed, extra = super().parse_known_args(args, namespace)
        if extra:
            self.error(f"unexpected argument {extra[0]!r}")
        return parsed, extra

    def _check_names(self, arguments: Sequence[str]) -> None:
        """Raise ConfigError for an option or command that does not exist.

        This runs before argparse parses the arguments: argparse may misread the argument after an unknown option."""
        known = self._option_string_actions
        for argument in arguments:
            name = argument.partition("=")[0]
            if argument == "--":
                return
            if self.subcommands and not argument.startswith("-"):
                if argument not in self.subcommands:
                    raise _unknown_command(argument, self.prog, self.subcommands)
                return
            if _looks_like_an_option(name) and name not in known and (name.startswith("--") or name[:2] not in known):
                offered = [option for option, action in known.items() if action.help != argparse.SUPPRESS]
                raise _unknown_option(name, self.prog, offered)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with `message`. The base class would exit instead."""
        raise ConfigError(message, hint=f"see `{self.prog} --help`")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Flush the output of `--help` or `--version`, and exit. The exit code is nonzero if flushing fails."""
        sys.exit(print_lines(()))


def _looks_like_an_option(text: str) -> bool:
    """Return whether argparse treats `text` as an option. It treats `-`, `-1` and strings with spaces as values."""
    return text.startswith("-") and " " not in text and (text.startswith("--") or text[1:2].isalpha())


class HelpFormatter(argparse.HelpFormatter):
    """A help formatter that wraps descriptions, prints epilogs unchanged, and prints each command on one line.

    The default formatter reserves too little space for the names, because it ignores the indentation of commands."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 14

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Wrap a description or an epilog. A text that already has line breaks is returned unchanged."""
        return text if "\n" in text else super()._fill_text(text, width, indent)


def sentence(text: str) -> str:
    """Return `text` as a sentence: with a capital letter at the beginning and a period at the end."""
    return f"{text[0].upper()}{text[1:]}."


def add_parser(commands: argparse._SubParsersAction[Parser], name: str, text: str) -> Parser:
    """Add the parser for a command, and return it. The help of the command ends with its entry in EPILOGS.

    text: what the command does, in lower case and without a period."""
    parser = commands.add_parser(
        name, help=text, description=sentence(text), formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.epilog = EPILOGS[parser.prog.partition(" ")[2]]
    return parser


def _unknown_command(command: str, program: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a command that does not exist.

    program: `mirror`, or a command with subcommands. known: the names of the commands that exist."""
    names = list(known)
    close = _closest(command, names)
    hint = f"did you mean `{program} {close}`?" if close else f"the commands are {', '.join(names)}"
    return ConfigError(f"`{program}` has no command {command!r}", hint=hint)


def _unknown_option(option: str, program: str, known: Iterable[str]) -> ConfigError:
    """Return the error for an option that does not exist. program: the command. known: all options of the command."""
    close = _closest(option, [name for name in known if name.startswith("--")])
    meant = f"did you mean `{close}`? " if close else ""
    return ConfigError(f"`{program}` has no option {option!r}", hint=f"{meant}see `{program} --help`")


def _closest(word: str, known: list[str]) -> str | None:
    """Return the name in `known` that is most similar to `word`, or None if none is similar."""
    found = difflib.get_close_matches(word.lower().replace("_", "-"), known, n=1, cutoff=0.7)
    return found[0] if found else None


# Options that are planned for later versions, by command. Each maps to the name of its value, or None if it has none.
LATER_OPTIONS: dict[str, dict[str, str | None]] = {
    "sync": {
        "--dask": "ADDRESS",
    },
}


def reject_later_options(parser: argparse.ArgumentParser, command: str) -> None:
    """Add the options that are planned for later versions to the parser for a command.

    Using one of them raises ConfigError, which says that the option is not in this version. The help does not list
    them."""
    for option, value in LATER_OPTIONS.get(command, {}).items():
        nargs = 0 if value is None else None
        parser.add_argument(option, metavar=value, nargs=nargs, action=_RefuseOption, help=argparse.SUPPRESS)


class _RefuseOption(argparse.Action):
    """An argparse action that raises ConfigError if an option that is planned for a later version is used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        raise ConfigError(f"`{parser.prog} {self.option_strings[0]}` is not in this version", hint="leave it out")
