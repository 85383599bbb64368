"""Passwords that a service issues for a limited time. Each is reused until half of its lifetime has passed."""

from __future__ import annotations

import threading
from typing import Protocol

from mirror.errors import Cancelled, MirrorError
from mirror.registry.auth.credentials import Credential
from mirror.util.cancellation import Stop
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import SingleFlight, copy_error
from mirror.util.structs import RedactedStruct, replace

RETRY_AFTER = 60.0  # seconds between a failed renewal and the next attempt, while the old password is still valid
FAILURE_LIFE = 10.0  # seconds for which a temporary failure is reported without another attempt


class IssuedPassword(RedactedStruct, frozen=True):
    """A password that a service has issued. `lifetime` is in seconds, counted from now."""

    HIDDEN = ("password",)

    username: str
    password: str
    lifetime: float


class PasswordService(Protocol):
    """A service that issues passwords for one registry. Implementations are thread-safe."""

    @property
    def origin(self) -> str:
        """The name of the service in messages about its passwords, such as `AWS (login: ecr)`."""
        ...

    def issue(self, stop: Stop) -> IssuedPassword:
        """Return a new password. May send requests. Raises MirrorError."""
        ...


class ExpiringLogin:
    """The credential for one registry, from a service that issues passwords. Thread-safe.

    Threads that need a new password share one request. A permanent failure is remembered until a caller needs a fresh
    password, so that other repositories do not repeat the failed request."""

    def __init__(self, service: PasswordService, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._lock = threading.Lock()
        self._credential: Credential | None = None
        self._failure: MirrorError | None = None
        self._failure_ends = 0.0  # on `clock`
        self._calls: SingleFlight[None, Credential] = SingleFlight(f"a password from {service.origin}")

    def find(self, *, fresh: bool, stop: Stop) -> Credential:
        """Return the credential. If `fresh` is true, or half of its lifetime has passed, request a new password.

        If the request fails but the old password is still valid, return the old password, unless `fresh` is true."""
        seen, failure = self._current()
        if not fresh:
            if seen is not None and self._clock.now() < seen.renew_at:
                return seen
            if failure is not None:
                raise copy_error(failure)
        return self._calls.share(None, lambda: self._renew(seen, fresh, stop), stop)

    def _current(self) -> tuple[Credential | None, MirrorError | None]:
        """Return the last credential, and the last failure if it is recent enough to be reported again."""
        with self._lock:
            return self._credential, self._failure if self._clock.now() < self._failure_ends else None

    def _renew(self, seen: Credential | None, fresh: bool, stop: Stop) -> Credential:
        """Request a new password, unless another thread has replaced the credential `seen` in the meantime."""
        current, _ = self._current()
        if current is not None and current is not seen:
            return current
        now = self._clock.now()
        try:
            issued = self._service.issue(stop)
        except Cancelled:
            raise
        except MirrorError as error:
            if error.retryable and not fresh and current is not None and now < current.expires_at:
                return self._store(replace(current, renew_at=min(current.expires_at, now + RETRY_AFTER)))
            with self._lock:
                self._failure = error
                self._failure_ends = now + FAILURE_LIFE if error.retryable else float("inf")
            raise
        return self._store(
            Credential(
                issued.username,
                issued.password,
                origin=self._service.origin,
                renew_at=now + issued.lifetime / 2,
                expires_at=now + issued.lifetime,
            )
        )

    def _store(self, credential: Credential) -> Credential:
        """Remember a credential, forget the last failure, and return the credential."""
        with self._lock:
            self._credential, self._failure = credential, None
        return credential
