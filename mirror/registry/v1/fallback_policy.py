"""The rules that choose between v2 and v1 for a repository. This module does no I/O.

Content that is read over v1 cannot be verified. If v1 were used after every v2 failure, an attacker could force a
downgrade. Therefore v1 is used only if the repository is unknown or inaccessible over v2, or if nothing shows that the
host supports v2. v1 is never used after the registry has served the repository over v2 in this run or, with `v1: auto`,
in an earlier run. Comments such as `L4` name rows of the tables L and T in docs/fallback.md.
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
from mirror.registry.http.host_settings import V1Mode
from mirror.registry.session import TooBig
from mirror.util.structs import Struct


class V2Read(Enum):
    """The kind of content that a v2 request was sent to read."""

    LISTING = "the first page of tags"
    LATER_PAGE = "a later page of the tags"
    TAG = "a manifest by its tag"
    DIGEST = "a manifest by its digest"


class V2Failure(Enum):
    """The kind of failure of a v2 request. Each value describes the failure in messages."""

    UNKNOWN = "the repository is not available over v2"  # 404, unless the error code contradicts that
    ACCESS = "access is denied over v2"  # 401, 403; also of the token service
    CONTRADICTED = "the v2 response is a 404, but its error code contradicts this status"
    BUSY = "the request over v2 is rate-limited"  # 429
    JUNK = "the v2 response has status 200, but an invalid body"  # not a list, not a manifest
    STATUS = "the v2 request was rejected"  # 400, 405, 501 and others
    BROKEN = "the v2 response is a server error"  # 5xx
    NETWORK = "the v2 response was lost"  # reset, truncated or timed out after the connection was established
    UNREACHABLE = "the host cannot be reached"
    TLS = "the TLS connection fails"
    UNSAFE = "the v2 response is unsafe"  # its realm, redirect or size
    LOCAL = "a local error occurred"  # disk, configuration, cancellation


class ProtocolChoice(Enum):
    """The next step after a failed v2 request.

    V1: use v1. STOP: report the v2 error. LIST: request the tag list, and decide by the result. PING: request
    `/v2/` to find out whether the host supports v2, and decide again."""

    V1 = "v1"
    STOP = "stop"
    LIST = "list"
    PING = "ping"


class Observation(Struct, frozen=True):
    """The facts about a failed v2 request, its repository and its host that determine the next step.

    speaks_v2: whether a response from the host stated the v2 API version; None if none has stated it so far and `/v2/`
    has not been requested. answered: whether the registry has served the repository over v2 in this run.
    answered_before: whether the registry did so in an earlier run."""

    operation: V2Read
    failure: V2Failure
    mode: V1Mode
    speaks_v2: bool | None = None
    answered: bool = False
    answered_before: bool = False


class Decision(Struct, frozen=True):
    """The next step after a failed v2 request, and the reason for it. The reason is a clause for use in messages."""

    choice: ProtocolChoice
    reason: str


ANSWERED_BEFORE = "this repository responded over v2 in an earlier run"
_IF_NOT_V2 = "v1 unless the host supports v2"

# Table L: reading the first page of a tag list failed, and the registry has not yet served the repository over v2.
_LISTING_RULES: Mapping[V2Failure, ProtocolChoice | str] = {
    V2Failure.UNKNOWN: ProtocolChoice.V1,  # L4, L5, L19
    V2Failure.ACCESS: ProtocolChoice.V1,  # L6, L7, L8, L9
    V2Failure.CONTRADICTED: ProtocolChoice.STOP,  # L5
    V2Failure.BUSY: ProtocolChoice.STOP,  # L12
    V2Failure.JUNK: _IF_NOT_V2,  # L3
    V2Failure.STATUS: _IF_NOT_V2,  # L10, L11
    V2Failure.BROKEN: _IF_NOT_V2,  # L13
    V2Failure.NETWORK: _IF_NOT_V2,  # L14
    V2Failure.UNREACHABLE: ProtocolChoice.STOP,  # L15: v1 would use the same host and port
    V2Failure.TLS: ProtocolChoice.STOP,  # L16, L17
    V2Failure.UNSAFE: ProtocolChoice.STOP,
    V2Failure.LOCAL: ProtocolChoice.STOP,  # L21
}

# Table T: reading one tag failed, and the tag list has not been requested yet.
_TAG_RULES: Mapping[V2Failure, ProtocolChoice | str] = {
    V2Failure.UNKNOWN: ProtocolChoice.LIST,  # T2, T4
    V2Failure.ACCESS: ProtocolChoice.LIST,  # T3, T5
    V2Failure.CONTRADICTED: ProtocolChoice.STOP,  # T6
    V2Failure.BUSY: ProtocolChoice.STOP,  # T6
    V2Failure.JUNK: ProtocolChoice.STOP,  # T8
    V2Failure.STATUS: ProtocolChoice.STOP,  # T6
    V2Failure.BROKEN: _IF_NOT_V2,  # T7: the tag list will fail too, and table L decides
    V2Failure.NETWORK: _IF_NOT_V2,  # T7
    V2Failure.UNREACHABLE: ProtocolChoice.STOP,
    V2Failure.TLS: ProtocolChoice.STOP,
    V2Failure.UNSAFE: ProtocolChoice.STOP,
    V2Failure.LOCAL: ProtocolChoice.STOP,
}


def decide(observation: Observation) -> Decision:  # noqa: PLR0911 - one return per rule
    """Return the next step after a failed v2 request, according to the rules in docs/fallback.md."""
    if observation.mode is V1Mode.NEVER:
        return Decision(ProtocolChoice.STOP, "v1 is never used for this source")
    if observation.operation is V2Read.DIGEST:
        return Decision(ProtocolChoice.STOP, "v1 cannot read manifests by digest")  # T9
    if observation.operation is V2Read.LATER_PAGE:
        return Decision(ProtocolChoice.STOP, "listing the tags over v2 failed after the first page")  # L18
    if (
        observation.operation is V2Read.TAG
        and observation.mode is V1Mode.PER_TAG
        and observation.failure is V2Failure.UNKNOWN
    ):
        return Decision(ProtocolChoice.V1, "this tag is not available over v2")
    if observation.answered:
        return Decision(ProtocolChoice.STOP, "this repository has responded over v2")  # L22, T10, T11
    table = _LISTING_RULES if observation.operation is V2Read.LISTING else _TAG_RULES
    rule = table[observation.failure]
    if rule is not ProtocolChoice.STOP and observation.answered_before and observation.mode is V1Mode.AUTO:
        return Decision(ProtocolChoice.STOP, ANSWERED_BEFORE)
    if isinstance(rule, ProtocolChoice):
        return Decision(rule, observation.failure.value)
    if observation.speaks_v2:
        return Decision(ProtocolChoice.STOP, f"{observation.failure.value}, and the host supports v2")
    if observation.operation is V2Read.TAG:
        return Decision(ProtocolChoice.LIST, observation.failure.value)
    if observation.speaks_v2 is None:
        return Decision(ProtocolChoice.PING, observation.failure.value)
    return Decision(ProtocolChoice.V1, f"{observation.failure.value}, and nothing shows that the host supports v2")


# Error codes from the distribution-spec that contradict "the repository is unknown".
_CONTRADICTING_CODES = frozenset(
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


def classify_failure(error: MirrorError) -> V2Failure:  # noqa: PLR0911 - one return per kind
    """Classify the error of a failed v2 request."""
    if isinstance(error, Cancelled | LocalError):
        return V2Failure.LOCAL
    if isinstance(error, RateLimited) or error.status == 429 or error.registry_code == "TOOMANYREQUESTS":
        return V2Failure.BUSY
    if error.code == "tls_error":
        return V2Failure.TLS
    if isinstance(error, NetworkError):
        return V2Failure.UNREACHABLE if isinstance(error, Unreachable) else V2Failure.NETWORK
    if isinstance(error, AuthError):
        # If there is no status, the credential could not be read. A 407 comes from a proxy.
        return V2Failure.ACCESS if error.status in (400, 401, 403) else V2Failure.LOCAL
    if isinstance(error, NotFound) and error.status in (401, 403):
        return V2Failure.ACCESS  # Harbor: the project does not exist
    if isinstance(error, NotFound):
        return V2Failure.CONTRADICTED if error.registry_code in _CONTRADICTING_CODES else V2Failure.UNKNOWN
    if isinstance(error, Refused):
        return V2Failure.JUNK if error.code in ("bad_response", "manifest_invalid") else V2Failure.UNSAFE
    return _classify_status(error)


def _classify_status(error: MirrorError) -> V2Failure:
    """Classify the error of a failed v2 request by its HTTP status."""
    if not isinstance(error, RemoteError) or isinstance(error, TooBig):
        return V2Failure.UNSAFE
    if error.status is None or error.status < 300:
        return V2Failure.JUNK
    if error.status >= 500 and error.status not in (501, 505):
        return V2Failure.BROKEN
    return V2Failure.STATUS
