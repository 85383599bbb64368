"""Errors for responses with an unexpected status."""

from __future__ import annotations

import json

import pytest

from mirror.errors import AuthError, MirrorError, NotFound, RateLimited, RemoteError
from mirror.registry.http.headers import Headers
from mirror.registry.http.status_errors import (
    error_for,
    has_v2_version,
    is_token_expired,
    parse_error_document,
    redact_body,
    retry_after,
)

NOON = 1_780_000_000.0  # Thu, 28 May 2026 20:26:40 GMT


def failed(status: int, body: bytes = b"", **headers: str) -> MirrorError:
    fields = Headers((name.replace("_", "-"), value) for name, value in headers.items())
    return error_for("GET https://h/v2/x", status, fields, body, host="h", now=lambda: NOON)


def document(code: object, message: object = "m", **more: object) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message, **more}]}).encode()


@pytest.mark.parametrize(
    ("status", "kind", "code", "retryable"),
    [
        (200, RemoteError, "bad_response", False),
        (226, RemoteError, "bad_response", False),
        (301, RemoteError, "bad_response", False),
        (307, RemoteError, "bad_response", False),
        (400, RemoteError, "bad_response", False),
        (401, AuthError, "auth_failed", False),
        (403, AuthError, "auth_denied", False),
        (404, NotFound, "not_found", False),
        (405, RemoteError, "bad_response", False),
        (407, AuthError, "auth_failed", False),
        (408, RemoteError, "bad_response", True),
        (413, RemoteError, "bad_response", False),
        (416, RemoteError, "bad_response", False),
        (418, RemoteError, "bad_response", False),
        (425, RemoteError, "bad_response", True),
        (429, RateLimited, "rate_limited", True),
        (500, RemoteError, "bad_response", True),
        (501, RemoteError, "bad_response", False),
        (502, RemoteError, "bad_response", True),
        (503, RemoteError, "bad_response", True),
        (504, RemoteError, "bad_response", True),
        (507, RemoteError, "target_full", True),
        (599, RemoteError, "bad_response", True),
        (600, RemoteError, "bad_response", False),
    ],
)
def test_the_class_code_and_retryability_of_each_status(status: int, kind: type, code: str, retryable: bool) -> None:
    error = failed(status)
    assert (kind, code, retryable, status, "h") == (type(error), error.code, error.retryable, error.status, error.host)
    assert str(error).startswith(f"GET https://h/v2/x: {status}")


def test_an_unfinished_push_is_recognized_among_rejected_requests() -> None:
    error = failed(400, b'{"error": "Image is being uploaded, retry later"}')
    assert (RemoteError, "bad_response", True) == (type(error), error.code, error.retryable)
    assert not failed(404, b"Image is being uploaded").retryable


@pytest.mark.parametrize(
    "body",
    [
        b"404",
        b"Not Found",
        b"404 not found\n",
        b"<title>404 Not Found</title><h1>Not Found</h1>",
        b"Error 404: Not Found.",
    ],
)
def test_a_body_that_repeats_the_status_is_omitted(body: bytes) -> None:
    assert "GET https://h/v2/x: 404 Not Found" == str(failed(404, body))


def test_other_text_of_a_body_is_part_of_the_message() -> None:
    assert "404 Not Found: 404 page not found" in str(failed(404, b"404 page not found"))


@pytest.mark.parametrize(
    "body", [b"run `mirror prune CONFIG`", b'{"errors": [{"code": "DENIED", "message": "run `mirror prune CONFIG`"}]}']
)
def test_text_of_a_server_cannot_look_like_a_command(body: bytes) -> None:
    assert 1 == str(failed(403, body)).count("'mirror prune CONFIG'")


def test_a_full_disk_is_recognized_among_server_errors() -> None:
    driver = {"DriverName": "filesystem", "Enclosed": {"Op": "write", "Path": "/x/startedat", "Err": 28}}
    for detail in ("write /x: no space left on device", driver, {"Err": 122}):
        error = failed(500, document("UNKNOWN", "unknown error", detail=detail))
        assert ("target_full", True, "UNKNOWN") == (error.code, error.retryable, error.registry_code)
        assert "free space" in error.hint
    for detail in ({"Err": 5}, {"Err": 280}, {"Err": 2}, "Err28"):
        assert "bad_response" == failed(500, document("UNKNOWN", "unknown error", detail=detail)).code


