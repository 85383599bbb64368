"""The schema of the state: its tables, and what each version added."""

from __future__ import annotations

APPLICATION_ID = 0x4D495252  # "MIRR"
VERSION = 3

# Names and digests are stored once and referred to by number. A digest is stored as its 32 or 64 bytes. A row of
# `member` means that the repository contained all blobs of the image `root`, and that `digest` is one of these blobs.
# There is also a row whose digest is `root` itself. The repository is a target, or a source on the host of a target.
# Pruning deletes the rows of each `root` that no longer has a tag. `seen` is a counter that orders the repositories, as
# a clock may be wrong. The statements are spelled as SQLite returns them, so they can be compared with those in a file.
# A row of `checked` says when (in seconds since the epoch) the attachments of an image were found complete in a target
# repository.
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
    "checked": "CREATE TABLE checked(repository INTEGER NOT NULL, source TEXT NOT NULL, digest BLOB NOT NULL, "
    "time INTEGER NOT NULL, PRIMARY KEY(repository, source, digest)) WITHOUT ROWID",
    "first_seen": "CREATE TABLE first_seen(repository INTEGER NOT NULL, tag TEXT NOT NULL, identity TEXT NOT NULL, "
    "time INTEGER NOT NULL, PRIMARY KEY(repository, tag)) WITHOUT ROWID",
    "image_date": "CREATE TABLE image_date(repository INTEGER NOT NULL, identity TEXT NOT NULL, "
    "date INTEGER NOT NULL, PRIMARY KEY(repository, identity)) WITHOUT ROWID",
}
_ADDED_BY_3 = ("checked", "first_seen", "image_date")
# The tables that files of an earlier version lack, by version.
ADDED = {1: ("answered_by_v2", "writers", *_ADDED_BY_3), 2: _ADDED_BY_3}
STATEMENTS = (*SCHEMA.values(), f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}")
