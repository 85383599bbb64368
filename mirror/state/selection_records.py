"""The rows of the state that affect the selection of tags: when tags were first seen, and the dates of images.

Call the functions on the thread that uses the `Database`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from mirror.selection.tag_rules import FirstSeen
from mirror.state.database import Database


def read_first_seen(database: Database, repository: str, tag: str) -> FirstSeen | None:
    """Return the stored image of a tag at a source, and when it was first seen, or None if there is no row."""
    if database.lacks("first_seen"):
        return None
    statement = """SELECT f.identity, f.time FROM repository r JOIN first_seen f ON f.repository = r.id
                   WHERE r.name = ? AND f.tag = ?"""
    found = database.query(statement, (repository, tag))
    identity, time = found[0] if found else (None, None)
    return FirstSeen(identity, float(time)) if isinstance(identity, str) and isinstance(time, int | float) else None


def record_first_seen(database: Database, repository: str, tag: str, seen: FirstSeen) -> None:
    """Store when a tag was first seen with an image. If there is a row for the same image, keep the earlier time."""
    statement = """INSERT INTO first_seen VALUES (?, ?, ?, ?)
                   ON CONFLICT(repository, tag) DO UPDATE SET identity = excluded.identity, time = excluded.time
                   WHERE identity <> excluded.identity OR time > excluded.time"""
    database.execute(statement, [(database.repository_id(repository), tag, seen.identity, int(seen.time))])


def read_image_date(database: Database, repository: str, identity: str) -> int | None:
    """Return the stored date of an image, in microseconds since the epoch, or None if there is no row."""
    if database.lacks("image_date"):
        return None
    statement = """SELECT d.date FROM repository r JOIN image_date d ON d.repository = r.id
                   WHERE r.name = ? AND d.identity = ?"""
    found = database.query(statement, (repository, identity))
    date = found[0][0] if found else None
    return date if isinstance(date, int) else None


def record_image_dates(database: Database, repository: str, dates: Mapping[str, int]) -> None:
    """Store the creation dates of images in a source repository. dates: by image identity."""
    number = database.repository_id(repository)
    database.execute("INSERT OR REPLACE INTO image_date VALUES (?, ?, ?)", [(number, *one) for one in dates.items()])


def delete_other_image_dates(database: Database, repository: str, identities: Collection[str]) -> None:
    """Delete the stored creation dates of all images in a repository except those in `identities`."""
    number = database.repository_id(repository)
    stored = database.query("SELECT identity FROM image_date WHERE repository = ?", (number,))
    others = [(number, identity) for (identity,) in stored if identity not in identities]
    database.execute("DELETE FROM image_date WHERE (repository, identity) = (?, ?)", others)
