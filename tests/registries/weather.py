"""Random faults: the fault of a request depends on a seed, on the request, and on how often it was sent."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests.registries.access import Target
from tests.registries.exchange import Reply, Request
from tests.registries.faults import CONNECT, Fault, Faults

_WRITES = ("PUT", "PATCH")
_RULES: tuple[Callable[[random.Random], dict[str, Any]], ...] = (
    lambda chance: {"reset": True},
    lambda chance: {"reset": True, "after": True},  # carried out, but the response is lost
    lambda chance: {"status": chance.choice((500, 502, 503, 504))},
    lambda chance: {"status": 429, "headers": [("Retry-After", str(chance.choice((0, 0, 0, 1))))]},
    lambda chance: {"after": True, "cut_after": chance.randrange(2000)},
    lambda chance: {"after": True, "cut_head_after": chance.randrange(200)},
    lambda chance: {"after": True, "delay": chance.random() / 20},
    lambda chance: {"after": True, "drip": 100_000.0},
    lambda chance: {"status": 503, "body": b"<html>gateway</html>", "headers": [("Content-Type", "text/html")]},
)


class Weather(Faults):
    """Faults for a fraction of the requests of a scripted registry. lies: listings may also get a false 404.

    `calm` turns the faults off; `at` runs an action before or after the n-th request. Thread-safe."""

    def __init__(self, seed: str, share: float, *, lies: bool = False) -> None:
        super().__init__()
        self._seed = seed
        self._share = share
        self._guard = threading.Lock()
        self._asked: Counter[tuple[str, str, str]] = Counter()
        self._left = 0
        self._after = False
        self._action: Callable[[], None] | None = None
        self.lies = lies
        self.calm = False

    def at(self, count: int, action: Callable[[], None], *, after: bool) -> None:
        """Call `action` once, at the request number `count` from now on. after: when it has been carried out."""
        with self._guard:
            self._left, self._action, self._after = count, action, after

    def disarm(self) -> None:
        """Remove the action."""
        with self._guard:
            self._action = None

    def take(self, target: Target) -> Fault | None:
        if target.kind == CONNECT:
            return None
        if action := self._due():
            return _acting(target.kind, action, after=self._after)
        if self.calm:
            return None
        key = (target.kind, target.repository, target.reference)
        with self._guard:
            self._asked[key] += 1
            chance = random.Random(f"{self._seed} {key} {self._asked[key]}")
        if chance.random() >= self._share:
            return None
        rule = chance.choice(_RULES)(chance)
        if target.kind.startswith(_WRITES) and chance.random() < 0.3:
            rule = {"cut_request_after": chance.randrange(3000)}
        if self.lies and target.kind == "GET tags" and chance.random() < 0.5:
            rule = {"status": 404, "body": b'{"errors": [{"code": "NAME_UNKNOWN"}]}'}
        return Fault(target.kind, **rule)

    def _due(self) -> Callable[[], None] | None:
        with self._guard:
            if self._action is None:
                return None
            self._left -= 1
            if self._left > 0:
                return None
            action, self._action = self._action, None
            return action


def _acting(kind: str, action: Callable[[], None], *, after: bool) -> Fault:
    def before_it(_: Request) -> Reply | None:
        action()
        return None

    def after_it(_: Request, reply: Reply) -> Reply:
        action()
        return reply

    return Fault(kind, after=True, change=after_it) if after else Fault(kind, hook=before_it)
