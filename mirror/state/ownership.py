"""The rows of the state about tags and manifests that syncs wrote to targets. A prune may delete only these.

A row belongs to the configuration of the sync, which is identified by the path of its file. Unlike hints, later runs do
not restore these rows: if the state is lost, a prune keeps all tags that were written before.
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
    source: the source repository, as `HOST/REPOSITORY`. subject: the digest of the subject of a referrer; None for an
    image, and for a tag whose name contains the digest of its subject."""

    reference: str
    digest: Digest
    source: str
    subject: Digest | None = None


class OwnershipRecords:
    """Reads and writes the records of the tags and manifests that the syncs of one configuration wrote to targets.

    Thread-safe. Repositories are named `HOST/REPOSITORY`. states: the state files to read; new rows are written to the
    first file. path: the file of the configuration."""

    def __init__(self, states: Sequence[State], path: Path) -> None:
        self._states = states
        # Symbolic links are not resolved: in Kubernetes, they change with each update of a ConfigMap.
        text = os.fsencode(os.path.normpath(path.absolute()))
        self._owner = hashlib.sha256(text).digest()[:_OWNER_BYTES]

    def record(
        self, repository: str, reference: str, digest: Digest, source: str, subject: Digest | None = None
    ) -> None:
        """Record that this run wrote a tag or manifest to a target. The row is written to the state file later.

        The parameters are described in `WrittenReference`."""
        written = WrittenReference(reference, digest, source, subject)
        self._states[0].submit(partial(_record, owner=self._owner, repository=repository, written=written))

    def repositories(self) -> dict[str, int]:
        """Return the target repositories to which this configuration wrote, with the number of rows of each."""
        found: dict[str, int] = {}
        for state in self._states:
            none: dict[str, int] = {}
            for name, count in state.read("", partial(_read_repositories, owner=self._owner), none).items():
                found[name] = found.get(name, 0) + count
        return found

    def written(self, repository: str) -> list[WrittenReference]:
        """Return the tags and manifests that this configuration wrote to a target repository.

        A reference occurs more than once if several state files have a row for it."""
        none: list[WrittenReference] = []
        query = partial(_read_written, owner=self._owner, repository=repository)
        return list(dict.fromkeys(one for state in self._states for one in state.read("", query, none)))

    def written_by_others(self, repository: str) -> set[tuple[str, Digest]]:
        """Return the references, with digests, that other configurations with the same state wrote to a repository."""
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
        """Delete the rows of this configuration for a tag or manifest that no longer exists on the target."""
        for state in self._states:
            state.submit(partial(_delete, owner=self._owner, repository=repository, reference=reference))


def _record(database: Database, owner: bytes, repository: str, written: WrittenReference) -> None:
    """Store a row for a written reference, and replace an earlier row for the same reference."""
    number, source = database.repository_id(repository), database.repository_id(written.source)
    subject = digest_to_bytes(written.subject) if written.subject is not None else b""
    row = (number, written.reference, owner, digest_to_bytes(written.digest), subject, source)
    database.execute("INSERT OR REPLACE INTO written VALUES (?, ?, ?, ?, ?, ?)", [row])


def _delete(database: Database, owner: bytes, repository: str, reference: str) -> None:
    """Delete the row of one owner, which is a configuration, for a reference."""
    key = (database.repository_id(repository), reference, owner)
    database.execute("DELETE FROM written WHERE (repository, reference, owner) = (?, ?, ?)", [key])


def _read_repositories(database: Database, owner: bytes) -> dict[str, int]:
    """Return the repositories for which one owner has rows, with the number of rows of each."""
    if database.lacks("written"):
        return {}
    statement = """SELECT r.name, count(*) FROM written w JOIN repository r ON r.id = w.repository
                   WHERE w.owner = ? GROUP BY w.repository"""
    return {str(name): int(count) for name, count in database.query(statement, (owner,))}


def _read_written(database: Database, owner: bytes, repository: str, *, others: bool = False) -> list[WrittenReference]:
    """Return the rows for a repository of one owner or, if `others` is set, of all other owners. Skip invalid rows."""
    if database.lacks("written"):
        return []
    found = []
    for reference, value, source, subject in database.query(_OTHERS if others else _OWN, (repository, owner)):
        digest = digest_from_bytes(value)
        if digest is not None:
            found.append(WrittenReference(str(reference), digest, str(source), digest_from_bytes(subject)))
    return found
