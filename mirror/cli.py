"""The command line: parses the arguments, calls a command, and returns its exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mirror import __version__
from mirror.commands.arguments import HelpFormatter, Parser, refuse_later_command, reject_later_options
from mirror.commands.options import Options, Shard
from mirror.errors import ConfigError, MirrorError, worst_exit_code
from mirror.output.console import Console, print_lines

EPILOG = """\
exit codes: 0 done; 1 something failed, run again; 2 usage or configuration error; 3 rejected for integrity or
safety, look at the cause; 4 local error; 10 `plan --exit-code`: there is something to do; 75 another run holds
the lock; 130, 143 stopped by a signal
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _open_streams()
    argv = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(sys.stderr)
    try:
        if argv:
            refuse_later_command(argv[0])
        parsed = _parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = parsed.command
        return command(parsed)
    except MirrorError as error:
        for line in str(error).splitlines():
            console.write_line(f"mirror: {line}")
        return error.exit_code


def _open_streams() -> None:
    """Open /dev/null for each closed standard stream, so that no file opened later gets its descriptor."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is `number`


def _parser() -> argparse.ArgumentParser:
    """Return the parser for the command line."""
    parser = Parser(
        prog="mirror",
        description="Copies container image repositories between registries and keeps the copies up to date.",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mirror {__version__}")
    parser.subcommands = _COMMANDS
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for add in _COMMANDS.values():
        add(commands)
    return parser


def _add_command(
    commands: argparse._SubParsersAction[Parser], name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add the parser for a command that reads a configuration. text: the help, in lower case and without a period."""
    command = commands.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
    command.add_argument("config", metavar="CONFIG", type=Path, help="the YAML configuration file")
    reject_later_options(command, name)
    command.set_defaults(command=run)
    return command


def _sentence(text: str) -> str:
    """Return `text` as a sentence: with a capital letter at the beginning and a period at the end."""
    return f"{text[0].upper()}{text[1:]}."


