"""Creates errors for responses with an unexpected status, from the status, the headers and the body. Does no I/O.

Source for error documents: distribution-spec v1.1.1, "Error Codes".
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
_RETRYABLE = frozenset({408, 425})  # in addition to 5xx
_NOT_RETRYABLE = frozenset({501, 505})  # exceptions among 5xx
_ERRORS: dict[int, tuple[type[MirrorError], str, str]] = {
    401: (AuthError, "auth_failed", ""),
    403: (AuthError, "auth_denied", ""),
    404: (NotFound, "not_found", ""),
    407: (AuthError, "auth_failed", "set the user name and password in the URL of the proxy"),
}
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_SIGNATURE = re.compile(r'signature="?([^,"]+)')
_UPLOADING = re.compile(rb"image is being uploaded", re.IGNORECASE)  # docker-registry 0.9.1, a v1 registry
# docker-registry (v2) reports the Linux error number of its storage driver in `detail`: 28 (ENOSPC) or 122 (EDQUOT).
_NO_SPACE = re.compile(
    r"no space left|not enough space|disk (?:is )?full|quota exceeded|insufficient storage|"
    r"exceed the configured upper limit|"  # Harbor sends this with 403 for the quota of a project
    r"\bErr\"?: ?(?:28|122)\b",
    re.IGNORECASE,
)
# Harbor's message for a project that does not exist. Names contain no spaces, so no name can look like it.
_MISSING_PROJECT = re.compile(r"\bproject (?:\S{1,255} )?not found\b", re.IGNORECASE)
_MAX_DETAIL = 200  # characters

MIN_SECRET_LENGTH = 6  # characters; shorter credentials are not searched for in error responses


def parse_error_document(body: bytes, *, objects: bool = False) -> tuple[str, str]:
    """Return the code and message of the first error in an OCI error document, or empty strings for any other body.

    A string in `detail` is appended to the message, because docker-registry gives the reason only there. If `objects`
    is true, an object or a list in `detail` is appended as JSON, the form in which docker-registry reports storage
    errors."""
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
    code, texts = first.get("code"), (first.get("message"), _detail_text(first.get("detail"), objects=objects))
    return (
        code if isinstance(code, str) and _CODE.fullmatch(code) else "",
        ": ".join(dict.fromkeys(text for text in texts if isinstance(text, str) and text)),
    )


def _detail_text(detail: strictjson.Value, *, objects: bool) -> str:
    """Return the `detail` of an error as text. Unless `objects` is true, return an empty string for an object."""
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
    """Return the error for a response with an unexpected status. `what` is the request, for the message.

    If the server requests a wait of more than `longest_wait` seconds, the error is not retryable. `writes` is true if
    the request stores data, so that the cause may be a lack of space."""
    # For a status below 500, an object in `detail` only repeats part of the request: a name, a scope or a digest.
    code, message = parse_error_document(body, objects=status >= 500)
    text = f"{what}: {_status_text(status)}{_body_text(status, code, message, body)}"
    error = _classify_status(text, status, body, writes)
    if status in (401, 403) and reports_missing_project(message):
        error = NotFound(text)
    wait = retry_after(headers, now) if status in (429, 503) else None
    if status == 429:
        error = _rate_limit_error(text, code, message, wait)
    if wait is not None:
        error.retry_after = wait
        if wait > longest_wait:
            text = f"{text}; the server asks clients to wait {wait:.0f} s"
            error = RateLimited(text, retryable=False, retry_after=wait)
    error.status, error.registry_code, error.host = status, code, host
    return error


def _classify_status(text: str, status: int, body: bytes, writes: bool) -> MirrorError:
    """Return the error for a response status other than 429. `text` is the message. See `error_for`."""
    if writes and (status == 507 or (status >= 400 and _NO_SPACE.search(body[:4096].decode("latin-1")))):
        hint = "free space on the registry, or have its quota raised"
        return RemoteError(text, code="target_full", retryable=True, hint=hint)
    known = _ERRORS.get(status)
    if known is not None:
        kind, kind_code, hint = known
        return kind(text, code=kind_code, hint=hint)
    if status == 400 and _UPLOADING.search(body[:4096]):
        hint = "an earlier push of this image is incomplete; if the error persists, push it again or exclude the tag"
        return RemoteError(text, retryable=True, hint=hint)
    if status in REDIRECTS:
        return RemoteError(f"{text}: redirects of this request are not followed")
    return RemoteError(text, retryable=status in _RETRYABLE or (500 <= status < 600 and status not in _NOT_RETRYABLE))


def _rate_limit_error(text: str, code: str, message: str, wait: float | None) -> MirrorError:
    """Return the error for a 429 response. `wait` is the requested wait in seconds, or None if there is none.

    Docker Hub has a pull quota, which may be used up for hours, and an abuse limit, which lasts about a minute."""
    quota = code == "TOOMANYREQUESTS" and "pull rate limit" in message.lower()
    if quota and wait is None:
        hint = "the pull quota is used up: wait until it is renewed, or set credentials that have a higher quota"
        return RateLimited(text, retryable=False, hint=hint)
    return RateLimited(text, hint="lower `parallel` or set `rate` for this host")


def retry_after(headers: Headers, now: Callable[[], float] = time.time) -> float | None:
    """Return the wait that a Retry-After header requests, in seconds, or None if it is missing or invalid.

    A date is compared with the Date header of the response, so that a difference between the clocks of the server and
    this machine has no effect. Source: RFC 9110, "Retry-After"."""
    text = (headers.get("retry-after") or "").strip(WHITE_SPACE)
    if text.isascii() and text.isdigit():
        return float(text[:12])
    retry_at = _timestamp(text)
    if retry_at is None:
        return None
    sent = _timestamp(headers.get("date") or "")
    return max(0.0, retry_at - (now() if sent is None else sent))


def _timestamp(date: str) -> float | None:
    """Convert an HTTP date to seconds since 1970. Return None if it is missing or invalid."""
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _status_text(status: int) -> str:
    """Return a status with its reason phrase, such as `404 Not Found`."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _body_text(status: int, code: str, message: str, body: bytes) -> str:
    """Return the text of an error body after a colon, or an empty string if the body only repeats the status.

    Backquotes are replaced, because they mark commands of this tool in messages."""
    if code or message:
        return ": " + ": ".join(filter(None, (code, message))).replace("`", "'")
    text = " ".join(_TAG.sub(" ", body[:4096].decode("utf-8", "replace")).split())
    known_words = {"error", *_status_text(status).lower().split()}
    has_more = any(word not in known_words for word in re.findall(r"\w+", text.lower()))
    return f": {printable(text, 160)}".replace("`", "'") if has_more else ""


