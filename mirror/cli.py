"""The command line: parses the arguments, calls a command, and returns its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mirror import __version__
from mirror.commands import help_texts, parsers
from mirror.commands.arguments import HelpFormatter, Parser, add_parser
from mirror.commands.copy_parser import add_copy
from mirror.commands.prune_parser import add_prune
from mirror.errors import ConfigError, LockBusy, MirrorError, worst_exit_code
from mirror.output.console import Console, print_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _open_streams()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(sys.stderr)
    parsed = argparse.Namespace()
    try:
        parsed = make_parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = parsed.command
        return _run_command(command, parsed)
    except MirrorError as error:
        for line in _insert_config(str(error), parsed).splitlines():
            console.write_line(f"mirror: {line}")
        return error.exit_code


def _run_command(command: Callable[[argparse.Namespace], int], parsed: argparse.Namespace) -> int:
    """Run a command and return its exit code. With `-q`, print no error if another run holds the lock."""
    try:
        return command(parsed)
    except LockBusy as error:
        if vars(parsed).get("quiet"):
            return error.exit_code
        raise


def _insert_config(text: str, parsed: argparse.Namespace) -> str:
    """Return an error message in which the path of the configuration replaces the placeholder CONFIG.

    If the command reads no configuration, the message is returned unchanged."""
    from mirror.util.shell_commands import insert_path  # noqa: PLC0415 (only for errors)

    given = vars(parsed)
    is_copy = "source" in given
    return insert_path(text, None if is_copy else given["config"]) if "config" in given else text


def _open_streams() -> None:
    """Open /dev/null for each closed standard stream, so that no file opened later gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is `number`


