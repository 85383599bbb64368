"""Each guard is triggered: by calling it, and by a test in an inner pytest that must fail."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.support import guards, leftovers, lock_watch, tripwire
from tests.support.tool import ROOT, MirrorTool

OUTSIDE = "192.0.2.1"  # TEST-NET-1, RFC 5737


# Bodies of tests that must fail, and the reason. The last one must pass.
MISBEHAVIOUR = {
    "thread": (
        "threading.Thread(target=kept.wait, name='forgotten', daemon=True).start()",
        "left over: thread forgotten",
    ),
    "process": ("things.append(subprocess.Popen(['cat'], stdin=subprocess.PIPE))", "left over: process"),
    "socket": ("things.append(socket.create_server(('127.0.0.1', 0)))", "left over: descriptor"),
    "file": ("things.append(open(__file__))", "left over: descriptor"),
    "connection": (
        f"with contextlib.suppress(OSError): socket.create_connection(('{OUTSIDE}', 80), 1)",
        f"left loopback: socket.connect ('{OUTSIDE}', 80)",
    ),
    "lookup": (
        "with contextlib.suppress(OSError): socket.getaddrinfo('example.com', 80)",
        "left loopback: look-up of example.com",
    ),
    "lock": ("with lock_watch.WatchedLock(): time.sleep(0.001)", "time.sleep while holding the Lock made at"),
    "warning": ("warnings.warn('old')", "UserWarning: old"),
    "nothing": (
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "        socket.create_connection(server.getsockname()).close()\n"
        "    subprocess.run(['true'], check=True)\n"
        "    thread = threading.Thread(target=print)\n"
        "    thread.start()\n"
        "    thread.join()",
        "",
    ),
}


@pytest.fixture(scope="session")
def inner(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run all bodies in an inner pytest with the guards. Return what was reported for each; empty: it passed."""
    folder = tmp_path_factory.mktemp("inner")
    (folder / "conftest.py").write_text('pytest_plugins = ("tests.support.guards",)\n')
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    head = "import contextlib, socket, subprocess, threading, time, warnings\nfrom tests.support import lock_watch\n"
    tests = [f"def test_{name}():\n    {body}\n" for name, (body, _) in MISBEHAVIOUR.items()]
    (folder / "test_inner.py").write_text("\n".join([head, "things, kept = [], threading.Event()\n", *tests]))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=report.xml", str(folder)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MIRROR_TESTS_GRACE": "0.1"}
    subprocess.run(command, capture_output=True, timeout=100, env=environment, cwd=folder, check=False)
    said = dict.fromkeys(MISBEHAVIOUR, "")
    for case in ElementTree.parse(folder / "report.xml").iter("testcase"):  # noqa: S314  (pytest wrote it)
        said[case.attrib["name"].removeprefix("test_")] += "".join(f"{found.text}" for found in case)
    return said


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_test_that_breaks_a_rule_fails_and_another_passes(inner: dict[str, str], name: str) -> None:
    _, words = MISBEHAVIOUR[name]
    assert words in inner[name]
    assert bool(words) == bool(inner[name])


def test_things_opened_inside_keep_may_outlive_the_test() -> None:
    before = leftovers.take()
    server = socket.create_server(("127.0.0.1", 0))
    try:
        assert 1 == len(leftovers.left_since(before, grace=0))
        with guards.keep():
            kept = socket.create_server(("127.0.0.1", 0))
        assert 1 == len(leftovers.left_since(before | guards.kept(), grace=0))
        kept.close()
    finally:
        server.close()
    assert [] == leftovers.left_since(before)


# ---- loopback


@pytest.mark.parametrize(
    ("address", "outside"),
    [
        (("127.0.0.1", 1), False),
        (("127.9.9.9", 1), False),
        (("::1", 1, 0, 0), False),
        (("localhost", 1), False),
        ("/run/socket", False),
        ((OUTSIDE, 1), True),
        (("0.0.0.0", 1), True),  # noqa: S104
        (("::ffff:192.0.2.1", 1, 0, 0), True),
        (("fe80::1%eth0", 1, 0, 0), True),
        (("example.com", 1), True),
    ],
    ids=str,
)
def test_only_loopback_addresses_are_allowed(address: object, outside: bool) -> None:
    assert outside == tripwire.is_outside(address)


def test_names_below_invalid_are_not_found_and_not_recorded() -> None:
    with pytest.raises(socket.gaierror, match="not known"):
        socket.getaddrinfo("nowhere.invalid", 80)


def test_the_tool_is_kept_on_loopback_too(mirror_run: MirrorTool) -> None:
    code = f"import socket; socket.create_connection(('{OUTSIDE}', 80), 1)"
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=mirror_run.environment,
        check=False,
        timeout=30,
    )
    assert "OutsideLoopback" in process.stderr
    with pytest.raises(AssertionError, match=f"left loopback: socket.connect .*{OUTSIDE}"):
        mirror_run("--version")


def test_a_run_can_be_restricted_to_one_address(mirror_run: MirrorTool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
        code = f"import socket; [socket.create_connection(('127.0.0.1', port), 5).close() for port in {ports}]"
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**mirror_run.environment, "MIRROR_TESTS_ONLY": f"127.0.0.1:{ports[0]}"},
            check=False,
            timeout=30,
        )
    assert "OutsideLoopback" in process.stderr
    with pytest.raises(AssertionError, match=rf"left loopback: socket.connect .*{ports[1]}\)"):
        mirror_run("--version")


# ---- locks


def module_of_ours(source: str) -> Any:
    """A module that is watched like those of `mirror`."""
    module = ModuleType("mirror_example")
    exec(textwrap.dedent(source), vars(module))  # noqa: S102
    lock_watch.watch(module)
    return module


