"""What every scenario has: registries, content, a job, and the moments at which it may change something."""

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
from tests.registries.real import RealRegistry
from tests.support.seeding import Seeded

MIB = 1 << 20
RUNS = 5
SLOW = 3  # runs, where each takes minutes for all tools


@dataclass(frozen=True, slots=True)
class Scale:
    """quick: fewer and smaller, to see that it works, not to compare. big: bytes of the one big image."""

    quick: bool = False
    big: int = 1 << 30

    def count(self, full: int) -> int:
        """So many, or so big, or a tenth of that, but at least 2."""
        return max(2, full // 10) if self.quick else full


class Witness(Protocol):
    """Who saw all requests."""

    def mark(self) -> None: ...
    def requests(self) -> list[Seen]: ...


class Source(Registry, Protocol):
    """A registry that can be asked what it was asked."""

    def mark(self) -> None: ...
    def requests(self) -> list[Seen]: ...
    def client(self) -> Client: ...


@dataclass(frozen=True, slots=True)
class Access:
    """A registry as a tool reaches it. host: maybe of something in between, which then is the witness too.

    pid: of the registry's process, if it has one of its own."""

    registry: Source
    host: str
    witness: Witness
    pid: int | None


class StoredRegistry(RealRegistry):
    """A registry whose files are a copy of another's, or on the disk rather than in memory."""

    def __init__(self, root: Path, name: str, *, like: Path | None = None, on_disk: bool = False) -> None:
        super().__init__(root, name)
        if on_disk:
            self._scratch.cleanup()
            self._scratch = TemporaryDirectory(dir=self.folder, prefix="storage-")
            self.storage = Path(self._scratch.name)
        if like is not None:
            shutil.copytree(like, self.storage, dirs_exist_ok=True)


class Scenario(ABC):
    """One scenario, used once: `open`, then for each round `change`, and for each tool `access` in between.

    name, title, note: for people. fresh: targets are new, and the tool knows nothing, in each run; else each tool keeps
    its targets, which were equal at the beginning, and has run once before. target_count: registries to copy to.
    without: tool -> why it is not run. runs: of each tool, unless it is told otherwise."""

    name: ClassVar[str]
    title: ClassVar[str]
    note: ClassVar[str]
    fresh: ClassVar[bool] = True
    runs: ClassVar[int] = RUNS
    target_count: ClassVar[int] = 1
    with_ideal: ClassVar[bool] = False
    pattern: ClassVar[str] = ""
    reads_all_back: ClassVar[bool] = True  # after the first round everything on the targets is read and hashed
    go_on: ClassVar[bool] = False  # a command that fails does not keep a tool from its next one
    without: ClassVar[dict[str, str]] = {}

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.content = Content({}, {})

    # ---- what a scenario may say

    @abstractmethod
    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        """Start the source and fill it; sets `content`."""

    def reach(self, registry: RealRegistry, stack: ExitStack) -> Access:
        """How tools get at a registry: straight."""
        return Access(registry, registry.host, registry, registry.pid)

    def target(self, folder: Path, name: str) -> RealRegistry:
        """A target that is not started yet; a scenario that is not `fresh` gives one equal to the source."""
        return RealRegistry(folder, name)

    def change(self, source: Source) -> None:
        """Before each round. Nothing changes unless a scenario says so."""
        return

    @property
    def wanted(self) -> list[tuple[str, str]]:
        """Every (repository, tag) that is to be on the targets."""
        return sorted(self.content.tags)

    @property
    def bytes(self) -> int:
        """What a run has to bring to one target, at least."""
        return sum(self.content.sizes.values()) if self.fresh else 0

    # ---- the same for all

    def job(self, source: Access, targets: list[Access]) -> Job:
        images: defaultdict[str, list[str]] = defaultdict(list)
        for repository, tag in self.wanted:
            images[repository].append(tag)
        return Job(source.host, [target.host for target in targets], images, self.pattern)


class RealScenario(Scenario):
    """Its source is a real registry that is filled by pushing."""

    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        registry = stack.enter_context(RealRegistry(folder, "source"))
        self.content = self.seed(registry)
        return self.reach(registry, stack)

    @abstractmethod
    def seed(self, source: RealRegistry) -> Content:
        """Fill the source."""


def content_of(seeded: Seeded) -> Content:
    return Content(seeded.tags, {**seeded.blobs, **seeded.manifests})
