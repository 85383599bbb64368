"""Scenarios with distant registries: every round trip to the source or the target takes 50 ms."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.delay import DelayProxy
from benchmarks.scenarios.base import SLOW, Access, RealScenario
from benchmarks.scenarios.cold import Cold
from benchmarks.scenarios.unchanged import Unchanged
from tests.registries.process import RegistryProcess

_ROUND_TRIP = 0.050  # seconds


class _Distant(RealScenario):
    def reach(self, registry: RegistryProcess, stack: ExitStack) -> Access:
        proxy = stack.enter_context(DelayProxy(registry.port, _ROUND_TRIP))
        return Access(registry, proxy.host, registry, registry.pid)


class DistantCold(_Distant, Cold):
    name = "distant-cold"
    runs = SLOW
    title = "Cold, with 50 ms round trip time to both registries"
    note = "A relay delays all data by 25 ms in each direction. A new connection takes one more round trip."
    with_ideal = False


class DistantUnchanged(_Distant, Unchanged):
    name = "distant-unchanged"
    title = "Nothing has changed, with 50 ms round trip time to both registries"
    note = "10 repositories × 6 tags through the same relay."
