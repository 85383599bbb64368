"""Which job runs next: events in, jobs to start out. Pure: no threads, no clock, no I/O.

A job needs permits (`host quay.io`, `downloads`), all of them together or none. The permit it names first is
its *lane*: for a job that uses two hosts the one that is written to, so that a target without free slots
holds back its own lane and nothing else. The rules:

* within a lane the first come is the first served; a job that lacks *another* permit lets those pass that do
  not need it. One unit of the lane's permit is then kept for the oldest that was passed over (if there are
  more than one), so that a job of two hosts does not starve behind a stream of jobs of one;
* a freed unit of a permit goes to the lane that holds the fewest of it, among equals to the one that was served
  the longest ago: slow lanes do not end up with everything;
* the lane whose turn it is may gather units of its own permit for a job that needs several.

A job comes into its lane when all that it waits for (other jobs, a time) is over. Not thread-safe.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mirror.errors import MirrorError
from mirror.transfer.lanes import NONE, Job, Lane, Permit, Queue, State

DOWNLOADS = "downloads"
UPLOADS = "uploads"
LARGE = "large manifests"  # of jobs that have one in memory
LOCAL = "local"  # of jobs that need nothing else
HOST = "host "


def host_permit(name: str) -> str:
    """One of a host's requests in flight."""
    return HOST + name


class Impossible(MirrorError, ValueError):
    """A job that could never start: it needs more units of a permit than there are."""


