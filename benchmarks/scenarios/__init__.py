"""The scenarios. Each is a class that defines the content of the registries and the changes between runs."""

from __future__ import annotations

from benchmarks.scenarios.base import Scale, Scenario
from benchmarks.scenarios.big import Big
from benchmarks.scenarios.cold import Cold, ColdManyTags, ThreeTargets
from benchmarks.scenarios.distant import DistantCold, DistantUnchanged
from benchmarks.scenarios.listing import Selected
from benchmarks.scenarios.unchanged import OneChanged, Unchanged, UnchangedTenThousand, UnchangedThousand
from benchmarks.scenarios.unwilling import Unwilling

SCENARIOS: tuple[type[Scenario], ...] = (
    Cold,
    Unchanged,
    UnchangedThousand,
    UnchangedTenThousand,
    OneChanged,
    ThreeTargets,
    Big,
    ColdManyTags,
    Selected,
    DistantCold,
    DistantUnchanged,
    Unwilling,
)

__all__ = ["SCENARIOS", "Scale", "Scenario"]
