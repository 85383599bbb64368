"""Detects input, output and waiting while a lock of a `mirror` module is held.

The modules get a substitute for `threading` whose locks record the thread that holds them. If that thread connects,
sends, receives, opens, logs, sleeps, waits, calls SQLite or starts a process, this is recorded with its position, and
the guard fails the test. Nothing else changes: watching makes no call fail.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import sqlite3
import ssl
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

_EVENTS = frozenset(
    (
        *("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"),
        *("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "os.truncate"),
        *("fcntl.flock", "fcntl.lockf", "shutil.rmtree", "shutil.move", "sqlite3.connect"),
        *("subprocess.Popen", "os.posix_spawn", "os.fork"),
    )
)
_METHODS = ("recv", "recv_into", "recvfrom", "send", "sendall", "sendfile", "accept")


class _Held(threading.local):
    """The watched locks that this thread holds."""

    def __init__(self) -> None:
        self.locks: list[Any] = []
        self.noting = False


_held = _Held()
_breaches: list[str] = []


def breaches() -> list[str]:
    """Return what was done under a lock since the last call."""
    found, _breaches[:] = list(_breaches), []
    return found


def held() -> list[Any]:
    """Return the watched locks that the calling thread holds."""
    return list(_held.locks)


def look(doing: str, but: Any = None) -> None:
    """Record that `doing` happens under a lock, if the calling thread holds one other than `but`."""
    if not _held.locks or _held.noting:
        return
    locks = [lock for lock in _held.locks if lock is not but]
    if locks:
        _held.noting = True  # ignore what this module does to find the position
        try:
            _breaches.append(f"{doing} while holding {locks[-1]}\n{_where()}")
        finally:
            _held.noting = False


class WatchedLock:
    """A `threading.Lock` that knows its holder. name: where it was created."""

    def __init__(self, name: str = "") -> None:
        self._lock, self._holder = self._make(), _held.locks
        self._name = name or _maker()

    @staticmethod
    def _make() -> Any:
        return threading.Lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        got: bool = self._lock.acquire(blocking, timeout)
        if got:
            self._holder = _held.locks
            self._holder.append(self)
        return got

    def release(self) -> None:
        holder = self._holder  # a plain lock may be released by another thread
        self._lock.release()
        with contextlib.suppress(ValueError):
            holder.remove(self)

    def locked(self) -> bool:
        return bool(self._lock.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"the {type(self).__name__.removeprefix('Watched')} made at {self._name}"


class WatchedRLock(WatchedLock):
    """A `threading.RLock` that knows its holder. A condition can wait on it."""

    @staticmethod
    def _make() -> Any:
        return threading.RLock()

    def locked(self) -> bool:
        return self in _held.locks

    def _is_owned(self) -> bool:
        return bool(self._lock._is_owned())

    def _release_save(self) -> tuple[Any, int]:
        count = _held.locks.count(self)
        _held.locks[:] = [lock for lock in _held.locks if lock is not self]
        return self._lock._release_save(), count

    def _acquire_restore(self, saved: tuple[Any, int]) -> None:
        state, count = saved
        self._lock._acquire_restore(state)
        self._holder = _held.locks
        self._holder.extend([self] * count)


class WatchedCondition(threading.Condition):
    """A condition on a watched lock. Waiting while another lock is held is a breach."""

    def __init__(self, lock: Any = None) -> None:
        self.watched = lock if lock is not None else WatchedRLock(_maker())
        super().__init__(self.watched)  # type: ignore[arg-type]  # it asks for no more than we have

    def wait(self, timeout: float | None = None) -> bool:
        look("waiting on a condition", but=self.watched)
        return super().wait(timeout)


class WatchedEvent(threading.Event):
    """An event. Waiting for it while a lock is held is a breach; checking it is not."""

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set() and timeout != 0:
            look("waiting for an event")
        return super().wait(timeout)


class Threading(ModuleType):
    """A substitute for the module `threading`."""

    Lock = WatchedLock
    RLock = WatchedRLock
    Condition = WatchedCondition
    Event = WatchedEvent

    def __getattr__(self, name: str) -> Any:
        return getattr(threading, name)


_stand_in = Threading("threading")
_NAMES = {
    id(threading.Lock): WatchedLock,
    id(threading.RLock): WatchedRLock,
    id(threading.Condition): WatchedCondition,
    id(threading.Event): WatchedEvent,
}


def watch(module: ModuleType) -> None:
    """Let a module create watched locks from now on. Its existing locks are not changed."""
    for name, value in list(vars(module).items()):
        if value is threading:
            setattr(module, name, _stand_in)
        elif name in ("Lock", "RLock", "Condition", "Event") and id(value) in _NAMES:
            setattr(module, name, _NAMES[id(value)])


def watch_package(package: str = "mirror") -> None:
    """Watch every imported module of a package."""
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(package + "."):
            watch(module)


def install() -> None:
    """Observe input and output of this process. Called once; cannot be undone."""
    sys.addaudithook(_audit)
    for kind in (socket.socket, ssl.SSLSocket):
        for method in _METHODS:
            if hasattr(kind, method):
                setattr(kind, method, _looking(getattr(kind, method), f"socket.{method}"))
    time.sleep = _looking(time.sleep, "time.sleep")  # the audit event is newer than Python 3.11
    sqlite3.connect = _connect  # type: ignore[assignment]  # as it is called, not as it is typed
    logging.Logger.handle = _looking(logging.Logger.handle, "logging")  # type: ignore[method-assign]


def _looking(call: Callable[..., Any], doing: str) -> Callable[..., Any]:
    @functools.wraps(call)
    def looked(*arguments: Any, **options: Any) -> Any:
        if _held.locks:
            look(doing)
        return call(*arguments, **options)

    return looked


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and _held.locks:
        look(f"{event} {arguments[:1]}")


def _connect(*arguments: Any, **options: Any) -> sqlite3.Connection:
    connection: sqlite3.Connection = _sqlite_connect(*arguments, **options)
    connection.set_trace_callback(_statement)  # called on the thread that runs the statement
    return connection


def _statement(_: str) -> None:
    if _held.locks:
        look("SQLite")


_sqlite_connect = sqlite3.connect


def _maker() -> str:
    """Return the position outside of this file where a lock is created."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"


def _where() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    return "".join(traceback.format_list(frames[-6:]))
