"""The scheduler against a model of it that knows only the promises: any events, in any order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mirror.transfer.scheduler import Scheduler

PERMITS = ("a", "b", "c", "all")
KINDS = (
    ("a",),
    ("b",),
    ("a", "b"),
    ("b", "a"),
    ("c", "a"),
    ("a", "a"),
    ("a", "all"),
    ("c", "b", "all"),
    ("all",),
    (),
)


@dataclass
class Model:
    """What we know of a job. arrived: when it came to wait for nothing but permits, as a number; 0: not yet."""

    needs: Counter[str]
    lane: str
    after: set[int]
    not_before: float
    arrived: int = 0
    running: bool = False


@dataclass
class World:
    now: float = 0.0
    capacity: dict[str, int] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    jobs: dict[int, Model] = field(default_factory=dict)
    arrivals: int = 0

    def used(self, permit: str) -> int:
        return sum(job.needs[permit] for job in self.jobs.values() if job.running)

    def on_hold(self, permit: str) -> bool:
        return self.held.get(permit, 0.0) > self.now

    def lacks(self, job: Model, permit: str) -> bool:
        return self.used(permit) + job.needs[permit] > self.capacity[permit]

    def obstacles(self, job: Model) -> set[str]:
        """Permits that keep it from starting: on hold, or with too few units left."""
        return {permit for permit in job.needs if self.on_hold(permit) or self.lacks(job, permit)}

    def waiting(self, lane: str) -> list[Model]:
        """The jobs of a lane that wait for permits only, in the order of their arrival."""
        found = [job for job in self.jobs.values() if job.lane == lane and job.arrived and not job.running]
        return sorted(found, key=lambda job: job.arrived)

    def gathered(self, permit: str) -> bool:
        """Whether free units may be kept for the oldest job of the permit's lane, which needs several."""
        first = next(iter(self.waiting(permit)), None)
        return first is not None and first.needs[permit] > 1 and self.lacks(first, permit)

    def elsewhere(self, job: Model) -> set[str]:
        """Permits other than its lane's that it has to wait for, or may have to."""
        return (self.obstacles(job) | {permit for permit in job.needs if self.gathered(permit)}) - {job.lane}

    def before(self, job: Model, *, ties: bool) -> list[Model]:
        """Jobs of its lane that wait and have arrived earlier, or (ties) perhaps earlier, by the same event."""
        others = [one for one in self.waiting(job.lane) if one is not job]
        return [one for one in others if one.arrived < job.arrived or (ties and one.arrived == job.arrived)]

    def is_waited_for(self, job: Model) -> bool:
        """Whether a unit is kept for it: what it lacks may come at any time, and is not on hold until some time."""
        return bool(self.elsewhere(job)) and not any(map(self.on_hold, job.needs))

    def must_start(self, job: Model) -> bool:
        """Whether there is no reason why it should wait."""
        before = self.before(job, ties=True)
        over = [one for one in before if self.is_waited_for(one)]
        shut = {permit for one in over for permit in self.elsewhere(one)}
        if self.obstacles(job) or self.elsewhere(job) or shut & job.needs.keys():
            return False
        if any(not self.elsewhere(one) for one in before):
            return False  # one before it waits for the lane
        return not over or self.leaves_one(job)

    def leaves_one(self, job: Model) -> bool:
        """Whether one unit of the lane would be left for a job that it passes by, where there are several."""
        capacity = self.capacity[job.lane]
        return capacity == 1 or self.used(job.lane) + job.needs[job.lane] < capacity

    def arrive(self, *, in_time: bool = False) -> None:
        """Jobs have come to wait for nothing but permits: at the same moment, or each at its time."""
        new = [job for job in self.jobs.values() if not job.arrived and not job.running and self.is_free(job)]
        for moment in sorted({job.not_before for job in new}) if in_time else [None]:
            self.arrivals += 1
            for job in new:
                if moment is None or job.not_before == moment:
                    job.arrived = self.arrivals

    def is_free(self, job: Model) -> bool:
        return not job.after & self.jobs.keys() and job.not_before <= self.now


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.next = 1

    @initialize(capacities=st.lists(st.integers(1, 4), min_size=len(PERMITS), max_size=len(PERMITS)))
    def begin(self, capacities: list[int]) -> None:
        self.world.capacity = dict(zip(PERMITS, capacities, strict=True))
        self.scheduler = Scheduler(self.world.capacity.__getitem__)

    @rule(data=st.data(), needs=st.sampled_from(KINDS), wait=st.sampled_from((0.0, 0.0, 0.0, 1.0, 3.0)))
    def submit(self, data: st.DataObject, needs: tuple[str, ...], wait: float) -> None:
        counted = Counter(needs)
        if any(units > self.world.capacity[permit] for permit, units in counted.items()):
            return
        known = sorted(self.world.jobs)
        after = data.draw(st.sets(st.sampled_from(known), max_size=2)) if known and wait else set()
        number, self.next = self.next, self.next + 1
        not_before = self.world.now + wait if wait else 0.0
        self.world.jobs[number] = Model(counted, needs[0] if needs else "", after, not_before)
        self.world.arrive()
        self.started(self.scheduler.submit(number, needs, after=after, not_before=not_before))

    @precondition(lambda self: any(job.running for job in self.world.jobs.values()))
    @rule(data=st.data(), again=st.sampled_from((None, None, None, 0.0, 2.0)))
    def end(self, data: st.DataObject, again: float | None) -> None:
        number = data.draw(st.sampled_from([number for number, job in self.world.jobs.items() if job.running]))
        job = self.world.jobs.pop(number)
        if again is None:
            events = self.scheduler.finished(number)
        else:
            job.running, job.arrived, job.not_before = False, 0, self.world.now + again
            self.world.jobs[number] = job  # as the last
            events = self.scheduler.again(number, job.not_before)
        self.world.arrive()
        self.started(events)

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.world.jobs)))
        running = self.world.jobs[number].running
        assert running != self.scheduler.waits(number)
        events = self.scheduler.cancel(number)
        if not running:
            del self.world.jobs[number]
        self.world.arrive()
        self.started(events)

    @rule(permit=st.sampled_from(PERMITS), seconds=st.sampled_from((0.5, 2.0, 4.0)))
    def hold(self, permit: str, seconds: float) -> None:
        self.world.held[permit] = max(self.world.now + seconds, self.world.held.get(permit, 0.0))
        self.started(self.scheduler.hold(permit, self.world.now + seconds))

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.0, 5.0)))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.arrive(in_time=True)
        self.started(self.scheduler.tick(self.world.now))

    def started(self, starts: list[int]) -> None:
        """Each start must be allowed, in this order."""
        for number in starts:
            job = self.world.jobs[number]  # it exists: it was neither cancelled nor has it ended
            assert job.arrived, "it still waits for a job or a time"
            assert not job.running
            assert set() == self.world.obstacles(job)
            shut: set[str] = set()
            for older in self.world.before(job, ties=True) if job.needs else ():
                if self.world.is_waited_for(older):
                    shut |= self.world.elsewhere(older)
                if older.arrived == job.arrived:
                    continue
                assert self.world.elsewhere(older) or shut & older.needs.keys(), "it lacked only the permit of the lane"
                assert older.needs != job.needs
                if self.world.obstacles(older) and self.world.is_waited_for(older):
                    assert self.world.leaves_one(job)
            job.running = True

    @invariant()
    def knows_the_same_jobs(self) -> None:
        assert len(self.world.jobs) == len(getattr(self, "scheduler", ()))
        for permit in self.world.capacity:
            assert self.world.used(permit) == self.scheduler.used(permit)

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        for lane in ("", *PERMITS):
            for job in self.world.waiting(lane):
                assert not self.world.must_start(job), job

    @invariant()
    def is_woken_for_everything_that_waits_for_a_time(self) -> None:
        ends = [until for permit, until in self.world.held.items() if self.world.on_hold(permit)]
        waiting = [job for job in self.world.jobs.values() if not job.arrived and not job.running]
        ends += [job.not_before for job in waiting if not job.after & self.world.jobs.keys()]
        assert not self.world.capacity or min(ends, default=None) == self.scheduler.next_wakeup

    def teardown(self) -> None:
        """The queue drains, whatever it holds."""
        self.tick(100.0) if self.world.capacity else None
        for _ in range(len(self.world.jobs)):
            running = [number for number, job in self.world.jobs.items() if job.running]
            assert running, "all that is left waits for nothing"
            del self.world.jobs[running[0]]
            events = self.scheduler.finished(running[0])
            self.world.arrive()
            self.started(events)
            self.tick(100.0)
        assert {} == self.world.jobs


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
