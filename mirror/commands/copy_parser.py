"""The parser for `mirror copy`, whose options are the keys of a mirror in a configuration."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.commands.arguments import Parser, add_parser
from mirror.commands.parsers import add_run_options, parsed_options
from mirror.errors import ConfigError
from mirror.util.structs import replace

if TYPE_CHECKING:
    from mirror.config.copy_arguments import CopyArguments, Value

_NUMBER = re.compile("[0-9]{1,18}")

# Options that may be repeated: name, metavar, key path, help.
_LISTS = (
    ("--tag", "TAG", ("tags",), "copy this tag; can be repeated"),
    ("--include", "PATTERN", ("tags", "include"), "copy tags that match this regular expression; can be repeated"),
    (
        "--exclude",
        "PATTERN",
        ("tags", "exclude"),
        "do not copy tags that match this regular expression; can be repeated",
    ),
    ("--semver", "RANGE", ("tags", "semver"), "copy tags whose version is in this range, such as '>=2.5 <4'"),
    ("--platform", "OS/ARCH", ("platforms",), "copy only this platform, such as linux/amd64; can be repeated"),
    (
        "--verify-signatures",
        "KEY",
        ("verify-signatures", "keys"),
        "copy only images that are signed with this public key",
    ),
)
# Options with one value: name, metavar, key path, help.
_VALUES = (
    ("--newest", "N", ("tags", "newest"), "copy only the N tags with the highest versions"),
    ("--index", "rewrite|sparse", ("index",), "with --platform: how to copy an index (default rewrite)"),
    ("--foreign-layers", "skip|copy", ("foreign-layers",), "what to do with non-distributable layers (default skip)"),
    ("--schema1", "copy|convert|fail", ("schema1",), "what to do with Docker schema 1 manifests (default copy)"),
    ("--v1", "auto|never|only|per-tag", ("v1",), "when to read the source over the v1 protocol (default auto)"),
)


def add_copy(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `copy`."""
    text = "copy one image or repository without a configuration"
    copy = add_parser(commands, "copy", text)
    copy.add_argument(
        "source", metavar="SOURCE", help="HOST/REPOSITORY[:TAG][@DIGEST], oci:DIR[:REPOSITORY], or FILE.tar"
    )
    copy.add_argument(
        "targets", metavar="TARGET", nargs="+", help="HOST/REPOSITORY[:TAG], oci:DIR[:REPOSITORY], or FILE.tar"
    )
    for name, metavar, _, text in _LISTS:
        copy.add_argument(name, metavar=metavar, action="append", help=text)
    for name, metavar, _, text in _VALUES:
        copy.add_argument(name, metavar=metavar, help=text)
    copy.add_argument("--no-referrers", action="store_true", help="do not copy signatures, SBOMs and attestations")
    copy.add_argument(
        "--plain-http",
        metavar="HOST",
        action="append",
        default=[],
        help="contact this registry over http; can be repeated",
    )
    copy.add_argument(
        "--config",
        metavar="CONFIG",
        type=Path,
        help="use the settings of this configuration, such as `registries`, but not its mirrors",
    )
    add_run_options(copy)
    copy.set_defaults(command=_copy)


def _copy_arguments(parsed: argparse.Namespace) -> CopyArguments:
    """Convert the parsed arguments to the keys of a mirror. Raises ConfigError if options exclude each other."""
    from mirror.config.copy_arguments import CopyArguments  # noqa: PLC0415 (only for `copy`)

    given = vars(parsed)
    keys: dict[tuple[str, ...], tuple[Value, str]] = {
        ("source",): (parsed.source, "SOURCE"),
        ("targets",): (parsed.targets, "TARGET"),
    }
    for name, _, path, _ in (*_LISTS, *_VALUES):
        value = given[name.removeprefix("--").replace("-", "_")]
        if value is not None:
            is_number = path == ("tags", "newest") and _NUMBER.fullmatch(value) is not None
            keys[path] = (int(value) if is_number else value, name)
    if parsed.no_referrers:
        keys["referrers",] = (False, "--no-referrers")
    rule = next((name for path, (_, name) in keys.items() if path[0] == "tags" and len(path) > 1), None)
    if rule is not None and ("tags",) in keys:
        hint = "--tag selects exactly the given tags; leave out one of the options"
        raise ConfigError(f"--tag and {rule} cannot be used together", hint=hint)
    return CopyArguments(keys, parsed.config, tuple(parsed.plain_http), Path.cwd())


def _copy(parsed: argparse.Namespace) -> int:
    """Run `mirror copy`."""
    arguments = _copy_arguments(parsed)
    options = replace(parsed_options(parsed), config=parsed.config or Path(), copy=arguments)
    if parsed.dry_run:
        from mirror.commands.plan import plan  # noqa: PLC0415 (here and below: only the called command is imported)

        return plan(options)
    from mirror.commands.copy import copy  # noqa: PLC0415

    return copy(options)
