"""A blob that one source cannot provide is read from the source of another request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound
from mirror.oci.descriptor import Descriptor
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_request import BlobRequest, BlobSource
from mirror.transfer.blob_uploader import SMALL_BLOB
from mirror.transfer.spool import Spool
from mirror.transfer.tasks import gather_results
from mirror.util.structs import replace
from tests.support.stores import MemoryStore, blob_of
from tests.transfer.harness import settle
from tests.transfer.test_blob_copier import World, value_of

SMALL, LARGE = b"a layer", b"a layer" * SMALL_BLOB
SPOOLED = [("source", "target"), ("source", "other"), ("second", "target"), ("second", "other")]


class Sources(World):
    """Two sources. Reads from the first one wait until all copies have started."""

    def __init__(self, spool: Spool) -> None:
        super().__init__(spool)
        self.second = MemoryStore("second")
        self.started = threading.Event()
        self.source.fault = self._wait

    def _wait(self, verb: str, repository: str, reference: str) -> MirrorError | None:
        assert self.started.wait(30)
        return None

    def request_from(
        self, source: MemoryStore, blob: Descriptor, path: str, host: str, repository: str = "app"
    ) -> BlobRequest:
        """Return a request to copy a blob from `source`."""
        return replace(self.request(blob, path, host), source=BlobSource(source, repository))

    def copy(self, *requests: BlobRequest) -> list[MirrorError | str]:
        """Run copies concurrently and return the outcome or the error of each."""

        async def start(blob_copier: BlobCopier) -> list[MirrorError | str]:
            tasks = [asyncio.ensure_future(gather_results([blob_copier.copy(request)])) for request in requests]
            await settle()
            self.started.set()
            results = [one for task in tasks for one in await task]
            return [one if isinstance(one, MirrorError) else value_of(one) for one in results]

        return self.drive(start)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Sources]:
    spool = Spool(tmp_path / "spool", None)
    spool.prepare()
    yield Sources(spool)
    spool.close()


def missing(world: Sources, blob: Descriptor) -> None:
    pass


def denied(world: Sources, blob: Descriptor) -> None:
    world.source.fault = lambda *asked: world._wait(*asked) or AuthError("denied", code="auth_denied", status=403)


def down(world: Sources, blob: Descriptor) -> None:
    world.source.fault = lambda *asked: world._wait(*asked) or NetworkError("reset")


def damaged(world: Sources, blob: Descriptor) -> None:
    assert blob.size is not None
    world.source.blobs["app"][blob.digest] = bytes(blob.size)


@pytest.mark.parametrize("failure", [missing, denied, down, damaged])
@pytest.mark.parametrize(
    ("hosts", "pairs", "data"),
    [
        (("target", "other"), SPOOLED, SMALL),
        (("target", "target"), SPOOLED, SMALL),
        (("target", "target"), [], SMALL),
        (("target", "target"), [], LARGE),
    ],
    ids=["two hosts", "one repository, spool", "one repository, memory", "one repository, stream"],
)
def test_a_blob_that_one_source_cannot_provide_is_read_from_the_source_of_another_request(
    world: Sources,
    hosts: tuple[str, str],
    pairs: list[tuple[str, str]],
    data: bytes,
    failure: Callable[[Sources, Descriptor], None],
) -> None:
    world.pairs = pairs or [("source", "target"), ("second", "target")]
    if not pairs:
        world.pairs = [("source", "target")]
    blob = world.second.add("app", data)
    failure(world, blob)
    results = world.copy(
        world.request_from(world.source, blob, "one", hosts[0]), world.request_from(world.second, blob, "one", hosts[1])
    )
    assert ["copied", "copied"] == results
    assert {data} == {world.targets[host].blobs["one"][blob.digest] for host in hosts}
    assert 1 == len(world.second.verbs("open"))


def test_a_blob_that_one_repository_lacks_is_read_from_another_one_of_the_same_host(world: Sources) -> None:
    world.pairs = SPOOLED
    blob = world.source.add("complete", SMALL)
    results = world.copy(
        world.request_from(world.source, blob, "one", "target", "lacking"),
        world.request_from(world.source, blob, "one", "other", "complete"),
    )
    assert ["copied", "copied"] == results
    assert ["lacking", "complete"] == [repository for repository, _ in world.source.verbs("open")]


def test_if_no_source_has_the_blob_each_error_names_the_source_of_its_request(world: Sources) -> None:
    world.pairs = SPOOLED
    blob = blob_of(SMALL)
    first, second = world.copy(
        world.request_from(world.source, blob, "one", "target"), world.request_from(world.second, blob, "one", "other")
    )
    assert isinstance(first, NotFound)
    assert isinstance(second, NotFound)
    assert first.what.startswith("source/app does not have blob")
    assert second.what.startswith("second/app does not have blob")


def test_a_blob_that_the_target_rejects_is_not_read_from_another_source(world: Sources) -> None:
    world.pairs = SPOOLED
    blob = world.source.add("app", SMALL)
    world.second.add("app", SMALL)
    world.targets["target"].fault = lambda verb, repository, reference: (
        NotFound("no project") if verb == "begin" else None
    )
    first, second = world.copy(
        world.request_from(world.source, blob, "one", "target"), world.request_from(world.second, blob, "one", "other")
    )
    assert isinstance(first, NotFound)
    assert "copied" == second
    assert [] == world.second.verbs("open")
