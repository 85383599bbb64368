"""Starts the registries of a scenario, and runs the tools in an interleaved order."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import cost, ideal, outcome
from benchmarks.samples import IDEAL, Outcome, Sample
from benchmarks.scenarios import Scenario
from benchmarks.scenarios.base import Access
from benchmarks.tools import Tool, environment
from benchmarks.traffic import traffic
from tests.registries.access import Seen

TIMEOUT = 900.0  # seconds for one run of one tool

Say = Callable[[str], None]


def measure(
    scenario: Scenario, tools: Sequence[Tool], *, runs: int, say: Say = lambda _: None, timeout: float = TIMEOUT
) -> Outcome:
    """Run each tool `runs` times and return the outcome. All files are removed afterwards.

    In each round, every tool runs once. say: called with a line of text after each run. timeout: seconds for one run
    of one tool. Raises RuntimeError if a registry does not start."""
    absent = {tool.name: "not installed" for tool in tools if tool.program() is None} | scenario.excluded
    present = [tool for tool in tools if tool.name not in absent]
    each_round: list[Tool | None] = [*present, None] if scenario.with_ideal else [*present]
    with TemporaryDirectory(prefix="mirror-bench-") as folder, ExitStack() as stack:
        stage = _Stage(scenario, Path(folder), stack, timeout)
        samples: defaultdict[str, list[Sample]] = defaultdict(list)
        if not scenario.fresh:
            for tool in present:
                stage.run(tool, 0)
        for number in range(1, runs + 1):
            scenario.change(stage.source.registry)
            for tool_or_ideal in each_round:
                name = tool_or_ideal.name if tool_or_ideal else IDEAL
                sample = stage.run(tool_or_ideal, number)
                samples[name].append(sample)
                equality = "equal" if sample.equal else "NOT EQUAL"
                say(f"{scenario.name} {number}/{runs} {name}: {sample.wall:.2f} s, {equality}")
        gigabytes = scenario.bytes / 1e9
        title, note, reduced = scenario.title, scenario.note, scenario.scale.quick
        return Outcome(scenario.name, title, note, gigabytes, dict(samples), absent, reduced)


@dataclass(frozen=True, slots=True)
class _Targets:
    """The target registries of one tool, and the folder in which the tool runs."""

    folder: Path
    accesses: list[Access]


class _Stage:
    """Runs tools in a scenario whose source registry has been started."""

    def __init__(self, scenario: Scenario, folder: Path, stack: ExitStack, timeout: float) -> None:
        self._scenario, self._folder, self._stack, self._timeout = scenario, folder, stack, timeout
        self._kept: dict[str, _Targets] = {}
        self.source = scenario.open_source(folder, stack)

    def run(self, tool: Tool | None, number: int) -> Sample:
        """Run a tool once and return the result.

        tool: None for the ideal replay. number: the number of the round; 0 for the run before the first round, which is
        not counted."""
        name = tool.name if tool else "ideal"
        with self._targets(name, number) as targets:
            commands = self._commands(tool, targets)
            registries = [self.source, *targets.accesses]
            for access in registries:
                access.witness.mark()
            before = _cpu(registries)
            cost_of_run = cost.run(
                commands,
                folder=targets.folder,
                environment=environment(targets.folder),
                out=targets.folder / "output.txt",
                timeout=self._timeout,
                continue_on_error=self._scenario.continue_on_error,
            )
            after = _cpu(registries)
            source_requests = self.source.witness.requests()
            target_requests: list[Seen] = [seen for access in targets.accesses for seen in access.witness.requests()]
            equal = self._equal(targets, whole=number == 1)
            if cost_of_run.code or not equal:
                _print_output(name, cost_of_run.code, targets.folder / "output.txt")
        content = self._scenario.content
        used = None if before is None or after is None else after - before
        return Sample(
            cost_of_run.wall,
            cost_of_run.cpu,
            used,
            cost_of_run.memory,
            cost_of_run.code,
            equal,
            traffic(source_requests, content),
            traffic(target_requests, content),
        )

    def _commands(self, tool: Tool | None, targets: _Targets) -> list[list[str]]:
        """Return the command lines of a tool, after removing its state if the scenario requires that."""
        job = self._scenario.job(self.source, targets.accesses)
        if tool is None:
            return ideal.commands(job, self.source.registry, targets.folder)
        if self._scenario.fresh:
            tool.remove_state(targets.folder)
        return tool.commands(job, targets.folder)

    @contextmanager
    def _targets(self, name: str, number: int) -> Iterator[_Targets]:
        """As a context manager, provide the targets for a run of the tool `name`.

        In a scenario that is `fresh`, they are new and removed after the run. Otherwise the tool keeps the same targets
        until the end of the scenario."""
        if not self._scenario.fresh:
            if name not in self._kept:
                self._kept[name] = self._open(name, self._stack)
            yield self._kept[name]
            return
        with ExitStack() as stack:
            targets = self._open(f"{name}-{number}", stack)
            stack.callback(shutil.rmtree, targets.folder)
            yield targets

    def _open(self, name: str, stack: ExitStack) -> _Targets:
        """Start new target registries, which `stack` stops."""
        folder = self._folder / name
        folder.mkdir()
        accesses = []
        for number in range(self._scenario.target_count):
            registry = stack.enter_context(self._scenario.target(folder, f"target-{number}"))
            accesses.append(self._scenario.reach(registry, stack))
        return _Targets(folder, accesses)

    def _equal(self, targets: _Targets, *, whole: bool) -> bool:
        """Return whether the targets are equal to the source.

        whole: also read and hash all content, unless the scenario has `reads_all_back = False`."""
        scenario, registries = self._scenario, [access.registry for access in targets.accesses]
        are_equal = outcome.content_equal if whole and scenario.reads_all_back else outcome.tags_equal
        return are_equal(scenario.content, scenario.wanted, registries)


def _cpu(registries: Sequence[Access]) -> float | None:
    """Return the total CPU seconds of several registries; None if one of them is not a separate process."""
    pids = [access.pid for access in registries]
    return None if None in pids else sum(cost.cpu_of(pid) for pid in pids if pid is not None)


def _print_output(name: str, code: int, output: Path) -> None:
    """Print the last 800 characters of the output of a tool that failed."""
    text = output.read_text(encoding="utf-8", errors="replace")[-800:] if output.exists() else ""
    print(f"--- {name}: exit {code}\n{text}", file=sys.stderr)
