"""Everything goes wrong now and then, on both sides: the run ends well, and nothing is ever broken on a target.

One request in twenty meets a fault, drawn from a seed. MIRROR_TESTS_SOAK says how many seeds are tried (default: 1).
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import ScriptedFactory
from tests.images import Graph
from tests.oracle import assert_equal, assert_invariants, assert_whole, snapshot
from tests.registries.access import Target
from tests.registries.faults import CONNECT, Fault, Faults
from tests.registries.scripted import ScriptedRegistry
from tests.tool import MirrorTool

SHARE = 0.05
IMAGES = 40
_WRITES = ("PUT", "PATCH")
_RULES: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda chance: {"reset": True},
    lambda chance: {"reset": True, "after": True},
    lambda chance: {"status": chance.choice((500, 502, 503, 504))},
    lambda chance: {"status": 429, "headers": [("Retry-After", str(chance.choice((0, 0, 0, 1))))]},
    lambda chance: {"after": True, "cut_after": chance.randrange(2000)},
    lambda chance: {"after": True, "cut_head_after": chance.randrange(200)},
    lambda chance: {"after": True, "delay": chance.random() / 4},
    lambda chance: {"after": True, "drip": 100_000.0},
    lambda chance: {"status": 503, "body": b"<html>gateway</html>", "headers": [("Content-Type", "text/html")]},
)


class Weather(Faults):
    """Draws faults: what a request meets depends on the seed, on what it is, and on how often that was asked."""

    def __init__(self, seed: str) -> None:
        super().__init__()
        self._seed = seed
        self._guard = threading.Lock()
        self._asked: Counter[tuple[str, str, str]] = Counter()
        self.met: Counter[str] = Counter()
        self.calm = False

    def take(self, target: Target) -> Fault | None:
        if self.calm or target.kind == CONNECT:
            return None
        key = (target.kind, target.repository, target.reference)
        with self._guard:
            self._asked[key] += 1
            chance = random.Random(f"{self._seed} {key} {self._asked[key]}")
        if chance.random() >= SHARE:
            return None
        rule = chance.choice(_RULES)(chance)
        if target.kind.startswith(_WRITES) and chance.random() < 0.3:
            rule = {"cut_request_after": chance.randrange(3000)}
        with self._guard:
            self.met[target.kind] += 1
        return Fault(target.kind, **rule)


def _graph(round_: str) -> Graph:
    graph = Graph("soak")
    shared = [graph.layer(f"shared-{number}") for number in range(3)]
    for number in range(IMAGES):
        own = graph.layer(f"{round_}-{number}", 20_000)
        child = graph.image(layers=[shared[number % 3], own], label=f"{round_}-{number}")
        if number % 4:
            graph.tag(child.digest, f"v{number}")
        else:
            graph.index(f"v{number}", children=[child])
    return graph


@pytest.mark.parametrize("seed", range(int(os.environ.get("MIRROR_TESTS_SOAK", "1"))))
def test_in_bad_weather_two_runs_are_enough_and_no_tag_is_ever_broken(
    scripted: ScriptedFactory, mirror_run: MirrorTool, seed: int
) -> None:
    source, targets = scripted("source"), [scripted("one"), scripted("two")]
    weather = {registry: Weather(f"{seed} {registry.name}") for registry in (source, *targets)}
    for registry, faults in weather.items():
        registry.faults = faults
    names = ("app", "base")
    mirrors = [
        {"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}" for target in targets]}
        for name in names
    ]
    mirror_run.config(mirrors, source, *targets)
    for round_ in ("first", "second"):
        graph = _graph(round_)
        for name in names:
            source.load(name, graph)
        before = {target: snapshot(target, names) for target in targets}
        codes = [_run(mirror_run, source, before, names)]
        if codes == [1]:
            codes.append(_run(mirror_run, source, before, names))
        assert 0 == codes[-1]
        for target in targets:
            for name in names:
                assert_equal(source, name, target)
    assert all(faults.met for faults in weather.values())


def _run(tool: MirrorTool, source: ScriptedRegistry, before: dict[Any, Any], names: tuple[str, ...]) -> int:
    code = tool.sync(expect=(0, 1), timeout=100).code
    there = snapshot(source, names)
    for target, old in before.items():
        assert_invariants(old, assert_whole(target, names), source=there)
    return code
