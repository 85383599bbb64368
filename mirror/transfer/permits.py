"""Permits limit how many calls run at the same time, for each host and for the whole run.

A call needs one or more permits (such as `host quay.io` and `downloads`). It is granted all of them together or none.
Each permit has a queue. A call waits in the queue of the first permit in its list. A call that uses two hosts lists the
target host first, so that a target without free permits delays only its own queue. The rules:

* Calls in a queue start in order of arrival, with one exception. If a call waits for a permit other than the queue's
  own, later calls that do not need that permit may overtake it. One unit of the queue's own permit, if it has several,
  is then reserved for the oldest overtaken call. This keeps calls that use two hosts from starving.
* A freed unit of a permit goes to the queue whose calls hold the fewest units of the permit. If several queues hold
  equally few, the least recently served queue gets the unit. This keeps slow calls in one queue from taking all units.
* If the next call in a queue needs several units of the queue's own permit, freed units are reserved until enough units
  are free.

After each event (a request, a release, the end of a hold), all permits that can be granted are granted in one
synchronous step. All methods must be called on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mirror.errors import MirrorError

DOWNLOADS = "downloads"
UPLOADS = "uploads"
LARGE = "large manifests"  # for calls that hold a large manifest in memory
LOCAL = "local"  # for calls that need no other permit
HOST = "host "  # followed by the name of the host

_Waiter = asyncio.Future[None]


def host_permit(name: str) -> str:
    """Return the name of the permit that a request to the host `name` needs."""
    return HOST + name


class TooFewPermits(MirrorError, ValueError):
    """Raised for a call that could never start, because it needs more units of a permit than exist."""


class Permits:
    """Grants permits to calls. All times are in seconds on the event loop's clock."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, capacity: Callable[[str], int], ready_at: Callable[[str], float]
    ) -> None:
        """Create permits on the event loop `loop`.

        capacity: returns the total number of units of the named permit.
        ready_at: returns the time until which the named permit is on hold.

        Both are called once for each permit, before its first use."""
        self._loop = loop
        self._capacity = capacity
        self._ready_at = ready_at
        self._permits: dict[str, _Permit] = {}
        self._groups: dict[tuple[str, ...], _CallGroup] = {}
        self._count = 0  # number of waiters and grants so far, used to compare their order
        self._closed: MirrorError | None = None

    async def acquire(self, needs: Sequence[str]) -> None:
        """Wait until all permits in `needs` are granted, in the queue of the first one.

        A name that is repeated in `needs` requests several units. Raises TooFewPermits if `needs` exceeds the capacity.
        After `close`, raises the error that was passed to `close`."""
        if self._closed is not None:
            raise self._closed.with_text(self._closed.what)
        group = self._group(tuple(needs))
        if not group.queue.groups and group.missing_permit(_NONE) is None:
            self._grant(group)
            return
        waiter = self._loop.create_future()
        self._enter(waiter, group)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in group.waiters:
                self._remove_cancelled(waiter, group)
            elif waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release(needs)  # the permits were granted just before
            raise

    def release(self, needs: Sequence[str]) -> None:
        """Give back the permits that `acquire` granted for the same `needs`."""
        group = self._groups[tuple(needs)]
        for permit, units in group.needs:
            permit.used -= units
            group.queue.used[permit] -= units
        self._grant_free([permit for permit, _ in group.needs])

    def hold(self, name: str, until: float) -> None:
        """Put a permit on hold: grant it to no call before the time `until`. A hold is never shortened."""
        permit = self._permit(name)
        if until <= max(self._loop.time(), permit.held_until):
            return
        if permit.timer is not None:
            permit.timer.cancel()
        permit.held_until = until
        permit.timer = self._loop.call_at(until, self._end_hold, permit)
        for queue in list(permit.queues):  # no unit is reserved for calls that wait for this permit
            self._grant_free((queue.own,))

    def close(self, error: MirrorError) -> None:
        """Raise `error` in all calls that wait for permits, and in all later calls to `acquire`."""
        self._closed = error
        for permit in self._permits.values():
            if permit.timer is not None:
                permit.timer.cancel()
        for group in self._groups.values():
            for waiter in list(group.waiters):
                self._leave(waiter, group)
                if not waiter.done():
                    fail_future(waiter, error.with_text(error.what))

    def used_units(self, name: str) -> int:
        """Return the number of units of the permit `name` that calls currently hold."""
        return self._permit(name).used

    def waiting_calls(self) -> int:
        """Return the number of calls that are waiting for permits."""
        return sum(len(group.waiters) for group in self._groups.values())

    def _permit(self, name: str) -> _Permit:
        """Return the permit with this name. Create it if this is its first use."""
        permit = self._permits.get(name)
        if permit is None:
            permit = self._permits[name] = _Permit(self._loop, self._capacity(name))
            self.hold(name, self._ready_at(name))
        return permit

    def _group(self, needs: tuple[str, ...]) -> _CallGroup:
        """Return the group of calls that need exactly these permits.

        Raises TooFewPermits if a permit has too few units."""
        group = self._groups.get(needs)
        if group is None:
            group = _CallGroup([(self._permit(name), units) for name, units in Counter(needs).items()])
            for name, units in Counter(needs).items():
                if units > self._permits[name].capacity:
                    capacity = self._permits[name].capacity
                    raise TooFewPermits(
                        f"a call needs {units} units of the permit {name!r}, but it has only {capacity}"
                    )
            self._groups[needs] = group
        return group

    def _end_hold(self, permit: _Permit) -> None:
        """End the hold of a permit, and start the waiting calls that can now start."""
        permit.timer = None
        self._grant_free((permit,))

    def _enter(self, waiter: _Waiter, group: _CallGroup) -> None:
        """Add a waiter to the queue of its group. If it can overtake all older waiters, grant its permits at once."""
        self._count += 1
        group.waiters[waiter] = self._count
        if len(group.waiters) == 1:  # otherwise it waits behind others that need the same permits
            group.queue.groups.append(group)
            for permit, _ in group.needs:
                permit.queues[group.queue] += 1
            if group.queue.next_group() is group:
                self._leave(waiter, group)
                self._grant(group, waiter)

    def _leave(self, waiter: _Waiter, group: _CallGroup) -> None:
        """Remove a waiter from its queue."""
        del group.waiters[waiter]
        if not group.waiters:
            group.queue.groups.remove(group)
            for permit, _ in group.needs:
                permit.queues[group.queue] -= 1
                if not permit.queues[group.queue]:
                    del permit.queues[group.queue]

    def _remove_cancelled(self, waiter: _Waiter, group: _CallGroup) -> None:
        """Remove a waiter that was cancelled, and start the calls that it held up."""
        was_oldest = next(iter(group.waiters)) is waiter
        self._leave(waiter, group)
        if was_oldest:
            self._grant_free((group.queue.own,))

    def _grant(self, group: _CallGroup, waiter: _Waiter | None = None) -> None:
        """Grant the permits of a group to one call."""
        for permit, units in group.needs:
            permit.used += units
            group.queue.used[permit] += units
        self._count += 1
        group.queue.last_grant = self._count
        if waiter is not None:
            waiter.set_result(None)

    def _grant_free(self, permits: Iterable[_Permit]) -> None:
        """Grant the free units of `permits` to waiting calls. The queue with the lowest rank is served first."""
        for permit in permits:
            permit.is_reserved = False
            queues = list(permit.queues)
            while queues and not permit.is_held and permit.used < permit.capacity:
                queue = queues[0] if len(queues) == 1 else min(queues, key=partial(_CallQueue.rank, permit=permit))
                group = queue.next_group()
                if group is not None:
                    waiter = next(iter(group.waiters))
                    self._leave(waiter, group)
                    if not waiter.done():  # otherwise it was cancelled, and its task has not run since
                        self._grant(group, waiter)
                    if not queue.groups:
                        queues.remove(queue)
                elif queue.own is permit and queue.needs_more_units():
                    permit.is_reserved = True
                    break
                else:
                    queues.remove(queue)


