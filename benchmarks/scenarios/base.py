"""The base of all scenarios: registries, content, a job, and hooks for changes."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Protocol

from benchmarks.job import Job
from benchmarks.traffic import Content
from tests.registries.access import Seen
from tests.registries.client import Client, Registry
from tests.registries.process import RegistryProcess
from tests.registries.real import RealRegistry
from tests.support.seeding import Seeded

MIB = 1 << 20
RUNS = 5
SLOW = 3  # runs, if a round of all tools takes minutes


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a benchmark. quick: fewer and smaller images, only to check that it works. big: bytes of the one big
    image."""

    quick: bool = False
    big: int = 1 << 30

    def count(self, full: int) -> int:
        """Return `number`, or a tenth of it with `quick`, but at least 2."""
        return max(2, full // 10) if self.quick else full


class Witness(Protocol):
    """Records the requests to a registry."""

    def mark(self) -> None: ...
    def requests(self) -> list[Seen]: ...


class Source(Registry, Protocol):
    """A registry with the requests that it received."""

    def mark(self) -> None: ...
    def requests(self) -> list[Seen]: ...
    def client(self) -> Client: ...


@dataclass(frozen=True, slots=True)
class Access:
    """A registry as a tool reaches it. host: possibly of a relay, which is then the witness too.

    pid: of the registry's process, if it is a separate process."""

    registry: Source
    host: str
    witness: Witness
    pid: int | None


class StoredRegistry(RealRegistry):
    """A registry whose files are a copy of another's, or on the disk instead of in memory."""

    def __init__(self, root: Path, name: str, *, like: Path | None = None, on_disk: bool = False) -> None:
        super().__init__(root, name)
        if on_disk:
            self._scratch.cleanup()
            self._scratch = TemporaryDirectory(dir=self.folder, prefix="storage-")
            self.storage = Path(self._scratch.name)
        if like is not None:
            shutil.copytree(like, self.storage, dirs_exist_ok=True)


class Scenario(ABC):
    """One scenario, used once: `open_source`, then `change` before each round.

    name, title, note: for messages and tables. fresh: each run has new targets and a tool without state; otherwise each
    tool keeps its targets, which were equal at the beginning, and has run once before. target_count: registries to copy
    to. program: what its registries need from `make bench-tools`. excluded: the reason why a tool is not run, by tool.
    runs: the default number of runs per tool."""

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str]
    fresh: ClassVar[bool] = True
    runs: ClassVar[int] = RUNS
    target_count: ClassVar[int] = 1
    with_ideal: ClassVar[bool] = False
    program: ClassVar[str] = ""
    pattern: ClassVar[str] = ""
    reads_all_back: ClassVar[bool] = True  # after the first round everything on the targets is read and hashed
    continue_on_error: ClassVar[bool] = False  # run the next command of a tool although one failed
    excluded: ClassVar[dict[str, str]] = {}

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.content = Content({}, {})

    # ---- to be defined by scenarios

    @abstractmethod
    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        """Start the source and fill it; sets `content`."""

    def reach(self, registry: RegistryProcess, stack: ExitStack) -> Access:
        """Return how tools reach a registry: directly."""
        return Access(registry, registry.host, registry, registry.pid)

    def target(self, folder: Path, name: str) -> RegistryProcess:
        """Return a target that is not started yet. A scenario that is not `fresh` returns one that equals the
        source."""
        return RealRegistry(folder, name)

    def change(self, source: Source) -> None:
        """Change the source before a round. By default nothing changes."""
        return

    @property
    def wanted(self) -> list[tuple[str, str]]:
        """Every (repository, tag) to copy."""
        return sorted(self.content.tags)

    @property
    def bytes(self) -> int:
        """The least bytes that a run must copy to one target."""
        return sum(self.content.sizes.values()) if self.fresh else 0

    # ---- common to all

    def job(self, source: Access, targets: list[Access]) -> Job:
        images: defaultdict[str, list[str]] = defaultdict(list)
        for repository, tag in self.wanted:
            images[repository].append(tag)
        return Job(source.host, [target.host for target in targets], images, self.pattern)


class RealScenario(Scenario):
    """A scenario whose source is a real registry, filled by pushing."""

    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        registry = stack.enter_context(RealRegistry(folder, "source"))
        self.content = self.seed(registry)
        return self.reach(registry, stack)

    @abstractmethod
    def seed(self, source: RealRegistry) -> Content:
        """Fill the source."""


def content_of(seeded: Seeded) -> Content:
    return Content(seeded.tags, {**seeded.blobs, **seeded.manifests})
