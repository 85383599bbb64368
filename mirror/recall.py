"""What the state remembers that spares a plan its questions. Does I/O: call it in jobs."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.errors import MirrorError
from mirror.findings import Entry, Memory, Reading, TargetEntry
from mirror.oci.digest import Digest
from mirror.store import Version
from mirror.structs import replace
from mirror.transfer.placement import Place


def recalled_tags(memory: Memory, repository: str, references: Sequence[str]) -> dict[str, Digest]:
    found = {reference: memory.target_tag(repository, reference) for reference in references}
    return {reference: digest for reference, digest in found.items() if digest is not None}


def settled_tags(memory: Memory, entry: Entry, target: TargetEntry, readings: Sequence[Reading]) -> dict[str, Digest]:
    """Immutable tags that this source and this target had with one digest in an earlier run, and that the target has
    not been seen with another one since."""
    found = {}
    for reading in readings:
        if entry.rules.is_immutable(reading.tag):
            digest = memory.target_tag(str(target.place), reading.tag)
            if digest is not None and digest == memory.source_tag(equal_to(entry, target.place), reading.tag):
                found[reading.tag] = digest
    return found


def equal_to(entry: Entry, place: Place) -> str:
    """The name under which the state keeps the digests that a source had when it was equal to a target repository.

    For each target its own: one that differs from the source is not equal because another one once was."""
    return f"{entry.name} {place}"


def with_result(memory: Memory, version: Version | MirrorError) -> Version | MirrorError:
    """With what a transform made of it last time: the only digest that a target can be compared with."""
    if isinstance(version, MirrorError) or version.transform is None:
        return version
    return replace(version, digest=memory.transformed(version.transform.identity))
