"""What a file oci-layout says. Source: OCI image-spec v1.1, image-layout.md."""

from __future__ import annotations

from mirror.errors import Refused, printable
from mirror.oci import strictjson


def check_version(data: bytes, what: str) -> None:
    """Raises Refused (bundle_invalid) unless `data` is an oci-layout file of version 1."""
    document = strictjson.parse(data, what=what, code="bundle_invalid")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or version.split(".")[0] != "1":
        raise Refused(f"{what}: imageLayoutVersion is {printable(version, 40)!r}, want 1.0.0", code="bundle_invalid")