class Scheduler:
    """Every event returns the jobs (by their ids) that are to start now, in this order.

    capacity: asked once for each permit, when it is first seen. Times are seconds of one clock; time passes
    only by `tick`."""

    def __init__(self, capacity: Callable[[str], int], now: float = 0.0) -> None:
        self.now = now
        self._capacity = capacity
        self._permits: dict[str, Permit] = {}
        self._queues: dict[tuple[str, ...], Queue] = {}
        self._jobs: dict[int, Job] = {}
        self._timers: list[tuple[float, int, Job | Permit]] = []
        self._count = 0  # of tickets, timers and starts: what came earlier has the smaller number

    def submit(
        self, job: int, needs: Sequence[str] = (), *, after: Iterable[int] = (), not_before: float = 0.0
    ) -> list[int]:
        """A new job. after: jobs that must have ended before, however they end; unknown ones have ended.

        Raises Impossible (a ValueError): it needs more of a permit than there is, or the id is in use."""
        if job in self._jobs:
            raise Impossible(f"job {job} was submitted twice")
        entry = Job(job, self._queue(tuple(needs)), not_before)
        for earlier in set(after):
            if predecessor := self._jobs.get(earlier):
                predecessor.dependents.append(entry)
                entry.blockers += 1
        self._jobs[job] = entry
        starts: list[int] = []
        if not entry.blockers:
            self._arrive(entry, starts)
        return starts

    def finished(self, job: int) -> list[int]:
        """A running job has ended."""
        entry = self._jobs[job]
        starts: list[int] = []
        self._free(entry, starts)
        self._end(entry, starts)
        return starts

    def again(self, job: int, not_before: float) -> list[int]:
        """A running job gave up for now: it gives back its permits and comes again, as the last, at `not_before`."""
        entry = self._jobs[job]
        starts: list[int] = []
        self._free(entry, starts)
        entry.not_before = not_before
        self._arrive(entry, starts)
        return starts

    def cancel(self, job: int) -> list[int]:
        """A job that has not started never will; for those that come after it, it has ended.

        Nothing happens if it runs (it ends when it ends) or is unknown."""
        entry = self._jobs.get(job)
        starts: list[int] = []
        if entry is None or entry.state is State.RUNNING:
            return starts
        queued = entry.state is State.QUEUED
        entry.state = State.GONE
        if queued and entry.queue is not None:
            oldest = next(iter(entry.queue.jobs)) is entry
            self._leave(entry, entry.queue)
            if oldest:  # it may have kept others waiting
                self._admit((entry.queue.lane.own,), starts)
        self._end(entry, starts)
        return starts

    def hold(self, permit: str, until: float) -> list[int]:
        """Nothing that needs `permit` starts before `until`. An earlier hold is never shortened."""
        held = self._permit(permit)
        starts: list[int] = []
        if until > max(self.now, held.held_until):
            held.held, held.held_until = True, until
            self._at(until, held)
            for lane in list(held.wanted):  # what waits for it needs no unit kept any more
                self._admit((lane.own,), starts)
        return starts

    def tick(self, now: float) -> list[int]:
        """It is `now`."""
        self.now = max(self.now, now)
        starts: list[int] = []
        permits: list[Permit] = []
        jobs: list[Job] = []
        timers = self._timers
        while timers and timers[0][0] <= self.now:
            due = heapq.heappop(timers)[2]
            if isinstance(due, Job):
                jobs.append(due)
            elif due.held and due.held_until <= self.now:
                due.held = False
                permits.append(due)
        self._admit(permits, starts)
        for job in jobs:
            if job.state is State.OUTSIDE:
                self._enter(job, starts)
        return starts

    @property
    def next_wakeup(self) -> float | None:
        """When `tick` will have something to do; None: not before another event."""
        timers = self._timers
        while timers and _is_stale(timers[0][0], timers[0][2]):
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def waits(self, job: int) -> bool:
        """Whether it is known and has not started."""
        entry = self._jobs.get(job)
        return entry is not None and entry.state is not State.RUNNING

    def used(self, permit: str) -> int:
        """Units in use."""
        return self._permit(permit).used

    def __len__(self) -> int:
        """Jobs that have not ended."""
        return len(self._jobs)

    def _permit(self, name: str) -> Permit:
        found = self._permits.get(name)
        if found is None:
            found = self._permits[name] = Permit(name, self._capacity(name))
        return found

    def _queue(self, needs: tuple[str, ...]) -> Queue | None:
        if not needs:
            return None
        queue = self._queues.get(needs)
        if queue is None:
            queue = Queue([(self._permit(name), units) for name, units in Counter(needs).items()])
            for permit, units in queue.demand:
                if units > permit.capacity:
                    raise Impossible(f"a job needs {units} of {permit.name!r}, of which there are {permit.capacity}")
            self._queues[needs] = queue
        return queue

    def _at(self, time: float, what: Job | Permit) -> None:
        self._count += 1
        heapq.heappush(self._timers, (time, self._count, what))

    def _arrive(self, entry: Job, starts: list[int]) -> None:
        """All that it comes after has ended."""
        if entry.not_before > self.now:
            entry.state = State.OUTSIDE
            self._at(entry.not_before, entry)
        else:
            self._enter(entry, starts)

    def _enter(self, entry: Job, starts: list[int]) -> None:
        """It waits for nothing but permits now."""
        queue = entry.queue
        if queue is None or (not queue.lane.queues and queue.lacking(NONE) is None):
            self._start(entry, starts)
            return
        entry.state = State.QUEUED
        self._count += 1
        queue.jobs[entry] = self._count
        if len(queue.jobs) == 1:  # else it waits behind others that need the same
            queue.lane.queues.append(queue)
            for permit, _ in queue.demand:
                permit.wanted[queue.lane] += 1
            if queue.lane.next() is queue:
                self._leave(entry, queue)
                self._start(entry, starts)

    def _leave(self, entry: Job, queue: Queue) -> None:
        del queue.jobs[entry]
        if not queue.jobs:
            queue.lane.queues.remove(queue)
            for permit, _ in queue.demand:
                permit.wanted[queue.lane] -= 1
                if not permit.wanted[queue.lane]:
                    del permit.wanted[queue.lane]

    def _start(self, entry: Job, starts: list[int]) -> None:
        entry.state = State.RUNNING
        if (queue := entry.queue) is not None:
            held = queue.lane.held
            for permit, units in queue.demand:
                permit.used += units
                held[permit] += units
            self._count += 1
            queue.lane.served = self._count
        starts.append(entry.id)

    def _free(self, entry: Job, starts: list[int]) -> None:
        if entry.state is not State.RUNNING:
            raise Impossible(f"job {entry.id} is not running")
        if (queue := entry.queue) is not None:
            held = queue.lane.held
            for permit, units in queue.demand:
                permit.used -= units
                held[permit] -= units
            self._admit([permit for permit, _ in queue.demand], starts)

    def _end(self, entry: Job, starts: list[int]) -> None:
        del self._jobs[entry.id]
        entry.state = State.GONE
        for dependent in entry.dependents:
            dependent.blockers -= 1
            if not dependent.blockers and dependent.state is State.OUTSIDE:
                self._arrive(dependent, starts)

    def _admit(self, permits: Iterable[Permit], starts: list[int]) -> None:
        """Start what can start now that there may be more of `permits`, one job a turn."""
        for permit in permits:
            permit.gathered = False
            lanes = list(permit.wanted)
            while lanes and not permit.held and permit.used < permit.capacity:
                lane = lanes[0] if len(lanes) == 1 else min(lanes, key=partial(Lane.turn, permit=permit))
                queue = lane.next()
                if queue is not None:
                    entry = next(iter(queue.jobs))
                    self._leave(entry, queue)
                    self._start(entry, starts)
                elif lane.own is permit and lane.gathers():
                    permit.gathered = True
                    break
                else:
                    lanes.remove(lane)


def _is_stale(time: float, what: Job | Permit) -> bool:
    if isinstance(what, Job):
        return what.state is not State.OUTSIDE
    return what.held_until != time
