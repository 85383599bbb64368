"""The exception hierarchy of `mirror`, and the exit codes of the command line.

Every error that can appear in a report is a `MirrorError`. It describes what failed, on which object, what to do next,
and whether a retry can help. Its `code` is a stable identifier for programs, and its text is human-readable. The exit
code of a run is the worst exit code among its errors (`worst_exit_code`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Exit codes of the command line (docs/operations.md, "Exit codes").
OK = 0
FAILED = 1
USAGE = 2
REFUSED = 3
LOCAL = 4
CHANGES = 10
BUSY = 75
SIGNALLED = 128  # plus the number of the signal

DEADLINE = "deadline"  # the code of errors for work that `--deadline` cancelled
STOPPED = frozenset({"interrupted", DEADLINE})  # the codes of Cancelled

# Codes of errors that may be temporary, so that a later run may succeed without any change. A code in TRANSIENT is
# always treated as temporary, a code in TRANSIENT_IF_RETRYABLE only if the error is retryable. The column *again* in
# docs/operations.md, "Error codes", must agree with these sets.
TRANSIENT = frozenset(
    {"rate_limited", "net_error", "timeout", "too_slow", "truncated", "target_full", "tag_moved", "lock_busy"} | STOPPED
)
TRANSIENT_IF_RETRYABLE = frozenset({"bad_response", "bundle_incomplete"})

# C0 and C1 controls, DEL, bidirectional overrides and isolates, line separators, lone surrogates, and BOM. Text from a
# server must not move the cursor, forge a line of output or reorder what a person reads.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object, limit: int = 300) -> str:
    """Return `text` on one line, at most `limit` characters long, with control characters escaped."""
    raw = str(text)
    cut = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return _UNPRINTABLE.sub(_escape, cut)


def _escape(match: re.Match[str]) -> str:
    r"""Return the escape sequence for the matched character, such as `\x1b`."""
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class MirrorError(Exception):
    """Base class of all errors that can appear in a report.

    what: a clause that says what failed and on which object. The constructor escapes it, because it may contain text
    from a server.
    hint: what the user can do about the error; empty if there is no advice.
    code: one of the codes in docs/operations.md, "Error codes".
    status: the HTTP status of the response that caused the error, if any.
    retryable: whether the same request may succeed when it is sent again in this run.
    retry_after: the seconds to wait before a retry, as requested by the server; None if it requested no wait.
    registry_code: the `code` in the registry's error document (`NAME_UNKNOWN`), if it sent one.
    host: the host that caused the error, as named in `Limits`, if it may differ from the registry's host.
    account: the credentials that were refused, without secrets, such as `user acme, password from env HUB_TOKEN`.
    protocol: the registry protocol that was used (`v1`); empty for the default, v2.
    request_id: the id of the HTTP request that failed (mirror/registry/http/exchange_log.py), if requests are logged.
    retries_exhausted: whether all retries for this failure are used up, so that callers must not retry again.
    tag_digest: if the manifest of a tag is damaged, the digest that the store reports for the tag; None if unknown."""

    code = "error"
    exit_code = FAILED
    retryable = False
    retries_exhausted = False
    tag_digest: str | None = None
    request_id: int | None = None

    def __init__(
        self,
        what: str,
        *,
        hint: str = "",
        code: str | None = None,
        status: int | None = None,
        retryable: bool | None = None,
        retry_after: float | None = None,
        registry_code: str = "",
        host: str = "",
        account: str = "",
        protocol: str = "",
    ) -> None:
        self.what = printable(what, 600)
        self.hint = printable(hint, 600)
        self.status = status
        self.retry_after = retry_after
        self.registry_code = registry_code
        self.host = host
        self.account = printable(account)
        self.protocol = protocol
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        super().__init__(self.what)

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what

    @property
    def is_transient(self) -> bool:
        """Whether the error may be temporary, so that a later run may succeed without any change.

        In contrast, `retryable` says whether a retry in this run may succeed."""
        return self.code in TRANSIENT or (self.retryable and self.code in TRANSIENT_IF_RETRYABLE)

    def with_subject(self, subject: str) -> MirrorError:
        """Return a copy of the error whose text begins with `subject`, or this error if its text contains `subject`.

        If several callers share an error, each of them adds its own subject."""
        return self if subject in self.what else self.with_text(f"{subject}: {self.what}")

    def with_text(self, what: str) -> MirrorError:
        """Return a copy of the error with the text `what`."""
        copy = type(self)(
            what,
            hint=self.hint,
            code=self.code,
            status=self.status,
            retryable=self.retryable,
            retry_after=self.retry_after,
            registry_code=self.registry_code,
            host=self.host,
            account=self.account,
            protocol=self.protocol,
        )
        copy.request_id = self.request_id
        return copy


class RemoteError(MirrorError):
    """A registry failed or refused to do what was requested.

    The cause may be temporary, or the registry's operator may have to fix it."""

    code = "bad_response"


