"""TLS connections with the settings of a registry: contexts, handshakes, sessions and errors."""

from __future__ import annotations

import select
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from mirror.errors import LocalError, MirrorError, NetworkError, Refused, RemoteError, Unreachable, printable
from mirror.registry.http.connection import MAX_WRITE, Connection
from mirror.registry.http.host_settings import TlsSettings
from mirror.util.config_key import registry_key
from mirror.util.tls_socket import TlsSocket

# Files with the system's certificate authorities. They are used if OpenSSL's default paths contain none, because this
# OpenSSL was built for a different system.
_CA_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED
_VALIDITY_ERRORS = {9: "is not valid yet", 10: "has expired"}


class TlsClient:
    """A TLS client with the settings of one registry. Creates contexts and performs handshakes. Thread-safe."""

    def __init__(self, tls: TlsSettings, key: str) -> None:
        """Create a TLS client. `key` is the registry's name in the configuration, for errors."""
        self._tls = tls
        self._key = key
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._sessions: dict[tuple[ssl.SSLContext, str], ssl.SSLSession] = {}  # the latest for each host and port

    def context(self, *, for_registry: bool) -> ssl.SSLContext:
        """Return the TLS context for the registry or for other hosts. The context is created on first use.

        If `for_registry` is true, the context is for the registry and its token service. Otherwise, it is for hosts
        that they name: it has no client certificate, and it accepts the certificate authorities of the system in
        addition to those of the registry. Raises LocalError if a certificate file cannot be loaded."""
        context = self._contexts.get(for_registry)
        if context is None:  # if two threads create one, either may be used
            context = self._contexts[for_registry] = self._new_context(for_registry=for_registry)
        return context

    def connect(
        self, sock: socket.socket, context: ssl.SSLContext, host: str, *, subject: str, peer: str | None
    ) -> TlsConnection:
        """Perform a TLS handshake over a connected socket and return the connection.

        An earlier TLS session is resumed if possible. `host` is the name that the certificate must match. `subject` is
        the host and port, for errors. The connection takes over the socket with its timeout; on errors, the socket
        is closed. Raises NetworkError, RemoteError (tls_error), Refused (tls_error), Unreachable."""
        with sock:  # has no effect after the handshake has started, because the descriptor is detached then
            try:
                host.encode("idna")  # wrap_socket() would do this too late to close the socket on errors
                session = self._sessions.get((context, subject))
                secured = context.wrap_socket(sock, server_hostname=host, session=session)
                return TlsConnection(secured, subject, peer, self._sessions)
            except OSError as error:  # includes SSLError
                raise _handshake_error(error, subject, self._key) from error
            except ValueError as error:  # the name is not valid in IDNA
                raise Unreachable(f"{subject}: the host name is not valid: {printable(error)}") from error

    def connect_inside(
        self, outer: TlsConnection, context: ssl.SSLContext, host: str, *, subject: str
    ) -> TlsConnection:
        """Perform a TLS handshake with `host` inside `outer`, the TLS connection to a proxy. Closes `outer` on errors.

        Raises the errors of `connect`."""
        from urllib3.util.ssltransport import SSLTransport  # noqa: PLC0415 (importing urllib3 takes 0.1 s)

        try:
            ssl_socket = SSLTransport(outer.ssl_socket, context, server_hostname=host, suppress_ragged_eofs=False)
        except OSError as error:
            outer.close()
            raise _handshake_error(error, subject, self._key) from error
        except ValueError as error:
            outer.close()
            raise Unreachable(f"{subject}: the host name is not valid: {printable(error)}") from error
        return _NestedTlsConnection(ssl_socket, outer.ssl_socket, subject)

    def _new_context(self, *, for_registry: bool) -> ssl.SSLContext:
        """Create the TLS context that `context` returns. Raises LocalError if a certificate file cannot be loaded."""
        tls = self._tls
        # create_default_context() would use the environment variables SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = TlsSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        context.post_handshake_auth = True  # a server may request the client certificate for some paths
        context.hostname_checks_common_name = False  # only subjectAltName counts: RFC 9525, 2
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # `tls.ca` may be an intermediate certificate
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            if tls.ca is None or not for_registry:
                _load_system_ca(context)
            if tls.ca is not None:
                _load_ca(context, tls.ca)
        if for_registry and tls.cert is not None:
            _load_client_certificate(context, tls.cert, tls.key)
        return context


