"""The schema of the state file: its tables, its version, and the tables that files of earlier versions lack."""

from __future__ import annotations

APPLICATION_ID = 0x4D495252  # "MIRR"
VERSION = 3

# Names and digests are stored once and referred to by number. A digest is stored as its 32 or 64 bytes. A row of
# `member` means that the repository contained all blobs of the image `root`, and that `digest` is one of these blobs.
# There is also a row whose digest is `root` itself. The repository is a target, or a source on the host of a target.
# Pruning deletes the rows of each `root` that no longer has a tag. `seen` is a counter that orders the repositories, as
# a clock may be wrong. The statements are spelled as SQLite returns them, so they can be compared with those in a file.
SCHEMA = {
    "repository": "CREATE TABLE repository(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seen INTEGER NOT NULL)",
    "digest": "CREATE TABLE digest(id INTEGER PRIMARY KEY, value BLOB NOT NULL UNIQUE)",
    "tag": "CREATE TABLE tag(repository INTEGER NOT NULL, side INTEGER NOT NULL, name TEXT NOT NULL, "
    "digest BLOB NOT NULL, PRIMARY KEY(repository, side, name)) WITHOUT ROWID",
    "member": "CREATE TABLE member(digest INTEGER NOT NULL, repository INTEGER NOT NULL, root INTEGER NOT NULL, "
    "PRIMARY KEY(digest, repository, root)) WITHOUT ROWID",
    "member_by_root": "CREATE INDEX member_by_root ON member(repository, root)",
    "transform": "CREATE TABLE transform(identity TEXT PRIMARY KEY, digest BLOB NOT NULL) WITHOUT ROWID",
    "sparse": "CREATE TABLE sparse(repository TEXT NOT NULL, tag TEXT NOT NULL, digest BLOB NOT NULL, "
    "platforms TEXT NOT NULL, PRIMARY KEY(repository, tag, digest)) WITHOUT ROWID",
    "other_platform": "CREATE TABLE other_platform(image TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID",
    "unfinished": "CREATE TABLE unfinished(name TEXT PRIMARY KEY) WITHOUT ROWID",
    "answered_by_v2": "CREATE TABLE answered_by_v2(name TEXT PRIMARY KEY) WITHOUT ROWID",
    "writers": "CREATE TABLE writers(mark TEXT PRIMARY KEY) WITHOUT ROWID",
}
# The tables that files of an earlier version lack, by version.
ADDED = {1: ("answered_by_v2", "writers", "sparse", "other_platform"), 2: ("sparse", "other_platform")}
