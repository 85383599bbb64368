"""`mirror serve`: a registry over a layout or a bundle."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mirror.errors import SIGNALLED, ConfigError, LocalError, Refused, printable
from mirror.layout.bundle.completeness import gaps
from mirror.layout.bundle.store import Bundle
from mirror.layout.bundle.verify import absent
from mirror.layout.directory import LayoutStore
from mirror.oci.reference import is_path
from mirror.output.console import Console, print_lines
from mirror.serve.connection import Connection
from mirror.serve.handlers import Registry
from mirror.serve.messages import Request, Response
from mirror.serve.pushes import Pushes
from mirror.serve.tls import HANDSHAKE, secured, server_context
from mirror.store import Source
from mirror.util.cancellation import Stop, Work
from mirror.util.signals import Signals

LISTEN = "127.0.0.1:5000"
MOST_CONNECTIONS = 200
_BACKLOG = 128
_TICK = 1.0  # seconds between two looks whether something was pushed
_LOOK_EVERY = 0.5  # seconds between two looks whether a connection has ended
_PATIENCE = 5.0  # seconds for the connections to end

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})")


def serve(
    path: Path,
    *,
    listen: str = LISTEN,
    writable: bool = False,
    certificate: Path | None = None,
    key: Path | None = None,
) -> int:
    """Serve until a signal comes; by https with a certificate and its key (PEM files), else by http.

    -> the exit code. Raises ConfigError, LocalError, Refused, LockBusy."""
    host, port = address(listen)
    tls = server_context(certificate, key)
    if writable and not _is_loopback(host):
        raise ConfigError(
            f"--writable on {printable(listen, 80)}: everybody who reaches it could write",
            hint="with --writable listen on a loopback address, like 127.0.0.1:5000",
        )
    stop = Stop()
    with (
        Signals() as signals,
        served(path, stop, writable=writable) as answer,
        Server(answer, host, port, stop=stop, tls=tls) as server,
    ):
        what = "takes pushes" if writable else "read-only"
        print_lines([f"http{'s' if tls else ''}://{server.address}/ serves {printable(path)} ({what})"])
        while signals.number is None:
            signals.wait()
        return SIGNALLED + signals.number


def address(text: str) -> tuple[str, int]:
    """HOST:PORT of --listen; port 0: one that is free. Raises ConfigError."""
    found = _ADDRESS.fullmatch(text if not text.startswith(":") else f"127.0.0.1{text}")
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(f"--listen: want HOST:PORT, got {printable(text, 80)!r}", hint="for example 127.0.0.1:5000")
    return found["host"].strip("[]"), int(found["port"])


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


@contextmanager
def served(path: Path, stop: Stop, *, writable: bool = False) -> Iterator[Callable[[Request], Response]]:
    """Answers for requests to the layout or bundle at `path`. Raises ConfigError, LocalError, Refused, LockBusy."""
    work = Work(stop)
    bare = _bare_name(path)
    with ExitStack() as stack:
        if writable:
            if path.is_file() or (path.suffix == ".tar" and not path.is_dir()):
                raise ConfigError(f"{printable(path)} is no directory", hint="only a layout takes pushes, no bundle")
            store = LayoutStore(path, adopts=[bare], new=True)
            stack.callback(store.close)
            store.begin((), work)
            pushes = Pushes(store, work, path)
            stack.callback(pushes.close)
            stack.enter_context(_publishing(store, work))
            yield Registry(store, work, bare=bare, pushes=pushes).answer
        else:
            source = _source(path, bare, stack)
            _usable(source, work)
            yield Registry(source, work, bare=bare).answer


def _bare_name(path: Path) -> str:
    """The repository to which names without one belong: nothing says which, so it is called as the file is."""
    name = path.resolve().name.removesuffix(".tar").lower()
    return name if is_path(name) else "layout"


def _source(path: Path, bare: str, stack: ExitStack) -> Source:
    if not path.exists():
        raise absent(path)
    if path.is_dir():
        layout = LayoutStore(path, adopts=[bare])
        stack.callback(layout.close)
        return layout
    bundle = Bundle(path, str(path), spool=path.parent, adopts=[bare])
    stack.callback(bundle.close)
    return bundle


def _usable(source: Source, work: Work) -> None:
    """What is no layout, or a bundle that does not hold all that it names, is refused at the start, not request by
    request. Images that could not be exported are logged: the others are whole."""
    list(source.repositories("", work))
    if not isinstance(source, Bundle):
        return
    archive = source.archive(work)
    base = archive.inventory.base if archive.inventory is not None else {}
    if base:
        raise Refused(
            f"{source.host} is whole only with its base, which has {len(base)} of its blobs",
            hint="import it into a registry that has its base, or export without `base`",
            code="bundle_incomplete",
        )
    found = list(gaps(archive, work))
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise Refused(
            f"{source.host} is damaged or incomplete: {found[0]}{more}",
            hint="`mirror bundle verify` names everything; bring it over again",
            code="bundle_incomplete",
        )
    lack = archive.incomplete()
    if lack is not None:
        Console(sys.stderr).write_line(f"mirror: warning: {lack.what}; the rest is served")


@contextmanager
def _publishing(store: LayoutStore, work: Work) -> Iterator[None]:
    """Have index.json follow what is pushed, within about a second, and at the end."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(_TICK):
            with suppress(LocalError):  # a full disk: the next push says so, too, and the end does
                store.finish(whole=True, work=work)

    thread = threading.Thread(target=run, name="serve-publish")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.finish(whole=True, work=work)


