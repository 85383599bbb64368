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


_ADDED = {"pull", "push", "delete"}  # what a challenge may add to the actions that we ask for

CATALOG = Scope("catalog", ("*",), "registry")


def pull(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull",)),)


def push(repository: str) -> tuple[Scope, ...]:
    return (Scope(repository, ("pull", "push")),)


def widened(scopes: tuple[Scope, ...], challenge: str) -> tuple[str, ...]:
    """The scopes to ask for: ours, and the actions that a challenge adds to the one repository it is about.

    challenge: the value of its `scope`. Its other repositories, wildcards and kinds are left out: some servers name
    placeholders, and refuse what is asked for beyond what is needed."""
    asked = tuple(dict.fromkeys(map(str, scopes)))
    if len(scopes) != 1:
        return asked
    ours = scopes[0]
    prefix = f"repository:{ours.repository}:"
    actions = list(ours.actions)
    for word in challenge.split():
        named = word.removeprefix(prefix).split(",") if word.startswith(prefix) else []
        if named and set(named) <= _ADDED:
            actions += [action for action in named if action not in actions]
    return (str(Scope(ours.repository, tuple(actions))),)
