"""A spool without room: targets that do not move hold up nobody else."""

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

SIZES = pytest.mark.parametrize("size", [1000, SMALL_BLOB + 1], ids=["carried", "streamed"])


class Frozen:
    """Uploads to a store that stand still at their end until `thaw`."""

    def __init__(self, store: MemoryStore) -> None:
        self.entered = threading.Semaphore(0)
        self._thawed = threading.Event()
        store.fault = self._fault

    def _fault(self, verb: str, repository: str, reference: str) -> MirrorError | None:
        if verb == "send":
            self.entered.release()
            assert self._thawed.wait(DEADLINE)
        return None

    def thaw(self) -> None:
        self._thawed.set()


class TimedWorld(World):
    """With a clock that is moved by hand."""

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


async def until_time_brings(clock: FakeClock, *tasks: asyncio.Task[BlobResult]) -> None:
    """Let time pass until all of them have ended."""

    def ended() -> bool:
        clock.advance(0.1)
        return all(task.done() for task in tasks)

    await eventually(ended)


def blobs_of(size: int) -> list[bytes]:
    return [bytes([number]) * size for number in range(3)]


@SIZES
def test_a_target_that_stands_still_with_the_spool_full_holds_no_other_target_up(
    world: World, clock: FakeClock, size: int
) -> None:
    frozen = Frozen(world.targets["target"])
    first, second, third = (world.source.add("app", data) for data in blobs_of(size))

    async def steps(blob_copier: BlobCopier) -> None:
        def copy(blob: Descriptor, host: str = "target") -> asyncio.Task[BlobResult]:
            return asyncio.create_task(blob_copier.copy(world.request(blob, "one", host)))

        stuck = [copy(first)]
        await eventually(lambda: frozen.entered.acquire(blocking=False))
        await copy(first, "other")
        stuck += [copy(blob) for blob in (second, third)]
        waiting = copy(second, "other")
        await settle()
        clock.advance(WAIT_FOR_ROOM - 0.1)
        await settle()
        assert not waiting.done()
        assert [] == [blob for _, blob in world.source.verbs("open") if blob == second.digest]
        await until_time_brings(clock, waiting)
        assert BlobOutcome.COPIED is waiting.result().outcome
        await copy(third, "other")  # the spool has been full for long: no further wait
        for _ in range(100):
            clock.advance(0.5)
            await settle()
        assert 1 == len(world.targets["target"].verbs("begin")), "it holds the room itself: streams would stand as well"
        frozen.thaw()
        await until_time_brings(clock, *stuck)
        assert [BlobOutcome.COPIED] * 3 == [task.result().outcome for task in stuck]

    world.drive(steps)
    opened = [blob for _, blob in world.source.verbs("open")]
    assert [1, 2, 2] == [opened.count(blob.digest) for blob in (first, second, third)]


@SIZES
def test_where_one_host_has_one_slot_for_both_ends_a_blob_waits_for_room(
    world: World, clock: FakeClock, size: int
) -> None:
    """A stream would need two slots of it, and could never begin."""
    world.pairs = [("source", "target"), ("source", "source")]
    world.options["source"] = 1
    frozen = Frozen(world.targets["target"])
    first, second = (world.source.add("app", data) for data in blobs_of(size)[:2])

    async def steps(blob_copier: BlobCopier) -> None:
        stuck = asyncio.create_task(blob_copier.copy(world.request(first, "one")))
        await eventually(lambda: frozen.entered.acquire(blocking=False))
        waiting = asyncio.create_task(blob_copier.copy(world.request(second, "one", "source")))
        for _ in range(20):
            clock.advance(0.5)
            await settle()
        assert not waiting.done()
        frozen.thaw()
        await until_time_brings(clock, waiting, stuck)
        await asyncio.gather(waiting, stuck)

    world.drive(steps)
