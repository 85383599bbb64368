"""What the scheduler's decisions are made on: permits, the lanes of jobs that wait for them, their order.

See `scheduler` for the rules. Only the scheduler changes these values.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import Enum, auto


class State(Enum):
    OUTSIDE = auto()  # waits for other jobs or for a time
    QUEUED = auto()
    RUNNING = auto()
    GONE = auto()


class Permit:
    __slots__ = ("capacity", "gathered", "held", "held_until", "lane", "name", "used", "wanted")

    def __init__(self, name: str, capacity: int) -> None:
        self.name = name
        self.capacity = capacity
        self.used = 0
        self.held = False  # nothing that needs it may start
        self.held_until = 0.0
        self.gathered = False  # what is free is for the oldest job of its own lane, which needs several
        self.lane = Lane(self)
        self.wanted: Counter[Lane] = Counter()  # lanes with waiting jobs that need it: in how many queues

    def lacks(self, units: int) -> bool:
        return self.used + units > self.capacity


class Queue:
    """The waiting jobs of a lane that need the same permits; oldest first."""

    __slots__ = ("demand", "jobs", "lane", "units")

    def __init__(self, demand: list[tuple[Permit, int]]) -> None:
        self.lane = demand[0][0].lane
        self.units = demand[0][1]  # of the lane's own permit
        self.demand = demand[::-1]  # the widest first: units of it are what lanes compete for
        self.jobs: OrderedDict[Job, int] = OrderedDict()  # -> ticket

    def ticket(self) -> int:
        return next(iter(self.jobs.values()))

    def lacking(self, shut: set[Permit]) -> Permit | None:
        """What keeps the oldest from starting: a permit on hold, else one that is used up, the lane's own last."""
        full = None
        own = self.lane.own
        for permit, units in self.demand:
            if permit.held:
                return permit
            if full is None and (permit.lacks(units) or permit in shut or (permit.gathered and permit is not own)):
                full = permit
        return full


class Lane:
    """The jobs whose first permit is the same."""

    __slots__ = ("held", "own", "queues", "served")

    def __init__(self, own: Permit) -> None:
        self.own = own
        self.queues: list[Queue] = []  # those that are not empty
        self.held: Counter[Permit] = Counter()  # units in use by this lane's jobs
        self.served = 0  # when it last started a job, in started jobs

    def next(self) -> Queue | None:
        """The queue whose oldest job may start now."""
        own = self.own
        if own.held or own.used >= own.capacity:
            return None
        queues = self.queues if len(self.queues) < 2 else sorted(self.queues, key=Queue.ticket)
        kept = 0
        shut: set[Permit] = set()
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
        """Whether further units of its own permit are all that its oldest job waits for."""
        oldest = min(self.queues, key=Queue.ticket, default=None)
        return oldest is not None and oldest.lacking(NONE) is self.own

    def turn(self, permit: Permit) -> tuple[int, int]:
        """The lane with the smallest gets the next unit of `permit`."""
        return self.held[permit], self.served


class Job:
    __slots__ = ("blockers", "dependents", "id", "not_before", "queue", "state")

    def __init__(self, number: int, queue: Queue | None, not_before: float) -> None:
        self.id = number
        self.queue = queue  # None: it needs no permit
        self.not_before = not_before
        self.blockers = 0  # jobs that have to end first
        self.dependents: list[Job] = []
        self.state = State.OUTSIDE


NONE: set[Permit] = set()