def test_a_used_up_quota_is_recognized_among_403_responses() -> None:
    sent_bytes = "adding 1.0 MiB of storage resource, which when updated to current usage of 9.9 MiB will exceed the "
    assert "target_full" == failed(403, document("DENIED", sent_bytes + "configured upper limit of 10.0 MiB.")).code
    assert "auth_denied" == failed(403, document("DENIED", "requested access to the resource is denied")).code


def test_a_full_disk_is_a_server_error_if_nothing_was_to_be_stored() -> None:
    sent_bytes = document("UNKNOWN", "unknown error", detail="write /x: no space left on device")
    error = error_for("GET https://h/v2/x", 500, Headers(), sent_bytes, writes=False)
    assert ("bad_response", True) == (error.code, error.retryable)
    assert "no space left on device" in error.what


def test_the_detail_of_a_server_error_is_part_of_the_message() -> None:
    for detail in ({"Enclosed": {"Op": "open", "Err": 5}}, [{"why": "input/output error"}]):
        assert json.dumps(detail) in failed(500, document("UNKNOWN", "unknown error", detail=detail)).what
    assert "name" not in failed(404, document("NAME_UNKNOWN", "m", detail={"name": "app"})).what
    assert len(failed(500, document("UNKNOWN", "m", detail={"long": "x" * 9000})).what) < 300


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (document("NAME_UNKNOWN", "not known"), ("NAME_UNKNOWN", "not known")),
        (document("denied", None), ("denied", "")),
        (document("A", "m", detail="why"), ("A", "m: why")),
        (document("A", None, detail="why"), ("A", "why")),
        (document("A", "m", detail="m"), ("A", "m")),
        (document("A", "m", detail={"why": "?"}), ("A", "m")),
        (document("two words"), ("", "m")),
        (document(5), ("", "m")),
        (document("x" * 65), ("", "m")),
        (b'{"errors":[]}', ("", "")),
        (b'{"errors":{}}', ("", "")),
        (b'{"errors":[[]]}', ("", "")),
        (b'{"errors":[{"code":"A"}],"errors":[]}', ("", "")),
        (b'{"errors"', ("", "")),
        (b"[1]", ("", "")),
        (b"<html>", ("", "")),
        (b"", ("", "")),
        (b"\xff\xfe", ("", "")),
        (b"{" * 100_000, ("", "")),
    ],
)
def test_only_valid_error_documents_are_parsed(body: bytes, expected: tuple[str, str]) -> None:
    assert expected == parse_error_document(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (document("DENIED", "no\x1b[31m way"), ": DENIED: no\\x1b[31m way"),
        (b"<html><style>x{}</style><title>Bad\n Gateway</title>&amp;</html>", ": Bad Gateway &amp;"),
        (b"", ""),
        (b"a" * 5000, ": " + "a" * 159 + "…"),
        (b"\x1b]0;x\x07", ": \\x1b]0;x\\x07"),
    ],
)
def test_text_of_a_server_is_shortened_and_escaped(body: bytes, words: str) -> None:
    assert f"GET https://h/v2/x: 502 Bad Gateway{words}" == failed(502, body).what


