"""What the manager starts when the scheduler says so: transfers, timers, and permits that are held."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from mirror.backoff import Policy
from mirror.limits import Stop, Work
from mirror.transfer.watch import Flight, Hub

T = TypeVar("T")


class Hold(AbstractContextManager["Hold"]):
    """A permit that is held without a thread. Given back at the end of its `with`, or with its watch."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release

    def release(self) -> None:
        """Give it back. May be called again."""
        self._release()

    def __exit__(self, *_: object) -> None:
        self._release()


class Owner(Protocol):
    """What jobs need of their manager. Without the lock; none may block."""

    def dispatch(self, transfer: Transfer[T]) -> None:
        """Run it on a worker."""

    def settle(self, job: Job[T]) -> None:
        """A timer has run out."""

    def grant(self, holding: Holding) -> None:
        """A hold has its permit."""

    def abandon(self, job: Job[T]) -> None:
        """Nobody waits for it any more."""


class Job(Flight[T]):
    """A flight that starts when the scheduler says so. This one is a timer: it ends when it starts."""

    def __init__(self, hub: Hub, owner: Owner, number: int, total: int | None = None) -> None:
        super().__init__(hub, total)
        self.owner = owner
        self.job: int = number

    def launch(self) -> None:
        """It has its permits. Without the lock; must not block."""
        self.owner.settle(self)

    def abandon(self) -> None:
        self.owner.abandon(self)


class Transfer(Job[T]):
    """Calls `run` on a worker, perhaps several times."""

    def __init__(
        self,
        hub: Hub,
        owner: Owner,
        number: int,
        *,
        key: Hashable,
        run: Callable[[Work], T],
        policy: Policy,
        total: int | None,
        forget: Callable[[Flight[Any]], None],
    ) -> None:
        """forget: called at the end, under the lock."""
        super().__init__(hub, owner, number, total)
        self.forget = forget
        self.key = key
        self.run = run
        self.policy = policy
        self.began = 0.0  # the first attempt
        self.stop: Stop | None = None  # while it runs

    def launch(self) -> None:
        self.owner.dispatch(self)


class Holding(Job[Hold]):
    """Holds a permit from its start on until its value, or its last watch, is released."""

    keeps = True

    def launch(self) -> None:
        self.owner.grant(self)

    def abandon(self) -> None:
        if self.value is not None:
            self.value.release()
        else:
            self.owner.abandon(self)
