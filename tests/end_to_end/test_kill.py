"""A run killed at any moment leaves no broken tag, and the next run resumes.

Moments are drawn from a seed: some by time, most by a request to the target, just before it is carried out or just
after, when its response has not been sent. MIRROR_TESTS_KILLS sets the number (25: all).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RegistryFactory
from tests.registries.access import Seen
from tests.registries.exchange import Reply, Request
from tests.registries.real import RealRegistry
from tests.registries.wires import Front
from tests.support.oracle import Snapshot, assert_invariants, assert_whole, snapshot
from tests.support.seeding import Seeded, seed
from tests.support.tool import MirrorTool, Ran

WRITES = ("POST upload", "PUT upload", "POST mount", "PUT manifest")
BROUGHT = ("PUT upload", "POST mount")  # final requests of the ways in which a blob gets into a repository
SIZE = 60_000  # bytes of a layer
KILLS = int(os.environ.get("MIRROR_TESTS_KILLS", "1"))
IMAGES = 2 if KILLS == 1 else 4  # of a repository


@dataclass(frozen=True, slots=True)
class Moment:
    """When a run is killed: `before` or `after` a request of a kind, or at a `time`. place: how far into the run, 0 to
    1."""

    number: int
    when: str
    kind: str
    place: float

    def __str__(self) -> str:
        return f"{self.number}-{self.when}-{self.kind.replace(' ', '-')}-{self.place:.2f}"


def moments(count: int) -> list[Moment]:
    """Return the moments, always the same. The first three are of different kinds, so that a small sample is useful."""
    chance = random.Random("kill")
    first = [
        Moment(0, "after", "PUT upload", 0.3),
        Moment(1, "before", "PUT manifest", 0.4),
        Moment(2, "time", "", 0.6),
    ]
    more = [
        Moment(number, chance.choice(("before", "after", "after", "time")), chance.choice(WRITES), chance.random())
        for number in range(len(first), 25)
    ]
    return [*first, *more][:count]


@dataclass(frozen=True, slots=True)
class Setting:
    """The source of all moments, its content, and the requests and duration of an undisturbed run."""

    source: RealRegistry
    seeded: Seeded
    asked: dict[str, int]
    seconds: float


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    root = tmp_path_factory.mktemp("kill")
    with ExitStack() as stack:
        source, target = (stack.enter_context(RealRegistry(root, name)) for name in ("source", "target"))
        tool = stack.enter_context(MirrorTool(root / "mirror"))
        seeded = seed(source, "team/app", repositories=3, images=IMAGES, layer_size=SIZE, index=True)
        _config(tool, source, target.host, seeded)
        ran = tool.sync()
        yield Setting(source, seeded, dict(target.counts()), ran.seconds)


def _config(tool: MirrorTool, source: RealRegistry, host: str, seeded: Seeded) -> None:
    mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{host}/{name}"]} for name in seeded.repositories]
    tool.config(mirrors, source, registries={host: {"plain-http": True}})


class Killer:
    """Sends SIGKILL when the n-th request of a kind arrives. `front` is the address that the tool uses as the
    target."""

    def __init__(self, front: Front, kind: str, count: int, *, after: bool) -> None:
        self._kind, self._left = kind, count
        self._lock = threading.Lock()
        self._started = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self.killed = False
        if after:
            front.alter = self._altered
        else:
            front.hook = self._asked

    def aim(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._started.set()

    def _asked(self, request: Request) -> Reply | None:
        self._look(request)
        return None

    def _altered(self, request: Request, reply: Reply) -> Reply:
        self._look(request)
        return reply

    def _look(self, request: Request) -> None:
        with self._lock:
            self._left -= request.kind == self._kind
            now = not self._left and not self.killed
            self.killed = self.killed or now
        if now and self._started.wait(60) and self._process:
            self._process.kill()
            self._process.wait(10)  # no request is carried out after the kill


def killed_after(seconds: float, process: subprocess.Popen[str]) -> None:
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()


@pytest.mark.parametrize("moment", moments(KILLS), ids=str)
def test_a_killed_run_breaks_no_tag_and_the_next_run_sends_only_missing_content(
    moment: Moment, setting: Setting, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    before = snapshot(target)
    with Front(target.port) as front:
        _config(mirror_run, setting.source, front.host, setting.seeded)
        killed = _kill(moment, setting, front, mirror_run)
        front.hook = front.alter = None
        assert front.journal.wait_idle()
        assert killed.code in ((-signal.SIGKILL, 0) if moment.when == "time" else (-signal.SIGKILL,))
        _judge(target, before, setting.seeded)
        first = target.requests()
        target.mark()
        mirror_run.sync()
    _judge(target, before, setting.seeded)
    assert setting.seeded.tags == snapshot(target).tags
    assert set() == _stored(first, *BROUGHT) & _stored(target.requests())


def _kill(moment: Moment, setting: Setting, front: Front, tool: MirrorTool) -> Ran:
    if moment.when == "time":
        process = tool.start("sync", tool.config_file)
        killed_after(setting.seconds * moment.place, process)
    else:
        count = 1 + int(moment.place * (setting.asked[moment.kind] - 1))
        killer = Killer(front, moment.kind, count, after=moment.when == "after")
        process = tool.start("sync", tool.config_file)
        killer.aim(process)
    return tool.finish(process)


def _judge(target: RealRegistry, before: Snapshot, seeded: Seeded) -> None:
    after = assert_whole(target)
    assert_invariants(before, after, {tag: [digest] for tag, digest in seeded.tags.items()})


def _stored(requests: list[Seen], *kinds: str) -> set[tuple[str, str]]:
    """Return (repository, digest) of the blobs that were uploaded or mounted with a 201 response."""
    wanted = kinds or ("PUT upload",)
    return {(seen.repository, seen.reference) for seen in requests if seen.kind in wanted and seen.status == 201}


def test_a_run_killed_before_its_first_tag_resumes_although_the_listing_answers_404(
    setting: Setting, registry_factory: RegistryFactory, mirror_run: MirrorTool
) -> None:
    target = registry_factory("target")
    with Front(target.port) as front:
        _config(mirror_run, setting.source, front.host, setting.seeded)
        _kill(Moment(0, "before", "PUT manifest", 0), setting, front, mirror_run)
        front.hook = None
        assert front.journal.wait_idle()
        first = _stored(target.requests(), *BROUGHT)
        touched = {repository for repository, _ in first}
        assert touched
        with target.client() as client:
            listings = {client.ask("GET", f"/v2/{name}/tags/list").status for name in touched}
        assert {404} == listings
        target.mark()
        mirror_run.sync()
    again = target.requests()
    assert set() == first & _stored(again)
    asked = {(seen.repository, seen.reference) for seen in again if seen.kind in ("HEAD blob", "POST mount")}
    assert first <= asked
    assert setting.seeded.tags == assert_whole(target).tags


def test_a_killed_run_completes_without_its_state(
    setting: Setting, target: RealRegistry, mirror_run: MirrorTool
) -> None:
    with Front(target.port) as front:
        _config(mirror_run, setting.source, front.host, setting.seeded)
        _kill(Moment(0, "after", "PUT manifest", 0.5), setting, front, mirror_run)
        front.alter = None
        assert front.journal.wait_idle()
        for path in mirror_run.state.glob("state.*"):
            path.unlink()
        mirror_run.sync()
    assert setting.seeded.tags == assert_whole(target).tags


def test_the_spool_of_a_killed_run_is_cleaned_up(
    setting: Setting, registry_factory: RegistryFactory, mirror_run: MirrorTool, tmp_path: Path
) -> None:
    targets = [registry_factory(name) for name in ("one", "two")]
    spool = tmp_path / "spool"
    with Front(targets[0].port) as front:
        mirrors = [
            {
                "source": f"{setting.source.host}/{name}",
                "targets": [f"{front.host}/{name}", f"{targets[1].host}/{name}"],
            }
            for name in setting.seeded.repositories
        ]
        plain: dict[str, Any] = {"registries": {front.host: {"plain-http": True}}}
        mirror_run.config(mirrors, setting.source, targets[1], spool=str(spool), **plain)
        _kill(Moment(0, "before", "PUT upload", 0.3), setting, front, mirror_run)
        front.hook = None
        left = [path for path in spool.rglob("*") if path.is_file()]
        assert left
        mirror_run.sync()
    assert [] == [path for path in spool.rglob("*") if path.is_file()]
    for target in targets:
        assert setting.seeded.tags == assert_whole(target).tags
