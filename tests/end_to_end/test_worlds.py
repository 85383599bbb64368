"""Random scenarios: sources and targets of every kind, faults, lost responses, kills, rollbacks, several runs.

In every scenario no target is ever broken and nothing is lost. Exit code 0 means that the targets equal the sources.
After the faults have ended, one run converges and the next one writes nothing. MIRROR_TESTS_WORLDS sets the number of
scenarios, MIRROR_TESTS_SEED selects a single one.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tests.registries.process import eventually
from tests.registries.scripted import ScriptedRegistry
from tests.support.tool import MirrorTool
from tests.support.worlds.judge import Judge
from tests.support.worlds.world import World

ROUNDS = 2
ENDS = (0, 1, 3)


def seeds() -> list[str]:
    alone = os.environ.get("MIRROR_TESTS_SEED")
    return [alone] if alone else [str(number) for number in range(int(os.environ.get("MIRROR_TESTS_WORLDS", "40")))]


@pytest.mark.parametrize("seed", seeds())
def test_exit_0_means_equal_and_a_run_without_faults_converges(
    seed: str, tmp_path: Path, mirror_run: MirrorTool
) -> None:
    with World(seed, tmp_path) as world:
        chance = random.Random(f"{seed} rounds")
        mirror_run.config([entry.document() for entry in world.entries], registries=world.settings)
        judge = Judge(world)
        answered = False  # whether the state knows that every source answers by v2
        for number in range(ROUNDS):
            if number:
                world.change()
            if chance.random() < 0.15:
                answered = False
                for path in mirror_run.state.glob("state.*"):
                    path.unlink()
            _calm(world, calm=chance.random() < 0.3, lies=answered or not world.is_mixed)
            code = _run(world, mirror_run, chance)
            answered = answered or code in (0, 3)
            judge.after_run(code)
        _calm(world, calm=True)
        code = _finish(mirror_run)
        judge.after_run(code)
        conflicts = {image["result"] for image in mirror_run.report()["images"]} & {"conflict"}
        assert (3 if conflicts else 0) == code, mirror_run.runs[-1]
        assert [] == list(judge.differences(judge.look(), judge.wanted()))
        for registry in world.registries:
            registry.mark()
        assert code == _finish(mirror_run)
        assert [] == [seen for registry in world.registries for seen in registry.writes()]


def _calm(world: World, *, calm: bool, lies: bool = False) -> None:
    for weather in world.weather.values():
        weather.calm, weather.lies = calm, lies


def _finish(tool: MirrorTool) -> int:
    return tool.sync(expect=ENDS, timeout=100).code


def _run(world: World, tool: MirrorTool, chance: random.Random) -> int:
    """Run once: to the end, or killed or stopped at a request. Return the exit code."""
    how = chance.choice(("whole", "whole", "kill", "stop"))
    options = ["--deep"] if chance.random() < 0.15 else []
    if how == "whole":
        return tool.sync(*options, expect=ENDS, timeout=100).code
    striker = _Striker(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    registry: ScriptedRegistry = chance.choice(world.registries)
    world.weather[registry].at(chance.randint(1, 30), striker.strike, after=chance.random() < 0.5)
    ends = (*ENDS, -signal.SIGKILL if how == "kill" else 128 + signal.SIGTERM)
    code = tool.sync(*options, expect=ends, timeout=100, began=striker.aim).code
    world.weather[registry].disarm()
    return code


class _Striker:
    """Sends a signal to a run. number: the signal."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number
        self._aimed = threading.Event()
        self._run = 0

    def aim(self, run: int) -> None:
        """Set the process id of the run."""
        self._run = run
        self._aimed.set()

    def strike(self) -> None:
        assert self._aimed.wait(60)
        with suppress(ProcessLookupError):
            os.kill(self._run, self._number)
        if self._number == signal.SIGKILL:
            eventually(self._has_ended, within=60)  # no request is carried out after the kill

    def _has_ended(self) -> bool:
        return not Path(f"/proc/{self._run}").exists()
