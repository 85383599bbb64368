"""What came out: single runs, and what many of them say together. Plain values, which become JSON as they are."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.traffic import Traffic

IDEAL = "ideal replay"  # a yardstick, never "another tool"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one tool. wall, cpu, registry_cpu: seconds (registry_cpu: None where a registry is no process of its
    own). memory: bytes. code: exit code. equal: whether everything wanted is on every target."""

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
    """Of a figure over the runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scenario. tools: name -> its runs. gigabytes: 10^9 bytes that each run brings over. absent: tool -> why it
    was not run. reduced: there was less than title and note say."""

    name: str
    title: str
    note: str
    gigabytes: float
    tools: Mapping[str, Sequence[Sample]]
    absent: Mapping[str, str] = field(default_factory=dict)
    reduced: bool = False

    @property
    def heading(self) -> str:
        """The title, and whether it holds."""
        return f"{self.title} (reduced by --quick: fewer and smaller than this says)" if self.reduced else self.title

    @property
    def runs(self) -> int:
        """Of each tool."""
        return max(map(len, self.tools.values()), default=0)

    def spread(self, tool: str, figure: Callable[[Sample], float]) -> Spread:
        return Spread.of([figure(sample) for sample in self.tools[tool]])

    def wall(self, tool: str) -> Spread:
        return self.spread(tool, lambda sample: sample.wall)

    def correct(self, tool: str) -> bool:
        """Whether every run ended well and left equal targets."""
        return all(sample.equal and sample.code == 0 for sample in self.tools[tool])

    def ratio(self, tool: str) -> float | None:
        """Median wall time over that of the best other tool that did the work; None if there is none."""
        others = [self.wall(name).median for name in self.tools if name not in (tool, IDEAL) and self.correct(name)]
        return self.wall(tool).median / min(others) if others else None


@dataclass(frozen=True, slots=True)
class Report:
    """All that one call of the harness found. machine, versions: name -> text. date: ISO 8601. quick: sizes reduced.

    left_out, tools_left_out: names of scenarios that were not measured, of tools that were not asked for."""

    date: str
    quick: bool
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    scenarios: Sequence[Outcome]
    left_out: Sequence[str] = ()
    tools_left_out: Sequence[str] = ()

    @property
    def of_everything(self) -> bool:
        """All scenarios with all tools, in full size."""
        return not (self.quick or self.left_out or self.tools_left_out)

    def document(self) -> dict[str, Any]:
        """For JSON: every sample, and the medians with the ratios."""
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
