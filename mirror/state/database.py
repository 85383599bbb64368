"""The SQL statements that read or write the state file, except those in the modules `*_records`.

Only this module uses sqlite3. It converts all sqlite3 errors to `DatabaseError`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from mirror.errors import printable
from mirror.oci.digest import Digest
from mirror.state.schema import ADDED, SCHEMA, STATEMENTS, VERSION, digest_from_bytes, digest_to_bytes

SOURCE, TARGET = 0, 1

_TAG = """SELECT t.digest FROM repository r JOIN tag t ON t.repository = r.id
          WHERE r.name = ? AND t.side = ? AND t.name = ?"""
_HELD = """SELECT 1 FROM repository r JOIN digest d JOIN member m ON m.digest = d.id AND m.repository = r.id
           WHERE r.name = ? AND d.value = ? LIMIT 1"""
# This query jumps from repository to repository in the index. A base layer may have 100,000 rows, and reading all of
# them would be slow.
_HOLDERS = """WITH RECURSIVE held(d, r) AS (
                SELECT id, (SELECT max(repository) FROM member WHERE digest = id) FROM digest WHERE value = ?
                UNION ALL
                SELECT d, (SELECT max(repository) FROM member WHERE digest = d AND repository < r)
                FROM held WHERE r IS NOT NULL LIMIT 1000)
              SELECT name FROM held JOIN repository ON id = r WHERE substr(name, 1, ?) = ? ORDER BY seen DESC LIMIT ?"""
_CHECKED = """SELECT c.digest FROM repository r JOIN checked c ON c.repository = r.id
              WHERE r.name = ? AND c.source = ? AND c.time > ? AND c.time <= ? AND c.digest IN ({})"""
_STALE = """FROM member WHERE repository = ?1 AND root NOT IN (
              SELECT d.id FROM tag t JOIN digest d ON d.value = t.digest WHERE t.repository = ?1)"""

_FORGET_CHECKED = """DELETE FROM checked WHERE repository = ?1
                     AND digest NOT IN (SELECT digest FROM tag WHERE repository = ?1)"""


class DatabaseError(Exception):
    """An error that SQLite reported for the state file.

    corrupt: whether the file is damaged and must be replaced. full: whether the disk is full.
    busy: whether another program has locked the file."""

    def __init__(self, error: sqlite3.Error | UnicodeError | str) -> None:
        super().__init__(printable(error))
        damage = sqlite3.SQLITE_CORRUPT if isinstance(error, str | UnicodeDecodeError) else 0
        code = getattr(error, "sqlite_errorcode", damage) & 0xFF  # the low byte is the primary code
        self.corrupt = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        self.full = code == sqlite3.SQLITE_FULL
        self.busy = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


# SQLite's messages contain names from the file, which may be invalid UTF-8 in a damaged file.
_ERRORS = (sqlite3.Error, UnicodeError)


@contextmanager
def _database_errors() -> Iterator[None]:
    """Return a context manager that converts SQLite errors raised in the `with` block to DatabaseError."""
    try:
        yield
    except _ERRORS as error:
        raise DatabaseError(error) from error


class Database:
    """One connection to the state file. Used by one thread at a time."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Open the existing state file at `path`. Raises DatabaseError if the file is missing or cannot be opened."""
        self._ids: dict[str, int] = {}  # of repositories, by name; used only for writing
        self._outdated: set[int] = set()  # repositories in which a tag was changed or deleted
        with _database_errors():
            uri = _uri(path, "rw" if write else "ro")
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
            try:
                self._db.text_factory = _decode_text
                self._db.execute("PRAGMA trusted_schema = OFF")
                self._db.execute(f"PRAGMA cache_size = {-4096 if write else -512}")  # KiB
                if write:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
                    (self._seen,) = self._db.execute("SELECT coalesce(max(seen), 0) + 1 FROM repository").fetchone()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection. Errors are ignored."""
        with suppress(*_ERRORS):
            self._db.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def tag(self, side: int, repository: str, tag: str) -> Digest | None:
        """Return the digest that the state file contains for a tag, or None if there is none.

        side: whether the tag was recorded for the repository as a SOURCE or as a TARGET."""
        found = self._query(_TAG, (repository, side, tag))
        return digest_from_bytes(found[0][0]) if found else None

    def had_blob(self, repository: str, digest: Digest) -> bool:
        """Return whether the state file has a row for a blob or root manifest in a repository."""
        return bool(self._query(_HELD, (repository, digest_to_bytes(digest))))

    def repositories_with_blob(self, host: str, digest: Digest, limit: int) -> list[str]:
        """Return the names (`host/path`) of at most `limit` repositories on a host that contained a blob.

        The most recently recorded repository comes first. The names are not validated."""
        prefix = f"{host}/"
        found = self._query(_HOLDERS, (digest_to_bytes(digest), len(prefix), prefix, limit))
        return [name for (name,) in found if isinstance(name, str)]

    def transform_digest(self, identity: str) -> Digest | None:
        """Return the digest of the last result of a manifest conversion, or None if it is unknown.

        identity: the `Transform.identity` of the conversion."""
        found = self._query("SELECT digest FROM transform WHERE identity = ?", (identity,))
        return digest_from_bytes(found[0][0]) if found else None

    def unfinished_repositories(self) -> set[str]:
        """Return the names of the repositories that are marked as unfinished (see `mark_unfinished`)."""
        return {name for (name,) in self._query("SELECT name FROM unfinished", ()) if isinstance(name, str)}

    def has_responded_over_v2(self, repository: str) -> bool:
        """Return whether the registry of a source repository has ever responded to a v2 request for it."""
        if self.lacks("answered_by_v2"):
            return False
        return bool(self._query("SELECT 1 FROM answered_by_v2 WHERE name = ?", (repository,)))

    def writers_mark(self) -> str | None:
        """Return the run mark (see `run_marks`) under which target tags are stored in this file, or None if unset."""
        found = [] if self.lacks("writers") else self._query("SELECT mark FROM writers", ())
        return str(found[0][0]) if found else None

    def checked_attachments(
        self, source: str, repository: str, digests: Collection[Digest], after: float, until: float
    ) -> set[Digest]:
        """Return those of the images `digests` on a target whose attachments were found complete in a period of time.

        after, until: seconds since the epoch. At most 900 digests: SQLite limits the number of parameters."""
        if self.lacks("checked"):
            return set()
        statement = _CHECKED.format(", ".join("?" * len(digests)))
        found = self._query(statement, (repository, source, after, until, *map(digest_to_bytes, digests)))
        return {digest for (value,) in found if (digest := digest_from_bytes(value)) is not None}

    def lacks(self, table: str) -> bool:
        """Return whether the file lacks a table, because it has an older version and has not been upgraded yet."""
        ((version,),) = self._query("PRAGMA user_version", ())
        return table in ADDED.get(int(version), ())

    def query(self, statement: str, values: Sequence[object]) -> list[tuple[str | bytes | int, ...]]:
        """Run a query on the state file, and return all rows. Raises DatabaseError."""
        return list(self._query(statement, values))

    def tables(self) -> dict[str, str]:
        """Return the SQL statements that define the tables and indexes of the file, by name."""
        found = self._query("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL", ())
        return {str(name): str(sql) for name, sql in found}

    def _query(self, statement: str, values: Sequence[object]) -> list[tuple[str | bytes, ...]]:
        """Return all rows of a query. Raises DatabaseError."""
        try:
            return self._db.execute(statement, values).fetchall()
        except _ERRORS as error:
            raise DatabaseError(error) from error

    # -- writing ------------------------------------------------------------------------------------------------------

    def apply(self, actions: Iterable[Callable[[Database], None]]) -> None:
        """Make all changes in one transaction. When this returns, the changes are on disk.

        actions: functions that make the changes. If this raises DatabaseError, the file has not changed."""
        with _database_errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for action in actions:
                    action(self)
                self._db.execute("COMMIT")
            except BaseException:
                self._ids.clear()
                with suppress(*_ERRORS):
                    self._db.execute("ROLLBACK")
                raise

    def upgrade(self) -> None:
        """Add the tables that a state file of an earlier version lacks. Raises DatabaseError."""
        ((version,),) = self._query("PRAGMA user_version", ())
        lacking = ADDED.get(int(version), ())

        def add_tables(database: Database) -> None:
            """Create the missing tables, and set the new version."""
            for table in lacking:
                database._db.execute(SCHEMA[table])
            database._db.execute(f"PRAGMA user_version = {VERSION}")

        if lacking:
            self.apply([add_tables])

    def execute(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run an SQL statement once for each row of values. Call this only within `apply`."""
        self._db.executemany(statement, rows)

    def record_tag(self, side: int, repository: str, tag: str, digest: Digest | None) -> None:
        """Write the digest of a tag to the file. If `digest` is None, delete the stored digest."""
        key = (self.repository_id(repository), side, tag)
        known = self._db.execute("SELECT digest FROM tag WHERE (repository, side, name) = (?, ?, ?)", key).fetchone()
        value = digest_to_bytes(digest) if digest is not None else None
        if known == (value,) or known is value:
            return
        if known:
            self._outdated.add(key[0])
        if value is None:
            self._db.execute("DELETE FROM tag WHERE (repository, side, name) = (?, ?, ?)", key)
        else:
            self._db.execute("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?)", (*key, value))

    def record_image_blobs(self, repository: str, root: Digest, blobs: Iterable[Digest]) -> None:
        """Write rows for `blobs`, all of which belong to the image `root`, in a repository."""
        where, top = self.repository_id(repository), self._digest(root)
        rows = [(self._digest(digest), where, top) for digest in blobs]
        self._db.execute("DELETE FROM member WHERE repository = ? AND root = ?", (where, top))
        self._db.executemany("INSERT OR IGNORE INTO member VALUES (?, ?, ?)", [*rows, (top, where, top)])
        self._db.execute("UPDATE repository SET seen = ? WHERE id = ?", (self._seen, where))
        self._seen += 1

    def forget(self, repository: str) -> None:
        """Delete the rows for the tags and blobs of a repository."""
        where = self.repository_id(repository)
        self._db.execute("DELETE FROM tag WHERE repository = ?", (where,))
        self._delete_stale(where)

    def mark_unfinished(self, repository: str) -> None:
        """Mark a repository as unfinished: a run has begun to write to the repository, and has not finished."""
        self._db.execute("INSERT OR IGNORE INTO unfinished VALUES (?)", (repository,))

    def remove_mark(self, repository: str) -> None:
        """Remove the unfinished mark of a repository."""
        self._db.execute("DELETE FROM unfinished WHERE name = ?", (repository,))

    def record_v2_response(self, repository: str) -> None:
        """Write a row for a source repository whose registry has responded to a v2 request for it."""
        self._db.execute("INSERT OR IGNORE INTO answered_by_v2 VALUES (?)", (repository,))

    def reset_target_tags(self, mark: str) -> None:
        """Delete the stored tags of all targets, and store a new run mark for the tags that are stored from now on."""
        self._db.execute("DELETE FROM tag WHERE side = ?", (TARGET,))
        self._db.execute("DELETE FROM writers")
        self._db.execute("INSERT INTO writers VALUES (?)", (mark,))

    def record_transform_digest(self, identity: str, digest: Digest) -> None:
        """Write the digest of a conversion's result to the file. identity: the conversion's `Transform.identity`."""
        self._db.execute("INSERT OR REPLACE INTO transform VALUES (?, ?)", (identity, digest_to_bytes(digest)))

    def record_attachments(self, source: str, repository: str, digest: Digest, time: float) -> None:
        """Store when the attachments of an image were found complete on a target. time: seconds since the epoch."""
        values = (self.repository_id(repository), source, digest_to_bytes(digest), int(time))
        self._db.execute("INSERT OR REPLACE INTO checked VALUES (?, ?, ?, ?)", values)

    def do_nothing(self) -> None:
        """Do nothing. Callers queue this as a change, to wait until all earlier changes are on disk."""

    def check_integrity(self) -> None:
        """Check the whole state file for damage. Raises DatabaseError if the file is damaged."""
        ((verdict,),) = self._query("PRAGMA quick_check(1)", ())
        if verdict != "ok":
            raise DatabaseError(str(verdict))

    def outdated_repositories(self) -> list[int]:
        """Return the ids of the repositories in which this connection changed or deleted a tag. `prune` takes them."""
        return sorted(self._outdated)

    def prune(self, repository: int) -> None:
        """Delete the blob rows of all images in a repository to which no tag refers. repository: the id."""
        self._outdated.discard(repository)
        self._delete_stale(repository)

    def _delete_stale(self, repository: int) -> None:
        """Delete the blob rows of images without a tag in a repository, and the digests that are no longer used."""
        orphans = self._db.execute(f"SELECT DISTINCT digest {_STALE}", (repository,)).fetchall()
        self._db.execute(f"DELETE {_STALE}", (repository,))
        self._db.execute(_FORGET_CHECKED, (repository,))
        unused = "DELETE FROM digest WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM member WHERE digest = ?1)"
        self._db.executemany(unused, orphans)

    def repository_id(self, name: str) -> int:
        """Return the id of a repository. If the repository has no row yet, insert a row."""
        known = self._ids.get(name)
        if known is None:
            self._db.execute("INSERT OR IGNORE INTO repository(name, seen) VALUES (?, 0)", (name,))
            (known,) = self._db.execute("SELECT id FROM repository WHERE name = ?", (name,)).fetchone()
            self._ids[name] = known
        return int(known)

    def _digest(self, digest: Digest) -> int:
        """Return the id of a digest. If the digest has no row yet, insert a row."""
        value = (digest_to_bytes(digest),)
        found = self._db.execute("SELECT id FROM digest WHERE value = ?", value).fetchone()
        if found:
            return int(found[0])
        return int(self._db.execute("INSERT INTO digest(value) VALUES (?)", value).lastrowid or 0)


def create_schema(path: Path) -> None:
    """Create the tables of the state in the empty file at `path`. Raises DatabaseError."""
    with _database_errors():
        database = sqlite3.connect(_uri(path, "rw"), uri=True, isolation_level=None)
        try:
            for statement in ["BEGIN", *STATEMENTS, "COMMIT"]:
                database.execute(statement)
        finally:
            database.close()


def _decode_text(raw: bytes) -> str:
    """Decode text from the state file, and replace invalid bytes."""
    return raw.decode("utf-8", "replace")


def _uri(path: Path, mode: str) -> str:
    """Return the URI of the state file for sqlite3. mode: `ro` or `rw`."""
    return f"file:{quote(os.fsencode(path))}?mode={mode}"
