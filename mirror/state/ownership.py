"""The rows of the state about what syncs wrote to targets: only these tags and manifests may be deleted by a prune.

A row belongs to the configuration with which the sync was run, which is identified by the path of its file. Later
runs restore lost hints, but not lost rows: if the state is lost, a prune keeps everything that was written before.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mirror.oci.digest import Digest
from mirror.state.database import Database
from mirror.state.hints import State
from mirror.state.schema import digest_from_bytes, digest_to_bytes
from mirror.util.structs import Struct

_OWNER_BYTES = 16
_OWN = """SELECT w.reference, w.digest, s.name, w.subject FROM written w
          JOIN repository r ON r.id = w.repository JOIN repository s ON s.id = w.source
          WHERE r.name = ? AND w.owner = ?"""
_OTHERS = _OWN.replace("w.owner =", "w.owner <>")


class WrittenReference(Struct, frozen=True):
    """A tag or manifest that a sync wrote to a target repository.

    reference: the tag, or the digest of a manifest that was written without a tag. digest: the digest of the manifest.
    source: the repository that it was copied from, as `HOST/REPOSITORY`. subject: the digest of the manifest that a
    referrer belongs to; None for an image, and for a tag whose name contains the digest of its subject."""

    reference: str
    digest: Digest
    source: str
    subject: Digest | None = None


class OwnershipRecords:
    """Reads and writes the rows of one configuration. Thread-safe. Repositories are named `HOST/REPOSITORY`.

    states: the state files that are read. New rows are written to the first one. path: the file of the
    configuration."""

    def __init__(self, states: Sequence[State], path: Path) -> None:
        self._states = states
        # Symbolic links are not resolved: in Kubernetes, they change with each update of a ConfigMap.
        text = os.fsencode(os.path.normpath(path.absolute()))
        self._owner = hashlib.sha256(text).digest()[:_OWNER_BYTES]

    def record(
        self, repository: str, reference: str, digest: Digest, source: str, subject: Digest | None = None
    ) -> None:
        """Record that this run wrote a tag or manifest. The row is written to the file later.

        The parameters are described in `WrittenReference`."""
        written = WrittenReference(reference, digest, source, subject)
        self._states[0].submit(partial(_record, owner=self._owner, repository=repository, written=written))

    def repositories(self) -> dict[str, int]:
        """Return the target repositories to which this configuration wrote, each with the number of its rows."""
        found: dict[str, int] = {}
        for state in self._states:
            none: dict[str, int] = {}
            for name, count in state.read("", partial(_read_repositories, owner=self._owner), none).items():
                found[name] = found.get(name, 0) + count
        return found

    def written(self, repository: str) -> list[WrittenReference]:
        """Return what this configuration wrote to a target repository.

        A reference occurs more than once if several state files have a row for it."""
        none: list[WrittenReference] = []
        query = partial(_read_written, owner=self._owner, repository=repository)
        return list(dict.fromkeys(one for state in self._states for one in state.read("", query, none)))

    def written_by_others(self, repository: str) -> set[tuple[str, Digest]]:
        """Return what other configurations that share the state wrote: each reference with its digest."""
        none: list[WrittenReference] = []
        query = partial(_read_written, owner=self._owner, repository=repository, others=True)
        return {(one.reference, one.digest) for state in self._states for one in state.read("", query, none)}

    def delete_hint(self, repository: str, tag: str) -> None:
        """Delete the hint about the digest of a tag in all state files, before the tag is deleted on the target.

        Otherwise, a sync could assume that the tag still exists on an `exclusive` target. The deletion is on disk when
        this returns. Raises LocalError."""
        for state in self._states:
            state.delete_tag_record(repository, tag, was_recorded=True)

    def forget(self, repository: str, reference: str) -> None:
        """Delete the rows of this configuration for a tag or manifest that the target does not have any more."""
        for state in self._states:
            state.submit(partial(_delete, owner=self._owner, repository=repository, reference=reference))


def _record(database: Database, owner: bytes, repository: str, written: WrittenReference) -> None:
    """Store a row, in place of an earlier one for the same reference."""
    number, source = database.repository_id(repository), database.repository_id(written.source)
    subject = digest_to_bytes(written.subject) if written.subject is not None else b""
    row = (number, written.reference, owner, digest_to_bytes(written.digest), subject, source)
    database.execute("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?, ?, ?)", [row])


def _delete(database: Database, owner: bytes, repository: str, reference: str) -> None:
    """Delete the row of one owner for a reference."""
    key = (database.repository_id(repository), reference, owner)
    database.execute("DELETE FROM written WHERE (repository, reference, owner) = (?, ?, ?)", [key])


def _read_repositories(database: Database, owner: bytes) -> dict[str, int]:
    """Return the repositories with rows of one owner, each with their number."""
    if database.lacks("written"):
        return {}
    statement = """SELECT r.name, count(*) FROM written w JOIN repository r ON r.id = w.repository
                   WHERE w.owner = ? GROUP BY w.repository"""
    return {str(name): int(count) for name, count in database.query(statement, (owner,))}


def _read_written(database: Database, owner: bytes, repository: str, *, others: bool = False) -> list[WrittenReference]:
    """Return the rows of one owner for a repository, or those of all other owners. Invalid rows are left out."""
    if database.lacks("written"):
        return []
    found = []
    for reference, value, source, subject in database.query(_OTHERS if others else _OWN, (repository, owner)):
        digest = digest_from_bytes(value)
        if digest is not None:
            found.append(WrittenReference(str(reference), digest, str(source), digest_from_bytes(subject)))
    return found
