"""Generates the shell completions and the manual page from the command-line parser.

`setup.py` adds them to the wheel."""

from __future__ import annotations

import argparse
import functools
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import shtab
from argparse_manpage.manpage import Manpage

from mirror import __version__
from mirror.cli import make_parser

# The paths of the generated files below the prefix of an installation. Shells and `man` search these directories.
COMPLETIONS = {
    "bash": "share/bash-completion/completions/mirror",
    "zsh": "share/zsh/site-functions/_mirror",
    "fish": "share/fish/vendor_completions.d/mirror.fish",
}
MANUAL_PAGE = "share/man/man1/mirror.1"


def generate_files() -> Mapping[str, str]:
    """Return the contents of all generated files, by their paths below the prefix of an installation."""
    completions = {path: generate_completion(shell) for shell, path in COMPLETIONS.items()}
    return completions | {MANUAL_PAGE: generate_manual_page()}


def generate_completion(shell: str) -> str:
    """Return the completion script for a shell: `bash`, `zsh` or `fish`."""
    root = make_parser()
    for parser in _with_subcommands(root):
        for action in parser._actions:
            if _takes_path(action):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif action.metavar == "COMMAND" and action.choices is None:  # the argument of `mirror help`
                action.choices = list(_commands(root))
    return shtab.complete(root, shell)


def _takes_path(action: argparse.Action) -> bool:
    """Return whether the value of an argument is converted to a path."""
    convert = action.type
    return convert is Path or (callable(convert) and typing.get_type_hints(convert).get("return") is Path)


def generate_manual_page() -> str:
    """Return the manual page in the format of man(7). It describes all commands.

    Its date is that of SOURCE_DATE_EPOCH, or today."""
    root = make_parser()
    examples = []
    for parser in _with_subcommands(root):
        # man breaks the lines itself.
        parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=10_000)
        if parser.epilog and parser is not root:
            examples += [f'.SS "{parser.prog}"', _literal(parser.epilog)]
    status, root.epilog = root.epilog or "", None
    about = {
        "project_name": "mirror",
        "version": __version__,
        "description": "copy container image repositories between registries",
        "manual_title": "User Commands",
    }
    page = Manpage(root, format="single-commands-section", _data=about)
    page.add_section("EXAMPLES", "=", "\n".join(examples))
    page.add_section("EXIT STATUS", "=", _literal(status))
    return str(page)


def _literal(text: str) -> str:
    """Return text as lines that man prints as they are."""
    lines = [line.replace("\\", "\\e").replace("-", "\\-") for line in text.strip("\n").splitlines()]
    return "\n".join([".nf", *(f"\\&{line}" if line.startswith((".", "'")) else line for line in lines), ".fi"])


def _with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser, and the parsers for its subcommands, including those of subcommands."""
    yield parser
    for command in _commands(parser).values():
        yield from _with_subcommands(command)


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """Return the parsers for the subcommands of a parser, by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