def _load_system_ca(context: ssl.SSLContext) -> None:
    """Add the certificate authorities of the system to `context`."""
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    if file.is_file():
        context.load_verify_locations(cafile=file)
    if folder.is_dir():
        context.load_verify_locations(capath=folder)
    if not file.is_file() and not (folder.is_dir() and any(folder.glob("*.0"))):
        bundle = next((path for path in _CA_BUNDLES if Path(path).is_file()), None)
        if bundle:
            context.load_verify_locations(cafile=bundle)


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    """Add the certificate authorities of a PEM file to `context`. Raises LocalError if the file cannot be loaded."""
    try:
        context.load_verify_locations(cafile=ca)
    except OSError as error:  # includes SSLError
        text = f"cannot load certificate authorities from {ca}: {_error_reason(error)}"
        raise LocalError(text, hint="`tls.ca` must be a PEM file with certificates") from error


def _load_client_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """Load the client certificate and its key. If `key` is None, the file `cert` also contains the key.

    Raises LocalError if a file cannot be loaded."""
    try:
        context.load_cert_chain(cert, key, password="")  # an encrypted key is an error, without a prompt on a terminal
    except OSError as error:
        hint = "`tls.cert` and `tls.key` must be PEM files, and the key must not be encrypted"
        text = f"cannot load the client certificate from {cert}" + (f" and {key}" if key else "")
        raise LocalError(f"{text}: {_error_reason(error)}", hint=hint) from error


def _error_reason(error: OSError) -> str:
    """Return a short description of the cause of a file error or a TLS error."""
    if isinstance(error, ssl.SSLError):
        return printable((error.reason or str(error)).lower().replace("_", " "), 120)
    return error.strerror or printable(error, 120)


class TlsConnection(Connection):
    """An open TLS connection. Later connections to the same host can resume its TLS session."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        subject: str,
        peer: str | None,
        sessions: dict[tuple[ssl.SSLContext, str], ssl.SSLSession],
    ) -> None:
        """Wrap a socket whose TLS handshake is complete.

        Its TLS session is stored in `sessions`, so that later connections can resume it. `peer` is the IP
        address of the peer, or None behind a proxy."""
        super().__init__(sock, subject, peer)
        self._sessions, self._name = sessions, subject
        # If the peer closes the connection without close_notify, a read must fail. Only typeshed treats this attribute
        # as private.
        sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        self._ssl_socket = sock

    def end_exchange(self) -> None:
        """End an exchange and store the TLS session."""
        if not self.reused:  # with TLS 1.3, the server sends its tickets after the handshake
            session = self._ssl_socket.session
            if session is not None and session.has_ticket:
                self._sessions[self._ssl_socket.context, self._name] = session
        super().end_exchange()

    def _send_close_notify(self) -> None:
        """Send a close_notify alert (RFC 8446, 6.1), without waiting for the peer's alert."""
        with suppress(OSError, ValueError):  # the connection failed, its buffer is full, or there was no handshake
            self.set_timeout(0.0)
            self._ssl_socket.unwrap()

    @property
    def ssl_socket(self) -> ssl.SSLSocket:
        """The TLS socket of the connection."""
        return self._ssl_socket

    def is_readable(self) -> bool:
        """Return whether a read would not block. The TLS layer may have bytes in its buffer."""
        return super().is_readable() or self._ssl_socket.pending() > 0

    def send_some(self, view: memoryview) -> int:
        """Send at most MAX_WRITE bytes of `view`. Return their number, or 0 if received bytes must be read first."""
        return super().send_some(view[:MAX_WRITE])

    def _blocking_events(self, error: OSError) -> int:
        """Return the poll events to wait for if `error` means that the call would block, or 0 for any other error."""
        if isinstance(error, ssl.SSLWantWriteError):
            return select.POLLIN | select.POLLOUT
        return select.POLLIN if isinstance(error, ssl.SSLWantReadError) else super()._blocking_events(error)

    def _translate(self, error: OSError) -> MirrorError:
        """Return the MirrorError for a socket error, or for a TLS alert from the peer."""
        error = self._read_alert() or error
        if isinstance(error, ssl.SSLEOFError):
            return NetworkError(f"{self.subject}: the TLS connection ended without close_notify", code="truncated")
        return _connection_error(self.subject, error) if isinstance(error, ssl.SSLError) else super()._translate(error)

    def _read_alert(self) -> ssl.SSLError | None:
        """Return the TLS alert that the peer sent, or None. An alert can still be read after a write has failed."""
        self.set_timeout(0.0)
        try:
            self._ssl_socket.recv_into(self._buffer)
        except ssl.SSLError as error:
            return error if "ALERT" in (error.reason or "") else None
        except OSError:
            return None
        return None