class NetworkError(RemoteError):
    """No complete response was received. Codes: net_error, timeout, truncated, too_slow."""

    code = "net_error"
    retryable = True


class Unreachable(NetworkError):
    """No connection to a host could be opened."""


class NotFound(RemoteError):
    """The repository, tag, manifest or blob does not exist."""

    code = "not_found"


class RateLimited(RemoteError):
    """The registry rejected a request because of its rate limit (429)."""

    code = "rate_limited"
    retryable = True


class AuthError(RemoteError):
    """Authentication failed, or access was denied.

    Codes: auth_failed if the registry rejected the credentials, auth_denied if they do not allow the operation."""

    code = "auth_failed"


class Refused(MirrorError):
    """The operation was refused for integrity or safety reasons, such as a wrong digest.

    The user has to investigate the cause (exit code 3). A retry does not help."""

    code = "digest_mismatch"
    exit_code = REFUSED


class SparseRefused(RemoteError):
    """The target rejected an index, because manifests that the index lists are missing from the target."""

    code = "blob_missing"


class OtherPlatform(MirrorError):
    """The image is for a platform that the mirror does not select.

    The image is skipped, which is not a failure (exit code 0)."""

    code = "not_found"
    exit_code = OK


class LocalError(MirrorError):
    """A failure on this machine, such as a full disk or missing permissions.

    Codes: local_full, local_io, state_corrupt."""

    code = "local_io"
    exit_code = LOCAL


class ConfigError(MirrorError):
    """The command line or the configuration is invalid. Normally raised before any host is contacted."""

    code = "config_invalid"
    exit_code = USAGE


class LockBusy(MirrorError):
    """Another run holds the lock on the state or on a store, so this run cannot start or cannot write."""

    code = "lock_busy"
    exit_code = BUSY


class Cancelled(MirrorError):
    """The work was cancelled by a signal, by `--fail-fast`, or because no caller needs its result any more.

    The work is not retried in this run, but a later run may succeed. If `--deadline` ended the run, the code is
    DEADLINE."""

    code = "interrupted"


# The exit code of a run is the first of these codes that one of its results has. The exit code of a signal takes
# precedence (commands/sync.py).
_WORST_FIRST = (LOCAL, REFUSED, FAILED, BUSY)


def is_failed_lookup(error: MirrorError) -> bool:
    """Return whether `error` is a response to a lookup, such as 500, that leaves open whether the object exists.

    Return False for rejected credentials and rate limits, because an upload would fail for the same reason."""
    return (
        isinstance(error, RemoteError) and error.status is not None and not isinstance(error, AuthError | RateLimited)
    )


def worst_exit_code(codes: Iterable[int]) -> int:
    """Return the exit code of a run, given the exit codes of its results.

    USAGE is treated like FAILED, because as the exit code of a run it would mean that no host was contacted."""
    seen = {FAILED if code == USAGE else code for code in codes}
    return next((code for code in _WORST_FIRST if code in seen), OK)
