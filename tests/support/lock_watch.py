"""Locks of our modules that know who holds them, and the things that must not be done meanwhile.

Modules of `mirror` get a stand-in for `threading`; its locks are ordinary ones that note the thread that holds them.
When that thread then connects, sends, receives, opens, logs, sleeps, waits, asks SQLite or starts a process, it is
written down with the place; the guard fails the test. Nothing else changes: no call fails because it is watched.
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
    """What was done under a lock since the last call."""
    found, _breaches[:] = list(_breaches), []
    return found


def held() -> list[Any]:
    """The watched locks that the calling thread holds."""
    return list(_held.locks)


def look(doing: str, but: Any = None) -> None:
    """Write down that `doing` happens under a lock, if the calling thread holds one (other than `but`)."""
    if not _held.locks or _held.noting:
        return
    locks = [lock for lock in _held.locks if lock is not but]
    if locks:
        _held.noting = True  # what we do to find out where we are is not meant
        try:
            _breaches.append(f"{doing} while holding {locks[-1]}\n{_where()}")
        finally:
            _held.noting = False


class WatchedLock:
    """A `threading.Lock` that knows its holder. name: where it was made."""

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
        holder = self._holder  # of a plain lock this may be another thread than ours
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
    """A `threading.RLock` that knows its holder; a condition can wait on it."""

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
    """A condition on a watched lock. To wait on it while holding another lock is a breach."""

    def __init__(self, lock: Any = None) -> None:
        self.watched = lock if lock is not None else WatchedRLock(_maker())
        super().__init__(self.watched)  # type: ignore[arg-type]  # it asks for no more than we have

    def wait(self, timeout: float | None = None) -> bool:
        look("waiting on a condition", but=self.watched)
        return super().wait(timeout)


class WatchedEvent(threading.Event):
    """To wait for it while holding a lock is a breach; to ask it is not."""

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set() and timeout != 0:
            look("waiting for an event")
        return super().wait(timeout)


class Threading(ModuleType):
    """Stands in for the module `threading`."""

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
    """From now on, this module makes watched locks. Locks that it has made stay as they are."""
    for name, value in list(vars(module).items()):
        if value is threading:
            setattr(module, name, _stand_in)
        elif name in ("Lock", "RLock", "Condition", "Event") and id(value) in _NAMES:
            setattr(module, name, _NAMES[id(value)])


def watch_package(package: str = "mirror") -> None:
    """Watch every module of a package that is imported by now."""
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(package + "."):
            watch(module)


def install() -> None:
    """Look at what can be seen of input and output in this process. Once; it cannot be undone."""
    sys.addaudithook(_audit)
    for kind in (socket.socket, ssl.SSLSocket):
        for method in _METHODS:
            if hasattr(kind, method):
                setattr(kind, method, _looking(getattr(kind, method), f"socket.{method}"))
    time.sleep = _looking(time.sleep, "time.sleep")  # the audit event is younger than Python 3.11
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
    connection.set_trace_callback(_statement)  # on the thread that runs it
    return connection


def _statement(_: str) -> None:
    if _held.locks:
        look("SQLite")


_sqlite_connect = sqlite3.connect


def _maker() -> str:
    """Where, outside of this file, a lock is being made."""
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "?"


def _where() -> str:
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    return "".join(traceback.format_list(frames[-6:]))
