"""The common setup of these tests: two registries and the tool."""

from __future__ import annotations

from typing import Any

from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_equal
from tests.support.tool import MirrorTool

AnyRegistry = RealRegistry | ScriptedRegistry


def pair(tool: MirrorTool, source: AnyRegistry, target: AnyRegistry, *names: str, **keys: Any) -> None:
    """Configure that each repository is copied from source to target under its own name; by default `app`."""
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in names or ("app",)]
    tool.config(mirrors, source, target, **keys)


def loaded(registry: ScriptedRegistry, *tags: str, repository: str = "app", size: int = 3000) -> Graph:
    """Put an index of two platforms for each tag into a scripted registry."""
    graph = Graph(f"{repository} {tags}")
    for tag in tags or ("v1",):
        graph.platforms(tag, size=size)
    registry.load(repository, graph)
    return graph


def assert_synced(source: AnyRegistry, target: AnyRegistry, *names: str) -> None:
    """Check that the target has the source's repositories, complete and byte for byte."""
    for name in names or ("app",):
        assert_equal(source, name, target)
