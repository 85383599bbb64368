"""The fallback tables of docs/fallback.md, row by row: observations, and the choice in each of the four settings."""

from __future__ import annotations

import pytest

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
from mirror.registry.v1.fallback_policy import (
    Observation,
    ProtocolChoice,
    V2Failure,
    V2Read,
    classify_failure,
    decide,
)

L, T = V2Read.LISTING, V2Read.TAG
V1_, STOP, LIST, PING = ProtocolChoice.V1, ProtocolChoice.STOP, ProtocolChoice.LIST, ProtocolChoice.PING
F = V2Failure


# (operation, failure) -> the choice if v2 support is unknown, if `/v2/` did not show it, and if it was shown.
RULES = {
    (L, F.UNKNOWN): (V1_, V1_, V1_),
    (L, F.ACCESS): (V1_, V1_, V1_),
    (L, F.CONTRADICTED): (STOP, STOP, STOP),
    (L, F.BUSY): (STOP, STOP, STOP),
    (L, F.JUNK): (PING, V1_, STOP),
    (L, F.STATUS): (PING, V1_, STOP),
    (L, F.BROKEN): (PING, V1_, STOP),
    (L, F.NETWORK): (PING, V1_, STOP),
    (L, F.UNREACHABLE): (STOP, STOP, STOP),
    (L, F.TLS): (STOP, STOP, STOP),
    (L, F.UNSAFE): (STOP, STOP, STOP),
    (L, F.LOCAL): (STOP, STOP, STOP),
    (T, F.UNKNOWN): (LIST, LIST, LIST),
    (T, F.ACCESS): (LIST, LIST, LIST),
    (T, F.CONTRADICTED): (STOP, STOP, STOP),
    (T, F.BUSY): (STOP, STOP, STOP),
    (T, F.JUNK): (STOP, STOP, STOP),
    (T, F.STATUS): (STOP, STOP, STOP),
    (T, F.BROKEN): (LIST, LIST, STOP),
    (T, F.NETWORK): (LIST, LIST, STOP),
    (T, F.UNREACHABLE): (STOP, STOP, STOP),
    (T, F.TLS): (STOP, STOP, STOP),
    (T, F.UNSAFE): (STOP, STOP, STOP),
    (T, F.LOCAL): (STOP, STOP, STOP),
}


def test_every_kind_of_failure_has_a_rule() -> None:
    assert {(operation, failure) for operation in (L, T) for failure in V2Failure} == set(RULES)


@pytest.mark.parametrize(("operation", "failure"), RULES, ids=str)
def test_auto_follows_the_tables(operation: V2Read, failure: V2Failure) -> None:
    decided = [
        decide(Observation(operation, failure, V1Mode.AUTO, speaks_v2)).choice for speaks_v2 in (None, False, True)
    ]
    assert list(RULES[operation, failure]) == decided


@pytest.mark.parametrize(("operation", "failure"), RULES, ids=str)
def test_never_stops_in_every_row(operation: V2Read, failure: V2Failure) -> None:
    assert STOP is decide(Observation(operation, failure, V1Mode.NEVER, False)).choice


@pytest.mark.parametrize(("operation", "failure"), RULES, ids=str)
def test_per_tag_reads_a_tag_by_v1_if_v2_does_not_have_it(operation: V2Read, failure: V2Failure) -> None:
    expected = V1_ if (operation, failure) == (T, F.UNKNOWN) else RULES[operation, failure][2]
    assert expected is decide(Observation(operation, failure, V1Mode.PER_TAG, True)).choice
    after_listing = V1_ if (operation, failure) == (T, F.UNKNOWN) else STOP
    assert after_listing is decide(Observation(operation, failure, V1Mode.PER_TAG, True, answered=True)).choice


@pytest.mark.parametrize(("operation", "failure"), RULES, ids=str)
def test_a_repository_that_v2_answered_in_an_earlier_run_stays_with_v2_under_auto(
    operation: V2Read, failure: V2Failure
) -> None:
    def choice(mode: V1Mode) -> ProtocolChoice:
        return decide(Observation(operation, failure, mode, False, answered_before=True)).choice

    assert STOP is choice(V1Mode.AUTO)
    assert decide(Observation(operation, failure, V1Mode.PER_TAG, False)).choice is choice(V1Mode.PER_TAG)


@pytest.mark.parametrize("failure", V2Failure, ids=str)
def test_no_failure_leads_to_v1_after_v2_has_answered(failure: V2Failure) -> None:
    for operation in V2Read:
        assert STOP is decide(Observation(operation, failure, V1Mode.AUTO, answered=True)).choice
    for mode in V1Mode:
        assert STOP is decide(Observation(V2Read.LATER_PAGE, failure, mode)).choice
        assert STOP is decide(Observation(V2Read.DIGEST, failure, mode)).choice


ERRORS: list[tuple[MirrorError, V2Failure]] = [
    (NotFound("x", registry_code="NAME_UNKNOWN", status=404), F.UNKNOWN),
    (NotFound("x", registry_code="MANIFEST_UNKNOWN", status=404), F.UNKNOWN),
    (NotFound("x", registry_code="NOT_FOUND", status=404), F.UNKNOWN),
    (NotFound("x", status=404), F.UNKNOWN),
    (NotFound("x", registry_code="NAME_INVALID", status=404), F.CONTRADICTED),
    (NotFound("x", registry_code="UNSUPPORTED", status=404), F.CONTRADICTED),
    (NotFound("x", registry_code="TOOMANYREQUESTS", status=404), F.BUSY),
    (AuthError("x", status=401), F.ACCESS),
    (AuthError("x", status=403, code="auth_denied"), F.ACCESS),
    (NotFound("Harbor: no such project", status=401, registry_code="UNAUTHORIZED"), F.ACCESS),
    (AuthError("a helper failed"), F.LOCAL),
    (AuthError("the proxy requires a login", status=407), F.LOCAL),
    (RateLimited("x", status=429), F.BUSY),
    (RateLimited("wait an hour", status=503, retryable=False), F.BUSY),
    (RemoteError("x", status=400), F.STATUS),
    (RemoteError("x", status=405), F.STATUS),
    (RemoteError("x", status=501), F.STATUS),
    (RemoteError("x", status=301), F.STATUS),
    (RemoteError("x", status=500), F.BROKEN),
    (RemoteError("x", status=503), F.BROKEN),
    (RemoteError("not a list", status=200), F.JUNK),
    (RemoteError("not a list"), F.JUNK),
    (Refused("not JSON", code="bad_response"), F.JUNK),
    (Refused("not a manifest", code="manifest_invalid"), F.JUNK),
    (Refused("x", code="digest_mismatch"), F.UNSAFE),
    (Refused("x", code="unsafe_realm"), F.UNSAFE),
    (TooBig("x"), F.UNSAFE),
    (Refused("x", code="tls_error"), F.TLS),
    (RemoteError("x", code="tls_error"), F.TLS),
    (NetworkError("x"), F.NETWORK),
    (NetworkError("x", code="timeout"), F.NETWORK),
    (Unreachable("x"), F.UNREACHABLE),
    (LocalError("x"), F.LOCAL),
    (Cancelled("x"), F.LOCAL),
    (MirrorError("x"), F.UNSAFE),
]


@pytest.mark.parametrize(("error", "failure"), ERRORS, ids=lambda value: f"{value}")
def test_each_error_is_classified(error: MirrorError, failure: V2Failure) -> None:
    assert failure is classify_failure(error)
