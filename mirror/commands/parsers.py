"""The parsers for the commands that read a configuration, and the functions that run these commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from mirror.commands.arguments import Parser, add_parser, reject_later_options
from mirror.commands.options import Options, Shard
from mirror.errors import ConfigError
from mirror.util.deadline import Deadline

TOOLS = ("regsync", "skopeo", "image-syncer", "dregsy")  # the tools whose configurations `mirror convert` can read


def add_command(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """Add the parser for a command that reads a configuration.

    text: the help, in lower case and without a period."""
    command = add_parser(commands, name, text)
    command.add_argument("config", metavar="CONFIG", type=Path, help="the YAML configuration file")
    reject_later_options(command, name)
    command.set_defaults(command=run)
    return command


def add_sync(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `sync`."""
    sync = add_command(commands, "sync", _sync, "copy every selected tag to every target")
    _add_only(sync)
    sync.add_argument(
        "--only-from", metavar="FILE", type=Path, help="read patterns for `--only` from FILE, such as failed.txt"
    )
    sync.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        help="process only the source repositories in shard I of N, where I counts from 0",
    )
    _add_locked(sync, "copy exactly the images that `mirror lock` recorded in FILE, even if their tags have moved")
    add_run_options(sync)
    sync.add_argument(
        "--every",
        metavar="DURATION",
        type=_interval,
        help="keep running and sync at this interval, such as 15m, until a signal arrives; SIGHUP reloads CONFIG",
    )
    sync.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="with --every: serve the status at this address, without authentication; port 0 selects a free port",
    )
    sync.add_argument(
        "--deadline",
        metavar="TIME-OR-DURATION",
        type=_deadline,
        help="end the run at this local time, such as 05:30, or after this duration, such as 2h",
    )


