"""A socket class for `ssl.SSLContext.sslsocket_class`. Its sockets are closed if `wrap_socket` fails."""

from __future__ import annotations

import errno
import os
import ssl
from typing import Any


class TlsSocket(ssl.SSLSocket):
    """An SSLSocket that is closed if the peer has reset the connection before `wrap_socket` is called.

    `wrap_socket` takes the descriptor of the plain socket and asks for the peer's address. If there is no peer, it may
    raise without closing the descriptor, or return a socket without TLS."""

    def getpeername(self) -> Any:
        """Return the address of the peer. If there is no peer, close the socket and raise ConnectionResetError."""
        try:
            return super().getpeername()
        except OSError as error:
            self.close()
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
