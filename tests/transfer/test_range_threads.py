"""`RangeThreads`: segments of large blobs are read from a registry as calls, within the limits of the host."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls, new_loop
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.range_reader import RangeRules
from mirror.transfer.range_threads import RangeThreads
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import ONCE
from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph

SEGMENT = 64 << 10
# Each connection counts as slow, and several connections as faster.
RULES = RangeRules(smallest=8 * SEGMENT, segment=SEGMENT, ahead=3, total=3, fast=1e15, waiting=0.0, gain=0.0)
DATA = random.Random(11).randbytes(20 * SEGMENT + 777)


class World:
    """A download from a registry. most_used: how many permits for the host were in use at most when a request came."""

    def __init__(self, registry: ScriptedRegistry, parallel: int) -> None:
        graph = Graph("large")
        layer = graph.blob(DATA, "application/octet-stream")
        registry.load("app", graph)
        registry.hook = self._count_permits
        self.blob = Descriptor(Digest.parse(layer.digest), len(DATA), layer.media_type)
        self.host = registry.host
        self.limits = Limits()
        self.limits.configure(self.host, parallel)
        self.calls = Calls(new_loop(), self.limits, Stop())
        self.ranges = RangeThreads(self.calls, RULES)
        self.most_used = 0

    def _count_permits(self, request: Request) -> Reply | None:
        self.most_used = max(self.most_used, self.calls.permits.used_units(host_permit(self.host)))
        return None

    def download(self, session: Session) -> bytes:
        """Read the blob as a call, like an upload does."""
        store = RegistryV2(session)
        download = BlobDownload(self.blob, [BlobSource(store, "app")], None, self.ranges)
        found, buffer = bytearray(), memoryview(bytearray(10_000))

        def run(work: Work) -> None:
            with download.open(0, work) as reader:
                while count := reader.readinto(buffer):
                    found.extend(buffer[:count])

        loop = self.calls.tasks
        task = loop.start(self.calls.call(run, needs=(host_permit(self.host), DOWNLOADS), policy=ONCE))
        task.get_loop().run_until_complete(task)
        return bytes(found)


@contextmanager
def opened(registry: ScriptedRegistry, parallel: int = 8) -> Iterator[tuple[World, Session]]:
    world = World(registry, parallel)
    try:
        with Session(HostSettings(registry.host, plain_http=True), world.limits) as session:
            yield world, session
    finally:
        world.calls.close()


def ranges(registry: ScriptedRegistry) -> list[str]:
    return [one.header("range") or "" for one in registry.log if one.kind == "GET blob"]


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_a_large_blob_is_read_within_the_limit_of_the_host(scripted: ScriptedFactory, parallel: int) -> None:
    """How many segments other threads read depends on the machine. The bytes and the limit do not."""
    registry = scripted()
    with opened(registry, parallel) as (world, session):
        assert DATA == world.download(session)
        assert 1 <= world.most_used <= parallel


def test_a_blob_that_is_too_short_is_read_with_one_request(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with opened(registry) as (world, session):
        world.ranges = RangeThreads(world.calls, RangeRules(smallest=len(DATA) + 1, fast=1e15, waiting=0.0))
        assert DATA == world.download(session)
    assert [""] == ranges(registry)


def test_from_a_host_that_sends_no_ranges_blobs_are_read_with_one_request(scripted: ScriptedFactory) -> None:
    registry = scripted(ranges=False)
    with opened(registry) as (world, session):
        assert DATA == world.download(session), "a range that fails costs nothing but the request"
        world.ranges.reject_ranges(registry.host)
        before = len(ranges(registry))
        assert DATA == world.download(session)
    assert [""] == ranges(registry)[before:]


def test_the_memory_for_segments_is_limited(scripted: ScriptedFactory) -> None:
    with opened(scripted()) as (world, _):
        assert [True] * RULES.total + [False] == [world.ranges.take() for _ in range(RULES.total + 1)]
        world.ranges.give_back()
        assert [True, False] == [world.ranges.take() for _ in range(2)]
