"""The rows of the state about tags of attachments on targets: the manifest of each tag, and its source.

The rows are more than hints: a tag of attachments may be overwritten if it still has the recorded manifest. Without a
row, the decision depends on the content of the manifests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from mirror.oci.digest import Digest
from mirror.state.database import Database
from mirror.state.schema import digest_from_bytes, digest_to_bytes

_FIND = """SELECT a.digest, a.source FROM repository r JOIN attachment_tag a ON a.repository = r.id
           WHERE r.name = ? AND a.tag = ?"""
# If several sources have the same manifest, the first recorded source is kept.
_RECORD = """INSERT INTO attachment_tag VALUES (?, ?, ?, ?)
             ON CONFLICT(repository, tag) DO UPDATE SET digest = excluded.digest, source = excluded.source
             WHERE digest <> excluded.digest"""
_T = TypeVar("_T")


class ReadState(Protocol):
    """A function that runs a query on the state file."""

    def __call__(self, repository: str, query: Callable[[Database], _T], default: _T) -> _T:
        """Return the result of a query, or `default` if the state file cannot be read."""
        ...


class AttachmentTagRecords:
    """Reads and writes the records of attachment tags. Thread-safe.

    read: runs a query on the state file. submit: queues a change to the state file."""

    def __init__(self, read: ReadState, submit: Callable[[Callable[[Database], None]], None]) -> None:
        self._read = read
        self._submit = submit

    def find(self, repository: str, tag: str) -> tuple[Digest, str] | None:
        """Return the manifest that was last recorded for a tag in a target repository, and its source, or None."""
        return self._read("", lambda database: _find(database, repository, tag), None)

    def record(self, repository: str, tag: str, digest: Digest, source: str) -> None:
        """Record the manifest to which a tag of attachments in a target repository refers now.

        source: the source repository with its host. Does not block, because the record is written later."""
        self._submit(lambda database: _record(database, repository, tag, digest, source))


def _find(database: Database, repository: str, tag: str) -> tuple[Digest, str] | None:
    """Return the stored manifest and source of a tag of attachments, or None if there is no row."""
    if database.lacks("attachment_tag"):
        return None
    found = database.query(_FIND, (repository, tag))
    value, source = found[0] if found else (None, None)
    digest = digest_from_bytes(value)
    return (digest, source) if digest is not None and isinstance(source, str) else None


def _record(database: Database, repository: str, tag: str, digest: Digest, source: str) -> None:
    """Store the manifest and the source of a tag of attachments."""
    database.execute(_RECORD, [(database.repository_id(repository), tag, digest_to_bytes(digest), source)])
