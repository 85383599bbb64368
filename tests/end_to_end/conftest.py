"""Test images for exports and imports: three repositories, in memory and in a registry.

In some of these tests the event loop of the tool is watched. A callback that blocks the loop fails the test."""

from __future__ import annotations

import pytest

from tests.registries.real import RealRegistry
from tests.support.images import Graph
from tests.support.seeding import push
from tests.support.tool import MirrorTool

NAMES = ("app", "team/web", "team/tools")
# Copies of every kind, reads of every command, and many things at once.
WATCHED = ("test_images", "test_bundles", "test_layouts", "test_repair", "test_results", "test_signals", "test_uploads")


@pytest.fixture(autouse=True)
def watched_loop(request: pytest.FixtureRequest) -> None:
    if request.module.__name__.rpartition(".")[2] in WATCHED and "mirror_run" in request.fixturenames:
        tool: MirrorTool = request.getfixturevalue("mirror_run")
        tool.environment["MIRROR_TESTS_WATCH_LOOP"] = "1"


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