@pytest.mark.parametrize(
    ("text", "date", "seconds"),
    [
        ("0", "", 0.0),
        ("120", "", 120.0),
        (" 7 ", "", 7.0),
        ("1000000000", "", 1e9),
        ("9" * 400, "", 999_999_999_999.0),
        ("-5", "", None),
        ("1.5", "", None),
        ("soon", "", None),
        ("", "", None),
        ("٣", "", None),
        ("Thu, 28 May 2026 20:27:40 GMT", "", 60.0),
        ("Thu, 28 May 2026 20:27:40 GMT", "Thu, 28 May 2026 20:27:30 GMT", 10.0),
        ("Thu, 28 May 2016 20:27:40 GMT", "Thu, 28 May 2016 20:27:30 GMT", 10.0),
        ("Thu, 28 May 2026 20:27:40 GMT", "nonsense", 60.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", "", 0.0),
        ("Thu, 99 May 2026 20:27:40 GMT", "", None),
    ],
)
def test_retry_after_has_two_forms(text: str, date: str, seconds: float | None) -> None:
    headers = Headers([("Retry-After", text), *([("Date", date)] if date else [])])
    assert seconds == retry_after(headers, lambda: NOON)


def test_a_wait_of_two_minutes_is_accepted_and_a_longer_one_is_an_error() -> None:
    for status in (429, 503):
        assert (True, 120.0) == (
            failed(status, Retry_After="120").retryable,
            failed(status, Retry_After="120").retry_after,
        )
        longer = failed(status, Retry_After="121")
        assert (RateLimited, "rate_limited", False, 121.0) == (
            type(longer),
            longer.code,
            longer.retryable,
            longer.retry_after,
        )


def test_retry_after_applies_only_to_429_and_503() -> None:
    assert None is failed(500, Retry_After="5").retry_after
    assert (True, 5.0) == (failed(503, Retry_After="5").retryable, failed(503, Retry_After="5").retry_after)


QUOTA = document("TOOMANYREQUESTS", "You have reached your pull rate limit. You may increase the limit by upgrading.")
ABUSE = b"Too Many Requests (HAP429).\n"


def test_a_used_up_pull_quota_is_not_retried() -> None:
    error = failed(429, QUOTA)
    assert (RateLimited, False, "TOOMANYREQUESTS") == (type(error), error.retryable, error.registry_code)
    assert failed(429, QUOTA, Retry_After="60").retryable


def test_the_abuse_limit_is_retried() -> None:
    assert failed(429, ABUSE).retryable


def test_an_expired_token_is_recognized_among_403_responses() -> None:
    sent_bytes = b"Your Authorization Token has expired. Reauthenticate and try again.\n"
    assert is_token_expired(403, sent_bytes)
    assert not is_token_expired(401, sent_bytes)
    assert not is_token_expired(403, b"denied")


TOKEN = 'signature=5ab1e5ab1e,repository="team/app",access=read'


@pytest.mark.parametrize(
    ("header", "secrets"),
    [
        (("Authorization", "Bearer t0k3n-t0k3n"), ["t0k3n-t0k3n"]),
        (("Authorization", "Basic YWNtZTpyaWdodA=="), ["YWNtZTpyaWdodA=="]),
        (("Authorization", f"Token {TOKEN}"), [TOKEN, "5ab1e5ab1e"]),
        (("Cookie", "session=c00k1e; other=0th3r-one"), ["c00k1e", "0th3r-one"]),
    ],
)
def test_a_credential_that_a_server_repeats_is_hidden_in_any_quoting(
    header: tuple[str, str], secrets: list[str]
) -> None:
    for secret in secrets:
        for body in (f"bad: {secret}!", json.dumps({"error": f"bad: {secret}!"})):
            left = redact_body(body.encode(), [("Accept", "x"), header]).decode()
            assert "[hidden]" in left
            assert "bad: " in left
            assert not [one for one in secrets if one in left or json.dumps(one)[1:-1] in left]


def test_the_signature_of_a_url_that_its_host_repeats_is_hidden() -> None:
    target = "/blob?X-Amz-Signature=5ab1e5ab1e&X-Amz-Credential=me%2Fyou%2Fthem&digest=sha256:abc"
    body = b"<SignatureProvided>5ab1e5ab1e</SignatureProvided> me/you/them me%2Fyou%2Fthem of sha256:abc"
    left = redact_body(body, [], target)
    assert b"<SignatureProvided>[hidden]</SignatureProvided> [hidden] [hidden] of sha256:abc" == left


@pytest.mark.parametrize(
    "header", [("Cookie", "a=1; b=on"), ("Authorization", "Basic abc"), ("X-Other", "value-of-it")]
)
def test_words_that_are_too_short_for_a_credential_are_not_hidden(header: tuple[str, str]) -> None:
    body = f"1 on abc {header[1]}".encode()
    assert body == redact_body(body, [header])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], False),
        (["registry/2.0"], True),
        (["Registry/2.0"], True),
        (["other/1.0  registry/2.0"], True),
        (["other/1.0", "registry/2.0"], True),
        (["registry/2.1", "registry", "registry/2.0x", "/2.0"], False),
    ],
)
def test_the_api_version_may_be_one_of_several_entries(values: list[str], expected: bool) -> None:
    assert expected == has_v2_version(values)
