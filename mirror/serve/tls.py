"""TLS for `mirror serve`: a context made of a certificate and a key, and connections that are secured with it."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from pathlib import Path

from mirror.errors import ConfigError, printable

HANDSHAKE = 10.0  # seconds that a client has for all of its handshake


def server_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What --tls-cert and --tls-key ask for; None: neither is given. Both are PEM files, and are read once.

    Raises ConfigError: only one is given, a file cannot be read or is encrypted, or the two do not belong together."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError(
            "--tls-cert and --tls-key go together, and one of them is missing",
            hint="give the certificate with its chain, and its key",
        )
    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            why = error.strerror or error
            raise ConfigError(f"{option}: cannot read {printable(path)}: {why}", hint="name a PEM file") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password="")  # an encrypted key fails, instead of asking for one
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = "do not belong together" if mismatch else "are not usable"
        raise ConfigError(
            f"{printable(certificate)} and {printable(key)} {why}",
            hint="give PEM files: a certificate with its chain, and its key, which must not be encrypted",
        ) from error
    return context


def secured(opened: socket.socket, context: ssl.SSLContext, patience: float = HANDSHAKE) -> ssl.SSLSocket:
    """The connection, before its handshake: nothing is sent or waited for yet. patience: seconds for the handshake.

    Raises OSError: the client is gone, and `opened` is closed."""
    try:
        opened.getpeername()  # of one whose client is gone, Python would make a socket and lose it
        made = context.wrap_socket(opened, server_side=True, do_handshake_on_connect=False)
    except BaseException:
        opened.close()
        raise
    made.settimeout(patience)
    return made


def say_farewell(opened: ssl.SSLSocket) -> None:
    """Tell the client that what it has got is all; do not wait for its answer."""
    with suppress(OSError, ValueError):
        opened.settimeout(0)
        opened.unwrap()
