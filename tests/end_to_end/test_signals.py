"""SIGTERM and SIGINT during a copy: a clean end within seconds, with a report; a second signal ends the process at
once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.access import Seen
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.registries.real import RealRegistry
from tests.registries.scripted import ScriptedRegistry
from tests.registries.wires import Pipe
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.seeding import seed
from tests.support.tool import MirrorTool

# Seconds from the signal to the end. The limit is 5 s; a busy machine gets twice as much.
WITHIN = 10.0
SLOW = 400_000.0  # bytes per second
IMAGES = 6
NO_ANSWER = """
import pathlib, socket, sys, threading
from mirror.__main__ import entry

def look_up(*arguments, **options):
    reached.touch()
    threading.Event().wait()

reached = pathlib.Path(sys.argv.pop(1))
socket.getaddrinfo = look_up
entry()
"""


@dataclass(frozen=True, slots=True)
class Copying:
    """A sync in the middle of uploads through a slow pipe."""

    process: subprocess.Popen[str]
    pipe: Pipe
    target: ScriptedRegistry
    tool: MirrorTool

    def end_by(self, *signals: signal.Signals) -> tuple[int, float]:
        """Send the signals; return the exit code and the seconds since the last one."""
        for number in signals[:-1]:
            self.process.send_signal(number)
            with pytest.raises(subprocess.TimeoutExpired):
                self.process.wait(0.3)
        sent = time.monotonic()
        self.process.send_signal(signals[-1])
        code = self.process.wait(30)
        seconds = time.monotonic() - sent
        assert code == self.tool.finish(self.process).code
        return code, seconds


@contextmanager
def copying(scripted: ScriptedFactory, tool: MirrorTool, *, mount: bool = True) -> Iterator[Copying]:
    source, target = scripted("source"), scripted("target")
    graph = Graph("signals")
    for number in range(IMAGES):
        graph.image(f"v{number}", size=600_000)
    source.load("app", graph)
    with Pipe(int(target.host.rpartition(":")[2]), rate=SLOW) as pipe:
        plain = {"plain-http": True, "mount": mount}
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
        tool.config(mirrors, source, registries={pipe.host: plain})
        process = tool.start("sync", tool.config_file)
        assert target.journal.wait_for("PUT upload", 2)
        assert eventually(lambda: pipe.moved > 200_000, within=60)
        yield Copying(process, pipe, target, tool)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("mount", [True, False], ids=["straight", "through-the-spool"])
def test_a_signal_ends_the_run_cleanly_within_seconds(
    scripted: ScriptedFactory, mirror_run: MirrorTool, number: signal.Signals, mount: bool
) -> None:
    with copying(scripted, mirror_run, mount=mount) as run:
        code, seconds = run.end_by(number)
        assert 128 + number == code
        assert seconds < WITHIN
        report = mirror_run.report()
        assert code == report["exit"]
        assert IMAGES == len(report["images"])
        assert {"skipped", "failed"} >= {image["result"] for image in report["images"]}
        assert {"interrupted"} == {image["error"]["code"] for image in report["images"]}
        tried = {image["source"] for image in report["images"] if image["result"] == "failed"}
        assert tried == set(mirror_run.failed())
        assert _begun(run.target)
        assert _begun(run.target) <= _cancelled(run.target)


def _begun(target: ScriptedRegistry) -> set[str]:
    """Return the sessions that received bytes and were not committed. The response to other POSTs may not have arrived
    yet."""
    return {_session(seen) for seen in target.requests() if seen.kind == "PUT upload" and seen.status != 201}


def _cancelled(target: ScriptedRegistry) -> set[str]:
    return {_session(seen) for seen in target.requests() if seen.kind == "DELETE upload"}


def _session(seen: Seen) -> str:
    return seen.path.partition("?")[0].rpartition("/")[2]


def test_every_upload_session_that_is_open_at_a_signal_is_deleted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("sessions")
    for number in range(IMAGES):
        graph.image(f"v{number}")
    source.load("app", graph)
    target.fault("PUT upload", nth=4, times=FOREVER, stall=threading.Event())
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, source, target, parallel={"uploads": 4})
    process = mirror_run.start("sync", mirror_run.config_file)
    assert target.journal.wait_for("PUT upload", 3 + 4)  # the maximum number is open, so no session is being opened
    process.send_signal(signal.SIGTERM)
    assert 143 == mirror_run.finish(process, WITHIN).code
    assert 4 == target.counts()["DELETE upload"]
    assert target.wait_until_no_uploads()


def test_an_upload_session_that_a_mount_opens_after_a_signal_is_deleted(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target", mounts=False)
    graph = Graph("mounts")
    graph.image("v1", size=50_000)
    source.load("app", graph)
    target.fault("POST mount", times=FOREVER, delay=0.5)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/one", f"{target.host}/two"]}]
    mirror_run.config(mirrors, source, target)
    process = mirror_run.start("sync", mirror_run.config_file)
    assert target.journal.wait_for("POST mount", 1)
    process.send_signal(signal.SIGTERM)
    assert 143 == mirror_run.finish(process, WITHIN).code
    assert {202} == {seen.status for seen in target.requests() if seen.kind == "POST mount"}
    assert target.wait_until_no_uploads()


def test_a_signal_ends_the_run_in_time_with_many_open_sessions_and_a_hanging_target(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    blobs = 48
    source, target = scripted("source"), scripted("target", mounts=False)
    graph = Graph("many")
    graph.image("v1", layers=[graph.layer(f"layer {number}", 100) for number in range(blobs - 1)])
    source.load("app", graph)
    listed, mount, hang = threading.Event(), threading.Event(), threading.Event()
    target.fault("GET tags", repository="two", stall=listed)  # later messages belong to no blob
    target.fault("POST mount", times=FOREVER, stall=mount)
    for kind in ("PUT upload", "DELETE upload"):
        target.fault(kind, repository="two", times=FOREVER, stall=hang)
    targets = [f"{target.host}/one", f"{target.host}/two"]
    registries = {target.host: {"parallel": 64}}
    mirror_run.config([{"source": f"{source.host}/app", "targets": targets}], source, target, registries=registries)
    process = mirror_run.start("sync", mirror_run.config_file)
    assert target.journal.wait_for("PUT manifest", 1)
    listed.set()
    assert target.journal.wait_for("POST mount", blobs)
    mount.set()
    assert eventually(lambda: len(target.uploads) == blobs, within=60)
    process.send_signal(signal.SIGTERM)
    assert 143 == mirror_run.finish(process, WITHIN).code
    hang.set()


def test_a_second_signal_ends_the_process_at_once(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    with copying(scripted, mirror_run) as run:
        run.pipe.freeze()  # the DELETEs of the sessions hang
        code, seconds = run.end_by(signal.SIGTERM, signal.SIGINT)
        assert 128 + signal.SIGINT == code, "and not the code of the first one, when the DELETEs are given up"
        assert seconds < WITHIN


def test_a_signal_ends_the_run_in_time_although_the_target_hangs(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    with copying(scripted, mirror_run) as run:
        run.pipe.freeze()
        code, seconds = run.end_by(signal.SIGTERM)
        assert 128 + signal.SIGTERM == code
        assert seconds < WITHIN
        assert IMAGES == len(mirror_run.report()["images"])


def test_a_rerun_after_a_signal_completes(source: RealRegistry, target: RealRegistry, mirror_run: MirrorTool) -> None:
    seeded = seed(source, "app", images=4, index=True, layer_size=200_000)
    with Pipe(target.port, rate=1_000_000.0) as pipe:
        mirrors = [{"source": f"{source.host}/app", "targets": [f"{pipe.host}/app"]}]
        mirror_run.config(mirrors, source, registries={pipe.host: {"plain-http": True}})
        process = mirror_run.start("sync", mirror_run.config_file)
        assert eventually(lambda: pipe.moved > 500_000, within=60)
        process.send_signal(signal.SIGTERM)
        assert 143 == mirror_run.finish(process).code
        assert_whole(target)
        stored = {seen.reference for seen in target.requests() if seen.kind == "PUT upload" and seen.status == 201}
        target.mark()
        pipe.rate = None
        mirror_run.sync()
    again = {seen.reference for seen in target.requests() if seen.kind == "PUT upload"}
    assert set() == stored & again
    assert seeded.tags == assert_whole(target).tags


def _catches(process: subprocess.Popen[str], number: signal.Signals) -> bool:
    """Return whether the process has installed its signal handlers."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_a_signal_ends_the_wait_for_the_lock(scripted: ScriptedFactory, mirror_run: MirrorTool) -> None:
    with copying(scripted, mirror_run) as run:
        run.pipe.freeze()  # the first run does not end meanwhile
        waiting = mirror_run.start("sync", mirror_run.config_file, "--lock-wait", "60")
        assert eventually(lambda: _catches(waiting, signal.SIGTERM), within=60)
        waiting.send_signal(signal.SIGTERM)
        ran = mirror_run.finish(waiting, 30)
        assert 143 == ran.code
        run.pipe.thaw()
        assert 143 == run.end_by(signal.SIGTERM)[0]
        assert 143 == json.loads(next(mirror_run.state.rglob("report.json")).read_text())["exit"]


