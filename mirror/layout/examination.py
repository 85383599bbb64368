"""The result of verifying a layout or a bundle: counts, problems, and the references that they break."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from mirror.errors import MirrorError, printable
from mirror.layout.inventory import Inventory
from mirror.oci.digest import Digest
from mirror.util.structs import Struct, field

_NAMED = 50  # problems that are listed; the others are counted
_REFERENCES = 5  # references that a problem names

Below: TypeAlias = Callable[[Digest], Iterable[Digest]]
"""What the manifest with a digest refers to; nothing for a blob, and for a manifest that cannot be read."""


class Problem(Struct, frozen=True):
    """A line for people. damage: bytes are wrong; else something is missing. digest: what it is about."""

    text: str
    damage: bool
    digest: Digest | None = None

    @classmethod
    def of(cls, error: MirrorError, digest: Digest | None = None) -> Problem:
        return cls(str(error), error.code != "bundle_incomplete", digest)


class Examined(Struct):
    """What was found. problems: empty: it is whole. concerned: the references that lead to what a problem is about.
    beside: members that nothing lists."""

    what: str
    inventory: Inventory | None = None
    identity: str = ""  # the sha256 of the inventory
    manifests: int = 0
    blobs: int = 0
    bytes: int = 0
    beside: int = 0
    problems: list[Problem] = field(default_factory=list)
    concerned: dict[Digest, list[str]] = field(default_factory=dict)

    def concern(self, roots: Iterable[tuple[str, Digest]], below: Below) -> None:
        """Note which of the references lead to what the problems are about."""
        about = {problem.digest for problem in self.problems if problem.digest is not None}
        for name, root in sorted(set(roots)) if about else ():
            seen, todo = {root}, [root]
            while todo:
                more = set(below(todo.pop())) - seen
                seen |= more
                todo += more
            for digest in seen & about:
                self.concerned.setdefault(digest, []).append(name)

    def _line(self, problem: Problem) -> str:
        names = self.concerned.get(problem.digest, []) if problem.digest is not None else []
        more = f" and {len(names) - _REFERENCES} more" if len(names) > _REFERENCES else ""
        concerns = f"; concerns {printable(', '.join(names[:_REFERENCES]))}{more}" if names else ""
        return f"{problem.text}{concerns}"

    def lines(self) -> Iterator[str]:
        """For people; the last one says whether it is whole."""
        yield from map(self._line, self.problems[:_NAMED])
        if len(self.problems) > _NAMED:
            yield f"and {len(self.problems) - _NAMED} more"
        if self.identity:
            yield f"inventory {self.identity}"
        counted = f"{self.manifests} manifests, {self.blobs} blobs, {self.bytes} bytes"
        if self.problems:
            damage = any(problem.damage for problem in self.problems)
            missing = any(not problem.damage for problem in self.problems)
            state = "damaged and incomplete" if damage and missing else "damaged" if damage else "incomplete"
            yield (
                "to repair it: copy it again; where it was made, if it is damaged there too: run `mirror sync --repair "
                "CONFIG`"
                if damage
                else "to repair it: export again with `mirror sync CONFIG`, or copy it again if that file was cut off"
            )
            yield f"{self.what}: {state}; {counted} are right"
            return
        base = self.inventory.base if self.inventory is not None else {}
        if base:
            size = sum(one.size for one in base.values())
            yield f"{self.what}: relies on {len(base)} blobs ({size} bytes) that its base has"
        if self.beside:
            yield f"{self.what}: {self.beside} further files that nothing refers to"
        yield f"{self.what}: {'whole with its base' if base else 'whole'}; {counted}"


def damaged(digest: Digest, actual: str) -> Problem:
    return Problem(f"{digest} is damaged: its bytes hash to {actual}", damage=True, digest=digest)
