"""Suggests valid replacements for invalid values in error messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from mirror.config import values
from mirror.config.problems import KeyPath, quote_value
from mirror.config.schema import conforms
from mirror.config.tag_rules import min_age
from mirror.errors import ConfigError
from mirror.oci.reference import is_tag
from mirror.selection.locations import parse_source, parse_target
from mirror.selection.patterns import compile_pattern
from mirror.selection.versions import compile_range

YAML_BOOLEANS = frozenset({"true", "false", "yes", "no", "on", "off"})

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_RATE = re.compile(r"([0-9]+) ?(?:/|per) ?(s|m|h)[a-z]*")
_MANY_BYTES = 100_000  # a number without a unit that is at least this large is probably in bytes
# Units of other tools, and the equivalent units of this configuration.
_UNITS = {
    **dict.fromkeys(("sec", "secs", "second", "seconds", "S"), "s"),
    **dict.fromkeys(("m", "mins", "minute", "minutes"), "min"),
    **dict.fromkeys(("hour", "hours", "H"), "h"),
    **dict.fromkeys(("day", "days", "D"), "d"),
    **dict.fromkeys(("K", "k", "kb"), "kB"),
    **dict.fromkeys(("M", "mb", "Mb"), "MB"),
    **dict.fromkeys(("G", "g", "gb", "Gb"), "GB"),
    **dict.fromkeys(("T", "t", "tb", "Tb"), "TB"),
    **dict.fromkeys(("Ki", "kib", "kiB"), "KiB"),
    **dict.fromkeys(("Mi", "mib"), "MiB"),
    **dict.fromkeys(("Gi", "gib"), "GiB"),
    **dict.fromkeys(("Ti", "tib"), "TiB"),
}


def _check_tag(text: str) -> None:
    """Raise ConfigError if a string is not a valid tag."""
    if not is_tag(text):
        raise ConfigError("not a tag")


# The parsers of the keys whose values the schema does not check completely.
_CHECKS: dict[str, Callable[[str], object]] = {
    "source": parse_source,
    "targets": parse_target,
    "tags": _check_tag,
    "include": compile_pattern,
    "exclude": compile_pattern,
    "immutable": compile_pattern,
    "semver": compile_range,
    "min-age": min_age,
    "connect": values.connect_timeout,
    "idle": values.idle_timeout,
    "every": values.interval,
    "spool-max": values.size,
    "max-size": values.size,
    "rate": values.rate,
    "read": values.bandwidth,
    "write": values.bandwidth,
    "from": values.time_of_day,
    "to": values.time_of_day,
    "proxy": values.proxy,
    "token-realms": values.host,
    "no-proxy": values.host,
    "allow-hosts": values.host,
}


def is_accepted(path: KeyPath, part: dict[str, Any], text: str) -> bool:
    """Return whether a string is a valid value for the key at `path`. part: the schema of the value."""
    if quote_value(text) != f'"{text}"' or not conforms(text, part):
        return False
    key = next((step for step in reversed(path) if isinstance(step, str)), "")
    try:
        _CHECKS.get(key, str)(text)
    except ConfigError:
        return False
    return True


def suggest_text(path: KeyPath, part: dict[str, Any], text: str) -> str | None:
    """Return the string that the user probably meant by an invalid value: its text in quotes, or with a unit added.

    path, part: the key path of the value and its schema. Returns None if neither string would be valid."""
    found = (one for one in (text, *_add_units(text)) if is_accepted(path, part, one))
    return next(found, None)


def _add_units(text: str) -> Iterable[str]:
    """Return variants of a number or an amount with the units that the configuration supports."""
    if _NUMBER.fullmatch(text):
        sizes = (" B", " MiB") if float(text) >= _MANY_BYTES else (" MiB", " B")
        return [text + unit for unit in (" s", " ms", " min", " h", *sizes, "/s")]
    amount, rate = _AMOUNT.fullmatch(text), _RATE.fullmatch(text)
    if amount and amount[2] in _UNITS:
        return [f"{amount[1]} {_UNITS[amount[2]]}"]
    return [f"{rate[1]}/{rate[2]}"] if rate else []
