"""The interface of the hints from earlier runs that planning uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.selection.tag_rules import FirstSeen


class PlanHints(Protocol):
    """Reads and writes the records of the state that planning needs. Methods that return a record block."""

    def target_tag(self, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag on a target, or None if none is recorded."""
        ...

    def source_tag(self, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag at a source, or None if none is recorded."""
        ...

    def transform_digest(self, identity: str) -> Digest | None:
        """Return the recorded digest of the last result of a transform, or None if none is recorded."""
        ...

    def other_platform(self, key: str) -> str | None:
        """Return the recorded reason for skipping an image because of its platform, or None if there is none."""
        ...

    def has_sparse_images(self, repository: str) -> bool:
        """Return whether a target repository may have sparse images. Does not block, unlike `sparse_images`."""
        ...

    def sparse_images(self, repository: str) -> Mapping[str, Mapping[Digest, str]]:
        """Return the platforms that sparse images in a target repository contain, by tag and digest."""
        ...

    def is_unfinished(self, repository: str) -> bool:
        """Return whether an earlier run began to write to a target repository but did not finish."""
        ...

    def first_seen(self, repository: str, tag: str) -> FirstSeen | None:
        """Return the last recorded image of a tag at a source, and when it was first seen, or None if it is unknown."""
        ...

    def record_first_seen(self, repository: str, tag: str, seen: FirstSeen) -> None:
        """Record when a tag at a source was first seen with an image. Does nothing in read-only commands."""
        ...

    def image_date(self, repository: str, identity: str) -> int | None:
        """Return the recorded date of an image at a source, in microseconds since the epoch, or None."""
        ...

    def record_image_dates(self, repository: str, dates: Mapping[str, int]) -> None:
        """Record the creation dates of images at a source. Does nothing in read-only commands."""
        ...

    def delete_other_image_dates(self, repository: str, identities: Collection[str]) -> None:
        """Delete the recorded creation dates of all images in a source repository except those in `identities`."""
        ...

    def checked_attachments(
        self, source: str, repository: str, digests: Collection[Digest], after: float, until: float
    ) -> set[Digest]:
        """Return those of the images `digests` whose attachments on a target were found complete in a period of time.

        source: the key for the source and the rules for its attachments. after, until: seconds since the epoch."""
        ...
