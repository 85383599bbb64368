"""Prevents a wrong password from being sent repeatedly, because registries lock accounts after a few refusals.

Each credential of a host has one `CredentialTrial`. It begins as untried. Until the host has accepted the credential,
only one request at a time carries it, and all others wait for the response. After the host has refused a request for
good, the caller asks one question that concerns no repository. If the response to that is 401 too, the credential is
rejected: in the rest of the run, it is not sent to this host again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from mirror.errors import Cancelled, MirrorError
from mirror.registry.auth.credentials import Credential
from mirror.util.cancellation import Stop
from mirror.util.retry_policy import Clock
from mirror.util.single_flight import Gate, SingleFlight

RESPONSE_LIMIT = 130.0  # seconds until the next request is sent without a response to the last; more than one may take


class CredentialTrial:
    """What is known about one credential at one host: it is untried, accepted or rejected. Thread-safe.

    is_accepted: whether a response has shown that the host accepted the credential, and it was not rejected later.
    rejection: creates the error for a request that is not sent, from its subject; None unless the credential is
    rejected. Both are read without a lock."""

    __slots__ = ("_gate", "_lock", "_questions", "_was_asked", "is_accepted", "rejection")

    def __init__(self, clock: Clock) -> None:
        self._lock = threading.Lock()
        self._gate = Gate(clock, RESPONSE_LIMIT)
        self._questions: SingleFlight[None, None] = SingleFlight("a check of credentials")
        self._was_asked = False
        self.is_accepted = False
        self.rejection: Callable[[str], MirrorError] | None = None

    def enter(self, stop: Stop) -> bool:
        """Return True if the calling thread may send the credential. Otherwise wait until that may be so.

        If the result is False, the caller checks `rejection` before it calls this again. Raises Cancelled."""
        if self.is_accepted:
            return True
        may_send = self.rejection is None and self._gate.enter(stop)
        if may_send and self.rejection is not None:  # it was rejected meanwhile
            self._gate.leave()
            return False
        return may_send

    def leave(self) -> None:
        """Let the next thread send the credential, if the calling thread was the one that may send it."""
        self._gate.leave()

    def accept(self) -> None:
        """Record that the host accepted a request with the credential. A rejection remains."""
        with self._lock:
            self.is_accepted = self.rejection is None
        self._gate.open()

    def reject(self, rejection: Callable[[str], MirrorError]) -> None:
        """Reject the credential, so that it is not sent again. rejection: see the attribute `rejection`."""
        with self._lock:
            self.is_accepted, self.rejection = False, rejection

    def examine(self, ask: Callable[[], int], rejection: Callable[[str], MirrorError], stop: Stop) -> None:
        """Find out whether a refusal concerns the credential itself. If so, reject the credential.

        ask: sends a request with the credential that concerns no repository, and returns the status of the response.
        It is called at most once for each credential, unless it is cancelled. Its other errors are ignored: without a
        response, the credential is not rejected. Raises Cancelled."""
        try:
            self._questions.share(None, lambda: self._examine(ask, rejection), stop)
        except Cancelled:
            raise
        except MirrorError:
            pass  # the caller reports the refusal

    def _examine(self, ask: Callable[[], int], rejection: Callable[[str], MirrorError]) -> None:
        """Ask the question, unless it was asked before, and record the response."""
        if self._was_asked:
            return
        try:
            status = ask()
        except Cancelled:
            raise
        except MirrorError:
            self._was_asked = True
            raise
        self._was_asked = True
        if status == 401:
            self.reject(rejection)
        elif 200 <= status < 300:
            self.accept()


class CredentialTrials:
    """The trials of all credentials that are sent to one host. Thread-safe.

    Credentials with the same user and the same secret have one trial, even if a service renews them, or if they apply
    to different paths."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._trials: dict[tuple[str | None, ...], CredentialTrial] = {}
        self._senders: dict[int, CredentialTrial] = {}  # by the thread that may send the untried credential

    def find(self, credential: Credential | None) -> CredentialTrial | None:
        """Return the trial of a credential. None has none, and neither has a registry token, which is no password."""
        if credential is None or credential.registry_token is not None:
            return None
        key = (credential.username, credential.password, credential.identity_token)
        trial = self._trials.get(key)
        if trial is None:
            with self._lock:
                trial = self._trials.setdefault(key, CredentialTrial(self._clock))
        return trial

    def enter(self, trial: CredentialTrial | None, stop: Stop) -> bool:
        """Call `CredentialTrial.enter`. If this returns True, the same thread must call `leave` after its request."""
        if trial is None or trial.is_accepted:
            return True
        thread = threading.get_ident()
        if self._senders.get(thread, trial) is not trial:
            self.leave()
        if not trial.enter(stop):
            return False
        self._senders[thread] = trial
        return True

    def leave(self, *, is_accepted: bool = False) -> None:
        """End the request of the calling thread, if it carried an untried credential.

        is_accepted: whether the response shows that the host has accepted the credential."""
        trial = self._senders.pop(threading.get_ident(), None)
        if trial is None:
            return
        if is_accepted:
            trial.accept()
        else:
            trial.leave()
