"""`mirror sync --every` for many cycles, with faults, changed configurations and signals at random moments.

MIRROR_TESTS_CYCLES: the number of cycles. MIRROR_TESTS_SEED: the seed of the random choices.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ScriptedFactory
from tests.registries.process import eventually
from tests.registries.scripted import ScriptedRegistry
from tests.registries.weather import Weather
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool

CYCLES = int(os.environ.get("MIRROR_TESTS_CYCLES", "50"))
SEED = int(os.environ.get("MIRROR_TESTS_SEED", "1"))
REPOSITORIES = ("one", "two", "three", "four")
FAULTS = 0.05  # the part of the requests that fail
WITHIN = 60.0  # seconds
STOP_WITHIN = 15.0  # seconds; the limit is 5 s, and the machine may be busy
MOST_GROWTH = 6 << 20  # bytes of memory from the middle to the end
RUNS = ("run_started", "run_ended")
ENDED = ("run_ended", "cycle_skipped", "cycle_failed")


@dataclass
class World:
    """A source that gets new tags, and a target. Both fail at random."""

    tool: MirrorTool
    source: ScriptedRegistry
    target: ScriptedRegistry
    chance: random.Random
    graphs: dict[str, Graph]
    images: int = 0

    def add_tag(self) -> None:
        """Add a new image to a repository, or move a tag to it."""
        self.images += 1
        name = self.chance.choice(REPOSITORIES)
        self.graphs[name].image(f"v{self.images % 7}", label=str(self.images))
        self.source.load(name, self.graphs[name])

    def configure(self, *names: str, every: str | None = None) -> None:
        """Write a valid configuration with these repositories. every: the interval of all mirrors."""
        mirrors = [
            {"source": f"{self.source.host}/{name}", "targets": [f"{self.target.host}/{name}"]}
            | ({"every": every} if every else {"every": "3 s"} if name == "three" else {})
            for name in names
        ]
        self.tool.config(mirrors, self.source, self.target)

    def events(self) -> list[str]:
        """Return the events in the log so far."""
        path = self.tool.state / "mirror.log"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []

    def cycles(self) -> int:
        """Return the number of cycles that have ended."""
        return sum(event in ENDED for event in self.events())

    @contextmanager
    def service(self, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a service. Its output goes to a file."""
        command = self.tool.command("sync", self.tool.config_file, "--every", "1s", *options)
        with (self.tool.folder / "output").open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.tool.environment
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def calm(self, calm: bool) -> None:
        """Turn the faults off or on."""
        for registry in (self.source, self.target):
            assert isinstance(registry.faults, Weather)
            registry.faults.calm = calm


def make_world(scripted: ScriptedFactory, tool: MirrorTool) -> World:
    world = World(
        tool,
        scripted("source"),
        scripted("target"),
        random.Random(SEED),
        {name: Graph(name) for name in REPOSITORIES},
    )
    for registry in (world.source, world.target):
        registry.faults = Weather(f"{SEED} {registry.name}", FAULTS)
    for name in REPOSITORIES:
        world.graphs[name].image("v0")
        world.source.load(name, world.graphs[name])
    world.configure(*REPOSITORIES)
    return world


@dataclass(frozen=True)
class Used:
    """What a process uses while it is idle. memory: bytes."""

    files: Counter[str]
    threads: int
    memory: int


def measure_idle(world: World, process: subprocess.Popen[bytes]) -> Used:
    """Make a service idle, and return what it then uses."""
    world.calm(True)
    world.configure(*REPOSITORIES, every="2 h")
    count = Counter(world.events())
    process.send_signal(signal.SIGHUP)
    folder = Path(f"/proc/{process.pid}")

    def is_idle() -> bool:
        now = Counter(world.events())
        ended = now["reloaded"] > count["reloaded"] and now["run_ended"] > count["run_ended"]
        return ended and now["run_started"] == now["run_ended"] and len(list((folder / "task").iterdir())) == 2

    assert eventually(is_idle, WITHIN, step=0.1), (tasks(folder), world.events()[-5:])
    # The numbers of pipes and sockets differ.
    files = Counter(os.readlink(file).partition("[")[0] for file in (folder / "fd").iterdir())  # noqa: PTH115
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    world.calm(False)
    return Used(files, int(status["Threads"]), int(status["VmRSS"].split()[0]) << 10)


