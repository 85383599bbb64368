"""The schema of the state file: its tables, its version, and the tables that earlier versions lack."""

from __future__ import annotations

from mirror.errors import Refused
from mirror.oci.digest import Digest

APPLICATION_ID = 0x4D495252  # "MIRR"
VERSION = 5

# Names and digests are stored once and referred to by number. A digest is stored as its 32 or 64 bytes. A row of
# `member` means that the repository contained all blobs of the image `root`, and that `digest` is one of these blobs.
# There is also a row whose digest is `root` itself. The repository is a target, or a source on the host of a target.
# Pruning deletes the rows of each `root` that no longer has a tag. `seen` is a counter that orders the repositories, as
# a clock may be wrong. The statements are spelled as SQLite returns them, so they can be compared with those in a file.
# A row of `checked` contains the time (in seconds since the epoch) at which the attachments of an image were found
# complete in a target repository. A row of `attachment_tag` contains the manifest of an attachment's tag on a target,
# and its source repository. A row of `written` means that a sync wrote `digest` under the tag or digest `reference`,
# with the configuration `owner` (a hash of its path); `subject` is empty if the manifest has none.
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
    "checked": "CREATE TABLE checked(repository INTEGER NOT NULL, source TEXT NOT NULL, digest BLOB NOT NULL, "
    "time INTEGER NOT NULL, PRIMARY KEY(repository, source, digest)) WITHOUT ROWID",
    "first_seen": "CREATE TABLE first_seen(repository INTEGER NOT NULL, tag TEXT NOT NULL, identity TEXT NOT NULL, "
    "time INTEGER NOT NULL, PRIMARY KEY(repository, tag)) WITHOUT ROWID",
    "attachment_tag": "CREATE TABLE attachment_tag(repository INTEGER NOT NULL, tag TEXT NOT NULL, "
    "digest BLOB NOT NULL, source TEXT NOT NULL, PRIMARY KEY(repository, tag)) WITHOUT ROWID",
    "image_date": "CREATE TABLE image_date(repository INTEGER NOT NULL, identity TEXT NOT NULL, "
    "date INTEGER NOT NULL, PRIMARY KEY(repository, identity)) WITHOUT ROWID",
    "written": "CREATE TABLE written(repository INTEGER NOT NULL, reference TEXT NOT NULL, owner BLOB NOT NULL, "
    "digest BLOB NOT NULL, subject BLOB NOT NULL, source INTEGER NOT NULL, "
    "PRIMARY KEY(repository, reference, owner)) WITHOUT ROWID",
}
_ADDED_BY_5 = ("written",)
_ADDED_BY_4 = ("attachment_tag", *_ADDED_BY_5)
_ADDED_BY_3 = ("checked", "first_seen", "image_date", "sparse", "other_platform", *_ADDED_BY_4)
# The tables that files of an earlier version lack, by version.
ADDED = {1: ("answered_by_v2", "writers", *_ADDED_BY_3), 2: _ADDED_BY_3, 3: _ADDED_BY_4, 4: _ADDED_BY_5}
STATEMENTS = (*SCHEMA.values(), f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {VERSION}")


def digest_to_bytes(digest: Digest) -> bytes:
    """Convert a digest to the 32 or 64 bytes that the state file contains."""
    return bytes.fromhex(digest.hex)


def digest_from_bytes(value: object) -> Digest | None:
    """Convert a value in the state file (32 or 64 bytes) to a Digest, or return None if it is not valid."""
    if not isinstance(value, bytes):
        return None
    try:
        return Digest.parse(f"{'sha256' if len(value) == 32 else 'sha512'}:{value.hex()}")
    except Refused:
        return None
