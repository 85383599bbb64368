"""The results of single runs and of scenarios, as plain values that can be written as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.traffic import Traffic

IDEAL = "ideal replay"  # the name of the baseline, which is not a tool


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one run of one tool.

    wall, cpu: seconds. registry_cpu: CPU seconds of all registries; None if a registry is not a separate process.
    memory: peak memory in bytes. code: the exit code. equal: whether every wanted tag has the right digest on every
    target. source, target: the traffic of the source, and of all targets together."""

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
    """The median, minimum and maximum of a figure over all runs of a tool."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Compute the spread of figures."""
        return cls(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of one scenario.

    tools: the runs, by name of the tool. gigabytes: the amount of data that each run copies, in units of 10^9 bytes.
    absent: for each tool that was not run, the reason. reduced: whether counts and sizes were smaller than `title` and
    `note` say."""

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
        """Return the spread of a figure over the runs of a tool."""
        return Spread.of([figure(sample) for sample in self.tools[tool]])

    def wall(self, tool: str) -> Spread:
        """Return the spread of the wall time of a tool, in seconds."""
        return self.spread(tool, lambda sample: sample.wall)

    def correct(self, tool: str) -> bool:
        """Return whether every run of a tool succeeded and left equal targets."""
        return all(sample.equal and sample.code == 0 for sample in self.tools[tool])

    def ratio(self, tool: str) -> float | None:
        """Return the median wall time of a tool divided by that of the fastest other tool.

        Only tools with correct targets are compared. Return None if there is no such other tool."""
        others = [self.wall(name).median for name in self.tools if name not in (tool, IDEAL) and self.correct(name)]
        return self.wall(tool).median / min(others) if others else None


@dataclass(frozen=True, slots=True)
class Report:
    """All results of one call of `python -m benchmarks`.

    date: in ISO 8601. quick: whether counts and sizes were reduced. machine: properties of the machine, by name.
    versions: versions of the software, by name. left_out, tools_left_out: names of the scenarios and tools that were
    not measured."""

    date: str
    quick: bool
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    scenarios: Sequence[Outcome]
    left_out: Sequence[str] = ()
    tools_left_out: Sequence[str] = ()

    @property
    def is_complete(self) -> bool:
        """Whether all scenarios were measured with all tools and at full size."""
        return not (self.quick or self.left_out or self.tools_left_out)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object with all samples, and a summary of medians and ratios."""
        return {"schema": 1, **asdict(self), "summary": {one.name: _summary(one) for one in self.scenarios}}


def _summary(outcome: Outcome) -> dict[str, Any]:
    """Return medians and ratios of a scenario, by name of the tool."""
    return {
        tool: {
            "wall": asdict(outcome.wall(tool)),
            "cpu": asdict(outcome.spread(tool, lambda sample: sample.cpu)),
            "ratio_to_best_other": outcome.ratio(tool),
            "correct": outcome.correct(tool),
        }
        for tool in outcome.tools
    }
