"""The `mirrors` section: locations and tag rules, each mirror with the defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mirror.config.problems import KeyPath, Place, dotted, value_shown
from mirror.config.registries import Hosts
from mirror.config.section import Section
from mirror.errors import ConfigError
from mirror.locations import Location, RegistryLocation, parse_source, parse_target
from mirror.oci.reference import Repository, is_tag, tag_hint
from mirror.patterns import compile_pattern
from mirror.selection import TagRules


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """One entry of `mirrors`. path: of its key, like `mirrors[2]`. schema1: `copy` or `fail`."""

    place: Place
    path: str
    source: Repository
    targets: tuple[Repository, ...]
    tags: TagRules
    schema1: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A mirror whose source could be read, with the paths of it and of those of its targets that could be, too.

    sure: whether its tags are what the file means; else nothing more can be said of what it writes."""

    mirror: MirrorConfig
    path: KeyPath
    target_paths: tuple[KeyPath, ...]
    sure: bool


def build(top: Section, hosts: Hosts) -> list[Draft]:
    """Raises nothing; problems are noted."""
    defaults = top.section("defaults")
    shared = _rules(defaults)
    drafts = [_draft(section, defaults, shared, hosts) for section in top.sections("mirrors")]
    return [draft for draft in drafts if draft is not None]


def _draft(section: Section, defaults: Section, shared: TagRules | None, hosts: Hosts) -> Draft | None:
    own = _rules(section)
    source = section.parsed("source", _working(parse_source))
    targets = section.parsed_list("targets", _working(parse_target))
    if source is None:
        return None
    named = source.tag is not None or source.digest is not None
    if named and section.has("tags"):
        section.problem("`source` names a tag or digest, so `tags` cannot be given too; keep one", below="tags")
    short = TagRules((source.tag,) if source.tag else None, source.digest) if named else None
    mirror = MirrorConfig(
        section.document.place(section.path),
        dotted(section.path),
        _repository(source, hosts),
        tuple(_repository(target, hosts) for _, target in targets),
        short or own or shared or TagRules(),
        section.text("schema1") or defaults.text("schema1") or "copy",
    )
    return Draft(
        mirror,
        section.path,
        tuple((*section.path, "targets", number) for number, _ in targets),
        all(where.document.sound((*where.path, "tags")) for where in (section, defaults)),
    )


def _working(parse: Callable[[str], Location]) -> Callable[[str], RegistryLocation]:
    """`parse`, but only what this version can do."""

    def parsed(text: str) -> RegistryLocation:
        location = parse(text)
        if not isinstance(location, RegistryLocation):
            raise ConfigError(f"{location.kind} are not in this version; give host/repository")
        if location.wildcard:
            raise ConfigError("wildcards are not in this version; list each repository as a mirror of its own")
        return location

    return parsed


def _repository(location: RegistryLocation, hosts: Hosts) -> Repository:
    return replace(location.repository, host=hosts.canonical(location.repository.host))


def _rules(section: Section) -> TagRules | None:
    """What `tags` says; None where it is not given, or wrong."""
    literal = [tag for _, tag in section.parsed_list("tags", _tag)]
    if literal:
        twice = (
            next((tag for tag in literal if literal.count(tag) > 1), None) if len(set(literal)) < len(literal) else None
        )
        if twice is not None:
            section.warn(f'"{twice}" stands twice', below="tags")
        return TagRules(tuple(dict.fromkeys(literal)))
    rules = section.section("tags")
    include = tuple(text for _, text in rules.parsed_list("include", _pattern))
    exclude = tuple(text for _, text in rules.parsed_list("exclude", _pattern))
    return TagRules(include=include, exclude=exclude) if include or exclude else None


def _tag(text: str) -> str:
    if is_tag(text):
        return text
    hint = tag_hint(text)
    if text.startswith(("sha256:", "sha512:")):
        hint = "a digest goes into `source`, like host/repository@sha256:…"
    elif any(mark in text for mark in "*?[(|\\^$"):
        hint = "a pattern goes under `tags: {include: […]}`"
    raise ConfigError(f"not a tag: {value_shown(text)}; {hint}")


def _pattern(text: str) -> str:
    compile_pattern(text)
    return text
