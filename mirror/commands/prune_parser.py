"""The parser for `mirror prune`."""

from __future__ import annotations

import argparse
from pathlib import Path

from mirror.commands.arguments import Parser
from mirror.commands.parsers import add_command, parsed_options
from mirror.errors import ConfigError


def add_prune(commands: argparse._SubParsersAction[Parser]) -> None:
    """Add the parser for `prune`."""
    text = "delete tags from the targets that a sync copied and that are no longer selected"
    prune = add_command(commands, "prune", _prune, text)
    action = prune.add_mutually_exclusive_group(required=True)
    action.add_argument("--plan", metavar="FILE", type=Path, help="write the list of tags to delete to FILE")
    action.add_argument("--apply", metavar="FILE", type=Path, help="delete the tags that FILE lists")
    prune.add_argument(
        "--max-delete",
        metavar="PERCENT",
        type=_percent,
        help="delete nothing if more than PERCENT of the copied tags of any repository would be deleted (default 10)",
    )


def _percent(text: str) -> float:
    """Parse a percentage, such as `10` or `2.5%`. Raises ArgumentTypeError if `text` is not valid."""
    try:
        percent = float(text.removesuffix("%"))
    except ValueError:
        percent = -1.0
    if 0 < percent <= 100:
        return percent
    raise argparse.ArgumentTypeError(f"expected a percentage above 0 and up to 100, got {text!r}")


def _prune(parsed: argparse.Namespace) -> int:
    """Run `mirror prune`."""
    if parsed.plan is not None and parsed.max_delete is not None:
        hint = "a plan lists all tags that may be deleted; set the limit when you apply the plan"
        raise ConfigError("--max-delete can be used only with --apply", hint=hint)
    from mirror.commands import prune, prune_apply  # noqa: PLC0415

    options = parsed_options(parsed)
    if parsed.plan is not None:
        return prune.plan(options, parsed.plan)
    return prune_apply.apply(
        options, parsed.apply, prune.MAX_DELETE if parsed.max_delete is None else parsed.max_delete
    )
