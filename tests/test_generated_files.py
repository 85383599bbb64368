"""The shell completions and the manual page that the packages install agree with the command line."""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.cli import make_parser
from tools.generated_files import generate_completion, generate_manual_page

# Prints the completions of each command line in the arguments, one line for each.
BASH = """
source "$1"
shift
for line; do
    read -ra COMP_WORDS <<<"$line"
    [[ $line != *" " ]] || COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    _shtab_mirror
    echo "${COMPREPLY[*]}"
done
"""


def commands(parser: argparse.ArgumentParser, *before: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the names and parsers of all commands, such as `sync` and `bundle verify`."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield " ".join([*before, name]), command
                yield from commands(command, *before, name)


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {one for action in parser._actions if action.help != argparse.SUPPRESS for one in action.option_strings}


def complete(folder: Path, *lines: str) -> list[set[str]]:
    """Return what bash completes for each command line, in this folder."""
    script = folder.parent / "completion.bash"
    script.write_text(generate_completion("bash"))
    done = subprocess.run(
        ["bash", "--norc", "-c", BASH, "bash", str(script), *lines],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "" == done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    (made / "configs").mkdir(parents=True)
    (made / "prod.yaml").touch()
    return made


def test_bash_completes_every_command_and_every_option_of_each_command(folder: Path) -> None:
    known = dict(commands(make_parser()))
    found = complete(folder, *(f"mirror {name} -" for name in known))
    assert {name: options(command) for name, command in known.items()} == dict(zip(known, found, strict=True))
    top = {name for name in known if " " not in name}
    assert [top] == complete(folder, "mirror ")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mirror sync p", {"prod.yaml"}),
        ("mirror sync --report ", {"prod.yaml", "configs"}),
        ("mirror bundle verify c", {"configs"}),
        ("mirror inventory p", {"prod.yaml"}),
        ("mirror sync --progress ", {"auto", "plain", "none"}),
        ("mirror sync --shard ", set()),
        ("mirror bundle ", {"verify", "list"}),
        ("mirror help ver", {"verify"}),
    ],
)
def test_bash_completes_files_choices_and_commands_where_they_are_expected(
    folder: Path, line: str, expected: set[str]
) -> None:
    assert [expected] == complete(folder, line)


def test_the_manual_page_describes_every_option_and_every_exit_code() -> None:
    page = generate_manual_page().replace("\\-", "-")
    assert [] == [name for name, _ in commands(make_parser()) if f"\n.SS \\fBmirror {name}\\fR\n" not in page]
    wanted = {option for _, command in commands(make_parser()) for option in options(command)} - {"-h", "--help"}
    assert set() == wanted - set(re.findall(r"\\fB(-\w|--[\w-]+)\\fR", page))
    status = page.partition(".SH EXIT STATUS")[2]
    assert {"0", "1", "2", "3", "4", "10", "75", "130", "143"} <= set(re.findall(r"\b\d+\b", status))


def test_examples_in_the_manual_page_keep_their_lines() -> None:
    page = generate_manual_page().replace("\\-", "-")
    blocks = re.findall(r"^\.nf\n(.*?)^\.fi", page, re.MULTILINE | re.DOTALL)
    epilogs = [command.epilog for _, command in commands(make_parser()) if command.epilog]
    assert [one.strip("\n") for one in epilogs] == [block.rstrip("\n") for block in blocks[: len(epilogs)]]
