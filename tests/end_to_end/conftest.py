"""Test images for exports and imports: three repositories, in memory and in a registry."""

from __future__ import annotations

import pytest

from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.seeding import push

NAMES = ("app", "team/web", "team/tools")


@pytest.fixture
def graphs() -> dict[str, Graph]:
    """Three repositories with indexes, shared layers, a docker image, an artifact, a signature and a referrer."""
    made = {name: Graph(name) for name in NAMES}
    for name, graph in made.items():
        index = graph.platforms("v1", size=20_000)
        graph.image("v2", "latest", layers=[graph.blob(b"shared by all" * 1000), graph.layer(name)], oci=False)
        graph.signature(index)
    made["app"].referrer(made["app"].image("signed"), "sbom")
    made["team/web"].artifact("notes")
    return made


@pytest.fixture
def stocked(source: RealRegistry, graphs: dict[str, Graph]) -> RealRegistry:
    for name, graph in graphs.items():
        push(source, name, graph)
    return source
