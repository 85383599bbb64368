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
    """verbosity: -1 quiet, 0, 1, 2 debug; lock_wait: seconds; base: an inventory, for all exports."""

    config: Path
    only: tuple[str, ...] = ()
    only_from: Path | None = None
    shard: Shard | None = None
    deep: bool = False
    fail_fast: bool = False
    report: Path | None = None
    progress: str = "none"
    lock_wait: float = 0.0
    exit_code: bool = False
    verbosity: int = 0
    base: Path | None = None


class Only:
    """The shell patterns of --only, over `host/repo:tag` (`@digest`) or `host/repo`. None given: all take part."""

    def __init__(self, patterns: Sequence[str] | None) -> None:
        self._patterns = patterns

    def wants(self, reference: str) -> bool:
        """Whether this reference of a source takes part."""
        if self._patterns is None:
            return True
        repository = repository_of(reference)
        return any(
            one in (reference, repository) or fnmatchcase(reference, one) or fnmatchcase(repository, one)
            for one in self._patterns
        )

    def unmatched(self, repositories: Iterable[str]) -> list[str]:
        """Patterns that reach none of `repositories`."""
        names = list(repositories)
        return [one for one in self._patterns or () if not any(self._reaches(one, name) for name in names)]

    def may_want(self, repository: str) -> bool:
        """Whether any reference of `host/repo` could: if not, it need not even be listed."""
        if self._patterns is None:
            return True
        return any(self._reaches(one, repository) for one in self._patterns)

    @staticmethod
    def _reaches(pattern: str, repository: str) -> bool:
        literal = pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]
        if pattern == repository or pattern.startswith((f"{repository}:", f"{repository}@")):
            return True
        if literal == pattern:
            return False
        return f"{repository}:".startswith(literal) or literal.startswith((f"{repository}:", f"{repository}@"))


def repository_of(reference: str) -> str:
    """`host/repo` of `host/repo:tag` or `host/repo@digest`."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
