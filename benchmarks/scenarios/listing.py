"""A scenario in which a few tags are selected from a repository with very many tags."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from benchmarks.scenarios.base import Access, Scenario
from benchmarks.traffic import Content
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph

_REPOSITORY = "team/app"
_PAGE = 1000  # tags


class Selected(Scenario):
    name = "selected"
    title = "50,000 tags listed, 10 selected"
    note = (
        "The source is a scripted registry with pages of 1,000 tags. A regular expression selects the tags. "
        "The registry runs in the process of the harness, so the CPU time of registries is not measured."
    )
    pattern = r"v[0-9]\.0"

    def open_source(self, folder: Path, stack: ExitStack) -> Access:
        registry = stack.enter_context(ScriptedRegistry("source", page=_PAGE))
        graph = Graph("listed")
        images = [graph.platforms(label=f"image {number}").digest for number in range(10)]
        for number, digest in enumerate(images):
            graph.tag(digest, f"v{number}.0")
        sizes = {digest: len(data) for digest, data in graph.blobs.items()}
        sizes |= {digest: len(manifest.data) for digest, manifest in graph.manifests.items()}
        self.content = Content({(_REPOSITORY, tag): digest for tag, digest in graph.tags.items()}, sizes)
        graph.tag(images[0], *(f"build-{number:06}" for number in range(self.scale.count(50_000) - len(images))))
        registry.load(_REPOSITORY, graph)
        return Access(registry, registry.host, registry, None)