class _Permit:
    """The state of one permit: its units, its hold, and the queue of the calls that name it first."""

    __slots__ = ("_loop", "capacity", "held_until", "is_reserved", "queue", "queues", "timer", "used")

    def __init__(self, loop: asyncio.AbstractEventLoop, capacity: int) -> None:
        self._loop = loop
        self.capacity = capacity
        self.used = 0
        self.held_until = 0.0
        self.timer: asyncio.TimerHandle | None = None  # while it is on hold
        self.is_reserved = False  # whether free units are reserved for the oldest call of its own queue
        self.queue = _CallQueue(self)
        self.queues: Counter[_CallQueue] = Counter()  # the number of groups that need it, by queue

    @property
    def is_held(self) -> bool:
        """Whether the permit is on hold."""
        return self.timer is not None and self.held_until > self._loop.time()

    def lacks(self, units: int) -> bool:
        """Return whether fewer than `units` units are free."""
        return self.used + units > self.capacity


class _CallGroup:
    """The waiting calls in one queue that need the same permits, oldest first."""

    __slots__ = ("needs", "own_units", "queue", "waiters")

    def __init__(self, needs: list[tuple[_Permit, int]]) -> None:
        self.queue = needs[0][0].queue
        self.own_units = needs[0][1]  # of the queue's own permit
        self.needs = needs[::-1]  # permits that limit the whole run come first, because queues compete for them
        self.waiters: OrderedDict[_Waiter, int] = OrderedDict()  # with the arrival number of each

    def arrival(self) -> int:
        """Return the arrival number of the oldest call."""
        return next(iter(self.waiters.values()))

    def missing_permit(self, unavailable: set[_Permit]) -> _Permit | None:
        """Return a permit that the oldest call lacks, or None if that call can start.

        If several permits are lacking, a permit on hold takes precedence. The queue's own permit comes last.
        unavailable: permits for which older calls of the queue wait."""
        missing = None
        own = self.queue.own
        for permit, units in self.needs:
            if permit.is_held:
                return permit
            if missing is None and (
                permit.lacks(units) or permit in unavailable or (permit.is_reserved and permit is not own)
            ):
                missing = permit
        return missing


