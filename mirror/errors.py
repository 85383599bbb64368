"""What can go wrong, as values that say what failed, on what, what to do next, and whether a retry can help.

Every error that may end in a report is a `MirrorError`. Its `code` is a stable word for machines, its text
is for people. The exit code of a run is the worst of its errors' exit codes (`worst`).
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

# Codes of what may pass by itself until a later run, and of what does if its error says so (`MirrorError.passing`);
# docs/operations.md, "Error codes", has the same in its column *again*.
PASSING = frozenset(
    {"rate_limited", "net_error", "timeout", "too_slow", "truncated", "target_full", "tag_moved", "lock_busy"}
    | {"interrupted"}
)
PASSING_OFTEN = frozenset({"bad_response", "bundle_incomplete"})

# C0 and C1 controls, DEL, bidirectional overrides and isolates, line separators, lone surrogates, BOM:
# a server's words must not move the cursor, forge a line or reorder what a person reads.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: object, limit: int = 300) -> str:
    """`text` on one line, without characters that act on a terminal, at most `limit` characters long."""
    raw = str(text)
    cut = raw if len(raw) <= limit else raw[: limit - 1] + "…"
    return _UNPRINTABLE.sub(_escape, cut)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class MirrorError(Exception):
    """Base of all our errors.

    what: what failed and on what, one clause, may hold a server's words (they are escaped here).
    hint: what a person can do about it; empty if there is nothing to say.
    code: one of the words of docs/operations.md, "Error codes".
    status: the HTTP status that said so, if any.
    retryable: whether the same request may succeed when it is sent again in this run.
    retry_after: seconds after which the other side asked to be tried again; None if it did not say.
    registry_code: the `code` of the registry's own error document (`NAME_UNKNOWN`), if it sent one.
    host: whose trouble it is, as `Limits` names hosts, where that may be another one than the registry asked.
    protocol: by which of several a registry was asked; empty: by the usual one.
    spent: it outlived all retries that there are for it: who needed what failed must not begin them anew.
    names: of a tag whose manifest is damaged: the digest that the store has for the tag, if it says so.
    """

    code = "error"
    exit_code = FAILED
    retryable = False
    spent = False
    names: str | None = None

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
    def passing(self) -> bool:
        """Whether a later run may succeed without anybody changing anything; `retryable` is about this run."""
        return self.code in PASSING or (self.retryable and self.code in PASSING_OFTEN)

    def about(self, subject: str) -> MirrorError:
        """The same error told of `subject`; for errors that several waiters share."""
        return self if subject in self.what else self.told(f"{subject}: {self.what}")

    def told(self, what: str) -> MirrorError:
        """The same error in other words."""
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
    """A registry did not do what was asked, for a reason that may pass or that only its owner can mend."""

    code = "bad_response"


class NetworkError(RemoteError):
    """No whole answer came: refused, reset, cut short, too slow. Codes: net_error, timeout, truncated, too_slow."""

    code = "net_error"
    retryable = True


class Unreachable(NetworkError):
    """No connection could be made at all; enough of these and the host counts as down."""


class NotFound(RemoteError):
    code = "not_found"


class RateLimited(RemoteError):
    code = "rate_limited"
    retryable = True


class AuthError(RemoteError):
    """auth_failed: who we are was not accepted; auth_denied: we may not do this."""

    code = "auth_failed"


class Refused(MirrorError):
    """We stopped for integrity or safety: exit code 3, a person must look, a retry will not help."""

    code = "digest_mismatch"
    exit_code = REFUSED


class LocalError(MirrorError):
    """Trouble on this machine: disk full, permissions. Codes: local_full, local_io, state_corrupt."""

    code = "local_io"
    exit_code = LOCAL


class ConfigError(MirrorError):
    """Usage or configuration; nothing was contacted: only what a start does may raise it."""

    code = "config_invalid"
    exit_code = USAGE


class LockBusy(MirrorError):
    code = "lock_busy"
    exit_code = BUSY


class Cancelled(MirrorError):
    """The work was called off: a signal, fail-fast, or nobody wants its result any more.

    Not retryable here and now, but another run may well do it."""

    code = "interrupted"


# A signal's code wins over these (sync.py); among these the first found wins.
_WORST_FIRST = (LOCAL, REFUSED, FAILED, BUSY)


def could_not_look_up(error: MirrorError) -> bool:
    """Whether a server answered a look-up with an error such as 500: it has what was asked for, or has it not.
    A refusal of credentials and a rate limit are about something else."""
    return (
        isinstance(error, RemoteError) and error.status is not None and not isinstance(error, AuthError | RateLimited)
    )


def worst(codes: Iterable[int]) -> int:
    """The exit code of a run that met all of `codes`.

    Never USAGE, which says that nothing was contacted: that ends a run before it begins, or is one failure of many."""
    seen = {FAILED if code == USAGE else code for code in codes}
    return next((code for code in _WORST_FIRST if code in seen), OK)