class Server:
    """Accepts connections, each in a thread of its own, at most `most`. Use with `with`.

    stop: requested at the end, before anything is waited for. tls: what connections are secured with; patience: seconds
    that a client has for its handshake.
    A newcomer for whom there is no place gets that of the connection that was silent longest, or waits."""

    def __init__(
        self,
        answer: Callable[[Request], Response],
        host: str,
        port: int,
        *,
        stop: Stop,
        most: int = MOST_CONNECTIONS,
        tls: ssl.SSLContext | None = None,
        patience: float = HANDSHAKE,
    ) -> None:
        self._answer = answer
        self._tls, self._patience = tls, patience
        self._most = most
        self._stop = stop
        self._changed = threading.Condition()
        self._connections: dict[Connection, threading.Thread] = {}
        self._closing = False
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise LocalError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                hint="choose another address with --listen; port 0 is one that is free",
            ) from error
        bound = self._listener.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="serve-accept")

    def __enter__(self) -> Server:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what is in flight. Raises LocalError: a thread does not end."""
        self._stop.request("the server ends")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # Closing alone would not end an accept that is under way.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(_PATIENCE)
        self._listener.close()
        with self._changed:
            left = dict(self._connections)
        for connection in left:
            _shut(connection.opened)
        deadline = time.monotonic() + _PATIENCE
        for thread in left.values():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                raise LocalError("a connection does not end", hint="its disk may hang")

    def _accept(self) -> None:
        while True:
            try:
                opened, peer = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(_LOOK_EVERY)  # too many open files: they get fewer
                continue
            if not self._place():
                opened.close()
                return
            if self._tls is not None:
                try:
                    opened = secured(opened, self._tls, self._patience)  # its handshake is for its own thread
                except OSError:
                    continue
            connection = Connection(opened, peer, self._answer)
            thread = threading.Thread(target=self._run, args=(connection,), name=f"serve-{peer[1]}")
            with self._changed:
                self._connections[connection] = thread
            thread.start()

    def _place(self) -> bool:
        """Wait until there is a place for one more; False: there will be none."""
        while True:
            with self._changed:
                if self._closing:
                    return False
                if len(self._connections) < self._most:
                    return True
                idle = [(since, one) for one in self._connections if (since := one.idle_since) is not None]
            if idle:
                _shut(min(idle, key=lambda pair: pair[0])[1].opened)
            with self._changed:
                if len(self._connections) >= self._most and not self._closing:
                    self._changed.wait(_LOOK_EVERY)

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            connection.opened.close()
            with self._changed:
                self._connections.pop(connection, None)
                self._changed.notify_all()


def _shut(connection: socket.socket) -> None:
    """Ends what is blocked on it, too. That of TLS would only drop its own layer: the plain one is called."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