@pytest.mark.parametrize("command", ["sync", "plan", "verify"])
def test_a_signal_ends_a_command_in_time_although_a_name_lookup_hangs(
    mirror_run: MirrorTool, tmp_path: Path, command: str
) -> None:
    mirrors = [{"source": "registry.example.com/app", "targets": ["other.example.com/app"]}]
    config, reached = mirror_run.config(mirrors), tmp_path / "reached"
    process = subprocess.Popen(
        [sys.executable, "-c", NO_ANSWER, str(reached), command, str(config)],
        env=mirror_run.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert eventually(reached.exists, within=60)
        process.send_signal(signal.SIGTERM)
        assert 143 == process.wait(WITHIN)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("command", ["plan", "verify"])
def test_a_signal_ends_read_only_commands_too(scripted: ScriptedFactory, mirror_run: MirrorTool, command: str) -> None:
    source = scripted("source")
    graph = Graph("reading")
    graph.image("v1")
    source.load("app", graph)
    hangs = source.fault("GET tags", stall_after=10, times=100)
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{source.host}/copy"]}]
    mirror_run.config(mirrors, source)
    process = mirror_run.start(command, mirror_run.config_file)
    assert hangs.fired.wait(60)
    process.send_signal(signal.SIGINT)
    assert 130 == mirror_run.finish(process, WITHIN).code
