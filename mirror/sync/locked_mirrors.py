"""Applies an image lock to the mirrors of a configuration, and checks that they match."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from mirror.errors import ConfigError, printable
from mirror.oci.reference import Repository
from mirror.sync.image_lock import ImageLock, LockedMirror
from mirror.sync.plan_model import MirrorEntry
from mirror.util.structs import replace

_LOCK_AGAIN = "run `mirror lock CONFIG` to lock the images of this configuration"


def lock_entries(entries: Sequence[MirrorEntry], lock: ImageLock, file: str) -> list[MirrorEntry]:
    """Return mirror entries with the images of an image lock. file: the name of the lock, for messages.

    A mirror is identified by its source and, if several mirrors have this source, by its targets. Targets can therefore
    be added, and mirrors reordered, without a new lock. Raises ConfigError if the lock and the configuration have
    different mirrors, if a mirror cannot select one of its locked repositories, or if two mirrors would write the same
    tag to the same target repository."""
    locked: defaultdict[str, list[LockedMirror]] = defaultdict(list)
    wanted: defaultdict[str, list[MirrorEntry]] = defaultdict(list)
    for mirror in lock.mirrors:
        locked[mirror.source].append(mirror)
    for entry in entries:
        wanted[entry.name].append(entry)
    for source in (*wanted, *locked):
        if not locked[source]:
            raise ConfigError(f"{file} does not contain the mirror of {printable(source)}", hint=_LOCK_AGAIN)
        if not wanted[source]:
            what = f"{file} contains a mirror of {printable(source)}, but the configuration does not"
            raise ConfigError(what, hint=_LOCK_AGAIN)
    found = {
        entry.number: mirror
        for source in wanted
        for entry, mirror in _match_mirrors(wanted[source], locked[source], file)
    }
    for entry in entries:
        _check_repositories(entry, found[entry.number], file)
    locked_entries = [
        replace(entry, locked=found[entry.number].images, lock_key=found[entry.number].key()) for entry in entries
    ]
    _check_targets(locked_entries, file)
    return locked_entries


def _match_mirrors(
    entries: list[MirrorEntry], mirrors: list[LockedMirror], file: str
) -> list[tuple[MirrorEntry, LockedMirror]]:
    """Pair the entries for one source with the locked mirrors of this source. Raises ConfigError if they differ.

    Entries that also have the same targets are paired in their order."""
    if len(entries) == len(mirrors) == 1:
        return [(entries[0], mirrors[0])]
    ordered = sorted(entries, key=target_names)
    others = sorted(mirrors, key=lambda mirror: mirror.targets)
    if [target_names(entry) for entry in ordered] != [mirror.targets for mirror in others]:
        what = f"{file} and the configuration have different mirrors of {printable(entries[0].name)}"
        raise ConfigError(what, hint=_LOCK_AGAIN)
    return list(zip(ordered, others, strict=True))


def target_names(entry: MirrorEntry) -> tuple[str, ...]:
    """Return the names of the target repositories of a mirror, sorted."""
    return tuple(sorted(str(target.repository) for target in entry.targets))


def _check_repositories(entry: MirrorEntry, mirror: LockedMirror, file: str) -> None:
    """Raise ConfigError if a locked mirror contains a repository that the mirror entry cannot select."""
    for repository in mirror.images:
        if not entry.has_repository(repository):
            name = printable(repository, 80)
            what = f"{file}: the mirror of {entry.name} cannot contain the repository {name}"
            raise ConfigError(what, hint=_LOCK_AGAIN)


def _check_targets(entries: Sequence[MirrorEntry], file: str) -> None:
    """Raise ConfigError if two mirrors would write the same tag to the same target repository.

    The rules of the configuration exclude this only for the tags that they select."""
    writers: defaultdict[Repository, list[tuple[str, Counter[str]]]] = defaultdict(list)
    for entry in entries:
        for repository, tags in (entry.locked or {}).items():
            expanded = entry.expand_wildcard(repository) if entry.wildcard else entry
            for target in expanded.targets:
                written_tags = Counter(target.tags.apply(tag) for tag in tags)
                writers[target.repository].append((expanded.name, written_tags))
    for written, sources in writers.items():
        for number, (source, written_tags) in enumerate(sources):
            for other_source, other_tags in sources[:number]:
                _reject_shared_tags(file, other_source, source, written, written_tags & other_tags)
            twice = Counter({tag: count for tag, count in written_tags.items() if count > 1})  # with a fixed tag
            _reject_shared_tags(file, source, source, written, twice)


def _reject_shared_tags(file: str, one: str, other: str, written: Repository, tags: Counter[str]) -> None:
    """Raise ConfigError if images of two sources would get the same tag in a target repository.

    tags: the tags that images of both sources would get."""
    for tag in sorted(tags)[:1]:
        what = f"{file}: images of {one} and {other} would both be copied to {written}:{printable(tag)}"
        raise ConfigError(what, hint=_LOCK_AGAIN)
