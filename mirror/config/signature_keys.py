"""Parses the key `verify-signatures`: reads and checks the files with public keys."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mirror.config import values
from mirror.config.section import Section
from mirror.errors import ConfigError, printable
from mirror.registry.http.host_settings import V1Mode
from mirror.signatures.policy import SignaturePolicy

if TYPE_CHECKING:
    from mirror.signatures.keys import PublicKey

KEY = "verify-signatures"
MAX_KEYS = 20  # limits the time for checking an image, because each signature is checked with each key

# References to keys that cosign accepts and that are not files: `awskms://…`, `k8s://…`, `https://…`, `pkcs11:…`.
_NO_FILE = re.compile(r"[a-z0-9+.-]+://|pkcs11:")


def parse_policy(section: Section) -> SignaturePolicy | None:
    """Return the policy under the key `verify-signatures`, or None if the key is missing or invalid.

    Adds a problem for each file that does not contain exactly one public key."""
    policy = section.section(KEY)
    keys = policy.parse_list("keys", lambda text: _read_key(text, policy))
    if len(keys) > MAX_KEYS:
        policy.add_problem(f"contains {len(keys)} keys; the limit is {MAX_KEYS}", below="keys")
    first: dict[str, PublicKey] = {}
    for number, key in keys:
        same = first.setdefault(key.fingerprint, key)
        if same is not key:
            policy.add_warning(f"the same key as in {same.name}", below="keys", item=number)
    return SignaturePolicy([key for _, key in keys]) if keys else None


def check_not_v1(mode: V1Mode, section: Section) -> None:
    """Report a mirror with a signature policy whose source is read only over v1. section: the mirror."""
    if mode is V1Mode.ONLY:
        what = f"images from v1 have no signatures, so `{KEY}` would reject all of them; remove it, or change `v1`"
        section.add_problem(what, below="source")


def _read_key(text: str, section: Section) -> PublicKey:
    """Read the public key in a file. Raises ConfigError."""
    if _NO_FILE.match(text):
        how = "save the public key to a file with `cosign public-key --key KEY`, and specify the file"
        raise ConfigError(f"{printable(text, 80)} is not a file; {how}")
    # The module imports `cryptography`, which few runs need.
    from mirror.signatures.keys import parse_public_key  # noqa: PLC0415

    file = section.resolve_path(text)
    data = values.read_pem(file)
    return parse_public_key(data, str(file))