@pytest.mark.parametrize(
    ("act", "doing"),
    [
        (lambda server: socket.create_connection(server.getsockname()).close(), "socket.connect"),
        (lambda server: time.sleep(0), "time.sleep"),
        (lambda server: Path("/dev/null").read_bytes(), "open"),
        (lambda server: list(Path("/").iterdir()), "os.listdir"),
        (lambda server: subprocess.run(["true"], check=True), "subprocess.Popen"),
        (lambda server: logging.getLogger("x").warning("x"), "logging"),
        (lambda server: sqlite3.connect(":memory:").close(), "sqlite3.connect"),
        (lambda server: threading.Thread(target=print).name, ""),
    ],
    ids=["connect", "sleep", "open", "list", "process", "log", "sqlite", "nothing"],
)
def test_input_and_output_under_a_lock_is_recorded(act: Callable[[socket.socket], object], doing: str) -> None:
    module = module_of_ours("import threading\nlock = None\ndef make(): return threading.Lock()")
    with socket.create_server(("127.0.0.1", 0)) as server:
        act(server)
        assert [] == lock_watch.breaches()
        with module.make():
            act(server)
    found = lock_watch.breaches()
    assert (doing in {breach.split(" ")[0] for breach in found}) == bool(found) == bool(doing)
    assert all("the Lock made at <string>:3" in breach for breach in found)


def test_sending_receiving_and_sql_under_a_lock_are_recorded() -> None:
    lock = lock_watch.WatchedRLock()
    one, other = socket.socketpair()
    with one, other, sqlite3.connect(":memory:", isolation_level=None) as database:
        with lock, lock:
            one.sendall(b"x")
            other.recv(1)
            database.execute("select 1")
        database.execute("select 1")
        one.sendall(b"x")
    database.close()
    assert ["socket.sendall", "socket.recv", "SQLite"] == [breach.split(" ")[0] for breach in lock_watch.breaches()]


def test_waiting_is_recorded_under_another_lock_but_not_under_the_conditions_own() -> None:
    module = module_of_ours("from threading import Condition, Event, Lock, RLock")
    condition, event, lock = module.Condition(), module.Event(), module.Lock()
    with condition:
        condition.wait(0.001)
        assert [condition.watched] == lock_watch.held()
    assert [] == lock_watch.breaches()
    with lock:
        event.wait(0)  # checking does not wait
        event.wait(0.001)
        with condition:
            condition.wait_for(lambda: False, 0.001)
    found = [breach.partition(" while")[0] for breach in lock_watch.breaches()]
    assert ["waiting for an event", "waiting on a condition"] == found[:2]
    assert [] == lock_watch.held()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_watched_locks_are_exclusive(kind: str) -> None:
    lock = getattr(module_of_ours(f"from threading import {kind}"), kind)()
    counted = [0]

    def count() -> None:
        for _ in range(1000):
            with lock:
                counted[0] += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 4000 == counted[0]
    assert not lock.locked()
    assert lock.acquire(timeout=1)
    assert lock.locked()
    assert lock.acquire(blocking=False) == (kind == "RLock")
    while lock in lock_watch.held():
        lock.release()


def test_a_lock_may_be_released_by_another_thread() -> None:
    lock = lock_watch.WatchedLock()
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    assert [] == lock_watch.held()
    assert not lock.locked()


def test_watched_conditions_notify_each_other() -> None:
    condition = module_of_ours("import threading\ndef make(): return threading.Condition(threading.Lock())").make()
    come: list[int] = []

    def bring() -> None:
        with condition:
            come.append(1)
            condition.notify_all()

    thread = threading.Thread(target=bring)
    with condition:
        thread.start()
        assert condition.wait_for(lambda: come, 60)
    thread.join()
    assert [] == lock_watch.breaches()


def test_the_modules_of_mirror_create_watched_locks() -> None:
    from mirror.util.cancellation import Stop  # noqa: PLC0415

    lock_watch.watch_package()
    assert isinstance(vars(Stop())["_lock"], lock_watch.WatchedLock)


# ---- the event loop

BUSY = """
import asyncio
import time

def burn():
    end = time.thread_time() + 0.2
    while time.thread_time() < end:
        pass

async def run():
    time.sleep(0.15)  # of no CPU: what a busy machine adds does not count
    asyncio.get_running_loop().call_soon(burn)
    await asyncio.sleep(0.01)

asyncio.run(run())
"""


FOREIGN = """
import asyncio
import threading

async def run():
    loop = asyncio.get_running_loop()
    for schedule in (loop.call_soon, lambda callback: loop.call_later(1, callback)):
        errors = []

        def use():
            try:
                schedule(print)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        assert "Non-thread-safe" in errors[0]

asyncio.run(run())
"""


def _watched(code: str, found: Path) -> None:
    """Run `code` in a process whose event loop is watched. found: where the records are written."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support' / 'child'}",
        "MIRROR_TESTS_TRIPWIRE": str(found),
        "MIRROR_TESTS_WATCH_LOOP": "1",
    }
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)


def test_a_callback_that_keeps_the_event_loop_of_the_tool_is_found(tmp_path: Path) -> None:
    _watched(BUSY, tmp_path / "found")
    [line] = (tmp_path / "found").read_text().splitlines()
    assert "kept the event loop for 0." in line
    assert "burn" in line


def test_a_callback_that_another_thread_schedules_is_an_error(tmp_path: Path) -> None:
    _watched(FOREIGN, tmp_path / "found")
    assert not (tmp_path / "found").exists()
