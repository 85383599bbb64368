"""What a run is told on the command line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mirror.structs import Struct


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
            self.not_seen(repository)
            return False
        if self._patterns is None:
            return True
        reaching = [one for one in self._patterns if self._reaches(one, repository)]
        self._idle.difference_update([one for one in reaching if _matches(one, repository)])
        return bool(reaching)

    def reaches(self, repository: str) -> bool:
        """Whether patterns could match something in `host/repo`, or under `host/prefix/*`. Changes nothing."""
        if not repository.endswith("*"):
            return any(self._reaches(one, repository) for one in self._patterns or ())
        prefix = repository.removesuffix("*")
        return any(
            one.startswith(prefix) or (_literal(one) != one and _compatible(_literal(one), prefix))
            for one in self._patterns or ()
        )

    def not_seen(self, repository: str) -> None:
        """The references of `host/repo`, or the repositories of `host/prefix/*`, could not be told."""
        unsure = [one for one in self._idle if repository.endswith("*") or self._reaches(one, repository)]
        self._idle.difference_update(unsure)

    def idle(self) -> list[str]:
        """Patterns for which nothing was found, once all was looked at."""
        return sorted(one for one in self._idle if self._shard is None or self._shard.has(repository_of(one)))

    def unmatched(self, repositories: Iterable[str]) -> list[str]:
        """Patterns that reach none of `repositories`."""
        names = list(repositories)
        return [one for one in self._patterns or () if not any(self._reaches(one, name) for name in names)]

    @staticmethod
    def _reaches(pattern: str, repository: str) -> bool:
        literal = _literal(pattern)
        if pattern == repository or pattern.startswith((f"{repository}:", f"{repository}@")):
            return True
        if literal == pattern:
            return False
        return f"{repository}:".startswith(literal) or literal.startswith((f"{repository}:", f"{repository}@"))


def _literal(pattern: str) -> str:
    """What stands before the first character that is none of the name itself."""
    return pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]


def _compatible(one: str, other: str) -> bool:
    return one.startswith(other) or other.startswith(one)


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)


def repository_of(reference: str) -> str:
    """`host/repo` of `host/repo:tag` or `host/repo@digest`."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
