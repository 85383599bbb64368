"""A private certificate authority on disk, for registries and token services with TLS."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme

from mirror.util.tls_socket import TlsSocket


class Authority:
    """Issues certificates for loopback. ca: path of the certificate that clients must trust.

    server: paths of (certificate chain, key) for 127.0.0.1, ::1, localhost and `hosts`; client: the same for a client.
    """

    def __init__(self, root: Path, name: str = "ca", *, hosts: Sequence[str] = ()) -> None:
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA(organization_name=f"mirror tests {name}")
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))
        self.server = _write(folder, "server", self._authority.issue_cert("127.0.0.1", "::1", "localhost", *hosts))
        self.client = _write(folder, "client", self._authority.issue_cert("client@example.com", common_name="client"))

    def server_context(self, *, client_certificates: bool = False) -> ssl.SSLContext:
        """Return the TLS context of a test server."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslsocket_class = TlsSocket
        context.load_cert_chain(*map(str, self.server))
        if client_certificates:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(str(self.ca))
        return context

    def client_context(self, *, certificate: bool = True) -> ssl.SSLContext:
        """Return the TLS context of a test client; it trusts only this authority."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if certificate:
            context.load_cert_chain(*map(str, self.client))
        return context


def _write(folder: Path, name: str, leaf: trustme.LeafCert) -> tuple[Path, Path]:
    chain, key = folder / f"{name}.pem", folder / f"{name}.key"
    chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    leaf.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    return chain, key