def make_parser() -> argparse.ArgumentParser:
    """Return the parser for the command line."""
    parser = Parser(
        prog="mirror",
        description="Copies container image repositories between registries and keeps the copies up to date.",
        epilog=help_texts.PROGRAM,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mirror {__version__}")
    parser.subcommands = _COMMANDS
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for add in _COMMANDS.values():
        add(commands)
    return parser


def _add_bundle(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parsers for `bundle` and its subcommands."""
    text = "check or list a bundle or a layout offline"
    bundle = add_parser(commands, "bundle", text)
    bundle.subcommands = _SUBCOMMANDS["bundle"]
    subcommands = bundle.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in _SUBCOMMANDS["bundle"].items():
        subcommand = add_parser(subcommands, name, text)
        subcommand.add_argument("path", metavar="FILE-OR-DIR", type=_disk_path, help="a bundle (.tar), or a layout")
        subcommand.set_defaults(command=_run_and_print, what={"verify": "verify", "list": "listing"}[name])


def _add_inventory(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `inventory`."""
    text = "list the content of a target, for use as the base of a differential export"
    inventory = add_parser(commands, "inventory", text)
    inventory.add_argument(
        "path",
        metavar="FILE-OR-DIR-OR-CONFIG",
        type=_disk_path,
        help="a bundle, a layout, the report.json of an import, or a configuration (to list its targets)",
    )
    inventory.set_defaults(command=_run_and_print, what="inventory")


def _add_serve(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `serve`."""
    text = "serve a layout or a bundle as a registry"
    command = add_parser(commands, "serve", text)
    command.add_argument("path", metavar="FILE-OR-DIR", type=_disk_path, help="a bundle, or the directory of a layout")
    command.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default="127.0.0.1:5000",
        help="address to listen on (default 127.0.0.1:5000); port 0 selects a free port",
    )
    command.add_argument("--writable", action="store_true", help="accept pushes into the layout; on loopback only")
    command.add_argument(
        "--tls-cert", metavar="FILE", type=Path, help="use https with this certificate and its chain (PEM)"
    )
    command.add_argument(
        "--tls-key", metavar="FILE", type=Path, help="the private key of the certificate, not encrypted (PEM)"
    )
    command.set_defaults(command=_serve)


def _add_report(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `report`."""
    text = "write the report of a sync as an HTML page, or merge reports"
    report = add_parser(commands, "report", text)
    report.add_argument(
        "path",
        metavar="FILE-OR-STATE-DIR",
        type=Path,
        nargs="?",
        help="the report.json of a sync, or its state directory; by default, the one in the user's state directory",
    )
    report.add_argument("--html", metavar="FILE", type=Path, help="write the page to this file")
    report.add_argument(
        "--merge",
        metavar="FILE",
        type=Path,
        nargs="+",
        default=[],
        help="merge the reports of several syncs, such as shards; without --html, print the result as JSON",
    )
    report.set_defaults(command=_report)


def _add_help(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `help`."""
    text = "show the usage of a command, or list the commands"
    command = add_parser(commands, "help", text)
    command.add_argument("topic", metavar="COMMAND", nargs="*", help="the command, such as `sync` or `bundle verify`")
    command.set_defaults(command=_help)


def _add_schema(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `schema`."""
    text = "print the JSON Schema of the configuration"
    schema = add_parser(commands, "schema", text)
    schema.set_defaults(command=_schema)


# The subcommands of each command, with their help.
_SUBCOMMANDS = {
    "bundle": {
        "verify": "read and hash all content of a bundle or layout, and list damaged or missing objects",
        "list": "list the references of a bundle or layout with their sizes",
    }
}
_COMMANDS = {
    "sync": parsers.add_sync,
    "plan": parsers.add_plan,
    "verify": parsers.add_verify,
    "validate": parsers.add_validate,
    "lock": parsers.add_lock,
    "explain": parsers.add_explain,
    "convert": parsers.add_convert,
    "copy": add_copy,
    "prune": add_prune,
    "bundle": _add_bundle,
    "inventory": _add_inventory,
    "serve": _add_serve,
    "report": _add_report,
    "schema": _add_schema,
    "help": _add_help,
}


def _disk_path(text: str) -> Path:
    """Convert an argument to the path of a layout or bundle. The argument may begin with `oci:`."""
    return Path(text.removeprefix("oci:"))


def _serve(parsed: argparse.Namespace) -> int:
    """Run `mirror serve`."""
    from mirror.serve.server import serve  # noqa: PLC0415

    return serve(
        parsed.path, listen=parsed.listen, writable=parsed.writable, certificate=parsed.tls_cert, key=parsed.tls_key
    )


def _report(parsed: argparse.Namespace) -> int:
    """Run `mirror report`."""
    from mirror.commands.report import report  # noqa: PLC0415

    return report(parsed.path, html=parsed.html, merge=parsed.merge)


def _run_and_print(parsed: argparse.Namespace) -> int:
    """Run `bundle verify`, `bundle list` or `inventory`. Print the output and problems, and return the exit code."""
    from mirror.commands import bundle, inventory  # noqa: PLC0415

    run = {"verify": bundle.verify, "listing": bundle.list_references, "inventory": inventory.make_inventory}
    output = run[parsed.what](parsed.path)
    for problem in output.problems:
        Console(sys.stderr).write_line(f"mirror: {problem}")
    return worst_exit_code({print_lines(output.lines), output.code})


def _help(parsed: argparse.Namespace) -> int:
    """Run `mirror help`: print the help for a command, or for the program if no command is given."""
    topic: list[str] = parsed.topic
    if not topic:
        return print_lines(make_parser().format_help().splitlines())
    deepest = 2 if topic[0] in _SUBCOMMANDS else 1
    if topic[0] in _COMMANDS and len(topic) > deepest:
        command = " ".join(topic[:deepest])
        raise ConfigError(f"`mirror {command}` has no command {topic[deepest]!r}", hint=f"see `mirror help {command}`")
    try:
        make_parser().parse_args([*topic, "--help"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _schema(_: argparse.Namespace) -> int:
    """Run `mirror schema`."""
    from mirror.commands.validate import print_schema  # noqa: PLC0415

    return print_schema()
