"""Permits: how many calls may run at a time, for each host and for the whole run.

A call needs one or more permits (`host quay.io`, `downloads`) and gets all of them together or none. The permit that it
names first is its *lane*: for a call that uses two hosts the one that is written to, so that a target without free
permits holds back only its own lane. The rules:

* Within a lane calls start in the order in which they came. A call that lacks *another* permit lets those pass that do
  not need that one. One unit of the lane's permit is then kept for the oldest that was passed over (if there are more
  than one), so that a call that uses two hosts does not starve behind a stream of calls that use one.
* A freed unit of a permit goes to the lane that holds the fewest of it, among equals to the one that was served the
  longest ago, so that slow lanes do not end up with all of them.
* The lane whose turn it is may gather units of its own permit for a call that needs several.

Everything is decided in one synchronous step after each event (a request, a release, the end of a hold). Used on the
event loop only.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mirror.errors import MirrorError

DOWNLOADS = "downloads"
UPLOADS = "uploads"
LARGE = "large manifests"  # for calls that have one in memory
LOCAL = "local"  # for calls that need nothing else
HOST = "host "

_Waiter = asyncio.Future[None]


def host_permit(name: str) -> str:
    """The permit for one of a host's requests in flight."""
    return HOST + name


class TooFewPermits(MirrorError, ValueError):
    """A call that could never start: it needs more units of a permit than there are."""


class Permits:
    """Grants permits to calls. Times are seconds of the loop's clock."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, capacity: Callable[[str], int], ready_at: Callable[[str], float]
    ) -> None:
        """Both are asked once for each permit, when it is first seen: how many units there are, and until when it is on
        hold."""
        self._loop = loop
        self._capacity = capacity
        self._ready_at = ready_at
        self._permits: dict[str, _Permit] = {}
        self._queues: dict[tuple[str, ...], _Queue] = {}
        self._count = 0  # of tickets and grants: what came earlier has the smaller number
        self._closed: MirrorError | None = None

    async def acquire(self, needs: Sequence[str]) -> None:
        """Wait for all of `needs`; the first names the lane.

        Raises Impossible: that many units can never be had; and the error of `close`."""
        if self._closed is not None:
            raise self._closed.with_text(self._closed.what)
        queue = self._queue(tuple(needs))
        if not queue.lane.queues and queue.lacking(_NONE) is None:
            self._grant(queue)
            return
        waiter = self._loop.create_future()
        self._enter(waiter, queue)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in queue.waiters:
                self._give_up(waiter, queue)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(needs)  # it was granted just before
            raise

    def release(self, needs: Sequence[str]) -> None:
        """Give back what `acquire` granted."""
        queue = self._queues[tuple(needs)]
        for permit, units in queue.demand:
            permit.used -= units
            queue.lane.held[permit] -= units
        self._admit([permit for permit, _ in queue.demand])

    def hold(self, name: str, until: float) -> None:
        """Grant nothing that includes this permit before `until`. A hold is never shortened."""
        permit = self._permit(name)
        if until <= max(self._loop.time(), permit.held_until):
            return
        if permit.timer is not None:
            permit.timer.cancel()
        permit.held_until = until
        permit.timer = self._loop.call_at(until, self._end_hold, permit)
        for lane in list(permit.wanted):  # what waits for it needs no unit kept any more
            self._admit((lane.own,))

    def close(self, error: MirrorError) -> None:
        """Fail all who wait, and all who come later, with `error`."""
        self._closed = error
        for permit in self._permits.values():
            if permit.timer is not None:
                permit.timer.cancel()
        for queue in self._queues.values():
            for waiter in list(queue.waiters):
                self._leave(waiter, queue)
                if not waiter.done():
                    fail_future(waiter, error.with_text(error.what))

    def used(self, name: str) -> int:
        """Units of a permit that are granted."""
        return self._permit(name).used

    def waiting(self) -> int:
        """How many calls wait."""
        return sum(len(queue.waiters) for queue in self._queues.values())

    def _permit(self, name: str) -> _Permit:
        found = self._permits.get(name)
        if found is None:
            found = self._permits[name] = _Permit(self._loop, self._capacity(name))
            self.hold(name, self._ready_at(name))
        return found

    def _queue(self, needs: tuple[str, ...]) -> _Queue:
        queue = self._queues.get(needs)
        if queue is None:
            queue = _Queue([(self._permit(name), units) for name, units in Counter(needs).items()])
            for name, units in Counter(needs).items():
                if units > self._permits[name].capacity:
                    capacity = self._permits[name].capacity
                    raise TooFewPermits(f"a call needs {units} of {name!r}, of which there are {capacity}")
            self._queues[needs] = queue
        return queue

    def _end_hold(self, permit: _Permit) -> None:
        permit.timer = None
        self._admit((permit,))

    def _enter(self, waiter: _Waiter, queue: _Queue) -> None:
        self._count += 1
        queue.waiters[waiter] = self._count
        if len(queue.waiters) == 1:  # else it waits behind others that need the same
            queue.lane.queues.append(queue)
            for permit, _ in queue.demand:
                permit.wanted[queue.lane] += 1
            if queue.lane.next() is queue:
                self._leave(waiter, queue)
                self._grant(queue, waiter)

    def _leave(self, waiter: _Waiter, queue: _Queue) -> None:
        del queue.waiters[waiter]
        if not queue.waiters:
            queue.lane.queues.remove(queue)
            for permit, _ in queue.demand:
                permit.wanted[queue.lane] -= 1
                if not permit.wanted[queue.lane]:
                    del permit.wanted[queue.lane]

    def _give_up(self, waiter: _Waiter, queue: _Queue) -> None:
        """A waiter was cancelled; it may have kept others waiting."""
        oldest = next(iter(queue.waiters)) is waiter
        self._leave(waiter, queue)
        if oldest:
            self._admit((queue.lane.own,))

    def _grant(self, queue: _Queue, waiter: _Waiter | None = None) -> None:
        for permit, units in queue.demand:
            permit.used += units
            queue.lane.held[permit] += units
        self._count += 1
        queue.lane.served = self._count
        if waiter is not None:
            waiter.set_result(None)

    def _admit(self, permits: Iterable[_Permit]) -> None:
        """Start what can start now that there may be more of `permits`: one call a turn."""
        for permit in permits:
            permit.gathered = False
            lanes = list(permit.wanted)
            while lanes and not permit.held and permit.used < permit.capacity:
                lane = lanes[0] if len(lanes) == 1 else min(lanes, key=partial(_Lane.turn, permit=permit))
                queue = lane.next()
                if queue is not None:
                    waiter = next(iter(queue.waiters))
                    self._leave(waiter, queue)
                    if not waiter.done():  # else it was cancelled, and its task has not run since
                        self._grant(queue, waiter)
                    if not lane.queues:
                        lanes.remove(lane)
                elif lane.own is permit and lane.gathers():
                    permit.gathered = True
                    break
                else:
                    lanes.remove(lane)


class _Permit:
    __slots__ = ("_loop", "capacity", "gathered", "held_until", "lane", "timer", "used", "wanted")

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self._loop = loop
        self.capacity = capacity
        self.used = 0
        self.held_until = 0.0
        self.timer: asyncio.TimerHandle | None = None  # while it is on hold
        self.gathered = False  # what is free is for the oldest call of its own lane, which needs several
        self.lane = _Lane(self)
        self.wanted: Counter[_Lane] = Counter()  # lanes in which calls wait for it: in how many queues

    @property
    def held(self) -> bool:
        return self.timer is not None and self.held_until > self._loop.time()

    def lacks(self, units: int) -> bool:
        return self.used + units > self.capacity


class _Queue:
    """The waiting calls of a lane that need the same permits, oldest first."""

    __slots__ = ("demand", "lane", "units", "waiters")

    def __init__(self, demand: list[tuple[_Permit, int]]) -> None:
        self.lane = demand[0][0].lane
        self.units = demand[0][1]  # of the lane's own permit
        self.demand = demand[::-1]  # the widest first: units of it are what lanes compete for
        self.waiters: OrderedDict[_Waiter, int] = OrderedDict()  # -> ticket

    def ticket(self) -> int:
        return next(iter(self.waiters.values()))

    def lacking(self, shut: set[_Permit]) -> _Permit | None:
        """What keeps the oldest from starting: a permit on hold, else one that is used up, the lane's own last."""
        full = None
        own = self.lane.own
        for permit, units in self.demand:
            if permit.held:
                return permit
            if full is None and (permit.lacks(units) or permit in shut or (permit.gathered and permit is not own)):
                full = permit
        return full


