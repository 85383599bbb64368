"""Compares permits with a model that has only their guarantees, for random sequences of events."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.transfer.harness import NumberedCalls

PERMITS = ("a", "b", "c", "all")
KINDS = (("a",), ("b",), ("a", "b"), ("b", "a"), ("c", "a"), ("a", "a"), ("a", "all"), ("c", "b", "all"), ("all",))


@dataclass
class ModelCall:
    """A call of the model. arrived: its number in the order of arrival."""

    needs: Counter[str]
    queue: str
    arrived: int
    running: bool = False


@dataclass
class World:
    """The model: capacities, holds and calls."""

    now: float = 0.0
    capacity: dict[str, int] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    calls: dict[int, ModelCall] = field(default_factory=dict)

    def used(self, permit: str) -> int:
        return sum(call.needs[permit] for call in self.calls.values() if call.running)

    def on_hold(self, permit: str) -> bool:
        return self.held.get(permit, 0.0) > self.now

    def lacks(self, call: ModelCall, permit: str) -> bool:
        return self.used(permit) + call.needs[permit] > self.capacity[permit]

    def obstacles(self, call: ModelCall) -> set[str]:
        """Return the permits that prevent the start of a call: on hold, or with too few free units."""
        return {permit for permit in call.needs if self.on_hold(permit) or self.lacks(call, permit)}

    def waiting(self, queue: str) -> list[ModelCall]:
        """Return the waiting calls of a queue in the order of arrival."""
        found = [call for call in self.calls.values() if call.queue == queue and not call.running]
        return sorted(found, key=lambda call: call.arrived)

    def may_be_reserved(self, permit: str) -> bool:
        """Return whether free units may be reserved for the oldest call of the permit's queue, which needs several."""
        first = next(iter(self.waiting(permit)), None)
        return first is not None and first.needs[permit] > 1 and self.lacks(first, permit)

    def other_obstacles(self, call: ModelCall) -> set[str]:
        """Return the permits that the call waits for, or may wait for, except the one of its queue."""
        return (self.obstacles(call) | {permit for permit in call.needs if self.may_be_reserved(permit)}) - {call.queue}

    def older(self, call: ModelCall) -> list[ModelCall]:
        """Return the waiting calls of the same queue that arrived earlier."""
        return [one for one in self.waiting(call.queue) if one.arrived < call.arrived]

    def has_reservation(self, call: ModelCall) -> bool:
        """Return whether a unit is reserved for the call: it lacks another permit, which is not on hold."""
        return bool(self.other_obstacles(call)) and not any(map(self.on_hold, call.needs))

    def must_start(self, call: ModelCall) -> bool:
        """Return whether the call has no reason to wait."""
        before = self.older(call)
        over = [one for one in before if self.has_reservation(one)]
        shut = {permit for one in over for permit in self.other_obstacles(one)}
        if self.obstacles(call) or self.other_obstacles(call) or shut & call.needs.keys():
            return False
        if any(not self.other_obstacles(one) for one in before):
            return False  # an older call waits for the permit of the queue
        return not over or self.leaves_one(call)

    def leaves_one(self, call: ModelCall) -> bool:
        """Return whether the call leaves one unit for a call that it overtakes, if the permit has several."""
        capacity = self.capacity[call.queue]
        return capacity == 1 or self.used(call.queue) + call.needs[call.queue] < capacity


class Machine(RuleBasedStateMachine):
    """Sends random events to the model and to the permits."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.next = 1

    @initialize(capacities=st.lists(st.integers(1, 4), min_size=len(PERMITS), max_size=len(PERMITS)))
    def begin(self, capacities: list[int]) -> None:
        self.world.capacity = dict(zip(PERMITS, capacities, strict=True))
        self.real = NumberedCalls(self.world.capacity.__getitem__)

    @rule(needs=st.sampled_from(KINDS))
    def submit(self, needs: tuple[str, ...]) -> None:
        counted = Counter(needs)
        if any(units > self.world.capacity[permit] for permit, units in counted.items()):
            return
        number, self.next = self.next, self.next + 1
        self.world.calls[number] = ModelCall(counted, needs[0], number)
        self.check_started(self.real.submit(number, needs))

    @precondition(lambda self: any(call.running for call in self.world.calls.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, call in self.world.calls.items() if call.running]))
        del self.world.calls[number]
        self.check_started(self.real.finish(number))

    @precondition(lambda self: any(not call.running for call in self.world.calls.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([number for number, call in self.world.calls.items() if not call.running]))
        assert self.real.is_waiting(number)
        del self.world.calls[number]
        self.check_started(self.real.cancel(number))

    @precondition(lambda self: any(call.running for call in self.world.calls.values()))
    @rule(data=st.data())
    def end_and_cancel(self, data: st.DataObject) -> None:
        """End one call and cancel another one before any task runs: others get the permits of both."""
        ended = data.draw(st.sampled_from([number for number, call in self.world.calls.items() if call.running]))
        waiting = [number for number, call in self.world.calls.items() if not call.running]
        if not waiting:
            return
        cancelled = data.draw(st.sampled_from(waiting))
        del self.world.calls[ended], self.world.calls[cancelled]
        for number in sorted(self.real.finish_and_cancel(ended, cancelled)):
            self.world.calls[number].running = True  # in any order: permits became free twice

    @rule(permit=st.sampled_from(PERMITS), seconds=st.sampled_from((0.5, 2.0, 4.0)))
    def hold(self, permit: str, seconds: float) -> None:
        self.world.held[permit] = max(self.world.now + seconds, self.world.held.get(permit, 0.0))
        self.check_started(self.real.hold(permit, self.world.now + seconds))

    @rule(seconds=st.sampled_from((0.0, 0.5, 1.0, 5.0)))
    def tick(self, seconds: float) -> None:
        self.world.now += seconds
        self.check_started(self.real.tick(self.world.now))

    def check_started(self, starts: list[int]) -> None:
        """Check that each call may start, in this order, and mark it as running."""
        for number in starts:
            call = self.world.calls[number]  # fails if it was cancelled or has ended
            assert not call.running
            assert set() == self.world.obstacles(call)
            shut: set[str] = set()
            for older in self.world.older(call):
                if self.world.has_reservation(older):
                    shut |= self.world.other_obstacles(older)
                assert self.world.other_obstacles(older) or shut & older.needs.keys(), (
                    "the older call lacked only the permit of the queue"
                )
                assert older.needs != call.needs
                if self.world.obstacles(older) and self.world.has_reservation(older):
                    assert self.world.leaves_one(call)
            call.running = True

    @invariant()
    def has_the_same_calls_as_the_model(self) -> None:
        assert len(self.world.calls) == len(getattr(self, "real", ()))
        for permit in self.world.capacity:
            assert self.world.used(permit) == self.real.permits.used_units(permit)
            assert self.world.used(permit) <= self.world.capacity[permit]

    @invariant()
    def every_waiting_call_has_a_reason(self) -> None:
        for queue in PERMITS:
            for call in self.world.waiting(queue):
                assert not self.world.must_start(call), call

    def teardown(self) -> None:
        """Check that all calls end."""
        if not self.world.capacity:
            return
        self.tick(100.0)
        for _ in range(len(self.world.calls)):
            running = [number for number, call in self.world.calls.items() if call.running]
            assert running, "no call runs, but some wait"
            del self.world.calls[running[0]]
            self.check_started(self.real.finish(running[0]))
            self.tick(100.0)
        assert {} == self.world.calls
        self.real.close()


TestPermits = Machine.TestCase
TestPermits.settings = settings(max_examples=100, stateful_step_count=40, derandomize=True)