class _NestedTlsConnection(TlsConnection):
    """A TLS connection inside the TLS connection to a proxy. Its socket is an SSLTransport from urllib3."""

    def __init__(self, ssl_socket: Any, outer: ssl.SSLSocket, subject: str) -> None:
        super().__init__(ssl_socket, subject, None, {})
        self._inner = ssl_socket
        self._outer = outer

    def end_exchange(self) -> None:
        """End an exchange. The TLS session is not stored."""
        Connection.end_exchange(self)

    def abort(self) -> None:
        """Shut down the connection to the proxy. May be called from any thread."""
        with self._lock, suppress(OSError):
            if self._open:
                socket.socket.shutdown(self._outer, socket.SHUT_RDWR)

    def is_readable(self) -> bool:
        """Return whether a read would not block. Both TLS layers may have bytes in their buffers."""
        buffered = self._inner.sslobj.pending() or self._inner.incoming.pending or self._outer.pending()
        return buffered > 0 or Connection.is_readable(self)

    def send_some(self, view: memoryview) -> int:
        """Send at most MAX_WRITE bytes of `view`. Return the number of bytes sent.

        Blocks, because a partial write would lose bytes."""
        started = monotonic()
        self._apply_timeout(started)
        try:
            count: int = self._inner.send(view[:MAX_WRITE])
        except OSError as error:
            self._raise_error(error)
        self._stop.raise_if_requested()
        if self._timeouts.record_progress(monotonic() - started, count):
            raise self._too_slow_error()
        return count


def _connection_error(subject: object, error: ssl.SSLError) -> MirrorError:
    """Return the MirrorError for a TLS error that occurred after the handshake."""
    reason = (error.reason or "").lower().replace("_", " ")
    # With TLS 1.3, the server rejects a client certificate only after the handshake.
    if "alert" in reason and "certificate" in reason:
        return Refused(
            f"{subject}: the server rejected the client certificate: {reason}",
            code="tls_error",
            hint="set `tls.cert` and `tls.key` for this registry to a certificate and key that the server accepts",
        )
    return NetworkError(f"{subject}: the TLS connection failed: {reason or error}")


def _handshake_error(error: OSError, host: str, key: str) -> MirrorError:
    """Return the error for a failed handshake with `host`. `key` is the registry's name in the configuration."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = _VALIDITY_ERRORS.get(error.verify_code)
        if why:
            return Refused(
                f"{host}: the server's certificate {why}",
                code="tls_error",
                hint="check the clock of this machine; if it is correct, renew the certificate of the host",
            )
        hint = f"if the certificate was issued by a private authority, set {registry_key(key, 'tls', 'ca')}"
        text = f"{host}: the server's certificate is not trusted: {error.verify_message}"
        return Refused(text, code="tls_error", hint=hint)
    if isinstance(error, TimeoutError):
        return NetworkError(f"{host}: the TLS handshake timed out", code="timeout", host=host)
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return _ssl_error(error, host, key)
    return NetworkError(f"{host}: the connection ended during the TLS handshake: {_error_reason(error)}", host=host)


def _ssl_error(error: ssl.SSLError, host: str, key: str) -> MirrorError:
    """Return the MirrorError for a TLS error during the handshake, with a hint for a likely cause."""
    reason = _error_reason(error)
    hint = ""
    if any(word in reason for word in ("wrong version number", "http request", "packet length", "record layer")):
        hint = f"if the host uses plain http, set {registry_key(key, 'plain-http')}, or use --plain-http with `copy`"
    elif "certificate" in reason:
        hint = f"if the host requires a client certificate, set {registry_key(key, 'tls', 'cert')} and `tls.key`"
    return RemoteError(f"{host}: the TLS handshake failed: {reason}", code="tls_error", hint=hint, retryable=False)
