"""Ranges of blobs, and interrupted downloads from registries that do not support ranges."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mirror.errors import NotFound, Refused, RemoteError
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.registry.blobs import BlobStream
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.downloads import MIN_PROGRESS, BlobDownload
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy
from tests.conftest import ScriptedFactory
from tests.registries.exchange import Reply, Request
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph

SIZE = 2 * MIN_PROGRESS + 12345
DATA = random.Random(18).randbytes(SIZE)
BROKEN = MIN_PROGRESS + 1000  # bytes before the interruption


@contextmanager
def open_broken_body(registry: ScriptedRegistry) -> Iterator[tuple[Descriptor, BlobDownload]]:
    """Yield a blob of a registry, and a body whose first GET is interrupted."""
    graph = Graph("broken")
    layer = graph.blob(DATA, "application/octet-stream")
    registry.load("app", graph)
    registry.fault("GET blob", cut_after=BROKEN)
    blob = Descriptor(Digest.parse(layer.digest), SIZE, layer.media_type)
    with Session(HostSettings(registry.host, plain_http=True), Limits(), policy=Policy(attempts=1)) as session:
        yield blob, BlobDownload(blob, [BlobSource(RegistryV2(session), "app")])


def read_all(body: BlobDownload) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(1 << 18))
    work = Work(Stop(), retries=False)
    with body.open(0, work) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


def ranges(registry: ScriptedRegistry) -> list[str | None]:
    return [one.header("range") for one in registry.log if one.kind == "GET blob"]


@pytest.mark.parametrize("status", [400, 405, 412, 416, 501])
def test_if_a_range_is_rejected_the_blob_is_read_again_from_the_beginning(
    scripted: ScriptedFactory, status: int
) -> None:
    registry = scripted()
    with open_broken_body(registry) as (_, body):
        registry.hook = lambda request: Reply(status) if request.header("Range") else None
        assert DATA == read_all(body)
    assert [None, f"bytes={BROKEN}-{SIZE - 1}", None] == ranges(registry)


def test_if_a_range_is_ignored_the_rest_is_taken_from_the_whole_blob(scripted: ScriptedFactory) -> None:
    registry = scripted(ranges=False)
    with open_broken_body(registry) as (_, body):
        assert DATA == read_all(body)
    assert 2 == len(ranges(registry))


@pytest.mark.parametrize("refused", [True, False])
def test_a_blob_that_is_read_again_is_verified_together_with_the_earlier_bytes(
    scripted: ScriptedFactory, refused: bool
) -> None:
    """The digest covers the bytes before the interruption and the rest of the second response."""
    registry = scripted(ranges=False)
    with open_broken_body(registry) as (_, body):
        registry.hook = lambda request: Reply(416) if refused and request.header("Range") else None
        registry.fault("GET blob", nth=2, times=FOREVER, after=True, change=damage_tail)
        with pytest.raises(Refused) as caught:
            read_all(body)
    assert "digest_mismatch" == caught.value.code


def damage_tail(request: Request, reply: Reply) -> Reply:
    """Change a byte after the point of interruption."""
    assert BROKEN < len(reply.body) - 1
    return Reply(reply.status, reply.headers, reply.body[:-1] + bytes([reply.body[-1] ^ 1]))


def test_a_blob_that_was_deleted_meanwhile_is_missing_and_not_read_again(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with open_broken_body(registry) as (_, body):
        registry.hook = lambda request: Reply(404) if request.header("Range") else None
        with pytest.raises(NotFound, match="does not have blob"):
            read_all(body)
    assert 2 == len(ranges(registry))


# ---- single ranges


@contextmanager
def open_stream(registry: ScriptedRegistry) -> Iterator[BlobStream]:
    """Yield the stream of a blob in a registry."""
    graph = Graph("ranges")
    layer = graph.blob(DATA, "application/octet-stream")
    registry.load("app", graph)
    blob = Descriptor(Digest.parse(layer.digest), SIZE, layer.media_type)
    with (
        Session(HostSettings(registry.host, plain_http=True), Limits(), policy=Policy(attempts=1)) as session,
        RegistryV2(session).open_blob("app", blob, Work(Stop(), retries=False)) as stream,
    ):
        yield stream


def read_range(stream: BlobStream, start: int, end: int) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(1 << 18))
    with stream.open_range(start, end, Work(Stop(), retries=False)) as reader:
        while count := reader.readinto(buffer):
            out += buffer[:count]
    return bytes(out)


def test_a_stream_opens_other_ranges_of_its_blob(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with open_stream(registry) as stream:
        assert DATA[1000:3000] == read_range(stream, 1000, 3000)
        assert DATA[-500:] == read_range(stream, SIZE - 500, SIZE)
    assert [None, "bytes=1000-2999", f"bytes={SIZE - 500}-{SIZE - 1}"] == ranges(registry)


@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (200, None),
        (206, None),
        (206, "bytes 1000-2998/{size}"),
        (206, "bytes 1000-3000/{size}"),
        (206, "bytes 999-2999/{size}"),
        (206, "bytes 1000-2999/{larger}"),
        (416, None),
    ],
)
def test_a_response_with_another_range_is_an_error(scripted: ScriptedFactory, status: int, sent: str | None) -> None:
    registry = scripted()
    headers = [] if sent is None else [("Content-Range", sent.format(size=SIZE, larger=SIZE + 1))]
    registry.hook = lambda request: Reply(status, headers, DATA[1000:3000]) if request.header("Range") else None
    with open_stream(registry) as stream, pytest.raises(RemoteError):
        read_range(stream, 1000, 3000)
