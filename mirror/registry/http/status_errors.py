"""What a response that is not the wanted one means: its status and body as one of our errors. No I/O.

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
_AGAIN = frozenset({408, 425})  # besides 5xx
_NEVER = frozenset({501, 505})  # of 5xx
_KNOWN: dict[int, tuple[type[MirrorError], str, str]] = {
    401: (AuthError, "auth_failed", ""),
    403: (AuthError, "auth_denied", ""),
    404: (NotFound, "not_found", ""),
    407: (AuthError, "auth_failed", "the proxy wants a login: set it in the proxy's URL"),
}
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_TAG = re.compile(r"<(script|style)\b.*?</\1>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_SIGNATURE = re.compile(r'signature="?([^,"]+)')
_UPLOADING = re.compile(rb"image is being uploaded", re.IGNORECASE)  # docker-registry, the last one of v1
# docker-registry gives the number of the error in a `detail` of its storage driver: ENOSPC or EDQUOT of Linux.
_FULL = re.compile(
    r"no space left|not enough space|disk (?:is )?full|quota exceeded|insufficient storage|"
    r"exceed the configured upper limit|"  # Harbor's quota of a project, with 403
    r"\bErr\"?: ?(?:28|122)\b",
    re.IGNORECASE,
)
_DETAIL = 200  # characters

SHORTEST_ECHO = 6  # characters of a credential that is looked for in errors


def error_document(body: bytes, *, objects: bool = False) -> tuple[str, str]:
    """`code` and `message` of the first error of an OCI error document; ("", "") if `body` is none.

    A detail that is a text is part of the message: docker-registry says only there what it does not like.
    objects: so is one that is an object or a list, as its JSON: the errors of docker-registry's storage are such."""
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
    if isinstance(detail, str):
        return detail
    return printable(json.dumps(detail, ensure_ascii=False), _DETAIL) if detail and objects else ""


def failure(
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
    """The error that a response to `what` amounts to. longest_wait: seconds beyond which a wait is not waited for.

    writes: whether something was to be stored, so that it may be room that lacks."""
    # Below 500 such a detail repeats what was asked for: a name, a scope, a digest.
    code, message = error_document(body, objects=status >= 500)
    told = f"{what}: {_phrase(status)}{_words(status, code, message, body)}"
    error = _plain(told, status, body, writes)
    asked = retry_after(headers, now) if status in (429, 503) else None
    if status == 429:
        error = _limited(told, code, message, asked)
    if asked is not None:
        error.retry_after = asked
        if asked > longest_wait:
            error = RateLimited(f"{told}; it asks for a wait of {asked:.0f} s", retryable=False, retry_after=asked)
    error.status, error.registry_code, error.host = status, code, host
    return error


def _plain(told: str, status: int, body: bytes, writes: bool) -> MirrorError:
    if writes and (status == 507 or (status >= 400 and _FULL.search(body[:4096].decode("latin-1")))):
        hint = "make room there, or have the quota raised"
        return RemoteError(told, code="target_full", retryable=True, hint=hint)
    known = _KNOWN.get(status)
    if known is not None:
        kind, kind_code, hint = known
        return kind(told, code=kind_code, hint=hint)
    if status == 400 and _UPLOADING.search(body[:4096]):
        hint = "a push of this image has not ended; if that lasts, push it again, or exclude the tag"
        return RemoteError(told, retryable=True, hint=hint)
    if status in REDIRECTS:
        return RemoteError(f"{told}: a redirect is not usable here")
    return RemoteError(told, retryable=status in _AGAIN or (500 <= status < 600 and status not in _NEVER))


def _limited(told: str, code: str, message: str, asked: float | None) -> MirrorError:
    """Docker Hub's two kinds: a quota of pulls, used up for hours, and a limit on abuse, over in a minute."""
    quota = code == "TOOMANYREQUESTS" and "pull rate limit" in message.lower()
    if quota and asked is None:
        hint = "the quota of pulls is used up; credentials have a bigger one, and it fills again with time"
        return RateLimited(told, retryable=False, hint=hint)
    return RateLimited(told, hint="lower `parallel` or set `rate` for this host")


def retry_after(headers: Headers, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that the other side asks to wait; None if it does not, or not in a form of RFC 9110, "Retry-After".

    A date counts from the response's own Date, so that neither clock matters."""
    text = (headers.get("retry-after") or "").strip(WHITE_SPACE)
    if text.isascii() and text.isdigit():
        return float(text[:12])
    until = _seconds(text)
    if until is None:
        return None
    sent = _seconds(headers.get("date") or "")
    return max(0.0, until - (now() if sent is None else sent))


def _seconds(date: str) -> float | None:

    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def _phrase(status: int) -> str:

    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _words(status: int, code: str, message: str, body: bytes) -> str:
    """What the body says, unless that is the status once more."""
    if code or message:
        return ": " + ": ".join(filter(None, (code, message)))
    text = " ".join(_TAG.sub(" ", body[:4096].decode("utf-8", "replace")).split())
    said = {"error", *_phrase(status).lower().split()}
    news = any(word not in said for word in re.findall(r"\w+", text.lower()))
    return f": {printable(text, 160)}" if news else ""


def says_expired(status: int, body: bytes) -> bool:
    """Amazon ECR tells of an expired login with 403 and plain text: deis/builder#426."""
    return status == 403 and b"authorization token has expired" in body[:1024].lower()


def unechoed(body: bytes, headers: Sequence[tuple[str, str]], target: str = "") -> bytes:
    """A body for people without the credentials of a request's `headers`, and without the signature in the query of
    its `target`: some servers repeat them in their error."""
    secrets = [secret for name, value in headers for secret in _secrets_of(name, value)]
    if "?" in target:
        pairs = (part.partition("=") for part in target.partition("?")[2].split("&"))
        values = [value for key, _, value in pairs if key not in QUERY_KEYS]
        secrets += [form for value in values for form in (value, unquote(value))]
    for secret in secrets:
        if len(secret) >= SHORTEST_ECHO:
            for form in (secret, json.dumps(secret)[1:-1]):
                body = body.replace(form.encode("utf-8", "surrogateescape"), b"[hidden]")
    return body


def _secrets_of(name: str, value: str) -> list[str]:
    if name == "Authorization":
        secret = value.partition(" ")[2]
        return [secret, *_SIGNATURE.findall(secret)]  # of a v1 index: the rest says only what the token is for
    return [pair.partition("=")[2] for pair in value.split("; ")] if name == "Cookie" else []


def says_v2(values: Sequence[str]) -> bool:
    """Whether Docker-Distribution-Api-Version names v2; the header may repeat and hold several words."""
    for value in values:
        for word in value.split(" "):
            kind, _, version = word.partition("/")
            if version == "2.0" and kind.lower() == "registry":
                return True
    return False
