"""Parses the key `tags` of a mirror into the rules that select its tags. Also parses other lists of patterns."""

from __future__ import annotations

from mirror.config.problems import quote_value
from mirror.config.section import Section
from mirror.config.values import duration
from mirror.errors import ConfigError
from mirror.oci.reference import is_tag, tag_hint
from mirror.selection.patterns import compile_pattern, regex_for_shell_pattern
from mirror.selection.tag_rules import TagRules
from mirror.selection.versions import compile_range

_LONGEST_AGE = 3650 * 86400.0  # seconds


def parse_tag_rules(section: Section) -> TagRules | None:
    """Return the rules under the key `tags`, or None if the key is missing or contains no valid rule."""
    literal = [tag for _, tag in section.parse_list("tags", _check_tag)]
    if literal:
        twice = (
            next((tag for tag in literal if literal.count(tag) > 1), None) if len(set(literal)) < len(literal) else None
        )
        if twice is not None:
            section.add_warning(f'"{twice}" is listed twice; remove one of the entries', below="tags")
        return TagRules(tuple(dict.fromkeys(literal)))
    rules = section.section("tags")
    include, exclude, immutable = (parse_patterns(rules, key) for key in ("include", "exclude", "immutable"))
    newest = rules.section("newest")
    parsed = TagRules(
        include=include,
        exclude=exclude,
        semver=_ranges(rules),
        min_age=rules.parse("min-age", min_age) or 0.0,
        newest=rules.number("newest") or newest.number("count"),
        by_created=newest.text("by") == "created",
        min_tags=rules.number("min-tags") or 0,
        max_tags=rules.number("max-tags"),
        immutable=immutable,
        allow_empty=rules.flag("allow-empty", False),
    )
    _check_counts(rules, parsed)
    return None if parsed == TagRules() else parsed


def min_age(text: str) -> float:
    """Parse the value of `min-age`, from 1 s to 3650 d, and return it in seconds."""
    return duration(text, 1.0, _LONGEST_AGE)


def _check_counts(rules: Section, parsed: TagRules) -> None:
    """Report a value of `min-tags` that no selection can satisfy."""
    limits = {"max-tags": parsed.max_tags, "newest": parsed.newest}
    for key, limit in limits.items():
        if limit is not None and parsed.min_tags > limit:
            rules.add_problem(f"is greater than `{key}`, so no selection satisfies both; lower it", below="min-tags")


def _ranges(rules: Section) -> tuple[str, ...]:
    """Return the valid version ranges under `semver`, whose value is a string or a list."""
    single = rules.parse("semver", _check_range)
    if single is not None:
        return (single,)
    return tuple(text for _, text in rules.parse_list("semver", _check_range))


def parse_patterns(rules: Section, key: str) -> tuple[str, ...]:
    """Return the valid patterns in the list under a key. Add a warning for each that looks like a shell pattern."""
    found = rules.parse_list(key, _check_pattern)
    for number, text in found:
        instead = regex_for_shell_pattern(text)
        if instead is not None:
            what = f"\"{text}\" looks like a shell pattern, but is read as a regular expression; write '{instead}'"
            rules.add_warning(what, below=key, item=number)
    return tuple(text for _, text in found)


def _check_tag(text: str) -> str:
    """Return a string unchanged if it is a valid tag. Otherwise, raise ConfigError."""
    if is_tag(text):
        return text
    hint = tag_hint(text)
    if text.startswith(("sha256:", "sha512:")):
        hint = "a digest belongs in `source`, like host/repository@sha256:…"
    elif any(mark in text for mark in "*?[(|\\^$"):
        hint = "a pattern belongs under `tags: {include: […]}`"
    raise ConfigError(f"not a tag: {quote_value(text)}; {hint}")


def _check_pattern(text: str) -> str:
    """Return a string unchanged if it is a valid regular expression. Otherwise, raise ConfigError."""
    compile_pattern(text)
    return text


def _check_range(text: str) -> str:
    """Return a string unchanged if it is a valid version range. Otherwise, raise ConfigError."""
    compile_range(text)
    return text
