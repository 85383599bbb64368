"""The hierarchy of errors, and the exit codes.

Every error that can appear in a report is a `MirrorError`. It says what failed, on what, what to do next, and whether
a retry can help. Its `code` is a stable identifier for programs; its text is for people. The exit code of a run is the
worst of the exit codes of its errors (`worst_exit_code`).
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

# Errors that may disappear by a later run without any change: those with a code of TRANSIENT always, those with a code
# of TRANSIENT_IF_RETRYABLE if the error is retryable. docs/operations.md, "Error codes", column *again*, says the same.
TRANSIENT = frozenset(
    {"rate_limited", "net_error", "timeout", "too_slow", "truncated", "target_full", "tag_moved", "lock_busy"}
    | {"interrupted"}
)
TRANSIENT_IF_RETRYABLE = frozenset({"bad_response", "bundle_incomplete"})

# C0 and C1 controls, DEL, bidirectional overrides and isolates, line separators, lone surrogates, BOM:
# text from a server must not move the cursor, forge a line of output or reorder what a person reads.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object, limit: int = 300) -> str:
    """Return `text` on one line, at most `limit` characters long, with control characters escaped."""
    raw = str(text)
    cut = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return _UNPRINTABLE.sub(_escape, cut)


def _escape(match: re.Match[str]) -> str:
    """Return the escape sequence for a character."""
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class MirrorError(Exception):
    """Base class of all errors of this project.

    what: what failed and on what, one clause. It may contain text from a server; it is escaped here.
    hint: what a person can do about it; empty if there is no advice.
    code: one of the codes in docs/operations.md, "Error codes".
    status: the HTTP status of the response that caused the error, if any.
    retryable: whether the same request may succeed when it is sent again in this run.
    retry_after: seconds that the server asked us to wait before a retry; None if it did not ask.
    registry_code: the `code` in the registry's error document (`NAME_UNKNOWN`), if it sent one.
    host: the host that caused the error, by its name in `Limits`, if that may be another host than the registry.
    protocol: the protocol that was used, where the registry has several; empty for the usual one.
    retries_exhausted: all retries for this failure are used up; callers must not retry it again.
    tag_digest: for a tag whose manifest is damaged: the digest that the store has for the tag, if it is known."""

    code = "error"
    exit_code = FAILED
    retryable = False
    retries_exhausted = False
    tag_digest: str | None = None

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
        protocol: str = "",
    ) -> None:
        self.what = printable(what, 600)
        self.hint = printable(hint, 600)
        self.status = status
        self.retry_after = retry_after
        self.registry_code = registry_code
        self.host = host
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
        """Whether a later run may succeed without any change by an operator. `retryable` is about this run."""
        return self.code in TRANSIENT or (self.retryable and self.code in TRANSIENT_IF_RETRYABLE)

    def with_subject(self, subject: str) -> MirrorError:
        """Return the same error with `subject` in front of its text. For errors that several callers share."""
        return self if subject in self.what else self.with_text(f"{subject}: {self.what}")

    def with_text(self, what: str) -> MirrorError:
        """Return a copy of the error with another text."""
        return type(self)(
            what,
            hint=self.hint,
            code=self.code,
            status=self.status,
            retryable=self.retryable,
            retry_after=self.retry_after,
            registry_code=self.registry_code,
            host=self.host,
            protocol=self.protocol,
        )


class RemoteError(MirrorError):
    """A registry did not do what was requested.

    The cause may be temporary, or only the registry's owner can fix it."""

    code = "bad_response"


class NetworkError(RemoteError):
    """No complete response was received. Codes: net_error, timeout, truncated, too_slow."""

    code = "net_error"
    retryable = True


class Unreachable(NetworkError):
    """No connection could be opened. After enough of these errors the host counts as down."""


class NotFound(RemoteError):
    """The repository, tag, manifest or blob does not exist."""

    code = "not_found"


class RateLimited(RemoteError):
    """The registry limits our requests (429)."""

    code = "rate_limited"
    retryable = True


class AuthError(RemoteError):
    """auth_failed: the registry did not accept our credentials. auth_denied: they do not allow this operation."""

    code = "auth_failed"


class Refused(MirrorError):
    """We stopped for integrity or safety. A person has to look at it (exit code 3); a retry does not help."""

    code = "digest_mismatch"
    exit_code = REFUSED


class LocalError(MirrorError):
    """A failure on this machine: disk full, permissions. Codes: local_full, local_io, state_corrupt."""

    code = "local_io"
    exit_code = LOCAL


class ConfigError(MirrorError):
    """Wrong usage or configuration. It is raised only at the start, before any host is contacted."""

    code = "config_invalid"
    exit_code = USAGE


class LockBusy(MirrorError):
    """Another run holds the lock."""

    code = "lock_busy"
    exit_code = BUSY


class Cancelled(MirrorError):
    """The work was cancelled: by a signal, by `--fail-fast`, or because no caller needs its result any more.

    Not retryable in this run; another run may succeed."""

    code = "interrupted"


# The exit code of a signal takes precedence over these (commands/sync.py). The first of these that occurred counts.
_WORST_FIRST = (LOCAL, REFUSED, FAILED, BUSY)


def is_failed_lookup(error: MirrorError) -> bool:
    """Return whether a server failed to answer a lookup, with a status such as 500: the object may exist or not.

    Refused credentials and rate limits do not count: they say nothing about the object."""
    return (
        isinstance(error, RemoteError) and error.status is not None and not isinstance(error, AuthError | RateLimited)
    )


def worst_exit_code(codes: Iterable[int]) -> int:
    """Return the exit code of a run whose errors have `codes`.

    Never USAGE, which means that no host was contacted. During a run, such an error is one failure among others."""
    seen = {FAILED if code == USAGE else code for code in codes}
    return next((code for code in _WORST_FIRST if code in seen), OK)
