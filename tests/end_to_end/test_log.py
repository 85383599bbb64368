"""Another process holds the lock of the log file: the run ends in time, with exit code 4."""

from __future__ import annotations

import fcntl
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mirror.errors import LOCAL
from tests.conftest import ScriptedFactory
from tests.registries.faults import FOREVER
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.tool import MirrorTool

# Seconds from the signal to the end. The limit is 5 s; a busy machine gets twice as much.
WITHIN = 10.0


def prepared(scripted: ScriptedFactory, tool: MirrorTool) -> ScriptedRegistry:
    """Return the target of one image."""
    source, target = scripted("source"), scripted("target")
    graph = Graph("log")
    graph.image("v1")
    source.load("app", graph)
    tool.config([{"source": f"{source.host}/app", "targets": [f"{target.host}/app"]}], source, target)
    return target


@contextmanager
def held(directory: Path) -> Iterator[None]:
    with (directory / ".__mirror.lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        yield


def test_log_lines_lost_because_of_a_held_lock_make_the_run_exit_4(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target, go_on = prepared(scripted, mirror_run), threading.Event()
    fault = target.fault("PUT manifest", stall=go_on)
    process = mirror_run.start("sync", mirror_run.config_file)
    assert fault.fired.wait(60)
    with held(mirror_run.state):
        go_on.set()
        ran = mirror_run.finish(process)
    assert LOCAL == ran.code
    assert LOCAL == mirror_run.report()["exit"]
    assert {"copied"} == {image["result"] for image in mirror_run.report()["images"]}
    assert "another process holds its lock" in ran.err
    assert "lines of the log file were lost" in ran.err


def test_a_signal_ends_a_run_in_time_although_another_process_holds_the_log_lock(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    target = prepared(scripted, mirror_run)
    fault = target.fault("PUT manifest", times=FOREVER, stall=threading.Event())
    process = mirror_run.start("sync", mirror_run.config_file)
    assert fault.fired.wait(60)
    with held(mirror_run.state):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        seconds = time.monotonic() - began
    ran = mirror_run.finish(process)
    assert 128 + signal.SIGTERM == code == ran.code == mirror_run.report()["exit"]
    assert seconds < WITHIN
    assert "lines of the log file were lost" in ran.err
    for line in (mirror_run.state / "mirror.log").read_text("ascii").splitlines():
        json.loads(line)