def add_run_options(command: argparse.ArgumentParser) -> None:
    """Add the options that `sync` and `copy` have in common to a parser."""
    verbosity = command.add_mutually_exclusive_group()
    verbosity.add_argument(
        "-v", dest="verbose", action="count", default=0, help="list all changed images; -vv: debug output"
    )
    verbosity.add_argument("-q", dest="quiet", action="store_true", help="print only failures and warnings")
    command.add_argument("--dry-run", action="store_true", help="show what would be copied, but write nothing")
    command.add_argument("--fail-fast", action="store_true", help="start no new work after the first failure")
    command.add_argument(
        "--deep", action="store_true", help="check every object of every selected image, even if its tag is unchanged"
    )
    command.add_argument(
        "--repair", action="store_true", help="read and hash all objects on the targets, and replace damaged objects"
    )
    command.add_argument("--base", metavar="INVENTORY", type=Path, help="do not export blobs that this inventory lists")
    command.add_argument("--report", metavar="FILE", type=Path, help="also write the report to this file")
    command.add_argument(
        "--trace-http", metavar="FILE", type=Path, help="log all HTTP requests to this file, without secrets"
    )
    command.add_argument(
        "--progress",
        choices=("auto", "plain", "none"),
        default="auto",
        help="auto (the default): a live display on a terminal; plain, and auto elsewhere: a line every 30 s",
    )
    command.add_argument(
        "--json-events", action="store_true", help="write the events of the run to standard output, as JSON lines"
    )
    command.add_argument(
        "--lock-wait",
        metavar="SECONDS",
        type=_seconds,
        default=0.0,
        help="if another run holds the lock, wait up to SECONDS for it (default 0)",
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


def _add_locked(command: argparse.ArgumentParser, text: str) -> None:
    """Add the option `--locked` to the parser for a command. text: its help."""
    command.add_argument("--locked", metavar="FILE", type=Path, help=text)


def add_plan(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `plan`."""
    plan = add_command(commands, "plan", _plan, "show what a sync would do, but write nothing")
    _add_locked(plan, "plan with the images that `mirror lock` recorded in FILE, and show which tags have changed")
    plan.add_argument("--exit-code", action="store_true", help="exit with code 10 if a sync would change something")
    plan.add_argument("--json", action="store_true", help="print JSON")


def add_verify(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `verify`."""
    verify = add_command(commands, "verify", _verify, "check that every selected image is complete on every target")
    verify.add_argument("--deep", action="store_true", help="also read and hash every blob")
    _add_only(verify)
    verify.add_argument("--report", metavar="FILE", type=Path, help="write the results to this file, as JSON")
    verify.add_argument("-q", dest="quiet", action="store_true", help="print only problems and warnings")


def add_lock(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `lock`."""
    lock = add_command(commands, "lock", _lock, "write the selected tags with their digests to a file")
    lock.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        type=Path,
        help="write to this file (default: CONFIG with the suffix .lock); - for standard output",
    )


def add_explain(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `explain`."""
    text = "show which rule selects or excludes a reference, and what a sync would do with it"
    explain = add_command(commands, "explain", _explain, text)
    explain.add_argument(
        "reference",
        metavar="REFERENCE",
        help="a reference (host/repo:tag) or repository (host/repo) of a source or a target",
    )
    explain.add_argument("--json", action="store_true", help="print JSON")


def add_validate(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `validate`."""
    validate = add_command(commands, "validate", _validate, "check a configuration offline")
    validate.add_argument(
        "--secrets", action="store_true", help="report a missing password, TLS file or base as an error, not a warning"
    )


def add_convert(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `convert`."""
    text = "convert the configuration of another tool"
    convert = add_parser(commands, "convert", text)
    convert.add_argument("--from", dest="tool", required=True, choices=TOOLS, help="the tool that FILE configures")
    convert.add_argument(
        "file", metavar="FILE", type=Path, help="the file to convert; for image-syncer, the file that lists the images"
    )
    convert.add_argument(
        "-o",
        dest="output",
        metavar="FILE",
        type=Path,
        help="the new configuration; by default, standard output. "
        "An existing file is replaced only if `mirror convert` wrote it",
    )
    convert.add_argument(
        "--destination", metavar="HOST/PREFIX", help="for skopeo: the DESTINATION argument of `skopeo sync`"
    )
    convert.set_defaults(command=_convert)


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
    raise argparse.ArgumentTypeError(f"expected a non-negative number of seconds, got {text!r}")


def _interval(text: str) -> float:
    """Parse the value of `--every`, such as `15m` or `1 h`, and return it in seconds.

    Raises ArgumentTypeError if it is not valid."""
    from mirror.config.values import interval  # noqa: PLC0415 (few runs need it)

    try:
        return interval(f"{text}in" if text.endswith("m") else text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _deadline(text: str) -> Deadline:
    """Parse the value of `--deadline`, such as `05:30` or `2h`. Raises ArgumentTypeError if it is not valid."""
    from mirror.config.values import time_of_day  # noqa: PLC0415 (few runs need it)

    try:
        if ":" in text:
            return Deadline(minute=time_of_day(text.zfill(5)))
        return Deadline(duration=_interval(text))
    except (ConfigError, argparse.ArgumentTypeError) as error:
        what = f"expected a local time, such as 05:30, or a duration from 1 s to 31 d, such as 2h, got {text!r}"
        raise argparse.ArgumentTypeError(what) from error


def parsed_options(parsed: argparse.Namespace) -> Options:
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
        trace_http=given.get("trace_http"),
        json_events=given.get("json_events", False),
        progress=given.get("progress", "auto"),
        lock_wait=given.get("lock_wait", 0.0),
        exit_code=given.get("exit_code", False),
        verbosity=-1 if given.get("quiet") else given.get("verbose", 0),
        base=given.get("base"),
        locked=given.get("locked"),
        every=given.get("every"),
        listen=given.get("listen"),
        deadline=given.get("deadline"),
        json=given.get("json", False),
    )


def _sync(parsed: argparse.Namespace) -> int:
    """Run `mirror sync`, or `mirror plan` if `--dry-run` is given."""
    options = parsed_options(parsed)
    if options.listen is not None and options.every is None:
        raise ConfigError("--listen can be used only with --every", hint="add --every DURATION, or leave out --listen")
    if options.every is not None:
        if parsed.dry_run:
            raise ConfigError("--dry-run and --every cannot be used together", hint="leave out one of them")
        from mirror.commands import scheduled_sync  # noqa: PLC0415 (here and below: only the called command is imported)

        return scheduled_sync.sync_repeatedly(options, options.every)
    if parsed.dry_run and options.deadline is not None:
        raise ConfigError("`--deadline` cannot be combined with `--dry-run`", hint="leave one of them out")
    if parsed.dry_run and parsed.json_events:
        raise ConfigError("`--json-events` cannot be combined with `--dry-run`", hint="leave one of them out")
    from mirror.commands import plan, sync  # noqa: PLC0415

    return plan.plan(options) if parsed.dry_run else sync.sync(options)


def _plan(parsed: argparse.Namespace) -> int:
    """Run `mirror plan`."""
    from mirror.commands import plan  # noqa: PLC0415

    return plan.plan(parsed_options(parsed))


def _explain(parsed: argparse.Namespace) -> int:
    """Run `mirror explain`."""
    from mirror.commands import explain  # noqa: PLC0415

    return explain.explain(parsed_options(parsed), parsed.reference, as_json=parsed.json)


def _lock(parsed: argparse.Namespace) -> int:
    """Run `mirror lock`."""
    from mirror.commands import lock  # noqa: PLC0415

    return lock.lock(parsed_options(parsed), parsed.output)


def _verify(parsed: argparse.Namespace) -> int:
    """Run `mirror verify`."""
    from mirror.commands import verify  # noqa: PLC0415

    return verify.verify(parsed_options(parsed))


def _validate(parsed: argparse.Namespace) -> int:
    """Run `mirror validate`."""
    from mirror.commands.validate import validate  # noqa: PLC0415

    return validate(parsed.config, secrets=parsed.secrets)


def _convert(parsed: argparse.Namespace) -> int:
    """Run `mirror convert`."""
    from mirror.commands import convert  # noqa: PLC0415

    return convert.convert(parsed.tool, parsed.file, parsed.output, parsed.destination)