def _add_sync(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `sync`."""
    sync = _add_command(commands, "sync", _sync, "copy every selected tag to every target")
    _add_only(sync)
    sync.add_argument(
        "--only-from", metavar="FILE", type=Path, help="read patterns from a file, one per line (failed.txt)"
    )
    sync.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="process only the source repositories in shard I of N, where I counts from 0",
    )
    verbosity = sync.add_mutually_exclusive_group()
    verbosity.add_argument("-v", dest="verbose", action="count", default=0, help="print more; -vv: debug output")
    verbosity.add_argument("-q", dest="quiet", action="store_true", help="print only errors")
    sync.add_argument("--dry-run", action="store_true", help="the same as `mirror plan`")
    sync.add_argument("--fail-fast", action="store_true", help="start no new work after the first failure")
    sync.add_argument(
        "--deep", action="store_true", help="check every object of every selected image, even if its tag is unchanged"
    )
    sync.add_argument(
        "--repair", action="store_true", help="read and hash all objects on the targets, and replace damaged objects"
    )
    sync.add_argument("--base", metavar="INVENTORY", type=Path, help="do not export blobs that this inventory lists")
    sync.add_argument("--report", metavar="FILE", type=Path, help="also write the report to this file")
    sync.add_argument(
        "--progress",
        choices=("auto", "plain", "none"),
        default="auto",
        help="auto: live display on a terminal, otherwise a line every 30 s",
    )
    sync.add_argument(
        "--lock-wait",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="wait up to SECONDS for another run to finish",
    )


def _add_only(command: argparse.ArgumentParser) -> None:
    """Add the option `--only` to the parser for a command."""
    command.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        default=[],
        help="select only source references that match this shell pattern: host/repo:tag or host/repo; can be repeated",
    )


def _add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `plan`."""
    plan = _add_command(commands, "plan", _plan, "show what a sync would do, without writing")
    plan.add_argument("--exit-code", action="store_true", help="exit with code 10 if a sync would change something")


def _add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `verify`."""
    verify = _add_command(commands, "verify", _verify, "check that every selected image is complete on every target")
    verify.add_argument("--deep", action="store_true", help="also read and hash every blob")
    _add_only(verify)
    verify.add_argument("-q", dest="quiet", action="store_true", help="print only problems")


def _add_validate(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `validate`."""
    validate = _add_command(commands, "validate", _validate, "check a configuration offline")
    validate.add_argument(
        "--secrets", action="store_true", help="treat a missing password, TLS file or base as an error"
    )


def _add_bundle(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parsers for `bundle` and its subcommands."""
    text = "check or list a bundle or a layout offline"
    bundle = commands.add_parser("bundle", help=text, description=_sentence(text), allow_abbrev=False)
    bundle.subcommands = _SUBCOMMANDS["bundle"]
    subcommands = bundle.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in _SUBCOMMANDS["bundle"].items():
        subcommand = subcommands.add_parser(name, help=text, description=_sentence(text), allow_abbrev=False)
        subcommand.add_argument("path", metavar="FILE-OR-DIR", type=_disk_path, help="a bundle (.tar), or a layout")
        subcommand.set_defaults(command=_run_and_print, what={"verify": "verify", "list": "listing"}[name])


def _add_inventory(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `inventory`."""
    text = "list the content of a target, for use as the base of a differential export"
    inventory = commands.add_parser("inventory", help=text, description=_sentence(text), allow_abbrev=False)
    inventory.add_argument(
        "path",
        metavar="FILE-OR-DIR-OR-CONFIG",
        type=_disk_path,
        help="a bundle, a layout, the report.json of an import, or a configuration, whose targets are read",
    )
    inventory.set_defaults(command=_run_and_print, what="inventory")


def _add_serve(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `serve`."""
    text = "serve a layout or a bundle as a registry"
    command = commands.add_parser("serve", help=text, description=_sentence(text), allow_abbrev=False)
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
    command.add_argument("--tls-key", metavar="FILE", type=Path, help="its private key, not encrypted")
    command.set_defaults(command=_serve)


def _add_help(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `help`."""
    text = "show the usage of a command, or list the commands"
    command = commands.add_parser("help", help=text, description=_sentence(text), allow_abbrev=False)
    command.add_argument("topic", metavar="COMMAND", nargs="*", help="the command, such as `sync` or `bundle verify`")
    command.set_defaults(command=_help)


def _add_schema(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `schema`."""
    text = "print the JSON Schema of the configuration"
    schema = commands.add_parser("schema", help=text, description=_sentence(text), allow_abbrev=False)
    schema.set_defaults(command=_schema)


# The subcommands of each command, with their help.
_SUBCOMMANDS = {
    "bundle": {
        "verify": "read and hash a whole bundle or layout, and list what is damaged or missing",
        "list": "list the references of a bundle or layout with their sizes",
    }
}
_COMMANDS = {
    "sync": _add_sync,
    "plan": _add_plan,
    "verify": _add_verify,
    "validate": _add_validate,
    "bundle": _add_bundle,
    "inventory": _add_inventory,
    "serve": _add_serve,
    "schema": _add_schema,
    "help": _add_help,
}


def _disk_path(text: str) -> Path:
    """Return the path of a layout or bundle. As in configurations, the argument may begin with `oci:`."""
    return Path(text.removeprefix("oci:"))


def _shard(text: str) -> Shard:
    """Parse the value of `--shard`, such as `0/4`. Raises ArgumentTypeError if it is not valid."""
    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and int(index) < int(count):
        return Shard(int(index), int(count))
    raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N-1, got {text!r}")


def _seconds(text: str) -> float:
    """Parse a non-negative number of seconds. Raises ArgumentTypeError if `text` is not valid."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if 0 <= seconds < 1e9:
        return seconds
    raise argparse.ArgumentTypeError(f"expected a number of seconds that is not negative, got {text!r}")


def _options(parsed: argparse.Namespace) -> Options:
    """Convert the parsed arguments to the options of a command."""
    given = vars(parsed)
    return Options(
        config=parsed.config,
        only=tuple(given.get("only", ())),
        only_from=given.get("only_from"),
        shard=given.get("shard"),
        deep=given.get("deep", False) or given.get("repair", False),
        repair=given.get("repair", False),
        fail_fast=given.get("fail_fast", False),
        report=given.get("report"),
        progress=given.get("progress", "none"),
        lock_wait=given.get("lock_wait", 0.0),
        exit_code=given.get("exit_code", False),
        verbosity=-1 if given.get("quiet") else given.get("verbose", 0),
        base=given.get("base"),
    )


def _sync(parsed: argparse.Namespace) -> int:
    """Run `mirror sync`, or `mirror plan` if `--dry-run` is given."""
    from mirror.commands import plan, sync  # noqa: PLC0415 (here and below: only the called command is imported)

    return plan.plan(_options(parsed)) if parsed.dry_run else sync.sync(_options(parsed))


def _plan(parsed: argparse.Namespace) -> int:
    """Run `mirror plan`."""
    from mirror.commands import plan  # noqa: PLC0415

    return plan.plan(_options(parsed))


def _verify(parsed: argparse.Namespace) -> int:
    """Run `mirror verify`."""
    from mirror.commands import verify  # noqa: PLC0415

    return verify.verify(_options(parsed))


def _serve(parsed: argparse.Namespace) -> int:
    """Run `mirror serve`."""
    from mirror.serve.server import serve  # noqa: PLC0415

    return serve(
        parsed.path, listen=parsed.listen, writable=parsed.writable, certificate=parsed.tls_cert, key=parsed.tls_key
    )


def _validate(parsed: argparse.Namespace) -> int:
    """Run `mirror validate`."""
    from mirror.commands.validate import validate  # noqa: PLC0415

    return validate(parsed.config, secrets=parsed.secrets)


def _run_and_print(parsed: argparse.Namespace) -> int:
    """Run `bundle verify`, `bundle list` or `inventory`. Print the output and problems, and return the exit code."""
    from mirror.commands import bundle, inventory  # noqa: PLC0415

    run = {"verify": bundle.verify, "listing": bundle.list_references, "inventory": inventory.make_inventory}
    output = run[parsed.what](parsed.path)
    for problem in output.problems:
        Console(sys.stderr).write_line(f"mirror: {problem}")
    return worst_exit_code({print_lines(output.lines), output.code})


def _help(parsed: argparse.Namespace) -> int:
    """Print the help for a command, or for the program if no command is given. Return the exit code."""
    topic: list[str] = parsed.topic
    if not topic:
        return print_lines(_parser().format_help().splitlines())
    refuse_later_command(topic[0])
    deepest = 2 if topic[0] in _SUBCOMMANDS else 1
    if topic[0] in _COMMANDS and len(topic) > deepest:
        command = " ".join(topic[:deepest])
        raise ConfigError(f"`mirror {command}` has no command {topic[deepest]!r}", hint=f"see `mirror help {command}`")
    try:
        _parser().parse_args([*topic, "--help"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _schema(_: argparse.Namespace) -> int:
    """Run `mirror schema`."""
    from mirror.commands.validate import print_schema  # noqa: PLC0415

    return print_schema()
