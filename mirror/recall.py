"""What the state remembers that spares a plan its questions. Does I/O: call it in jobs."""

from __future__ import annotations

from collections.abc import Sequence

from mirror.errors import MirrorError
from mirror.findings import Entry, Memory, Reading
from mirror.oci.digest import Digest
from mirror.store import Version
from mirror.structs import replace


def recalled_tags(memory: Memory, repository: str, references: Sequence[str]) -> dict[str, Digest]:
    found = {reference: memory.target_tag(repository, reference) for reference in references}
    return {reference: digest for reference, digest in found.items() if digest is not None}


def settled_tags(memory: Memory, entry: Entry, repository: str, readings: Sequence[Reading]) -> dict[str, Digest]:
    """Immutable tags that both sides had with one digest the last time."""
    found = {}
    for reading in readings:
        if entry.rules.is_immutable(reading.tag):
            digest = memory.target_tag(repository, reading.tag)
            if digest is not None and digest == memory.source_tag(entry.name, reading.tag):
                found[reading.tag] = digest
    return found


def with_result(memory: Memory, version: Version | MirrorError) -> Version | MirrorError:
    """With what a transform made of it last time: the only digest that a target can be compared with."""
    if isinstance(version, MirrorError) or version.transform is None:
        return version
    return replace(version, digest=memory.transformed(version.transform.identity))