class _Lane:
    """The calls whose first permit is the same."""

    __slots__ = ("held", "own", "queues", "served")

    def __init__(self, own: _Permit) -> None:
        self.own = own
        self.queues: list[_Queue] = []  # those that are not empty
        self.held: Counter[_Permit] = Counter()  # units that this lane's calls have
        self.served = 0  # when it last got a grant, as a number

    def next(self) -> _Queue | None:
        """The queue whose oldest call may start now."""
        own = self.own
        if own.held or own.used >= own.capacity:
            return None
        queues = self.queues if len(self.queues) < 2 else sorted(self.queues, key=_Queue.ticket)
        kept = 0
        shut: set[_Permit] = set()
        for queue in queues:
            lacking = queue.lacking(shut)
            if lacking is None:
                return queue if not kept or own.used + queue.units + kept <= own.capacity else None
            if lacking is own:
                return None
            if not lacking.held:
                shut.add(lacking)
                kept = 1 if own.capacity > 1 else 0
        return None

    def gathers(self) -> bool:
        """Whether further units of its own permit are all that its oldest call waits for."""
        oldest = min(self.queues, key=_Queue.ticket, default=None)
        return oldest is not None and oldest.lacking(_NONE) is self.own

    def turn(self, permit: _Permit) -> tuple[int, int]:
        """The lane with the smallest gets the next unit of `permit`."""
        return self.held[permit], self.served


_NONE: set[_Permit] = set()


def fail_future(future: asyncio.Future[None], error: BaseException) -> None:
    """Fail a future that perhaps nobody awaits any more."""
    future.set_exception(error)
    future.exception()  # else asyncio logs that nobody has seen it
