"""TLS for the server: creates the context from a certificate and key, and wraps the sockets of connections."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path

from mirror.errors import ConfigError, printable
from mirror.util.tls_socket import TlsSocket

HANDSHAKE_TIMEOUT = 10.0  # seconds for a complete handshake


def server_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Return the TLS context for --tls-cert and --tls-key, or None if neither is given. The PEM files are read once.

    Raises ConfigError if only one is given, a file cannot be used, the key is encrypted, or key and certificate do not
    match."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError(
            "--tls-cert and --tls-key must be given together",
            hint="specify a file with the certificate and its chain, and a file with its private key",
        )
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            what = f"{option}: cannot read {printable(path)}: {error.strerror or error}"
            raise ConfigError(what, hint="specify the path of a PEM file") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslsocket_class = TlsSocket
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With an empty password, an encrypted key causes an error. Without a password, OpenSSL would prompt for one.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = "do not match" if mismatch else "cannot be used"
        raise ConfigError(
            f"{printable(certificate)} and {printable(key)} {why}",
            hint="specify PEM files: a certificate with its chain, and its unencrypted private key",
        ) from error
    return context


def wrap_connection(
    plain: socket.socket, context: ssl.SSLContext, handshake_timeout: float = HANDSHAKE_TIMEOUT
) -> ssl.SSLSocket:
    """Wrap a socket in TLS without starting the handshake. handshake_timeout: seconds.

    Raises OSError if the client has disconnected; `plain` is then closed."""
    try:
        wrapped = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
    except BaseException:
        plain.close()
        raise
    wrapped.settimeout(handshake_timeout)
    return wrapped


def send_close_notify(connection: ssl.SSLSocket) -> None:
    """Send close_notify, so that the client can detect truncation. Does not wait for the client's close_notify."""
    with suppress(OSError, ValueError):
        connection.settimeout(0)
        connection.unwrap()
