"""Errors for responses with an unexpected status, from the status, the headers and the body. No I/O.

Error documents: distribution-spec v1.1.1, "Error Codes".
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import unquote

from mirror.errors import AuthError, MirrorError, NotFound, RateLimited, Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.output.redaction import QUERY_KEYS
from mirror.registry.http.headers import WHITE_SPACE, Headers

REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE = frozenset({408, 425})  # besides 5xx
_NOT_RETRYABLE = frozenset({501, 505})  # of 5xx
_ERRORS: dict[int, tuple[type[MirrorError], str, str]] = {
    401: (AuthError, "auth_failed", ""),
    403: (AuthError, "auth_denied", ""),
    404: (NotFound, "not_found", ""),
    407: (AuthError, "auth_failed", "the proxy requires a login: set it in the URL of the proxy"),
}
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_SIGNATURE = re.compile(r'signature="?([^,"]+)')
_UPLOADING = re.compile(rb"image is being uploaded", re.IGNORECASE)  # docker-registry 0.9.1, which speaks v1
# docker-registry (v2) has the error number in the `detail` of its storage driver: ENOSPC or EDQUOT of Linux.
_NO_SPACE = re.compile(
    r"no space left|not enough space|disk (?:is )?full|quota exceeded|insufficient storage|"
    r"exceed the configured upper limit|"  # quota of a project in Harbor, with 403
    r"\bErr\"?: ?(?:28|122)\b",
    re.IGNORECASE,
)
_MAX_DETAIL = 200  # characters

MIN_SECRET_LENGTH = 6  # characters; shorter credentials are not searched for in error responses


def error_document(body: bytes, *, objects: bool = False) -> tuple[str, str]:
    """Return the code and the message of the first error of an OCI error document; ("", "") if `body` is none.

    A detail that is a string is appended to the message, because docker-registry has the reason only there. objects: a
    detail that is an object or a list is appended as JSON; docker-registry reports storage errors in this form."""
    if body[:1] not in (b"{", b" ", b"\n"):
        return "", ""
    try:
        document = strictjson.parse(body, what="an error document")
    except Refused:
        return "", ""
    errors = document.get("errors") if isinstance(document, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, dict):
        return "", ""
    code, texts = first.get("code"), (first.get("message"), _detail(first.get("detail"), objects=objects))
    return (
        code if isinstance(code, str) and _CODE.fullmatch(code) else "",
        ": ".join(dict.fromkeys(text for text in texts if isinstance(text, str) and text)),
    )


def _detail(detail: strictjson.Value, *, objects: bool) -> str:
    """Return the detail of an error as text; empty if it is not used."""
    if isinstance(detail, str):
        return detail
    return printable(json.dumps(detail, ensure_ascii=False), _MAX_DETAIL) if detail and objects else ""


def error_for(
    what: str,
    status: int,
    headers: Headers,
    body: bytes,
    *,
    host: str = "",
    longest_wait: float = 120.0,
    writes: bool = True,
    now: Callable[[], float] = time.time,
) -> MirrorError:
    """Return the error for a response. what: the request, for the message.

    longest_wait: seconds; if the server requests a longer wait, the error is final. writes: the request was to store
    something, so that the cause may be a lack of space."""
    # Below 500, an object only repeats a part of the request: a name, a scope, a digest.
    code, message = error_document(body, objects=status >= 500)
    text = f"{what}: {_status_text(status)}{_body_text(status, code, message, body)}"
    error = _classify_status(text, status, body, writes)
    wait = retry_after(headers, now) if status in (429, 503) else None
    if status == 429:
        error = _rate_limit_error(text, code, message, wait)
    if wait is not None:
        error.retry_after = wait
        if wait > longest_wait:
            text = f"{text}; the server requests a wait of {wait:.0f} s"
            error = RateLimited(text, retryable=False, retry_after=wait)
    error.status, error.registry_code, error.host = status, code, host
    return error


def _classify_status(text: str, status: int, body: bytes, writes: bool) -> MirrorError:
    """Return the error for a status, without regard to rate limits. text: the message."""
    if writes and (status == 507 or (status >= 400 and _NO_SPACE.search(body[:4096].decode("latin-1")))):
        hint = "free space on the registry, or have its quota raised"
        return RemoteError(text, code="target_full", retryable=True, hint=hint)
    known = _ERRORS.get(status)
    if known is not None:
        kind, kind_code, hint = known
        return kind(text, code=kind_code, hint=hint)
    if status == 400 and _UPLOADING.search(body[:4096]):
        hint = "a push of this image is not complete; if this persists, push it again or exclude the tag"
        return RemoteError(text, retryable=True, hint=hint)
    if status in REDIRECTS:
        return RemoteError(f"{text}: a redirect of this request is not followed")
    return RemoteError(text, retryable=status in _RETRYABLE or (500 <= status < 600 and status not in _NOT_RETRYABLE))


def _rate_limit_error(text: str, code: str, message: str, wait: float | None) -> MirrorError:
    """Return the error for a 429. wait: seconds that the server requests.

    Docker Hub has a pull quota, which may be used up for hours, and an abuse limit, which lasts about a minute."""
    quota = code == "TOOMANYREQUESTS" and "pull rate limit" in message.lower()
    if quota and wait is None:
        hint = "the pull quota is used up; it is larger with credentials, and it is renewed over time"
        return RateLimited(text, retryable=False, hint=hint)
    return RateLimited(text, hint="lower `parallel` or set `rate` for this host")


def retry_after(headers: Headers, now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds of the Retry-After header; None if it is missing or invalid. Source: RFC 9110, "Retry-After".

    A date is compared with the Date of the response, so that a difference between the clocks has no effect."""
    text = (headers.get("retry-after") or "").strip(WHITE_SPACE)
    if text.isascii() and text.isdigit():
        return float(text[:12])
    retry_at = _timestamp(text)
    if retry_at is None:
        return None
    sent = _timestamp(headers.get("date") or "")
    return max(0.0, retry_at - (now() if sent is None else sent))


