"""Blobs are transferred no faster than the bandwidth of their registry allows."""

from __future__ import annotations

import pytest

from tests.conftest import ScriptedFactory
from tests.end_to_end.worlds import assert_synced, pair
from tests.registries.blobhost import BlobHost
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool

SIZE = 400 << 10  # bytes
LIMIT = 500 << 10  # bytes per second
LEAST = (SIZE - 0.2 * LIMIT) / LIMIT  # seconds, without the first slice and the unused bandwidth before it


def load_layer(source: ScriptedRegistry) -> str:
    """Put an image with one layer of SIZE bytes into the source. Return the digest of the layer."""
    graph = Graph("limited")
    layer = graph.layer("large", SIZE)
    graph.image("v1", layers=[layer])
    source.load("app", graph)
    return layer.digest


def seconds_of(tool: MirrorTool, digest: str) -> float:
    """Return how long the transfer of a blob took, from the log."""
    (record,) = (one for one in tool.log() if one.get("event") == "blob" and one.get("digest") == digest)
    assert "copied" == record["outcome"]
    return float(record["seconds"])


@pytest.mark.parametrize("direction", ["read", "write"])
def test_a_blob_is_transferred_within_the_bandwidth_of_its_registry(
    direction: str, scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    layer = load_layer(source)
    limited = source if direction == "read" else target
    pair(mirror_run, source, target, registries={limited.host: {"bandwidth": {direction: "500 KiB/s"}}})
    mirror_run.sync()
    assert_synced(source, target)
    assert seconds_of(mirror_run, layer) >= LEAST


def test_a_blob_from_the_host_of_a_redirect_counts_for_the_registry(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    layer = load_layer(source)
    with BlobHost(source.storage) as storage:
        source.features.blob_redirect = storage.url_of
        pair(mirror_run, source, target, registries={source.host: {"bandwidth": {"read": "500 KiB/s"}}})
        mirror_run.sync()
        assert storage.seen
    assert_synced(source, target)
    assert seconds_of(mirror_run, layer) >= LEAST


def test_the_schedule_replaces_the_limit(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    """The two entries contain all times of the day."""
    source, target = scripted("source"), scripted("target")
    layer = load_layer(source)
    schedule = [
        {"from": "00:00", "to": "12:00", "read": "500 KiB/s"},
        {"from": "12:00", "to": "00:00", "read": "500 KiB/s"},
    ]
    pair(mirror_run, source, target, registries={source.host: {"bandwidth": {"read": "1 B/s", "schedule": schedule}}})
    mirror_run.sync()
    assert_synced(source, target)
    assert seconds_of(mirror_run, layer) >= LEAST
