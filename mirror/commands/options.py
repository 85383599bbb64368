"""What a run is told on the command line."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from mirror.util.structs import Struct

_TAGS = string.ascii_letters + string.digits + "_.-"
_DIGESTS = _TAGS + ":"
_NAMES = _DIGESTS + "/@"


class Shard(Struct, frozen=True):
    """Part `index`, from 0, of `count` parts. A source repository belongs to the same one every time."""

    index: int
    count: int

    def has(self, repository: str) -> bool:
        """repository: `host/path` of a source."""
        return int.from_bytes(hashlib.sha256(repository.encode()).digest()[:8]) % self.count == self.index

    def __str__(self) -> str:
        return f"shard-{self.index}-of-{self.count}"


class Options(Struct, frozen=True):
    """verbosity: -1 quiet, 0, 1, 2 debug; lock_wait: seconds; base: an inventory, for all exports.

    repair: then `deep` is true as well."""

    config: Path
    only: tuple[str, ...] = ()
    only_from: Path | None = None
    shard: Shard | None = None
    deep: bool = False
    repair: bool = False
    fail_fast: bool = False
    report: Path | None = None
    progress: str = "none"
    lock_wait: float = 0.0
    exit_code: bool = False
    verbosity: int = 0
    base: Path | None = None


class Only:
    """What takes part in a run: of one shard, what the shell patterns of --only match, which are over `host/repo:tag`
    (`@digest`) or `host/repo`. None given: all of it. Thread-safe."""

    def __init__(self, patterns: Sequence[str] | None, shard: Shard | None = None) -> None:
        self._patterns = patterns
        self._shard = shard
        self._idle = set(patterns or ())  # those that have matched nothing yet, although all was there to be seen
        self._here: set[str] = set()  # those that reach a repository of this shard
        self._elsewhere: set[str] = set()  # those that reach a repository of another shard

    def wants(self, reference: str) -> bool:
        """Whether this reference of a source takes part."""
        if self._patterns is None:
            return True
        name, digest, _ = reference.partition("@")
        repository = name if digest else name.rpartition(":")[0]
        matching = [one for one in self._patterns if _matches(one, reference) or _matches(one, repository)]
        self._idle.difference_update(matching)
        return bool(matching)

    def takes(self, repository: str) -> bool:
        """Whether any reference of `host/repo` could take part: if not, it need not even be listed."""
        if self._shard is not None and not self._shard.has(repository):
            self._elsewhere.update([one for one in self._patterns or () if self._reaches(one, repository)])
            return False
        if self._patterns is None:
            return True
        reaching = [one for one in self._patterns if self._reaches(one, repository)]
        self._here.update(reaching)
        self._idle.difference_update([one for one in reaching if _matches(one, repository)])
        return bool(reaching)

    def reaches(self, repository: str) -> bool:
        """Whether patterns could match something in `host/repo`, or under `host/prefix/*`. Changes nothing."""
        return any(self._reaches(one, repository) for one in self._patterns or ())

    def not_seen(self, repository: str) -> None:
        """The references of `host/repo`, or the repositories of `host/prefix/*`, could not be told."""
        unsure = [one for one in self._idle if repository.endswith("*") or self._reaches(one, repository)]
        self._idle.difference_update(unsure)

    def idle(self) -> list[str]:
        """Patterns for which nothing was found, once all was looked at."""
        idle = sorted(self._idle - self._elsewhere)
        return [one for one in idle if self._shard is None or self._shard.has(repository_of(one))]

    def idle_here(self) -> list[str]:
        """Patterns for which nothing was found in this shard, and which may select something in another one."""
        return sorted(self._idle & self._elsewhere & self._here)

    def unmatched(self, repositories: Iterable[str]) -> list[str]:
        """Patterns that cannot match any reference of `repositories`, of which `host/prefix/*` is a wildcard."""
        names = list(repositories)
        return [one for one in self._patterns or () if not any(self._reaches(one, name) for name in names)]

    @staticmethod
    def _reaches(pattern: str, repository: str) -> bool:
        """Whether a pattern can match `host/repo`, a reference of it, or one of a repository of `host/prefix/*`."""
        wildcard = repository.endswith("*")
        beginnings = {repository[:-1]: _NAMES} if wildcard else {f"{repository}:": _TAGS, f"{repository}@": _DIGESTS}
        if pattern.startswith(tuple(beginnings)) or (pattern == repository and not wildcard):
            return True
        literal = _literal(pattern)
        if literal == pattern or not any(literal.startswith(one) or one.startswith(literal) for one in beginnings):
            return False
        return fnmatchcase(repository, pattern) or any(_can_begin_with(pattern, *one) for one in beginnings.items())


def _can_begin_with(pattern: str, beginning: str, alphabet: str) -> bool:
    """Whether a shell pattern can match a text that begins so and goes on with letters of an alphabet."""
    parts = _parts(pattern)
    states = _after_stars(parts, {0})
    for character in beginning:
        staying = {at for at in states if parts[at : at + 1] == ("*",)}
        taking = {at + 1 for at in states - staying if at < len(parts) and fnmatchcase(character, parts[at])}
        states = _after_stars(parts, staying | taking)
    return any(
        at < len(parts) and all(part == "*" or any(fnmatchcase(one, part) for one in alphabet) for part in parts[at:])
        for at in states
    )


def _after_stars(parts: tuple[str, ...], states: set[int]) -> set[int]:
    """The states, and those behind a `*` that matches nothing."""
    found = set(states)
    for at, part in enumerate(parts):
        if part == "*" and at in found:
            found.add(at + 1)
    return found


@lru_cache(maxsize=1000)
def _parts(pattern: str) -> tuple[str, ...]:
    """A shell pattern as `fnmatch` reads it: `*`, and patterns of one character each."""
    parts, at = [], 0
    while at < len(pattern):
        end = at + 1
        if pattern[at] == "[":
            first = end + pattern.startswith("!", end)
            close = pattern.find("]", first + 1)
            end = close + 1 if close >= 0 else end
        parts.append(pattern[at:end])
        at = end
    return tuple(parts)


def _literal(pattern: str) -> str:
    """What stands before the first character that is none of the name itself."""
    return pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)


def repository_of(reference: str) -> str:
    """`host/repo` of `host/repo:tag` or `host/repo@digest`."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
