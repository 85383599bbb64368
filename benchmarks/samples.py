"""Results: single runs, and the outcome of a scenario. Plain values, which are written as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.traffic import Traffic

IDEAL = "ideal replay"  # a baseline, never counted as a tool


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one tool.

    wall, cpu, registry_cpu: seconds (registry_cpu: None if a registry is not a separate process). memory: bytes. code:
    exit code. equal: whether every wanted tag is on every target."""

    wall: float
    cpu: float
    registry_cpu: float | None
    memory: int
    code: int
    equal: bool
    source: Traffic
    target: Traffic


@dataclass(frozen=True, slots=True)
class Spread:
    """The median and the range of a figure over the runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of one scenario.

    tools: the runs by tool. gigabytes: 10^9 bytes that each run copies. absent: the reason why a tool was not run, by
    tool. reduced: counts and sizes were smaller than title and note say."""

    name: str
    title: str
    note: str
    gigabytes: float
    tools: Mapping[str, Sequence[Sample]]
    absent: Mapping[str, str] = field(default_factory=dict)
    reduced: bool = False

    @property
    def heading(self) -> str:
        """The title, with a note if the counts were reduced."""
        return f"{self.title} (reduced by --quick: fewer and smaller than this says)" if self.reduced else self.title

    @property
    def runs(self) -> int:
        """The number of runs of each tool."""
        return max(map(len, self.tools.values()), default=0)

    def spread(self, tool: str, figure: Callable[[Sample], float]) -> Spread:
        return Spread.of([figure(sample) for sample in self.tools[tool]])

    def wall(self, tool: str) -> Spread:
        return self.spread(tool, lambda sample: sample.wall)

    def correct(self, tool: str) -> bool:
        """Return whether every run of a tool succeeded and left equal targets."""
        return all(sample.equal and sample.code == 0 for sample in self.tools[tool])

    def ratio(self, tool: str) -> float | None:
        """Return the median wall time divided by that of the fastest other tool with correct targets; None if there is
        none."""
        others = [self.wall(name).median for name in self.tools if name not in (tool, IDEAL) and self.correct(name)]
        return self.wall(tool).median / min(others) if others else None


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one call of the harness.

    machine, versions: descriptions by name. date: ISO 8601. quick: sizes were reduced. left_out, tools_left_out: names
    of scenarios and tools that were not measured."""

    date: str
    quick: bool
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    scenarios: Sequence[Outcome]
    left_out: Sequence[str] = ()
    tools_left_out: Sequence[str] = ()

    @property
    def is_complete(self) -> bool:
        """Whether all scenarios were measured with all tools, in full size."""
        return not (self.quick or self.left_out or self.tools_left_out)

    def document(self) -> dict[str, Any]:
        """Return the report for JSON: every sample, and the medians with the ratios."""
        return {"schema": 1, **asdict(self), "summary": {one.name: _summary(one) for one in self.scenarios}}


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {
        tool: {
            "wall": asdict(outcome.wall(tool)),
            "cpu": asdict(outcome.spread(tool, lambda sample: sample.cpu)),
            "ratio_to_best_other": outcome.ratio(tool),
            "correct": outcome.correct(tool),
        }
        for tool in outcome.tools
    }
