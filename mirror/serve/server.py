"""`mirror serve`: the command, the listening socket, and a thread for each connection."""

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

from mirror.errors import ConfigError, LocalError, Refused, printable
from mirror.layout.bundle.completeness import find_gaps
from mirror.layout.bundle.store import BundleStore
from mirror.layout.bundle.verify import missing_path_error
from mirror.layout.directory import LayoutStore
from mirror.oci.reference import is_path
from mirror.output.console import Console, print_lines
from mirror.serve.connection import ServerConnection
from mirror.serve.handlers import RegistryHandler
from mirror.serve.messages import Headers, ServerRequest, ServerResponse
from mirror.serve.pushes import PushHandler
from mirror.serve.tls import HANDSHAKE_TIMEOUT, server_context, wrap_connection
from mirror.store import Source
from mirror.util.cancellation import Stop, Work
from mirror.util.signals import Signals

LISTEN = "127.0.0.1:5000"
MAX_CONNECTIONS = 200
_BACKLOG = 128
_REGISTRY_HEADERS = (("Docker-Distribution-API-Version", "registry/2.0"),)
_PUBLISH_INTERVAL = 1.0  # seconds between two writes of index.json after pushes
_POLL_INTERVAL = 0.5  # seconds between two checks whether a connection has ended
_SHUTDOWN_TIMEOUT = 5.0  # seconds to wait for connections to end

_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})")


def serve(
    path: Path,
    *,
    listen: str = LISTEN,
    writable: bool = False,
    certificate: Path | None = None,
    key: Path | None = None,
) -> int:
    """Serve a layout or bundle until a signal arrives. Return the exit code.

    certificate, key: PEM files for https; without them, http is used. Raises ConfigError, LocalError, Refused,
    LockBusy."""
    host, port = parse_address(listen)
    tls = server_context(certificate, key)
    if writable and not _is_loopback(host):
        raise ConfigError(
            f"refused --writable with --listen {printable(listen, 80)}: anyone who can reach this address could push",
            hint="with --writable, listen on a loopback address such as 127.0.0.1:5000",
        )
    stop = Stop()
    with (
        Signals() as signals,
        open_handler(path, stop, writable=writable) as handler,
        RegistryServer(handler, host, port, stop=stop, tls=tls) as server,
    ):
        mode = "accepts pushes" if writable else "read-only"
        print_lines([f"http{'s' if tls else ''}://{server.address}/ serves {printable(path)} ({mode})"])
        while signals.number is None:
            signals.wait()
        return signals.exit_code


def parse_address(text: str) -> tuple[str, int]:
    """Parse the address `HOST:PORT` in --listen. Return the host and port. Raises ConfigError.

    Port 0 means that the system selects a free port. Without a host, the host is 127.0.0.1."""
    found = _ADDRESS.fullmatch(text if not text.startswith(":") else f"127.0.0.1{text}")
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(
            f"--listen: expected HOST:PORT, got {printable(text, 80)!r}", hint="for example 127.0.0.1:5000"
        )
    return found["host"].strip("[]"), int(found["port"])


def _is_loopback(host: str) -> bool:
    """Return whether the host is localhost or a loopback address."""
    if host.lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


@contextmanager
def open_handler(
    path: Path, stop: Stop, *, writable: bool = False
) -> Iterator[Callable[[ServerRequest], ServerResponse]]:
    """Return a context manager that opens the layout or bundle at `path` and yields the function that answers requests.

    The layout or bundle is closed when the `with` block exits. Raises ConfigError, LocalError, Refused, LockBusy."""
    work = Work(stop)
    default_repository = _default_repository(path)
    with ExitStack() as stack:
        if writable:
            if path.is_file() or (path.suffix == ".tar" and not path.is_dir()):
                raise ConfigError(
                    f"{printable(path)} is not a directory",
                    hint="--writable needs a layout; a bundle does not accept pushes",
                )
            store = LayoutStore(path, adopts=[default_repository], new=True)
            stack.callback(store.close)
            store.begin((), work)
            pushes = PushHandler(store, work, path)
            stack.callback(pushes.close)
            stack.enter_context(_publish_periodically(store, work))
            yield RegistryHandler(store, work, default_repository=default_repository, pushes=pushes).handle
        else:
            source = _open_source(path, default_repository, stack)
            _check_source(source, work)
            yield RegistryHandler(source, work, default_repository=default_repository).handle


def _default_repository(path: Path) -> str:
    """Return the name of the repository to which tags without a repository name are assigned.

    This is the name of the file or directory, or `layout` if that is not a valid repository name."""
    name = path.resolve().name.removesuffix(".tar").lower()
    return name if is_path(name) else "layout"


def _open_source(path: Path, default_repository: str, stack: ExitStack) -> Source:
    """Open the layout or bundle at `path` for reading. stack: closes the store."""
    if not path.exists():
        raise missing_path_error(path)
    if path.is_dir():
        layout = LayoutStore(path, adopts=[default_repository])
        stack.callback(layout.close)
        return layout
    bundle = BundleStore(path, str(path), spool=path.parent, adopts=[default_repository])
    stack.callback(bundle.close)
    return bundle


