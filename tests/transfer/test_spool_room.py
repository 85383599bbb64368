"""A full spool: a target that does not respond does not delay the other targets."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.errors import MirrorError
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_request import BlobOutcome, BlobResult
from mirror.transfer.blob_uploader import SMALL_BLOB
from mirror.transfer.spool import Spool
from mirror.transfer.spool_room import WAIT_FOR_ROOM
from tests.support.stores import MemoryStore
from tests.transfer.harness import DEADLINE, FakeClock, FakeLoop, eventually, settle
from tests.transfer.test_blob_copier import World

SIZES = pytest.mark.parametrize("size", [1000, SMALL_BLOB + 1], ids=["memory", "stream"])


class BlockedUploads:
    """Blocks the uploads to a store at their end until `release`."""

    def __init__(self, store: MemoryStore) -> None:
        self.entered = threading.Semaphore(0)
        self._released = threading.Event()
        store.fault = self._fault

    def _fault(self, verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "send":
            self.entered.release()
            assert self._released.wait(DEADLINE)
        return None

    def release(self) -> None:
        self._released.set()


class TimedWorld(World):
    """A world with a fake clock."""

    def __init__(self, spool: Spool, clock: FakeClock) -> None:
        super().__init__(spool)
        self.clock = clock
        self.limits = Limits(clock)

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return FakeLoop(self.clock)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock, size: int) -> Iterator[World]:
    """Two targets, and a spool with room for one blob."""
    spool = Spool(tmp_path / "spool", size + 10)
    spool.prepare()
    world = TimedWorld(spool, clock)
    world.pairs = [("source", "target"), ("source", "other")]
    yield world
    spool.close()


async def advance_until_done(clock: FakeClock, *tasks: asyncio.Task[BlobResult]) -> None:
    """Advance the clock until all tasks have ended."""

    def ended() -> bool:
        clock.advance(0.1)
        return all(task.done() for task in tasks)

    await eventually(ended)


def blobs_of(size: int) -> list[bytes]:
    return [bytes([number]) * size for number in range(3)]


@SIZES
def test_a_target_that_does_not_respond_and_fills_the_spool_does_not_delay_other_targets(
    world: World, clock: FakeClock, size: int
) -> None:
    blocked = BlockedUploads(world.targets["target"])
    first, second, third = (world.source.add("app", data) for data in blobs_of(size))

    async def copy_all(blob_copier: BlobCopier) -> None:
        def copy(blob: Descriptor, host: str = "target") -> asyncio.Task[BlobResult]:
            return asyncio.create_task(blob_copier.copy(world.request(blob, "one", host)))

        stuck = [copy(first)]
        await eventually(lambda: blocked.entered.acquire(blocking=False))
        await copy(first, "other")
        stuck += [copy(blob) for blob in (second, third)]
        waiting = copy(second, "other")
        await settle()
        clock.advance(WAIT_FOR_ROOM - 0.1)
        await settle()
        assert not waiting.done()
        assert [] == [blob for _, blob in world.source.verbs("open") if blob == second.digest]
        await advance_until_done(clock, waiting)
        assert BlobOutcome.COPIED is waiting.result().outcome
        await copy(third, "other")  # no further wait: the spool has been full for WAIT_FOR_ROOM seconds
        for _ in range(100):
            clock.advance(0.5)
            await settle()
        assert 1 == len(world.targets["target"].verbs("begin")), "the target that occupies the spool gets no stream"
        blocked.release()
        await advance_until_done(clock, *stuck)
        assert [BlobOutcome.COPIED] * 3 == [task.result().outcome for task in stuck]

    world.drive(copy_all)
    opened = [blob for _, blob in world.source.verbs("open")]
    assert [1, 2, 2] == [opened.count(blob.digest) for blob in (first, second, third)]


@SIZES
def test_a_blob_waits_for_room_if_source_and_target_share_one_permit(world: World, clock: FakeClock, size: int) -> None:
    """A direct stream needs two permits of the host, and could never start."""
    world.pairs = [("source", "target"), ("source", "source")]
    world.options["source"] = 1
    blocked = BlockedUploads(world.targets["target"])
    first, second = (world.source.add("app", data) for data in blobs_of(size)[:2])

    async def copy_all(blob_copier: BlobCopier) -> None:
        stuck = asyncio.create_task(blob_copier.copy(world.request(first, "one")))
        await eventually(lambda: blocked.entered.acquire(blocking=False))
        waiting = asyncio.create_task(blob_copier.copy(world.request(second, "one", "source")))
        for _ in range(20):
            clock.advance(0.5)
            await settle()
        assert not waiting.done()
        blocked.release()
        await advance_until_done(clock, waiting, stuck)
        await asyncio.gather(waiting, stuck)

    world.drive(copy_all)