def is_token_expired(status: int, body: bytes) -> bool:
    """Return whether a response reports an expired token, as Amazon ECR does with 403 and plain text.

    Source: deis/builder#426."""
    return status == 403 and b"authorization token has expired" in body[:1024].lower()


def reports_missing_project(message: str) -> bool:
    """Return whether a message of a registry says that a project does not exist, as Harbor does."""
    return _MISSING_PROJECT.search(message) is not None


def is_project_missing(body: bytes) -> bool:
    """Return whether an error document says that a project does not exist.

    Harbor sends such a document with 401 and without a challenge. Source: goharbor/harbor,
    src/server/middleware/v2auth/auth.go, and issue 17097."""
    return reports_missing_project(parse_error_document(body)[1])


def redact_body(body: bytes, headers: Sequence[tuple[str, str]], target: str = "") -> bytes:
    """Return the body of an error response without the secrets of the request, which some servers repeat there.

    `headers` are the request headers, of which Authorization and Cookie contain secrets. `target` is the path and query
    of the request; the query may contain a signature."""
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
    """Return the secrets in the value of a request header."""
    if name == "Authorization":
        secret = value.partition(" ")[2]
        return [secret, *_SIGNATURE.findall(secret)]  # a v1 token contains a signature; its other parts are not secret
    return [pair.partition("=")[2] for pair in value.split("; ")] if name == "Cookie" else []


def has_v2_version(values: Sequence[str]) -> bool:
    """Return whether the values of the Docker-Distribution-Api-Version header declare v2.

    The header may be repeated, and a value may have several entries."""
    for value in values:
        for entry in value.split(" "):
            kind, _, version = entry.partition("/")
            if version == "2.0" and kind.lower() == "registry":
                return True
    return False