class _CallQueue:
    """The queue of one permit: the waiting calls that name this permit first, in groups."""

    __slots__ = ("groups", "last_grant", "own", "used")

    def __init__(self, own: _Permit) -> None:
        self.own = own
        self.groups: list[_CallGroup] = []  # only groups with waiting calls
        self.used: Counter[_Permit] = Counter()  # units that its calls hold
        self.last_grant = 0  # number of the last grant

    def next_group(self) -> _CallGroup | None:
        """Return the group whose oldest call may start now, or None if no call may start."""
        own = self.own
        if own.is_held or own.used >= own.capacity:
            return None
        groups = self.groups if len(self.groups) < 2 else sorted(self.groups, key=_CallGroup.arrival)
        reserved = 0
        unavailable: set[_Permit] = set()
        for group in groups:
            missing = group.missing_permit(unavailable)
            if missing is None:
                return group if not reserved or own.used + group.own_units + reserved <= own.capacity else None
            if missing is own:
                return None
            if not missing.is_held:
                unavailable.add(missing)
                reserved = 1 if own.capacity > 1 else 0
        return None

    def needs_more_units(self) -> bool:
        """Return whether the oldest call in the queue lacks only units of the queue's own permit."""
        oldest = min(self.groups, key=_CallGroup.arrival, default=None)
        return oldest is not None and oldest.missing_permit(_NONE) is self.own

    def rank(self, permit: _Permit) -> tuple[int, int]:
        """Return this queue's rank for the next free unit of `permit`. The queue with the lowest rank gets the unit."""
        return self.used[permit], self.last_grant


_NONE: set[_Permit] = set()


def fail_future(future: asyncio.Future[None], error: BaseException) -> None:
    """Make `future` fail with `error`, without a log message from asyncio if nobody awaits the future."""
    future.set_exception(error)
    future.exception()  # marks the error as retrieved; otherwise asyncio logs it
