"""What the manager starts when the scheduler says so: transfers and timers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

from mirror.transfer.watch import Flight, Hub
from mirror.util.cancellation import Stop, Work
from mirror.util.retry_policy import Policy

T = TypeVar("T")


class Owner(Protocol):
    """What jobs need of their manager. Without the lock; none may block."""

    def dispatch(self, transfer: Transfer[T]) -> None:
        """Run it on a worker."""

    def settle(self, job: Job[T]) -> None:
        """A timer has run out."""

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
        self.waited = 0.0  # seconds that count against the policy's time budget
        self.stop: Stop | None = None  # while it runs

    def launch(self) -> None:
        self.owner.dispatch(self)
