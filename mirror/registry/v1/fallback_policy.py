"""Which protocol a repository is read by: v2, or v1, which registries spoke before 2015. Decided here, without I/O.

v1 content proves nothing of itself, so a forged failure of v2 would be a downgrade: v1 is used only where v2 says that
it does not know the repository or refuses access to it, or where nothing shows that the host speaks v2 at all; never
once v2 has listed the repository in this run; and, unless the setting asks for v1, never where v2 answered for it in an
earlier run. `_LISTING` and `_TAG` are the whole rule (docs/old-registries.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from mirror.errors import (
    AuthError,
    Cancelled,
    LocalError,
    MirrorError,
    NetworkError,
    NotFound,
    RateLimited,
    Refused,
    RemoteError,
    Unreachable,
)
from mirror.registry.http.host_settings import V1
from mirror.registry.session import TooBig
from mirror.util.structs import Struct


class Operation(Enum):
    """What v2 was asked for. LISTING: the first page of tags; LATER: a further one; TAG: a manifest by its tag."""

    LISTING = "listing the tags"
    LATER = "a later page of the tags"
    TAG = "asking for the tag"
    DIGEST = "asking for the digest"


class Failure(Enum):
    """How v2 failed."""

    UNKNOWN = "v2 does not know it"  # 404, in whatever words, but for a code that contradicts
    ACCESS = "v2 refuses access"  # 401, 403; the token service's too
    CONTRADICTED = "v2 knows better"  # 404 with a code that is about something else
    BUSY = "v2 is busy"  # 429
    JUNK = "v2 answers with something else"  # 200 and no list, no manifest
    STATUS = "v2 does not take the request"  # 400, 405, 501 and others
    BROKEN = "v2 is broken"  # 5xx
    NETWORK = "the answer of v2 was lost"  # reset, cut, timed out, with a connection had
    UNREACHABLE = "the host cannot be reached"
    TLS = "TLS fails"
    UNSAFE = "v2 was refused by us"  # for safety: a realm, a redirect, a size
    LOCAL = "trouble of our own"  # disk, configuration, a stop


class Verdict(Enum):
    """LIST: the listing decides. PING: it depends on whether the host speaks v2; ask for its root."""

    V1 = "v1"
    STOP = "stop"
    LIST = "list"
    PING = "ping"


class Observation(Struct, frozen=True):
    """speaks_v2: the host has named its API's version, in any answer; None: not in those so far, and it was not asked
    for its root. listed: v2 has answered for this repository in this run; answered_before: in an earlier one."""

    operation: Operation
    failure: Failure
    mode: V1
    speaks_v2: bool | None = None
    listed: bool = False
    answered_before: bool = False


class Decision(Struct, frozen=True):
    """reason: a clause for people."""

    verdict: Verdict
    reason: str


ANSWERED_BEFORE = "v2 answered for this repository in an earlier run"
_IF_NOT_V2 = "v1 unless the host speaks v2"

# Table L: the first page of a listing failed, and nothing succeeded before.
_LISTING: Mapping[Failure, Verdict | str] = {
    Failure.UNKNOWN: Verdict.V1,  # L4, L5, L19
    Failure.ACCESS: Verdict.V1,  # L6, L7, L8, L9
    Failure.CONTRADICTED: Verdict.STOP,  # L5
    Failure.BUSY: Verdict.STOP,  # L12
    Failure.JUNK: _IF_NOT_V2,  # L3
    Failure.STATUS: _IF_NOT_V2,  # L10, L11
    Failure.BROKEN: _IF_NOT_V2,  # L13
    Failure.NETWORK: _IF_NOT_V2,  # L14
    Failure.UNREACHABLE: Verdict.STOP,  # L15: v1 is at the same place
    Failure.TLS: Verdict.STOP,  # L16, L17
    Failure.UNSAFE: Verdict.STOP,
    Failure.LOCAL: Verdict.STOP,  # L21
}

# Table T: one tag failed, and the listing was not asked for yet.
_TAG: Mapping[Failure, Verdict | str] = {
    Failure.UNKNOWN: Verdict.LIST,  # T2, T4
    Failure.ACCESS: Verdict.LIST,  # T3, T5
    Failure.CONTRADICTED: Verdict.STOP,  # T6
    Failure.BUSY: Verdict.STOP,  # T6
    Failure.JUNK: Verdict.STOP,  # T8
    Failure.STATUS: Verdict.STOP,  # T6
    Failure.BROKEN: _IF_NOT_V2,  # T7: then the listing fails as well, and table L decides
    Failure.NETWORK: _IF_NOT_V2,  # T7
    Failure.UNREACHABLE: Verdict.STOP,
    Failure.TLS: Verdict.STOP,
    Failure.UNSAFE: Verdict.STOP,
    Failure.LOCAL: Verdict.STOP,
}


def decide(seen: Observation) -> Decision:  # noqa: PLR0911 - one return a rule
    """What is done about a failure of v2."""
    if seen.mode is V1.NEVER:
        return Decision(Verdict.STOP, "v1 is never used for this source")
    if seen.operation is Operation.DIGEST:
        return Decision(Verdict.STOP, "v1 knows no digests")  # T9
    if seen.operation is Operation.LATER:
        return Decision(Verdict.STOP, "v2 has listed tags before it failed")  # L18
    if seen.operation is Operation.TAG and seen.mode is V1.PER_TAG and seen.failure is Failure.UNKNOWN:
        return Decision(Verdict.V1, "v2 does not have this tag")
    if seen.listed:
        return Decision(Verdict.STOP, "v2 has answered for this repository")  # L22, T10, T11
    table = _LISTING if seen.operation is Operation.LISTING else _TAG
    found = table[seen.failure]
    if found is not Verdict.STOP and seen.answered_before and seen.mode is V1.AUTO:
        return Decision(Verdict.STOP, ANSWERED_BEFORE)
    if isinstance(found, Verdict):
        return Decision(found, seen.failure.value)
    if seen.speaks_v2:
        return Decision(Verdict.STOP, f"{seen.failure.value}, and the host speaks v2")
    if seen.operation is Operation.TAG:
        return Decision(Verdict.LIST, seen.failure.value)
    if seen.speaks_v2 is None:
        return Decision(Verdict.PING, seen.failure.value)
    return Decision(Verdict.V1, f"{seen.failure.value}, and nothing shows that the host speaks v2")


# Codes of the distribution-spec that are about something else than a repository that is unknown or closed.
_ABOUT_SOMETHING_ELSE = frozenset(
    {
        "BLOB_UNKNOWN",
        "BLOB_UPLOAD_INVALID",
        "BLOB_UPLOAD_UNKNOWN",
        "DIGEST_INVALID",
        "MANIFEST_BLOB_UNKNOWN",
        "MANIFEST_INVALID",
        "MANIFEST_UNVERIFIED",
        "NAME_INVALID",
        "SIZE_INVALID",
        "TAG_INVALID",
        "UNSUPPORTED",
    }
)


def failure_of(error: MirrorError) -> Failure:  # noqa: PLR0911 - one return a kind
    """What kind of failure an error of the v2 side is."""
    if isinstance(error, Cancelled | LocalError):
        return Failure.LOCAL
    if isinstance(error, RateLimited) or error.status == 429 or error.registry_code == "TOOMANYREQUESTS":
        return Failure.BUSY
    if error.code == "tls_error":
        return Failure.TLS
    if isinstance(error, NetworkError):
        return Failure.UNREACHABLE if isinstance(error, Unreachable) else Failure.NETWORK
    if isinstance(error, AuthError):
        # Without a status no credential could be had; 407 is the proxy's.
        return Failure.ACCESS if error.status in (400, 401, 403) else Failure.LOCAL
    if isinstance(error, NotFound):
        return Failure.CONTRADICTED if error.registry_code in _ABOUT_SOMETHING_ELSE else Failure.UNKNOWN
    if isinstance(error, Refused):
        return Failure.JUNK if error.code in ("bad_response", "manifest_invalid") else Failure.UNSAFE
    return _by_status(error)


def _by_status(error: MirrorError) -> Failure:
    if not isinstance(error, RemoteError) or isinstance(error, TooBig):
        return Failure.UNSAFE
    if error.status is None or error.status < 300:
        return Failure.JUNK
    if error.status >= 500 and error.status not in (501, 505):
        return Failure.BROKEN
    return Failure.STATUS
