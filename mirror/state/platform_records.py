"""The rows of the state about images that are skipped because of their platform, and about sparse images on targets.

Call the functions on the thread that uses the `Database`.
"""

from __future__ import annotations

from mirror.oci.digest import Digest
from mirror.state.database import Database
from mirror.state.schema import digest_from_bytes, digest_to_bytes

_FEW_RESULTS = 1000  # the number of results of platform selection up to which no results are deleted
_COUNTS = "SELECT (SELECT count(*) FROM tag), (SELECT count(*) FROM transform), (SELECT count(*) FROM other_platform)"
_DELETE_UNUSED_RESULTS = """DELETE FROM transform
                            WHERE identity LIKE 'platforms %' AND digest NOT IN (SELECT digest FROM tag)"""


def read_other_platform(database: Database, key: str) -> str | None:
    """Return the stored reason why an image is skipped because of its platform, or None if there is none."""
    if database.lacks("other_platform"):
        return None
    found = database.query("SELECT reason FROM other_platform WHERE image = ?", (key,))
    return str(found[0][0]) if found else None


def record_other_platform(database: Database, key: str, reason: str) -> None:
    """Store the reason why an image is skipped because of its platform. key: identifies the image and the platforms."""
    database.execute("INSERT OR REPLACE INTO other_platform VALUES (?, ?)", [(key, reason)])


def read_sparse_repositories(database: Database) -> set[str]:
    """Return the names of the target repositories that have a row in the table `sparse`."""
    found = [] if database.lacks("sparse") else database.query("SELECT DISTINCT repository FROM sparse", ())
    return {str(name) for (name,) in found}


def read_sparse_images(database: Database, repository: str) -> dict[str, dict[Digest, str]]:
    """Return the platforms of the sparse images in a target repository, by tag and digest."""
    found = database.query("SELECT tag, digest, platforms FROM sparse WHERE repository = ?", (repository,))
    images: dict[str, dict[Digest, str]] = {}
    for tag, value, platforms in found:
        if (digest := digest_from_bytes(value)) is not None:
            images.setdefault(str(tag), {})[digest] = str(platforms)
    return images


def record_sparse_image(database: Database, repository: str, tag: str, digest: Digest, platforms: str) -> None:
    """Store the platforms that a sparse image contains. The row is valid while the tag refers to the index `digest`."""
    values = (repository, tag, digest_to_bytes(digest), platforms)
    database.execute("INSERT OR REPLACE INTO sparse VALUES (?, ?, ?, ?)", [values])


def delete_sparse_images(database: Database, repository: str, tag: str) -> None:
    """Delete all rows for sparse images under a tag in a target repository."""
    database.execute("DELETE FROM sparse WHERE repository = ? AND tag = ?", [(repository, tag)])


def prune_platform_results(database: Database) -> None:
    """Delete the results of platform selection to which no recorded tag refers, if there are many results.

    Without this, the state would grow with each new digest of a tag."""
    ((tags, results, others),) = database.query(_COUNTS, ())
    if int(results) > 2 * int(tags) + _FEW_RESULTS:
        database.execute(_DELETE_UNUSED_RESULTS, [()])
    if int(others) > 2 * int(tags) + _FEW_RESULTS:
        database.execute("DELETE FROM other_platform", [()])
