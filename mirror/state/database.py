"""The state's schema and every SQL statement on it.

The only module that knows SQLite; its errors leave as `Trouble`. A `Database` is one connection, for one thread
at a time.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from mirror.errors import Refused, printable
from mirror.oci.digest import Digest

SOURCE, TARGET = 0, 1

APPLICATION_ID = 0x4D495252  # "MIRR"
VERSION = 2

# Names and digests are stored once and referred to by number; a digest is its 32 or 64 bytes. `member` says: this
# repository held every blob that `root` leads to, `digest` among them; `root` has a row as well. The repository is a
# target, or a source on the host of a target. `root` is there for pruning: rows whose root no tag names any more are
# dropped. `seen` orders repositories by generation, not by a clock that may be wrong. Statements are spelled as SQLite
# gives them back, to be compared with a file's.
SCHEMA = {
    "repository": "CREATE TABLE repository(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seen INTEGER NOT NULL)",
    "digest": "CREATE TABLE digest(id INTEGER PRIMARY KEY, value BLOB NOT NULL UNIQUE)",
    "tag": "CREATE TABLE tag(repository INTEGER NOT NULL, side INTEGER NOT NULL, name TEXT NOT NULL, "
    "digest BLOB NOT NULL, PRIMARY KEY(repository, side, name)) WITHOUT ROWID",
    "member": "CREATE TABLE member(digest INTEGER NOT NULL, repository INTEGER NOT NULL, root INTEGER NOT NULL, "
    "PRIMARY KEY(digest, repository, root)) WITHOUT ROWID",
    "member_by_root": "CREATE INDEX member_by_root ON member(repository, root)",
    "transform": "CREATE TABLE transform(identity TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID",
    "unfinished": "CREATE TABLE unfinished(name TEXT PRIMARY KEY) WITHOUT ROWID",
    "answered_by_v2": "CREATE TABLE answered_by_v2(name TEXT PRIMARY KEY) WITHOUT ROWID",
    "writers": "CREATE TABLE writers(mark TEXT PRIMARY KEY) WITHOUT ROWID",
}
ADDED = {1: ("answered_by_v2", "writers")}  # version -> the tables that its files lack

_TAG = """SELECT t.digest FROM repository r JOIN tag t ON t.repository = r.id
          WHERE r.name = ? AND t.side = ? AND t.name = ?"""
_HELD = """SELECT 1 FROM repository r JOIN digest d JOIN member m ON m.digest = d.id AND m.repository = r.id
           WHERE r.name = ? AND d.value = ? LIMIT 1"""
# Jumps from repository to repository in the index instead of reading each of what may be 100,000 rows of a base layer.
_HOLDERS = """WITH RECURSIVE held(d, r) AS (
                SELECT id, (SELECT max(repository) FROM member WHERE digest = id) FROM digest WHERE value = ?
                UNION ALL
                SELECT d, (SELECT max(repository) FROM member WHERE digest = d AND repository < r)
                FROM held WHERE r IS NOT NULL LIMIT 1000)
              SELECT name FROM held JOIN repository ON id = r WHERE substr(name, 1, ?) = ? ORDER BY seen DESC LIMIT ?"""
_STALE = """FROM member WHERE repository = ?1 AND root NOT IN (
              SELECT d.id FROM tag t JOIN digest d ON d.value = t.digest WHERE t.repository = ?1)"""


class Trouble(Exception):
    """SQLite could not do it. corrupt: the file is at fault, a new one would do; full: no space; busy: another
    program holds it."""

    def __init__(self, error: sqlite3.Error | UnicodeError | str) -> None:
        super().__init__(printable(error))
        damage = sqlite3.SQLITE_CORRUPT if isinstance(error, str | UnicodeDecodeError) else 0
        code = getattr(error, "sqlite_errorcode", damage) & 0xFF  # the extended codes say more than we need
        self.corrupt = code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
        self.full = code == sqlite3.SQLITE_FULL
        self.busy = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


# SQLite puts names from the file into its messages: of a damaged file these need not be text.
_ERRORS = (sqlite3.Error, UnicodeError)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise Trouble(error) from error


class Database:
    """One connection to the file."""

    def __init__(self, path: Path, *, write: bool) -> None:
        """Raises Trouble, also where the file is missing."""
        self._ids: dict[str, int] = {}  # of repositories, for the writer
        self._outdated: set[int] = set()  # repositories where a tag moved
        with _translated():
            uri = _uri(path, "rw" if write else "ro")
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0)
            try:
                self._db.text_factory = _text
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
        with suppress(*_ERRORS):
            self._db.close()

    # -- reading ------------------------------------------------------------------------------------------------------

    def tag(self, side: int, repository: str, tag: str) -> Digest | None:
        found = self._query(_TAG, (repository, side, tag))
        return unpack(found[0][0]) if found else None

    def held(self, repository: str, digest: Digest) -> bool:
        return bool(self._query(_HELD, (repository, pack(digest))))

    def holders(self, host: str, digest: Digest, limit: int) -> list[str]:
        """Names (`host/path`) as the file has them, unchecked; the last written repositories first."""
        prefix = f"{host}/"
        found = self._query(_HOLDERS, (pack(digest), len(prefix), prefix, limit))
        return [name for (name,) in found if isinstance(name, str)]

    def transformed(self, identity: str) -> Digest | None:
        found = self._query("SELECT digest FROM transform WHERE identity = ?", (identity,))
        return unpack(found[0][0]) if found else None

    def marks(self) -> set[str]:
        return {name for (name,) in self._query("SELECT name FROM unfinished", ()) if isinstance(name, str)}

    def answered_by_v2(self, repository: str) -> bool:
        if self._lacks("answered_by_v2"):
            return False
        return bool(self._query("SELECT 1 FROM answered_by_v2 WHERE name = ?", (repository,)))

    def writers(self) -> str | None:
        """The mark that tags of targets were noted under."""
        found = [] if self._lacks("writers") else self._query("SELECT mark FROM writers", ())
        return str(found[0][0]) if found else None

    def _lacks(self, table: str) -> bool:
        """Whether the file is of an earlier version that has no such table, and was opened for reading only."""
        ((version,),) = self._query("PRAGMA user_version", ())
        return table in ADDED.get(int(version), ())

    def tables(self) -> dict[str, str]:
        found = self._query("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL", ())
        return {str(name): str(sql) for name, sql in found}

    def _query(self, statement: str, values: Sequence[object]) -> list[tuple[str | bytes, ...]]:
        try:
            return self._db.execute(statement, values).fetchall()
        except _ERRORS as error:
            raise Trouble(error) from error

    # -- writing ------------------------------------------------------------------------------------------------------

    def apply(self, actions: Iterable[Callable[[Database], None]]) -> None:
        """All of `actions` in one transaction, on disk when this returns; none of them if it raises Trouble."""
        with _translated():
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
        """Add the tables that an earlier version's file lacks. Raises Trouble."""
        ((version,),) = self._query("PRAGMA user_version", ())
        lacking = ADDED.get(int(version), ())

        def add(database: Database) -> None:
            for table in lacking:
                database._db.execute(SCHEMA[table])
            database._db.execute(f"PRAGMA user_version = {VERSION}")

        if lacking:
            self.apply([add])

    def note_tag(self, side: int, repository: str, tag: str, digest: Digest | None) -> None:
        key = (self._repository(repository), side, tag)
        known = self._db.execute("SELECT digest FROM tag WHERE (repository, side, name) = (?, ?, ?)", key).fetchone()
        value = pack(digest) if digest is not None else None
        if known == (value,) or known is value:
            return
        if known:
            self._outdated.add(key[0])
        if value is None:
            self._db.execute("DELETE FROM tag WHERE (repository, side, name) = (?, ?, ?)", key)
        else:
            self._db.execute("INSERT OR REPLACE INTO tag VALUES (?, ?, ?, ?)", (*key, value))

    def note_graph(self, repository: str, root: Digest, blobs: Iterable[Digest]) -> None:
        where, top = self._repository(repository), self._digest(root)
        rows = [(self._digest(digest), where, top) for digest in blobs]
        self._db.execute("DELETE FROM member WHERE repository = ? AND root = ?", (where, top))
        self._db.executemany("INSERT OR IGNORE INTO member VALUES (?, ?, ?)", [*rows, (top, where, top)])
        self._db.execute("UPDATE repository SET seen = ? WHERE id = ?", (self._seen, where))
        self._seen += 1

    def forget(self, repository: str) -> None:
        where = self._repository(repository)
        self._db.execute("DELETE FROM tag WHERE repository = ?", (where,))
        self._drop_stale(where)

    def mark(self, repository: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO unfinished VALUES (?)", (repository,))

    def unmark(self, repository: str) -> None:
        self._db.execute("DELETE FROM unfinished WHERE name = ?", (repository,))

    def note_answered_by_v2(self, repository: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO answered_by_v2 VALUES (?)", (repository,))

    def begin_anew(self, mark: str) -> None:
        """Drop all tags of targets; those that are noted from now on are noted under `mark`."""
        self._db.execute("DELETE FROM tag WHERE side = ?", (TARGET,))
        self._db.execute("DELETE FROM writers")
        self._db.execute("INSERT INTO writers VALUES (?)", (mark,))

    def note_transformed(self, identity: str, digest: Digest) -> None:
        self._db.execute("INSERT OR REPLACE INTO transform VALUES (?, ?)", (identity, pack(digest)))

    def nothing(self) -> None:
        """An action for who only waits for those before it."""

    def check(self) -> None:
        """Raises Trouble if the file is damaged. Reads all of it."""
        ((verdict,),) = self._query("PRAGMA quick_check(1)", ())
        if verdict != "ok":
            raise Trouble(str(verdict))

    def outdated(self) -> list[int]:
        """Repositories whose roots `prune` should look at."""
        return sorted(self._outdated)

    def prune(self, repository: int) -> None:
        """Drop what is known of roots that no known tag names any more."""
        self._outdated.discard(repository)
        self._drop_stale(repository)

    def _drop_stale(self, repository: int) -> None:
        orphans = self._db.execute(f"SELECT DISTINCT digest {_STALE}", (repository,)).fetchall()
        self._db.execute(f"DELETE {_STALE}", (repository,))
        unused = "DELETE FROM digest WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM member WHERE digest = ?1)"
        self._db.executemany(unused, orphans)

    def _repository(self, name: str) -> int:
        known = self._ids.get(name)
        if known is None:
            self._db.execute("INSERT OR IGNORE INTO repository(name, seen) VALUES (?, 0)", (name,))
            (known,) = self._db.execute("SELECT id FROM repository WHERE name = ?", (name,)).fetchone()
            self._ids[name] = known
        return int(known)

    def _digest(self, digest: Digest) -> int:
        value = (pack(digest),)
        found = self._db.execute("SELECT id FROM digest WHERE value = ?", value).fetchone()
        if found:
            return int(found[0])
        return int(self._db.execute("INSERT INTO digest(value) VALUES (?)", value).lastrowid or 0)


def create(path: Path) -> None:
    """Give the empty file at `path` the schema. Raises Trouble."""
    statements = [*SCHEMA.values(), f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}"]
    with _translated():
        database = sqlite3.connect(_uri(path, "rw"), uri=True, isolation_level=None)
        try:
            for statement in ["BEGIN", *statements, "COMMIT"]:
                database.execute(statement)
        finally:
            database.close()


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _uri(path: Path, mode: str) -> str:
    return f"file:{quote(os.fsencode(path))}?mode={mode}"


def pack(digest: Digest) -> bytes:
    return bytes.fromhex(digest.hex)


def unpack(value: object) -> Digest | None:
    """The digest, or None for what cannot be one: the file may lie."""
    if not isinstance(value, bytes):
        return None
    try:
        return Digest.parse(f"{'sha256' if len(value) == 32 else 'sha512'}:{value.hex()}")
    except Refused:
        return None
