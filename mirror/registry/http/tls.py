"""TLS as the operator set it for a host: contexts, handshakes, connections, and what their failures mean."""

from __future__ import annotations

import select
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from mirror.errors import LocalError, MirrorError, NetworkError, Refused, RemoteError, Unreachable, printable
from mirror.registry.http.connection import SLICE, Connection
from mirror.registry.http.host_settings import Tls
from mirror.util.config_key import registry_key
from mirror.util.tls_socket import TlsSocket

# Where the system's authorities are, when OpenSSL was not built for this system.
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_CLOCK = {9: "not valid yet", 10: "expired"}  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


class Handshakes:
    """TLS by one registry's settings. Thread-safe (a context made twice is harmless).

    key: the registry's name in the configuration, for errors."""

    def __init__(self, tls: Tls, key: str) -> None:
        self._tls = tls
        self._key = key
        self._made: dict[bool, ssl.SSLContext] = {}
        self._sessions: dict[tuple[ssl.SSLContext, str], ssl.SSLSession] = {}  # the last one with each host and port

    def context(self, *, own: bool) -> ssl.SSLContext:
        """own: for the registry and its token service; otherwise for hosts that it leads to, which never see
        the client certificate and may be certified by the system's authorities as well as by the registry's.

        Made when it is first needed. Raises LocalError if a file is not usable."""
        found = self._made.get(own)
        if found is None:
            found = self._made[own] = self._new_context(own=own)
        return found

    def connection(
        self, sock: socket.socket, context: ssl.SSLContext, host: str, *, subject: str, peer: str | None
    ) -> SecureConnection:
        """Shake hands over a connected socket, whose timeout stays: with `host`, to whom the certificate must be given,
        or with whom an earlier handshake is taken up again. subject: host and port.

        The socket is the connection's afterwards, or closed. Raises NetworkError, RemoteError (tls_error), Refused
        (tls_error), Unreachable."""
        with sock:  # it is none any more once the handshake has begun
            try:
                host.encode("idna")  # wrap_socket() would do it too late to close the socket on errors
                known = self._sessions.get((context, subject))
                secured = context.wrap_socket(sock, server_hostname=host, session=known)
                return SecureConnection(secured, subject, peer, self._sessions)
            except OSError as error:  # an SSLError is one
                raise _handshake_failure(error, subject, self._key) from error
            except ValueError as error:  # a name that IDNA does not know
                raise Unreachable(f"{subject}: no connection: {printable(error)}") from error

    def connection_inside(
        self, outer: SecureConnection, context: ssl.SSLContext, host: str, *, subject: str
    ) -> SecureConnection:
        """Shake hands with `host` through `outer`, which leads to a proxy. Closes it on errors. Raises as above."""
        from urllib3.util.ssltransport import SSLTransport  # noqa: PLC0415 (urllib3 takes 0.1 s)

        try:
            layer = SSLTransport(outer.layer, context, server_hostname=host, suppress_ragged_eofs=False)
        except OSError as error:
            outer.close()
            raise _handshake_failure(error, subject, self._key) from error
        except ValueError as error:
            outer.close()
            raise Unreachable(f"{subject}: no connection: {printable(error)}") from error
        return _InnerConnection(layer, outer.layer, subject)

    def _new_context(self, *, own: bool) -> ssl.SSLContext:
        tls = self._tls
        # Not create_default_context: that heeds SSLKEYLOGFILE, SSL_CERT_FILE and SSL_CERT_DIR.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.sslsocket_class = TlsSocket
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        context.post_handshake_auth = True  # a server may ask for the client certificate by the path of a request
        context.hostname_checks_common_name = False  # RFC 9525, 2: only subjectAltName counts
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # an intermediate in `tls.ca` is enough
        if not tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            if tls.ca is None or not own:
                _load_system_authorities(context)
            if tls.ca is not None:
                _load(context, tls.ca)
        if own and tls.cert is not None:
            _load_client(context, tls.cert, tls.key)
        return context


def _load_system_authorities(context: ssl.SSLContext) -> None:
    paths = ssl.get_default_verify_paths()
    file, folder = Path(paths.openssl_cafile), Path(paths.openssl_capath)
    if file.is_file():
        context.load_verify_locations(cafile=file)
    if folder.is_dir():
        context.load_verify_locations(capath=folder)
    if not file.is_file() and not (folder.is_dir() and any(folder.glob("*.0"))):
        bundle = next((path for path in _BUNDLES if Path(path).is_file()), None)
        if bundle:
            context.load_verify_locations(cafile=bundle)


def _load(context: ssl.SSLContext, ca: Path) -> None:
    try:
        context.load_verify_locations(cafile=ca)
    except OSError as error:  # an SSLError is one
        raise LocalError(f"{ca} is not usable: {_reason(error)}", hint="tls.ca names a PEM file") from error


