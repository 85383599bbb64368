"""What a request needs to be allowed to do, in the words of the distribution token specification, "scope"."""

from __future__ import annotations

from mirror.structs import Struct


class Scope(Struct, frozen=True, order=True):
    """Actions on one repository: `pull`, `push`, `delete`; or on something else of a registry, such as its catalog."""

    repository: str
    actions: tuple[str, ...]
    kind: str = "repository"

    def __str__(self) -> str:
        return f"{self.kind}:{self.repository}:{','.join(self.actions)}"


CATALOG = Scope("catalog", ("*",), "registry")


def pull(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull",)),)


def push(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull", "push")),)