def tasks(folder: Path) -> list[str]:
    return [(task / "comm").read_text().strip() for task in (folder / "task").iterdir()]


def disturb(world: World, process: subprocess.Popen[bytes]) -> None:
    """Do one thing that a service must survive."""
    tool, chance = world.tool, world.chance
    action = chance.choice(("tag", "tag", "tag", "reload", "reload", "invalid", "lock"))
    if action == "tag":
        world.add_tag()
    elif action == "reload":
        world.configure(*sorted(chance.sample(REPOSITORIES, chance.randint(1, len(REPOSITORIES)))))
        process.send_signal(signal.SIGHUP)
    elif action == "invalid":
        tool.config_file.write_text(chance.choice(("version: 1\n", "mirrors: [", "", "\0")))
        process.send_signal(signal.SIGHUP)
    else:
        with (tool.state / "lock").open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pause(chance.random() * 1.5)


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def assert_no_overlap(world: World) -> None:
    runs = [event for event in world.events() if event in RUNS]
    assert [RUNS[number % 2] for number in range(len(runs))] == runs


def assert_complete(world: World) -> None:
    """Check that a last sync without faults brings everything to the target."""
    world.calm(True)
    world.configure(*REPOSITORIES)
    world.tool.sync()
    wanted = {(name, tag) for name in REPOSITORIES for tag in world.source.tags(name)}
    assert wanted == set(assert_whole(world.target).tags)


def test_a_service_survives_many_cycles_and_uses_no_more_than_at_first(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    world = make_world(scripted, mirror_run)
    used: list[Used] = []
    with world.service("--listen", "127.0.0.1:0", "--progress", "none") as process:
        assert eventually(lambda: world.cycles() > 0, WITHIN)
        for part in range(1, 4):
            while world.cycles() < CYCLES * part // 3:
                assert process.poll() is None
                disturb(world, process)
                pause(world.chance.random() * 0.5)
            used.append(measure_idle(world, process))
            print(used[-1])
        process.send_signal(signal.SIGTERM)
        assert 143 == process.wait(STOP_WITHIN)
    found = Counter(world.events())
    print(
        f"{world.cycles()} cycles, {world.images} images;",
        {event: found[event] for event in (*ENDED, "reloaded", "reload_failed")},
    )
    assert [used[0].files] * 2 == [one.files for one in used[1:]]
    assert {2} == {one.threads for one in used}
    assert used[2].memory - used[1].memory < MOST_GROWTH
    assert_no_overlap(world)
    assert_complete(world)
    assert "Traceback" not in (mirror_run.folder / "output").read_text(errors="replace")


def test_sigterm_at_a_random_moment_ends_a_service_with_exit_code_0(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    world = make_world(scripted, mirror_run)
    for number in range(CYCLES // 2):
        for _ in range(3):
            world.add_tag()
        before = len(world.events())
        with world.service("--progress", "none") as process:
            assert eventually(lambda begun=before: len(world.events()) > begun, WITHIN)  # type: ignore[misc]
            pause(world.chance.random() * (1.5 if number % 2 else 0.2))
            if world.chance.random() < 0.3:
                process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            assert 143 == process.wait(STOP_WITHIN)
        assert_no_overlap(world)
        report = json.loads((mirror_run.state / "report.json").read_text())
        assert report["exit"] in (0, 1, 143), report["exit"]
        assert_whole(world.target)
    assert_complete(world)
    assert "Traceback" not in (mirror_run.folder / "output").read_text(errors="replace")
