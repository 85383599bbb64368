"""The request log of the scripted registry."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.registries.access import OWN_AGENT, Seen, Target
from tests.registries.exchange import Headers


@dataclass(eq=False, slots=True)
class Logged:
    """A request. status: of the reply; 0 if none was begun. body_length, size: bytes received and sent.

    connection: its number, from 1. time: `time.monotonic` at its first line. ended: just before the reply was
    complete."""

    method: str
    path: str
    headers: Headers
    kind: str
    repository: str
    reference: str
    connection: int
    time: float = field(default_factory=time.monotonic)
    body_length: int = 0
    status: int = 0
    size: int = 0
    ended: float = 0

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def ours(self) -> bool:
        return (self.header("User-Agent") or "").startswith(OWN_AGENT)


class Journal:
    """Requests in the order of their first lines. Thread-safe. Use `wait_for` instead of sleeping."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._all: list[Logged] = []
        self._start = 0
        self._flying = 0
        self.most_in_flight = 0

    def begin(self, target: Target, method: str, path: str, headers: Headers, connection: int) -> Logged:
        logged = Logged(method, path, headers, target.kind, target.repository, target.reference, connection)
        with self._changed:
            self._all.append(logged)
            if not logged.ours:
                self._flying += 1
                self.most_in_flight = max(self.most_in_flight, self._flying)
            self._changed.notify_all()
        return logged

    def end(self, logged: Logged) -> None:
        """Record that a request is no longer in progress. Called just before the last bytes are sent: the client may
        send its next request at once, which must not count as concurrent. May be called again."""
        with self._changed:
            if not logged.ended:
                logged.ended = time.monotonic()
                self._flying -= 0 if logged.ours else 1
                self._changed.notify_all()

    def mark(self) -> None:
        """Exclude earlier requests from the counts."""
        with self._changed:
            self._start = len(self._all)
            self.most_in_flight = self._flying

    @property
    def entries(self) -> list[Logged]:
        """Return the requests since `mark`, without those of the tests' own client."""
        with self._changed:
            return [logged for logged in self._all[self._start :] if not logged.ours]

    @property
    def everything(self) -> list[Logged]:
        """Return all requests."""
        with self._changed:
            return list(self._all)

    def requests(self) -> list[Seen]:
        """Return the requests as the access log of a real registry has them."""
        return [
            Seen(entry.method, entry.path, entry.status, entry.size, entry.kind, entry.repository, entry.reference)
            for entry in self.entries
        ]

    def counts(self, *, status: int | None = None) -> Counter[str]:
        return Counter(entry.kind for entry in self.entries if status in (None, entry.status))

    def writes(self) -> list[Seen]:
        return [seen for seen in self.requests() if seen.method not in ("GET", "HEAD")]

    def wait_for(self, kind: str, count: int = 1, within: float = 60) -> bool:
        """Wait for this number of requests of a kind since `mark`. Return False on a timeout."""

        def came() -> bool:
            entries = self._all[self._start :]
            return count <= sum(1 for entry in entries if entry.kind == kind and not entry.ours)

        with self._changed:
            return self._changed.wait_for(came, within)

    def wait_idle(self, within: float = 60) -> bool:
        """Wait until no request is in progress."""
        with self._changed:
            return self._changed.wait_for(lambda: self._flying == 0, within)
