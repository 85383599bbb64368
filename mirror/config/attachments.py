"""Parses the keys `referrers` and `recheck` of a mirror into rules for the attachments of its images."""

from __future__ import annotations

import re

from mirror.config.problems import quote_value
from mirror.config.section import Section
from mirror.config.values import duration
from mirror.errors import ConfigError
from mirror.oci.referrers import KINDS, kinds_of_type
from mirror.selection.attachment_rules import DEFAULT_RECHECK, AttachmentRules

_LONGEST_RECHECK = 10 * 365 * 24 * 3600.0  # seconds
# A media type: RFC 6838, section 4.2, possibly with parameters.
_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]*(?:\s*;.*)?")


def attachment_rules(section: Section, defaults: Section) -> AttachmentRules | None:
    """Return the rules for the attachments of a mirror, or None if they are not copied.

    Adds a problem for each name that is neither a short name nor a media type, and for each name that is both required
    and excluded."""
    where = section if section.has_key("referrers") else defaults
    lists = where.section("referrers")
    include, exclude, require = (
        tuple(name for _, name in lists.parse_list(key, _check_name)) for key in ("include", "exclude", "require")
    )
    recheck = _recheck(section)
    recheck = _recheck(defaults) if recheck is None else recheck
    rules = AttachmentRules(include, exclude, require, DEFAULT_RECHECK if recheck is None else recheck)
    for name in require:
        if not rules.selects({name, *kinds_of_type(name)}):
            lists.add_problem(f'"{name}" is required, but `include` and `exclude` exclude it', below="require")
    return rules if where.flag("referrers", True) else None


def _recheck(section: Section) -> float | None:
    """Return the value of `recheck` in seconds, or None if it is missing or invalid."""
    return section.parse("recheck", lambda text: duration(text, 0.0, _LONGEST_RECHECK))


def _check_name(text: str) -> str:
    """Return a string unchanged if it is a short name or an artifact type. Otherwise, raise ConfigError."""
    if text in KINDS or _TYPE.fullmatch(text):
        return text
    raise ConfigError(
        f"{quote_value(text)} is neither {', '.join(KINDS[:-1])} or {KINDS[-1]}, nor an artifact type like "
        "application/spdx+json"
    )
