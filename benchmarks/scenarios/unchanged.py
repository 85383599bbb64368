"""Scenarios like a regular run of a cron job: the source has not changed since the last run, or only in one tag."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar

from benchmarks.fast import PROGRAM, FastRegistry
from benchmarks.scenarios.base import Access, RealScenario, Scale, Scenario, Source, StoredRegistry
from benchmarks.scenarios.cold import ten_repositories, thousand_tags
from benchmarks.traffic import Content
from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.seeding import push


class Unchanged(RealScenario):
    name = "unchanged"
    title = "Nothing has changed: 10 repositories × 6 tags"
    note = (
        "The content is that of the first scenario, and is already on the target. Each tool has run once before, and "
        "`mirror` keeps the state of that run."
    )
    fresh = False
    continue_on_error = True

    def __init__(self, scale: Scale) -> None:
        super().__init__(scale)
        self._like: Path | None = None

    def seed(self, source: RealRegistry) -> Content:
        self._like = source.storage
        return self.fill(source)

    def fill(self, source: RealRegistry) -> Content:
        """Push the images of the scenario to the source, and return the content."""
        return ten_repositories(source, self.scale)

    def target(self, folder: Path, name: str) -> RealRegistry:
        return StoredRegistry(folder, name, like=self._like)


class UnchangedThousand(Unchanged):
    name = "unchanged-1000"
    title = "Nothing has changed: 1,000 tags"
    note = "One repository has 1,000 tags of 50 images."

    def fill(self, source: RealRegistry) -> Content:
        return thousand_tags(source, self.scale.count(1000))


class UnchangedTenThousand(Scenario):
    name = "unchanged-10000"
    title = "Nothing has changed: 10 repositories × 1,000 tags at fast registries"
    note = (
        "The registries are a few lines of Go and answer from memory (`benchmarks/fastregistry`), so that the figures "
        "show the cost of the tool."
    )
    fresh = False
    reads_all_back = False
    program = PROGRAM
    excluded: ClassVar[dict[str, str]] = dict.fromkeys(("skopeo", "crane", "oras"), "reads blobs; there are none")

    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        registry = stack.enter_context(self.target(folder, "source"))
        tags: dict[tuple[str, str], str] = {}
        with registry.client() as client:
            for repository in (f"app-{number}" for number in range(self._repositories)):
                for tag in client.tags(repository):
                    tags[repository, tag] = client.manifest(repository, tag).headers["docker-content-digest"]
        self.content = Content(tags, {})
        return Access(registry, registry.host, registry, registry.pid)

    def target(self, folder: Path, name: str) -> FastRegistry:
        return FastRegistry(folder, name, repositories=self._repositories, tags=1000)

    @property
    def _repositories(self) -> int:
        return self.scale.count(10)


class OneChanged(UnchangedThousand):
    name = "one-changed"
    title = "One tag in 1,000 has changed"
    note = "Before each round, one tag of the source moves to a new image of two platforms."

    def __init__(self, scale: Scale) -> None:
        super().__init__(scale)
        self._releases = itertools.count(1)

    def change(self, source: Source) -> None:
        release = f"release {next(self._releases)}"
        graph = Graph(release)
        graph.platforms("v7", label=release, size=65_536)
        push(source, "team/app", graph)
        sizes = {digest: len(data) for digest, data in graph.blobs.items()}
        sizes |= {digest: len(manifest.data) for digest, manifest in graph.manifests.items()}
        tags = {("team/app", tag): digest for tag, digest in graph.tags.items()}
        self.content = Content({**self.content.tags, **tags}, {**self.content.sizes, **sizes})