def _load_client(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(cert, key, password="")  # an encrypted key fails, instead of asking on a terminal
    except OSError as error:
        hint = "tls.cert and tls.key name PEM files; the key must not be encrypted"
        raise LocalError(f"{key or cert} is not usable: {_reason(error)}", hint=hint) from error


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return printable((error.reason or str(error)).lower().replace("_", " "), 120)
    return error.strerror or printable(error, 120)


class SecureConnection(Connection):
    """An open connection in TLS."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        subject: str,
        peer: str | None,
        sessions: dict[tuple[ssl.SSLContext, str], ssl.SSLSession],
    ) -> None:
        """sessions: where to leave what the next connection may take up."""
        super().__init__(sock, subject, peer)
        self._sessions, self._name = sessions, subject
        # Private in typeshed only: an end without a TLS goodbye must be told from an end.
        sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        self._layer = sock

    def end(self) -> None:
        if not self.reused:  # with TLS 1.3 the server's tickets come behind the handshake
            session = self._layer.session
            if session is not None and session.has_ticket:
                self._sessions[self._layer.context, self._name] = session
        super().end()

    def _say_goodbye(self) -> None:
        """Send close_notify, which tells an end from a cut (RFC 8446, 6.1). The peer's own is not waited for."""
        with suppress(OSError, ValueError):  # the connection broke, is full, or had no handshake
            self._set_timeout(0.0)
            self._layer.unwrap()

    @property
    def layer(self) -> ssl.SSLSocket:
        return self._layer

    def readable(self) -> bool:
        return super().readable() or self._layer.pending() > 0

    def send_some(self, view: memoryview) -> int:
        return super().send_some(view[:SLICE])

    def _awaited(self, error: OSError) -> int:
        if isinstance(error, ssl.SSLWantWriteError):
            return select.POLLIN | select.POLLOUT
        return select.POLLIN if isinstance(error, ssl.SSLWantReadError) else super()._awaited(error)

    def _told(self, error: OSError) -> MirrorError:
        error = self._alert() or error
        if isinstance(error, ssl.SSLEOFError):
            return NetworkError(f"{self.subject}: the connection ended without a TLS goodbye", code="truncated")
        return _broken(self.subject, error) if isinstance(error, ssl.SSLError) else super()._told(error)

    def _alert(self) -> ssl.SSLError | None:
        """Why the peer hung up: where sending failed, its alert may still be there to be read."""
        self._set_timeout(0.0)
        try:
            self._layer.recv_into(self._scratch)
        except ssl.SSLError as error:
            return error if "ALERT" in (error.reason or "") else None
        except OSError:
            return None
        return None


class _InnerConnection(SecureConnection):
    """A connection in TLS within the TLS of a proxy. Its layer is no socket, but has the methods of one."""

    def __init__(self, layer: Any, outer: ssl.SSLSocket, subject: str) -> None:
        super().__init__(layer, subject, None, {})
        self._inner = layer
        self._outer = outer

    def end(self) -> None:
        Connection.end(self)  # no session is kept

    def abort(self) -> None:
        with self._lock, suppress(OSError):
            if self._open:
                socket.socket.shutdown(self._outer, socket.SHUT_RDWR)

    def readable(self) -> bool:
        held = self._inner.sslobj.pending() or self._inner.incoming.pending or self._outer.pending()
        return held > 0 or Connection.readable(self)

    def send_some(self, view: memoryview) -> int:
        """Waits until it is sent: what the layer could not pass on at once would be lost."""
        begun = monotonic()
        self._arm(begun)
        try:
            count: int = self._inner.send(view[:SLICE])
        except OSError as error:
            self._raise(error)
        self._stop.raise_if_requested()
        if self._pace.too_slow(monotonic() - begun, count):
            raise self._slow()
        return count


def _broken(subject: object, error: ssl.SSLError) -> MirrorError:
    reason = (error.reason or "").lower().replace("_", " ")
    if "alert" in reason and "certificate" in reason:  # TLS 1.3 tells of a client certificate only now
        return Refused(
            f"{subject} does not accept our client certificate: {reason}",
            code="tls_error",
            hint="set `tls.cert` and `tls.key` of that registry",
        )
    return NetworkError(f"{subject}: the TLS connection broke: {reason or error}")


def _handshake_failure(error: OSError, host: str, key: str) -> MirrorError:
    """What a handshake with `host` failed of. key: the registry's name in the configuration."""
    if isinstance(error, ssl.SSLCertVerificationError):
        why = _CLOCK.get(error.verify_code)
        if why:
            return Refused(
                f"{host}: its certificate is {why}",
                code="tls_error",
                hint="check this machine's clock; if that is right, the host needs a new certificate",
            )
        hint = f"if its authority is your own, set {registry_key(key, 'tls', 'ca')} to that certificate"
        return Refused(f"{host}: its certificate is not trusted: {error.verify_message}", code="tls_error", hint=hint)
    if isinstance(error, TimeoutError):
        return NetworkError(f"{host}: the TLS handshake timed out", code="timeout", host=host)
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return _other_failure(error, host, key)
    return NetworkError(f"{host}: the TLS handshake broke off: {_reason(error)}", host=host)


def _other_failure(error: ssl.SSLError, host: str, key: str) -> MirrorError:
    reason = _reason(error)
    hint = ""
    if any(word in reason for word in ("wrong version number", "http request", "packet length", "record layer")):
        hint = f"it may speak plain http: then set {registry_key(key, 'plain-http')}"
    elif "certificate" in reason:
        hint = f"it may want a client certificate: {registry_key(key, 'tls', 'cert')} and tls.key"
    return RemoteError(f"{host}: the TLS handshake failed: {reason}", code="tls_error", hint=hint, retryable=False)
