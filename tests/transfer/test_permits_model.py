"""Permits against a model of them that knows only the promises: any events, in any order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.transfer.harness import Line

PERMITS = ("a", "b", "c", "all")
KINDS = (("a",), ("b",), ("a", "b"), ("b", "a"), ("c", "a"), ("a", "a"), ("a", "all"), ("c", "b", "all"), ("all",))


@dataclass
class Model:
    """What we know of a call. arrived: when it came, as a number."""

    needs: Counter[str]
    lane: str
    arrived: int
    running: bool = False


@dataclass
class World:
    now: float = 0.0
    capacity: dict[str, int] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    calls: dict[int, Model] = field(default_factory=dict)

    def used(self, permit: str) -> int:
        return sum(call.needs[permit] for call in self.calls.values() if call.running)

    def on_hold(self, permit: str) -> bool:
        return self.held.get(permit, 0.0) > self.now

    def lacks(self, call: Model, permit: str) -> bool:
        return self.used(permit) + call.needs[permit] > self.capacity[permit]

    def obstacles(self, call: Model) -> set[str]:
        """Permits that keep it from starting: on hold, or with too few units left."""
        return {permit for permit in call.needs if self.on_hold(permit) or self.lacks(call, permit)}

    def waiting(self, lane: str) -> list[Model]:
        """The calls of a lane that wait, in the order of their arrival."""
        found = [call for call in self.calls.values() if call.lane == lane and not call.running]
        return sorted(found, key=lambda call: call.arrived)

    def gathered(self, permit: str) -> bool:
        """Whether free units may be kept for the oldest call of the permit's lane, which needs several."""
        first = next(iter(self.waiting(permit)), None)
        return first is not None and first.needs[permit] > 1 and self.lacks(first, permit)

    def elsewhere(self, call: Model) -> set[str]:
        """Permits other than its lane's that it has to wait for, or may have to."""
        return (self.obstacles(call) | {permit for permit in call.needs if self.gathered(permit)}) - {call.lane}

    def before(self, call: Model) -> list[Model]:
        """Calls of its lane that wait and came earlier."""
        return [one for one in self.waiting(call.lane) if one.arrived < call.arrived]

    def is_waited_for(self, call: Model) -> bool:
        """Whether a unit is kept for it: what it lacks may come at any time, and is not on hold until some time."""
        return bool(self.elsewhere(call)) and not any(map(self.on_hold, call.needs))

    def must_start(self, call: Model) -> bool:
        """Whether there is no reason why it should wait."""
        before = self.before(call)
        over = [one for one in before if self.is_waited_for(one)]
        shut = {permit for one in over for permit in self.elsewhere(one)}
        if self.obstacles(call) or self.elsewhere(call) or shut & call.needs.keys():
            return False
        if any(not self.elsewhere(one) for one in before):
            return False  # one before it waits for the lane
        return not over or self.leaves_one(call)

    def leaves_one(self, call: Model) -> bool:
        """Whether one unit of the lane would be left for a call that it passes by, where there are several."""
        capacity = self.capacity[call.lane]
        return capacity == 1 or self.used(call.lane) + call.needs[call.lane] < capacity


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.next = 1

    @initialize(capacities=st.lists(st.integers(1, 4), min_size=len(PERMITS), max_size=len(PERMITS)))
    def begin(self, capacities: list[int]) -> None:
        self.world.capacity = dict(zip(PERMITS, capacities, strict=True))
        self.line = Line(self.world.capacity.__getitem__)

    @rule(needs=st.sampled_from(KINDS))
    def submit(self, needs: tuple[str, ...]) -> None:
        counted = Counter(needs)
        if any(units > self.world.capacity[permit] for permit, units in counted.items()):
            return
        number, self.next = self.next, self.next + 1
        self.world.calls[number] = Model(counted, needs[0], number)
        self.started(self.line.submit(number, needs))

    @precondition(lambda self: any(call.running for call in self.world.calls.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, call in self.world.calls.items() if call.running]))
        del self.world.calls[number]
        self.started(self.line.finished(number))

    @precondition(lambda self: any(not call.running for call in self.world.calls.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, call in self.world.calls.items() if not call.running]))
        assert self.line.waits(number)
        del self.world.calls[number]
        self.started(self.line.cancel(number))

    @precondition(lambda self: any(call.running for call in self.world.calls.values()))
    @rule(data=st.data())
    def end_and_cancel(self, data: st.DataObject) -> None:
        """Both before any task runs: what is granted to the cancelled one, or passed over, goes to others."""
        ended = data.draw(st.sampled_from([number for number, call in self.world.calls.items() if call.running]))
        waiting = [number for number, call in self.world.calls.items() if not call.running]
        if not waiting:
            return
        cancelled = data.draw(st.sampled_from(waiting))
        del self.world.calls[ended], self.world.calls[cancelled]
        for number in sorted(self.line.finish_and_cancel(ended, cancelled)):
            self.world.calls[number].running = True  # in which order is not told: the permits were free twice

    @rule(permit=st.sampled_from(PERMITS), seconds=st.sampled_from((0.5, 2.0, 4.0)))
    def hold(self, permit: str, seconds: float) -> None:
        self.world.held[permit] = max(self.world.now + seconds, self.world.held.get(permit, 0.0))
        self.started(self.line.hold(permit, self.world.now + seconds))

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.0, 5.0)))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds
        self.started(self.line.tick(self.world.now))

    def started(self, starts: list[int]) -> None:
        """Each start must be allowed, in this order."""
        for number in starts:
            call = self.world.calls[number]  # it exists: it was neither cancelled nor has it ended
            assert not call.running
            assert set() == self.world.obstacles(call)
            shut: set[str] = set()
            for older in self.world.before(call):
                if self.world.is_waited_for(older):
                    shut |= self.world.elsewhere(older)
                assert self.world.elsewhere(older) or shut & older.needs.keys(), "it lacked only the permit of the lane"
                assert older.needs != call.needs
                if self.world.obstacles(older) and self.world.is_waited_for(older):
                    assert self.world.leaves_one(call)
            call.running = True

    @invariant()
    def knows_the_same_calls(self) -> None:
        assert len(self.world.calls) == len(getattr(self, "line", ()))
        for permit in self.world.capacity:
            assert self.world.used(permit) == self.line.permits.used(permit)
            assert self.world.used(permit) <= self.world.capacity[permit]

    @invariant()
    def nothing_waits_without_a_reason(self) -> None:
        for lane in PERMITS:
            for call in self.world.waiting(lane):
                assert not self.world.must_start(call), call

    def teardown(self) -> None:
        """The queue drains, whatever it holds."""
        if not self.world.capacity:
            return
        self.tick(100.0)
        for _ in range(len(self.world.calls)):
            running = [number for number, call in self.world.calls.items() if call.running]
            assert running, "all that is left waits for nothing"
            del self.world.calls[running[0]]
            self.started(self.line.finished(running[0]))
            self.tick(100.0)
        assert {} == self.world.calls
        self.line.close()


TestPermits = Machine.TestCase
TestPermits.settings = settings(max_examples=100, stateful_step_count=40, derandomize=True)
