"""What a request needs to be allowed to do, in the words of the distribution token specification, "scope"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Scope:
    """Actions on one repository: `pull`, `push`, `delete`."""

    repository: str
    actions: tuple[str, ...]

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(self.actions)}"


def pull(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull",)),)


def push(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull", "push")),)