def _check_source(source: Source, work: Work) -> None:
    """Before the first request, check that the store is a readable layout or a complete bundle.

    If a bundle says that images could not be exported to it, only print a warning, because all its other images are
    complete. Raises Refused if the store cannot be served."""
    list(source.repositories("", work))
    if not isinstance(source, BundleStore):
        return
    bundle = source.reader(work)
    base = bundle.inventory.base if bundle.inventory is not None else {}
    if base:
        raise Refused(
            f"{source.host} cannot be served, because it leaves out {len(base)} blobs that its base has",
            hint="import it into a registry that has its base, or export without `base`",
            code="bundle_incomplete",
        )
    found = list(find_gaps(bundle, work))
    if found:
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise Refused(
            f"{source.host} is damaged or incomplete: {found[0]}{more}",
            hint="`mirror bundle verify` lists all problems; copy the bundle again",
            code="bundle_incomplete",
        )
    incomplete_error = bundle.incomplete_error()
    if incomplete_error is not None:
        Console(sys.stderr).write_line(f"mirror: warning: {incomplete_error.what}; all other images are served")


@contextmanager
def _publish_periodically(store: LayoutStore, work: Work) -> Iterator[None]:
    """Return a context manager that writes index.json within _PUBLISH_INTERVAL seconds after each push.

    The file is also written when the `with` block exits. Raises LocalError if the last write fails."""
    ended = threading.Event()

    def run() -> None:
        """Write index.json periodically until the `with` block exits."""
        while not ended.wait(_PUBLISH_INTERVAL):
            with suppress(LocalError):  # such as a full disk: the next push and the last write report it
                store.finish(whole=True, work=work)

    thread = threading.Thread(target=run, name="serve-publish")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        store.finish(whole=True, work=work)


class RegistryServer:
    """A server that accepts connections during a `with` block, and serves each connection on its own thread.

    At most `max_connections` are open at a time: a further connection replaces the one that has been idle longest, or
    waits if none is idle. stop: requested when the block exits, before anything else, to end requests in progress. tls:
    the context for https; None for http. handshake_timeout: seconds for a TLS handshake. headers: sent with every
    response."""

    def __init__(
        self,
        handler: Callable[[ServerRequest], ServerResponse],
        host: str,
        port: int,
        *,
        stop: Stop,
        max_connections: int = MAX_CONNECTIONS,
        tls: ssl.SSLContext | None = None,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
        headers: Headers = _REGISTRY_HEADERS,
    ) -> None:
        self._handler = handler
        self._headers = headers
        self._tls, self._handshake_timeout = tls, handshake_timeout
        self._max_connections = max_connections
        self._stop = stop
        self._changed = threading.Condition()
        self._connections: dict[ServerConnection, threading.Thread] = {}
        self._closing = False
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise LocalError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                hint="choose another address with --listen; with port 0, the system selects a free port",
            ) from error
        bound = self._listener.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        self._acceptor = threading.Thread(target=self._accept, name="serve-accept")

    def __enter__(self) -> RegistryServer:
        self._acceptor.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the listener and all connections. Raises LocalError if a thread does not end in time."""
        self._stop.request("the server is shutting down")
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        # close() alone does not interrupt a blocked accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(_SHUTDOWN_TIMEOUT)
        self._listener.close()
        with self._changed:
            remaining = dict(self._connections)
        for connection in remaining:
            _shut_down_socket(connection.client_socket)
        deadline = time.monotonic() + _SHUTDOWN_TIMEOUT
        for thread in remaining.values():
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                hint = "the disk that contains the layout or bundle may not be responding"
                raise LocalError(f"a client connection did not close within {_SHUTDOWN_TIMEOUT:g} s", hint=hint)

    def _accept(self) -> None:
        """Accept connections until the server shuts down."""
        while True:
            try:
                raw_socket, peer = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                time.sleep(_POLL_INTERVAL)  # too many open files: wait until some connections have ended
                continue
            if not self._wait_for_capacity():
                raw_socket.close()
                return
            if self._tls is not None:
                try:
                    # This does not do the handshake; the thread of the connection does it.
                    raw_socket = wrap_connection(raw_socket, self._tls, self._handshake_timeout)
                except OSError:
                    continue
            connection = ServerConnection(raw_socket, peer, self._handler, self._headers)
            thread = threading.Thread(target=self._run, args=(connection,), name=f"serve-{peer[1]}")
            with self._changed:
                self._connections[connection] = thread
            thread.start()

    def _wait_for_capacity(self) -> bool:
        """Wait until another connection may be served. Return True, or False if the server is shutting down."""
        while True:
            with self._changed:
                if self._closing:
                    return False
                if len(self._connections) < self._max_connections:
                    return True
                idle = [(since, one) for one in self._connections if (since := one.idle_since) is not None]
            if idle:
                _shut_down_socket(min(idle, key=lambda pair: pair[0])[1].client_socket)
            with self._changed:
                if len(self._connections) >= self._max_connections and not self._closing:
                    self._changed.wait(_POLL_INTERVAL)

    def _run(self, connection: ServerConnection) -> None:
        """Serve one connection until it ends, then close its socket."""
        try:
            connection.run()
        finally:
            connection.client_socket.close()
            with self._changed:
                self._connections.pop(connection, None)
                self._changed.notify_all()


def _shut_down_socket(connection: socket.socket) -> None:
    """Shut down a socket. This interrupts calls that are blocked on it.

    SSLSocket.shutdown is not used, because it discards the TLS object, which another thread may be using."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
