"""The base classes of all scenarios. They start registries, fill the source, and define the job of the tools."""

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
RUNS = 5  # the default number of runs per tool
SLOW = 3  # the default number of runs if a round of all tools takes minutes


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of the scenarios.

    quick: whether to use fewer and smaller images, to check that the benchmark works. big: size of the big image, in
    bytes."""

    quick: bool = False
    big: int = 1 << 30

    def count(self, full: int) -> int:
        """Return `full`; with `quick`, a tenth of it, but at least 2."""
        return max(2, full // 10) if self.quick else full


class Witness(Protocol):
    """An observer that records the requests to a registry.

    `mark` starts a new record; `requests` returns the requests since then."""

    def mark(self) -> None: ...
    def requests(self) -> list[Seen]: ...


class Source(Registry, Protocol):
    """A source registry that also records the requests that it receives."""

    def mark(self) -> None: ...
    def requests(self) -> list[Seen]: ...
    def client(self) -> Client: ...


@dataclass(frozen=True, slots=True)
class Access:
    """How a tool reaches a registry, either directly or through a relay.

    host: `host:port` of the registry or the relay. witness: records the requests. pid: the process ID of the registry;
    None if it is not a separate process."""

    registry: Source
    host: str
    witness: Witness
    pid: int | None


class StoredRegistry(RealRegistry):
    """A registry that can start with a copy of the files of another registry, or store its files on disk.

    like: the files to copy. on_disk: whether to store files on disk instead of in memory."""

    def __init__(self, root: Path, name: str, *, like: Path | None = None, on_disk: bool = False) -> None:
        super().__init__(root, name)
        if on_disk:
            self._scratch.cleanup()
            self._scratch = TemporaryDirectory(dir=self.folder, prefix="storage-")
            self.storage = Path(self._scratch.name)
        if like is not None:
            shutil.copytree(like, self.storage, dirs_exist_ok=True)


class Scenario(ABC):
    """Base class of the scenarios. An instance is used once: `open_source` is called first, then `change` before each
    round.

    name, title, note: texts for messages and tables. fresh: whether each run starts with new targets, and with a tool
    without state. Otherwise each tool keeps its targets, which are equal to the source at the beginning, and has
    already run once. target_count: the number of target registries. program: a program of `make bench-tools` that the
    registries need; empty if there is none. excluded: for each tool that is not run, the reason. runs: the default
    number of runs per tool. with_ideal: whether the ideal replay is measured too. pattern: see `Job`."""

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str]
    fresh: ClassVar[bool] = True
    runs: ClassVar[int] = RUNS
    target_count: ClassVar[int] = 1
    with_ideal: ClassVar[bool] = False
    program: ClassVar[str] = ""
    pattern: ClassVar[str] = ""
    reads_all_back: ClassVar[bool] = True  # whether everything on the targets is read and hashed after the first round
    continue_on_error: ClassVar[bool] = False  # whether the next command of a tool runs after a failed one
    excluded: ClassVar[dict[str, str]] = {}

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.content = Content({}, {})

    # ---- defined by each scenario

    @abstractmethod
    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        """Start the source registry, fill it, and set `content`."""

    def reach(self, registry: RegistryProcess, stack: ExitStack) -> Access:
        """Return how tools reach a registry. By default they reach it directly."""
        return Access(registry, registry.host, registry, registry.pid)

    def target(self, folder: Path, name: str) -> RegistryProcess:
        """Return a target registry that has not been started yet.

        In a scenario that is not `fresh`, its content is equal to that of the source."""
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
        """The minimum number of bytes that a run must copy to one target."""
        return sum(self.content.sizes.values()) if self.fresh else 0

    # ---- common to all scenarios

    def job(self, source: Access, targets: list[Access]) -> Job:
        """Return the job that each tool has to do."""
        images: defaultdict[str, list[str]] = defaultdict(list)
        for repository, tag in self.wanted:
            images[repository].append(tag)
        return Job(source.host, [target.host for target in targets], images, self.pattern)


class RealScenario(Scenario):
    """A scenario whose source is a real registry, which `seed` fills by pushing images."""

    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        registry = stack.enter_context(RealRegistry(folder, "source"))
        self.content = self.seed(registry)
        return self.reach(registry, stack)

    @abstractmethod
    def seed(self, source: RealRegistry) -> Content:
        """Push images to the source, and return its content."""


def content_of(seeded: Seeded) -> Content:
    """Return the content of a registry that was filled by `tests.support.seeding`."""
    return Content(seeded.tags, {**seeded.blobs, **seeded.manifests})