def _timestamp(date: str) -> float | None:
    """Return an HTTP date in seconds since 1970; None if it is missing or invalid."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _status_text(status: int) -> str:
    """Return a status with its phrase: `404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _body_text(status: int, code: str, message: str, body: bytes) -> str:
    """Return the text of an error body after a colon; empty if it only repeats the status."""
    if code or message:
        return ": " + ": ".join(filter(None, (code, message)))
    text = " ".join(_TAG.sub(" ", body[:4096].decode("utf-8", "replace")).split())
    known_words = {"error", *_status_text(status).lower().split()}
    has_more = any(word not in known_words for word in re.findall(r"\w+", text.lower()))
    return f": {printable(text, 160)}" if has_more else ""


def is_token_expired(status: int, body: bytes) -> bool:
    """Return whether a response reports an expired token. Amazon ECR does so with 403 and plain text:
    deis/builder#426."""
    return status == 403 and b"authorization token has expired" in body[:1024].lower()


def redact_body(body: bytes, headers: Sequence[tuple[str, str]], target: str = "") -> bytes:
    """Remove the secrets of a request from an error body, because some servers repeat them there.

    headers: of the request; Authorization and Cookie contain secrets. target: of the request; its query may contain a
    signature."""
    secrets = [secret for name, value in headers for secret in _secrets_in(name, value)]
    if "?" in target:
        pairs = (part.partition("=") for part in target.partition("?")[2].split("&"))
        values = [value for key, _, value in pairs if key not in QUERY_KEYS]
        secrets += [form for value in values for form in (value, unquote(value))]
    for secret in secrets:
        if len(secret) >= MIN_SECRET_LENGTH:
            for form in (secret, json.dumps(secret)[1:-1]):
                body = body.replace(form.encode("utf-8", "surrogateescape"), b"[hidden]")
    return body


def _secrets_in(name: str, value: str) -> list[str]:
    """Return the secrets in a request header."""
    if name == "Authorization":
        secret = value.partition(" ")[2]
        return [secret, *_SIGNATURE.findall(secret)]  # a token of v1 has a signature; its other parts are not secret
    return [pair.partition("=")[2] for pair in value.split("; ")] if name == "Cookie" else []


def has_v2_version(values: Sequence[str]) -> bool:
    """Return whether the values of Docker-Distribution-Api-Version name v2. The header may be repeated, and a value may
    have several entries."""
    for value in values:
        for entry in value.split(" "):
            kind, _, version = entry.partition("/")
            if version == "2.0" and kind.lower() == "registry":
                return True
    return False
