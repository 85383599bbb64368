"""The command-line options of a run, and the filter for `--only` and `--shard`."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mirror.output.progress_display import Mode
from mirror.util.deadline import Deadline
from mirror.util.structs import Struct

if TYPE_CHECKING:
    from mirror.config.copy_arguments import CopyArguments

_TAGS = string.ascii_letters + string.digits + "_.-"
_DIGESTS = _TAGS + ":"
_NAMES = _DIGESTS + "/@"


class Shard(Struct, frozen=True):
    """One of the `count` shards into which `--shard` divides the source repositories.

    index: the number of the shard, counted from 0. For the same `count`, a repository is always in the same shard."""

    index: int
    count: int

    def contains(self, repository: str) -> bool:
        """Return whether the source repository `host/path` is in this shard."""
        return int.from_bytes(hashlib.sha256(repository.encode()).digest()[:8]) % self.count == self.index

    def __str__(self) -> str:
        return f"shard-{self.index}-of-{self.count}"


class Options(Struct, frozen=True):
    """The command-line options of a command that reads a configuration, such as `sync`, `plan` or `verify`.

    verbosity: -1 quiet, 0 normal, 1 verbose, 2 debug. lock_wait: the maximum time in seconds to wait for another run.
    base: the inventory that serves as the base for all exports. If `repair` is True, `deep` is also True.
    locked: the image lock that replaces the selection of tags. every: the interval in seconds between two runs; None
    for a single run. listen: the address on which the status of repeated runs is served. deadline: when each run ends.
    mirrors: the numbers of the mirrors to plan, counted from 0 in the order of the configuration; None for all.
    copy: the arguments of `mirror copy`, which replace `config`. json: whether `plan` prints JSON."""

    config: Path
    only: tuple[str, ...] = ()
    only_from: Path | None = None
    shard: Shard | None = None
    deep: bool = False
    repair: bool = False
    fail_fast: bool = False
    report: Path | None = None
    trace_http: Path | None = None
    json_events: bool = False
    progress: Mode = "none"
    lock_wait: float = 0.0
    exit_code: bool = False
    verbosity: int = 0
    base: Path | None = None
    locked: Path | None = None
    json: bool = False
    every: float | None = None
    listen: str | None = None
    deadline: Deadline | None = None
    mirrors: frozenset[int] | None = None
    copy: CopyArguments | None = None

    @property
    def folder(self) -> str:
        """The name of the folder in the state directory that the run uses; empty for the state directory itself."""
        if self.copy is not None:
            return self.copy.folder
        return str(self.shard) if self.shard is not None else ""

    @property
    def progress_mode(self) -> Mode:
        """The display mode for the progress: the mode that `--progress` sets, or `none` with `-q`.

        With `--json-events`, the default is `none`, because a program that reads the events may use the terminal."""
        is_hidden = self.verbosity < 0 or (self.json_events and self.progress == "auto")
        return "none" if is_hidden else self.progress

    def retry_arguments(self) -> list[str]:
        """Return the options that another run needs to copy failed images in the same way as this run."""
        arguments = ["--shard", f"{self.shard.index}/{self.shard.count}"] if self.shard is not None else []
        for name, path in (("--locked", self.locked), ("--base", self.base)):
            arguments += [name, str(path)] if path is not None else []
        return [*arguments, "--repair"] if self.repair else [*arguments, "--deep"] if self.deep else arguments

    @property
    def selects_all(self) -> bool:
        """Whether the run processes all images that the configuration selects or, with `--shard`, all in the shard."""
        return not self.only and self.only_from is None and self.locked is None and self.mirrors is None


class ReferenceFilter:
    """A filter that selects references by shell patterns (`--only`), and repositories by shard. Thread-safe.

    A pattern matches references (`host/repo:tag`, `host/repo@digest`) or whole repositories (`host/repo`). If
    `patterns` is None, all references match."""

    def __init__(self, patterns: Sequence[str] | None, shard: Shard | None = None) -> None:
        self._patterns = patterns
        self._shard = shard
        # The patterns that have matched nothing so far, and cannot match in a repository that could not be listed.
        self._unmatched = set(patterns or ())
        self._in_this_shard: set[str] = set()  # patterns that can match in a repository of this shard
        self._in_other_shards: set[str] = set()  # patterns that can match in a repository of another shard

    def is_selected(self, reference: str) -> bool:
        """Return whether the filter selects a source reference. Patterns that match it are recorded as used."""
        if self._patterns is None:
            return True
        matching = self._matching_patterns(reference)
        self._unmatched.difference_update(matching)
        return bool(matching)

    def excludes_any(self, references: Iterable[str]) -> bool:
        """Return whether the filter excludes any of the given references. No pattern is recorded as used.

        If all references match, `references` is not iterated."""
        return self._patterns is not None and not all(map(self._matching_patterns, references))

    def _matching_patterns(self, reference: str) -> list[str]:
        """Return the patterns that match a reference or its repository."""
        name, digest, _ = reference.partition("@")
        repository = name if digest else name.rpartition(":")[0]
        return [one for one in self._patterns or () if _matches(one, reference) or _matches(one, repository)]

    def may_select(self, repository: str) -> bool:
        """Return whether any reference in `host/repo` could be selected. If not, its tags need not be listed.

        This also records which patterns can match references in the repository."""
        if self._shard is not None and not self._shard.contains(repository):
            self._in_other_shards.update([one for one in self._patterns or () if self._can_match(one, repository)])
            return False
        if self._patterns is None:
            return True
        reaching = [one for one in self._patterns if self._can_match(one, repository)]
        self._in_this_shard.update(reaching)
        self._unmatched.difference_update([one for one in reaching if _matches(one, repository)])
        return bool(reaching)

    def can_match(self, repository: str) -> bool:
        """Return whether any pattern could match a reference in `host/repo`, or in a repository under `host/prefix/*`.

        Unlike `may_select`, this method does not record any pattern as used."""
        return any(self._can_match(one, repository) for one in self._patterns or ())

    def mark_unlisted(self, repository: str) -> None:
        """Record that the tags of `host/repo`, or the repositories under `host/prefix/*`, could not be listed.

        `unused_patterns` then omits the patterns that might match references in these repositories."""
        unsure = [one for one in self._unmatched if repository.endswith("*") or self._can_match(one, repository)]
        self._unmatched.difference_update(unsure)

    def unused_patterns(self) -> list[str]:
        """Return the patterns that matched nothing and cannot match in another shard.

        Call this after all sources have been listed. With shards, only one shard returns each of these patterns."""
        idle = sorted(self._unmatched - self._in_other_shards)
        return [one for one in idle if self._shard is None or self._shard.contains(repository_of(one))]

    def unused_in_this_shard(self) -> list[str]:
        """Return the patterns that matched nothing in this shard, but may match in another shard."""
        return sorted(self._unmatched & self._in_other_shards & self._in_this_shard)

    def impossible_patterns(self, repositories: Iterable[str]) -> list[str]:
        """Return the patterns that cannot match any reference in `repositories` (`host/repo` or `host/prefix/*`)."""
        names = list(repositories)
        return [one for one in self._patterns or () if not any(self._can_match(one, name) for name in names)]

    @staticmethod
    def _can_match(pattern: str, repository: str) -> bool:
        """Return whether a pattern can match a reference in `host/repo`, or in a repository under `host/prefix/*`."""
        wildcard = repository.endswith("*")
        beginnings = {repository[:-1]: _NAMES} if wildcard else {f"{repository}:": _TAGS, f"{repository}@": _DIGESTS}
        if pattern.startswith(tuple(beginnings)) or (pattern == repository and not wildcard):
            return True
        literal = _literal_prefix(pattern)
        if literal == pattern or not any(literal.startswith(one) or one.startswith(literal) for one in beginnings):
            return False
        return fnmatchcase(repository, pattern) or any(_can_match_prefix(pattern, *one) for one in beginnings.items())


def _can_match_prefix(pattern: str, beginning: str, alphabet: str) -> bool:
    """Return whether a shell pattern can match `beginning` followed by some characters from `alphabet`."""
    parts = _split_pattern(pattern)
    states = _epsilon_closure(parts, {0})
    for character in beginning:
        staying = {at for at in states if parts[at : at + 1] == ("*",)}
        taking = {at + 1 for at in states - staying if at < len(parts) and fnmatchcase(character, parts[at])}
        states = _epsilon_closure(parts, staying | taking)
    return any(
        at < len(parts) and all(part == "*" or any(fnmatchcase(one, part) for one in alphabet) for part in parts[at:])
        for at in states
    )


def _epsilon_closure(parts: tuple[str, ...], states: set[int]) -> set[int]:
    """Return the states of a pattern that are reachable from `states` without consuming a character.

    A state is an index into `parts`, the elements of the pattern. A `*` may match nothing."""
    found = set(states)
    for at, part in enumerate(parts):
        if part == "*" and at in found:
            found.add(at + 1)
    return found


@lru_cache(maxsize=1000)
def _split_pattern(pattern: str) -> tuple[str, ...]:
    """Split a shell pattern as `fnmatch` does: into `*` and patterns that match one character each."""
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


def _literal_prefix(pattern: str) -> str:
    """Return the part of a shell pattern before the first special character."""
    return pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))]


def _matches(pattern: str, name: str) -> bool:
    """Return whether a shell pattern matches a name, or is equal to the name."""
    return pattern == name or fnmatchcase(name, pattern)


def repository_of(reference: str) -> str:
    """Return the part `host/repo` of a reference (`host/repo:tag` or `host/repo@digest`)."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]
