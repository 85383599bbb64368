"""A spool without room: targets that do not move hold up nobody else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.errors import MirrorError
from mirror.limits import Limits
from mirror.transfer.blob_copier import CARRY, Deliveries
from mirror.transfer.blob_request import Delivered, Outcome
from mirror.transfer.spool import Spool
from mirror.transfer.spool_room import ROOM_WITHIN
from mirror.transfer.watch import Watch
from mirror.util.cancellation import Stop
from tests.support.stores import MemoryStore
from tests.transfer.harness import DEADLINE, FakeClock, until
from tests.transfer.test_blob_copier import World

SIZES = pytest.mark.parametrize("size", [1000, CARRY + 1], ids=["carried", "streamed"])


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


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def world(tmp_path: Path, clock: FakeClock, size: int) -> Iterator[World]:
    """Two targets, and a spool with room for one blob."""
    spool = Spool(tmp_path / "spool", size + 10)
    spool.prepare()
    world = World(spool)
    world.limits = Limits(clock)
    world.pairs = [("source", "target"), ("source", "other")]
    yield world
    spool.close()


def until_time_brings(clock: FakeClock, deliveries: Deliveries, *watches: Watch[Delivered]) -> None:
    """Let time pass until all of them have ended."""

    def ended() -> bool:
        clock.advance(0.1, deliveries._manager)
        return all(watch.done for watch in watches)

    until(ended)


def blobs_of(size: int) -> list[bytes]:
    return [bytes([number]) * size for number in range(3)]


@SIZES
def test_a_target_that_stands_still_with_the_spool_full_holds_no_other_target_up(
    world: World, clock: FakeClock, size: int
) -> None:
    frozen = Frozen(world.targets["target"])
    first, second, third = (world.source.add("app", data) for data in blobs_of(size))
    with world.managed(Stop()) as deliveries:
        stuck = [deliveries.deliver(world.order(first, "one"))]
        assert frozen.entered.acquire(timeout=DEADLINE)
        well = deliveries.deliver(world.order(first, "one", "other"))
        assert well.wait(DEADLINE)
        stuck += [deliveries.deliver(world.order(blob, "one")) for blob in (second, third)]
        waiting = deliveries.deliver(world.order(second, "one", "other"))
        clock.advance(ROOM_WITHIN - 0.1, deliveries._manager)
        assert not waiting.done
        assert [] == [blob for _, blob in world.source.verbs("open") if blob == second.digest]
        until_time_brings(clock, deliveries, waiting)
        assert Outcome.COPIED is waiting.result().outcome
        at_once = deliveries.deliver(world.order(third, "one", "other"))
        assert at_once.wait(DEADLINE), "the spool has been full for long: no further wait"
        for _ in range(100):
            clock.advance(0.5, deliveries._manager)
        assert 1 == len(world.targets["target"].verbs("begin")), "it holds the room itself: streams would stand as well"
        frozen.thaw()
        until_time_brings(clock, deliveries, *stuck)
        assert [Outcome.COPIED] * 3 == [watch.result().outcome for watch in stuck]
    opened = [blob for _, blob in world.source.verbs("open")]
    assert [1, 2, 2] == [opened.count(blob.digest) for blob in (first, second, third)]
    deliveries.close()


@SIZES
def test_where_one_host_has_one_slot_for_both_ends_a_blob_waits_for_room(
    world: World, clock: FakeClock, size: int
) -> None:
    """A stream would need two slots of it, and could never begin."""
    world.pairs = [("source", "target"), ("source", "source")]
    world.options["source"] = 1
    frozen = Frozen(world.targets["target"])
    first, second = (world.source.add("app", data) for data in blobs_of(size)[:2])
    with world.managed(Stop()) as deliveries:
        stuck = deliveries.deliver(world.order(first, "one"))
        assert frozen.entered.acquire(timeout=DEADLINE)
        waiting = deliveries.deliver(world.order(second, "one", "source"))
        for _ in range(20):
            clock.advance(0.5, deliveries._manager)
        assert not waiting.done
        frozen.thaw()
        until_time_brings(clock, deliveries, waiting, stuck)
        assert waiting.error is stuck.error is None
    deliveries.close()
