"""`mirror sync --every`: cycles, a changed configuration, a busy lock, and the end."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import subprocess
import threading
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from mirror.errors import BUSY
from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.process import eventually
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool

WITHIN = 30.0  # seconds


EVENTS = ("run_started", "run_ended", "reloaded", "reload_failed", "cycle_skipped", "cycle_failed")
IDLE_THREADS = 2  # the main thread, and the one that accepts connections


def events(tool: MirrorTool) -> list[str]:
    """Return those of EVENTS that are in the log so far, in their order."""
    path = tool.state / "mirror.log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in (json.loads(line)["event"] for line in lines) if event in EVENTS]


def wait_for(tool: MirrorTool, event: str, count: int = 1) -> None:
    assert eventually(lambda: events(tool).count(event) >= count, WITHIN), events(tool)


def health(address: str) -> tuple[int, str]:
    """Return the status and the text of a page. address: its URL."""
    connection = HTTPConnection(address.split("/")[2], timeout=WITHIN)
    with closing(connection):
        connection.request("GET", f"/{address.rpartition('/')[2]}")
        response = connection.getresponse()
        return response.status, response.read().decode()


def open_files(process: subprocess.Popen[str]) -> list[str]:
    """Return the open files of a process, without the numbers of pipes and sockets."""
    folder = Path(f"/proc/{process.pid}/fd")
    return sorted(re.sub(r"\[\d+\]", "", str(file.readlink())) for file in folder.iterdir())


def threads(process: subprocess.Popen[str]) -> int:
    return len(list(Path(f"/proc/{process.pid}/task").iterdir()))


def test_cycles_follow_a_changed_configuration_and_survive_errors(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    for name in ("one", "two"):
        graph = Graph(name)
        graph.image("v1")
        source.load(name, graph)

    def configure(*names: str) -> None:
        mirrors = [{"source": f"{source.host}/{name}", "targets": [f"{target.host}/{name}"]} for name in names]
        mirror_run.config(mirrors, source, target)

    configure("one")
    process = mirror_run.start("sync", mirror_run.config_file, "--every", "2h", "--listen", "127.0.0.1:0")
    assert process.stdout is not None
    root = process.stdout.readline().split()[0]
    assert root.startswith("http://127.0.0.1:")
    address = f"{root}healthz"
    ended = "ok: the last cycle ended with exit code 0 at "
    assert eventually(lambda: health(address)[1].startswith(ended), WITHIN)
    assert_whole(target, ["one"])
    assert eventually(lambda: threads(process) == IDLE_THREADS, WITHIN)
    idle_files = open_files(process)

    # An invalid configuration is reported, and does not begin a cycle.
    mirror_run.config_file.write_text("version: 1\nmirrors: []\n")
    process.send_signal(signal.SIGHUP)
    wait_for(mirror_run, "reload_failed", 2)
    assert ["run_started", "run_ended", "reload_failed", "reload_failed"] == events(mirror_run)

    # With a valid one, all mirrors are due at once.
    configure("one", "two")
    process.send_signal(signal.SIGHUP)
    wait_for(mirror_run, "run_ended", 2)
    assert_whole(target, ["one", "two"])

    # An error that prevents a cycle does not end the process.
    docker = mirror_run.home / ".docker" / "config.json"
    docker.parent.mkdir()
    docker.write_text("{")
    process.send_signal(signal.SIGHUP)
    wait_for(mirror_run, "cycle_failed")
    docker.unlink()
    process.send_signal(signal.SIGHUP)
    wait_for(mirror_run, "run_ended", 3)

    # While another run holds the lock, cycles are skipped.
    with (mirror_run.state / "lock").open("rb+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for count in range(1, 4):
            process.send_signal(signal.SIGHUP)
            wait_for(mirror_run, "cycle_skipped", count)
        assert eventually(lambda: health(address)[0] == 503, WITHIN)
        assert f"ended with exit code {BUSY} at" in health(address)[1]
    process.send_signal(signal.SIGHUP)
    assert eventually(lambda: health(address)[1].startswith(ended), WITHIN)
    assert 4 == events(mirror_run).count("run_ended")
    assert eventually(lambda: threads(process) == IDLE_THREADS, WITHIN)
    assert idle_files == open_files(process)

    metrics = {line.partition("{")[0]: line.rpartition(" ")[2] for line in health(f"{root}metrics")[1].splitlines()}
    assert "0.0" == metrics["mirror_last_run_exit_code"]
    status, page = health(root)
    assert 200 == status
    assert mirror_run.report()["run"] in page

    process.send_signal(signal.SIGTERM)
    ran = mirror_run.finish(process)
    assert 143 == ran.code, ran
    assert "mirrors: expected a list with at least one entry, got an empty list" in ran.err
    assert "this cycle is skipped: another run holds the lock" in ran.err
    assert "this cycle failed: " in ran.err


def test_a_service_that_cannot_begin_ends_at_once(mirror_run: MirrorTool) -> None:
    mirror_run.config([{"source": "a.example.com/app", "targets": ["-"]}])
    assert "a stream can be copied only once" in mirror_run.sync("--every", "1h", expect=2).err
    mirror_run.config([{"source": "a.example.com/app", "targets": ["oci:out"]}])
    mirror_run.state.write_text("a file")
    assert "is not a directory" in mirror_run.sync("--every", "1h", expect=4).err


def test_sigterm_interrupts_a_cycle_within_seconds_and_the_exit_code_is_0(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    source, target = scripted("source"), scripted("target")
    graph = Graph("stopped")
    graph.image("v1")
    source.load("app", graph)
    target.fault("PUT upload", nth=1, times=FOREVER, stall=threading.Event())
    mirrors = [{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}]
    mirror_run.config(mirrors, source, target)
    process = mirror_run.start("sync", mirror_run.config_file, "--every", "2h")
    assert target.journal.wait_for("PUT upload")
    process.send_signal(signal.SIGTERM)
    ran = mirror_run.finish(process, timeout=10)
    assert 143 == ran.code, ran
    assert 143 == mirror_run.report()["exit"]
    assert [] == target.uploads
