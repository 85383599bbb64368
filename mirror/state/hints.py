"""The state: hints from earlier runs in an SQLite file. Hints change the cost of a run, but not its result.

The following records are more than hints (docs/operations.md, "State and lock"):

* the mark of a repository in which a run has not finished,
* whether the registry has responded to a v2 request for a source repository,
* the tags of targets that the operator declared `exclusive` or `immutable`,
* when a tag of a source was first seen with its digest,
* the platforms of sparse images on targets, and the tags that syncs wrote to targets (`state/ownership.py`),
* the manifest of each tag of attachments on a target, and the source of this manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from mirror.errors import LocalError, MirrorError
from mirror.oci.digest import Digest
from mirror.oci.reference import is_path
from mirror.selection.tag_rules import FirstSeen
from mirror.state import platform_records, selection_records
from mirror.state.attachment_tag_records import AttachmentTagRecords
from mirror.state.connections import ReadConnections
from mirror.state.database import SOURCE, TARGET, Database, DatabaseError
from mirror.state.file import find_fault, open_database, state_error
from mirror.state.writer import Writer

FILE_NAME = "state.sqlite3"

Side = Literal["source", "target"]
_SIDES = {"source": SOURCE, "target": TARGET}
_T = TypeVar("_T")


class State(AbstractContextManager["State"]):
    """Reads and writes the hints in the state file. Repositories are named `host/path`. Thread-safe.

    A read costs one or two index lookups. A method that records a value only queues a write, and the new value can be
    read about a second later, or after `flush`. `forget`, `delete_tag_record` and the methods for marks take effect
    immediately. Each reading thread uses its own connection, and a single thread writes, so no lock is held during
    SQLite's I/O. The file may be outdated or damaged: a digest or path that a read returns may be wrong, but it is
    always well-formed."""

    @classmethod
    def open(
        cls, directory: Path, warn: Callable[[str], None], *, read_only: bool = False, writers: str | None = None
    ) -> State:
        """Open the state file in a state directory. If the file does not exist, create it, unless `read_only` is set.

        A file that is damaged, or has another program's format or an unknown version, is set aside with a warning.
        read_only: for commands that do not hold the run lock. The file is only read, and no values are recorded.
        writers: the mark of this run (see `run_marks`). Tags of targets that were recorded under another mark are
        ignored; None to ignore no tags.
        Raises LocalError if the file cannot be written or, with `read_only`, cannot be read."""
        path = directory / FILE_NAME
        if read_only:
            fault = find_fault(path)
            if fault:
                warn(f"the state file {path} {fault}; it is not used")
            usable = not fault and path.exists() and path.stat().st_size > 0
            state = cls(path, None, set(), warn, usable=usable)
            state._load_sparse_repositories()
            state._knows_targets = writers in (None, state.read("", Database.writers_mark, None))
            return state
        database = open_database(path, warn)
        try:
            marks = database.unfinished_repositories()
            if writers not in (None, database.writers_mark()):
                database.apply([partial(Database.reset_target_tags, mark=writers)])
        except DatabaseError as failure:
            database.close()
            raise state_error(path, failure) from failure
        state = cls(path, database, marks, warn)
        state._load_sparse_repositories()
        return state

    def __init__(
        self,
        path: Path,
        database: Database | None,
        marks: set[str],
        warn: Callable[[str], None],
        *,
        usable: bool = True,
    ) -> None:
        self._path = path
        self._warn = warn
        self._usable = usable  # whether there is a file to read
        self._knows_targets = True
        self._lock = threading.Lock()
        self._unfinished = marks
        self._forgotten: set[str] = set()
        self._connections = ReadConnections(path)
        self._sparse_repositories: set[str] = set()
        self._reported = False
        self._writer = Writer(path, database, self._marks, warn) if database else None
        self.attachment_tags = AttachmentTagRecords(self.read, self.submit)

    def _load_sparse_repositories(self) -> None:
        """Read the set of target repositories that have sparse images."""
        self._sparse_repositories = self.read("", platform_records.read_sparse_repositories, set[str]())

    def _marks(self) -> list[str]:
        """Return the repositories that are marked as unfinished."""
        with self._lock:
            return sorted(self._unfinished)

    @property
    def failure(self) -> MirrorError | None:
        """The error that prevented hints from being saved, or None if there was none.

        The run continues, and exits with the error's code."""
        return self._writer.failure if self._writer else None

    # -- reading ------------------------------------------------------------------------------------------------------

    def target_tag(self, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag in a target repository, or None if it is unknown."""
        return self._recorded_tag("target", repository, tag) if self._knows_targets else None

    def source_tag(self, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag in a source repository, or None if it is unknown."""
        return self._recorded_tag("source", repository, tag)

    def _recorded_tag(self, side: Side, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag at a source or on a target, or None if it is unknown."""
        return self.read(repository, lambda database: database.tag(_SIDES[side], repository, tag), None)

    def transform_digest(self, identity: str) -> Digest | None:
        """Return the digest of the last result of a manifest conversion, or None if it is unknown.

        identity: the `Transform.identity` of the conversion."""
        return self.read(identity, lambda database: database.transform_digest(identity), None)

    def sparse_images(self, repository: str) -> dict[str, dict[Digest, str]]:
        """Return the platforms that sparse images in a target repository contain, by tag and digest."""
        none: dict[str, dict[Digest, str]] = {}
        return self.read("", lambda database: platform_records.read_sparse_images(database, repository), none)

    def has_sparse_images(self, repository: str) -> bool:
        """Return whether a target repository may have sparse images. Does not read the file."""
        return repository in self._sparse_repositories

    def other_platform(self, key: str) -> str | None:
        """Return the recorded reason for skipping an image because of its platform, or None if there is none."""
        return self.read(key, lambda database: platform_records.read_other_platform(database, key), None)

    def had_blob(self, repository: str, digest: Digest) -> bool:
        """Return whether a repository contained a blob when an earlier run copied an image to or from it.

        The registry may have deleted the blob since."""
        return self.read(repository, lambda database: database.had_blob(repository, digest), False)

    def repositories_with_blob(self, host: str, digest: Digest, limit: int = 4) -> list[str]:
        """Return the paths of at most `limit` repositories on a host that contained a blob.

        The most recently recorded repository comes first."""
        more = limit + len(self._forgotten)
        none: list[str] = []
        names = self.read("", lambda database: database.repositories_with_blob(host, digest, more), none)
        paths = [name[len(host) + 1 :] for name in names if name not in self._forgotten]
        return [path for path in paths if is_path(path)][:limit]

    def is_unfinished(self, repository: str) -> bool:
        """Return whether a run began to write to a repository but did not finish, so that tags may be missing."""
        return repository in self._unfinished

    def has_responded_over_v2(self, repository: str) -> bool:
        """Return whether the registry of a source repository responded to a v2 request for it in an earlier run.

        If the state file cannot be read, return True."""
        return self._usable and self.read("", lambda database: database.has_responded_over_v2(repository), True)

    def first_seen(self, repository: str, tag: str) -> FirstSeen | None:
        """Return the last recorded image of a tag at a source, and when it was first seen, or None if it is unknown."""
        return self.read("", lambda database: selection_records.read_first_seen(database, repository, tag), None)

    def image_date(self, repository: str, identity: str) -> int | None:
        """Return the recorded date of an image at a source, in microseconds since the epoch, or None."""
        return self.read("", lambda database: selection_records.read_image_date(database, repository, identity), None)

    def checked_attachments(
        self, source: str, repository: str, digests: Collection[Digest], after: float, until: float
    ) -> set[Digest]:
        """Return those of the images `digests` whose attachments on a target were found complete in a period of time.

        source: the key for the source and the rules for its attachments. after, until: seconds since the epoch."""
        none: set[Digest] = set()
        return self.read(
            repository,
            lambda database: database.checked_attachments(source, repository, digests, after, until),
            none,
        )

    def read(self, repository: str, query: Callable[[Database], _T], default: _T) -> _T:
        """Run a query on the state file. Return `default` if the repository was forgotten or the query fails."""
        if not self._usable or repository in self._forgotten:
            return default
        generation = self._writer.generation if self._writer else 0
        try:
            with self._connections.connection(generation) as database:
                return query(database)
        except DatabaseError as failure:
            self._report_read_error(failure)
            return default

    def _report_read_error(self, failure: DatabaseError) -> None:
        """Handle the first failed read of the run: warn, or request a check of the file if it may be damaged."""
        with self._lock:
            first, self._reported = not self._reported, True
        if not first:
            return
        if failure.corrupt and self._writer:
            self._writer.check_file()
        else:
            self._warn(f"cannot read the state file {self._path} ({failure}); this run sends more requests than usual")

    # -- recording ----------------------------------------------------------------------------------------------------

    def record_tag(self, side: Side, repository: str, tag: str, digest: Digest | None) -> None:
        """Record the current digest of a tag at a source or on a target. `digest` is None if the tag does not exist."""
        self.submit(lambda database: database.record_tag(_SIDES[side], repository, tag, digest))

    def delete_tag_record(self, repository: str, tag: str, *, was_recorded: bool) -> None:
        """Delete the recorded digest of a tag, before a run writes the tag in a target repository.

        The deletion is on disk when this returns. was_recorded: whether this run has already recorded a digest for the
        tag, the write of which may still be queued. Raises LocalError."""
        known = self.read(repository, lambda database: database.tag(TARGET, repository, tag) is not None, True)
        if (known or was_recorded) and self._writer:
            self._writer.call(lambda database: database.record_tag(TARGET, repository, tag, None))

    def record_image_blobs(self, repository: str, root: Digest, blobs: Iterable[Digest]) -> None:
        """Record that a repository contains `blobs`, which are all blobs of the image `root`.

        This run must have verified that the blobs exist, or have read them from the repository. Child manifests are not
        recorded: they must be sent anyway, because registries delete untagged manifests while tags keep their
        digests."""
        kept = tuple(blobs)
        self.submit(lambda database: database.record_image_blobs(repository, root, kept))

    def record_transform_digest(self, identity: str, digest: Digest) -> None:
        """Record the digest of the result of a manifest conversion.

        identity: the `Transform.identity` of the conversion."""
        self.submit(lambda database: database.record_transform_digest(identity, digest))

    def record_attachments(self, source: str, repository: str, digest: Digest, time: float) -> None:
        """Record when the attachments of an image were found complete in a target repository.

        source: the key for the source and the rules for its attachments. time: seconds since the epoch."""
        self.submit(lambda database: database.record_attachments(source, repository, digest, time))

    def record_sparse_image(self, repository: str, tag: str, digest: Digest, platforms: Collection[str]) -> None:
        """Record that a tag on a target will refer to the index `digest` with only these platforms.

        Call this before the tag is written. The record is on disk when this returns. Raises LocalError."""
        text = ",".join(platforms)
        if self._writer:
            self._writer.call(
                lambda database: platform_records.record_sparse_image(database, repository, tag, digest, text)
            )
            self._sparse_repositories.add(repository)

    def update_sparse_image(self, repository: str, tag: str, digest: Digest, platforms: Collection[str]) -> None:
        """Record the platforms of the index to which a tag on a target refers. No platforms means all platforms."""
        if not platforms and repository not in self._sparse_repositories:
            return
        text = ",".join(platforms)
        self.submit(lambda database: platform_records.delete_sparse_images(database, repository, tag))
        if platforms:
            self.submit(lambda database: platform_records.record_sparse_image(database, repository, tag, digest, text))

    def record_other_platform(self, key: str, reason: str) -> None:
        """Record why an image is skipped because of its platform. key: the result of `PlatformFilter.result_key`."""
        self.submit(lambda database: platform_records.record_other_platform(database, key, reason))

    def record_v2_response(self, repository: str) -> None:
        """Record that the registry of a source repository responded to a v2 request for it."""
        self.submit(lambda database: database.record_v2_response(repository))

    def record_first_seen(self, repository: str, tag: str, seen: FirstSeen) -> None:
        """Record when a tag at a source was first seen with an image. An earlier time for the same image is kept."""
        self.submit(lambda database: selection_records.record_first_seen(database, repository, tag, seen))

    def record_image_dates(self, repository: str, dates: Mapping[str, int]) -> None:
        """Record the creation dates of images at a source."""
        if dates:
            self.submit(lambda database: selection_records.record_image_dates(database, repository, dates))

    def delete_other_image_dates(self, repository: str, identities: Collection[str]) -> None:
        """Delete the recorded creation dates of all images in a source repository except those in `identities`."""
        self.submit(lambda database: selection_records.delete_other_image_dates(database, repository, identities))

    def forget(self, repository: str) -> None:
        """Delete the recorded tags and blobs of a repository, but keep its unfinished mark and `has_responded_over_v2`.

        Hints that this run records about the repository afterwards are used only in the next run."""
        with self._lock:
            self._forgotten.add(repository)
        self.submit(lambda database: database.forget(repository))

    def mark_unfinished(self, repository: str) -> None:
        """Mark a repository as unfinished. Call this before the first write to the repository.

        The mark is on disk when this returns. Raises LocalError."""
        with self._lock:
            marked = repository in self._unfinished
        if marked:
            return
        if not self._writer:
            raise LocalError(f"cannot write {self._path}: it was opened read-only")
        self._writer.call(lambda database: database.mark_unfinished(repository))
        with self._lock:
            self._unfinished.add(repository)

    def mark_finished(self, repository: str) -> None:
        """Remove the unfinished mark of a repository, because this run has finished all its work in it."""
        with self._lock:
            marked = repository in self._unfinished
            self._unfinished.discard(repository)
        if marked:
            self.submit(lambda database: database.remove_mark(repository))

    def submit(self, action: Callable[[Database], None]) -> None:
        """Queue a change to the database, unless the state is read-only."""
        if self._writer:
            self._writer.submit(action)

    def flush(self) -> None:
        """Wait until all values that were recorded so far are on disk. Raises LocalError."""
        if self._writer:
            self._writer.call(Database.do_nothing)

    def close(self) -> None:
        """Write all recorded values, delete outdated hints, and close the file.

        Later reads return None, False or an empty list."""
        self._usable = False
        self._connections.close()
        if self._writer:
            self._writer.close()

    def __exit__(self, *_: object) -> None:
        self.close()
