"""The result of verifying a layout or bundle: counts, problems, and the images that the problems affect."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from mirror.errors import MirrorError, printable
from mirror.layout.inventory import Inventory
from mirror.oci.digest import Digest
from mirror.util.structs import Struct, field

_MAX_LISTED = 50  # maximum number of problems that are printed; further problems are only counted
_MAX_REFERENCES = 5  # maximum number of affected images that are named for each problem

References: TypeAlias = Callable[[Digest], Iterable[Digest]]
"""A function that returns the digests to which a manifest refers. It returns none for a blob or unreadable manifest."""


class LayoutProblem(Struct, frozen=True):
    """One problem found in a layout or bundle.

    damage: True if content is damaged, False if it is missing. digest: the manifest or blob that has the problem."""

    text: str
    damage: bool
    digest: Digest | None = None

    @classmethod
    def from_error(cls, error: MirrorError, digest: Digest | None = None) -> LayoutProblem:
        """Create a problem from an error. Every error except bundle_incomplete is treated as damage."""
        return cls(str(error), error.code != "bundle_incomplete", digest)


class VerificationResult(Struct):
    """The result of verifying a layout or bundle. The verification passed if `problems` is empty.

    manifests, blobs, bytes: the numbers of intact manifests, blobs and bytes. affected: for each digest with a problem,
    the names of the images that need it. unreferenced: the number of manifests and blobs to which nothing refers.
    sparse: the number of images that have only some of the platforms that their index lists."""

    what: str
    inventory: Inventory | None = None
    identity: str = ""  # the sha256 of the inventory
    manifests: int = 0
    blobs: int = 0
    bytes: int = 0
    unreferenced: int = 0
    sparse: int = 0
    problems: list[LayoutProblem] = field(default_factory=list)
    affected: dict[Digest, list[str]] = field(default_factory=dict)

    def find_affected(self, roots: Iterable[tuple[str, Digest]], references: References) -> None:
        """Find the images that each problem affects, and record them in `affected`.

        roots: the name and root digest of each image. references: returns the digests that a manifest refers to."""
        digests = {problem.digest for problem in self.problems if problem.digest is not None}
        for name, root in sorted(set(roots)) if digests else ():
            seen, todo = {root}, [root]
            while todo:
                more = set(references(todo.pop())) - seen
                seen |= more
                todo += more
            for digest in seen & digests:
                self.affected.setdefault(digest, []).append(name)

    def _line(self, problem: LayoutProblem) -> str:
        """Return the output line for one problem, with the images that it affects."""
        names = self.affected.get(problem.digest, []) if problem.digest is not None else []
        more = f" and {len(names) - _MAX_REFERENCES} more" if len(names) > _MAX_REFERENCES else ""
        concerns = f"; affects {printable(', '.join(names[:_MAX_REFERENCES]))}{more}" if names else ""
        return f"{problem.text}{concerns}"

    def lines(self) -> Iterator[str]:
        """Iterate over the lines of the human-readable result. The last line is the summary."""
        yield from map(self._line, self.problems[:_MAX_LISTED])
        if len(self.problems) > _MAX_LISTED:
            yield f"and {len(self.problems) - _MAX_LISTED} more problems"
        if self.identity:
            yield f"inventory {self.identity}"
        counts = f"{self.manifests} manifests, {self.blobs} blobs, {self.bytes} bytes"
        if self.problems:
            damage = any(problem.damage for problem in self.problems)
            missing = any(not problem.damage for problem in self.problems)
            state = "damaged and incomplete" if damage and missing else "damaged" if damage else "incomplete"
            again = "copy the original again; if that has the same problem, first run"
            yield f"to repair {self.what}, {again} `mirror sync {'--repair ' if damage else ''}CONFIG`"
            yield f"{self.what}: {state}; intact: {counts}"
            return
        base = self.inventory.base if self.inventory is not None else {}
        if base:
            size = sum(one.size for one in base.values())
            yield f"{self.what}: relies on its base for {len(base)} blobs ({size} bytes)"
        if self.sparse:
            one = self.sparse == 1
            yield f"{self.what}: {self.sparse} {'image has' if one else 'images have'} only some of the platforms"
        if self.unreferenced:
            yield f"{self.what}: contains {self.unreferenced} unreferenced files"
        yield f"{self.what}: {'complete with its base' if base else 'complete'}; {counts}"


def digest_problem(digest: Digest, actual: str) -> LayoutProblem:
    """Return a LayoutProblem for a manifest or blob whose bytes do not match its digest.

    actual: the hexadecimal digest of the actual bytes."""
    return LayoutProblem(
        f"{digest} is damaged: the digest of its bytes is {digest.algorithm}:{actual}", damage=True, digest=digest
    )
