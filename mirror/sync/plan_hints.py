"""The hints from earlier runs that planning uses."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.selection.tag_rules import FirstSeen


class PlanHints(Protocol):
    """Reads what earlier runs recorded in the state. The methods that return a record read a file, so they block."""

    def target_tag(self, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag on a target, or None if none is recorded."""
        ...

    def source_tag(self, repository: str, tag: str) -> Digest | None:
        """Return the digest that was last recorded for a tag at a source, or None if none is recorded."""
        ...

    def transform_digest(self, identity: str) -> Digest | None:
        """Return the digest of the last result of the transform with this identity, or None if none is recorded."""
        ...

    def other_platform(self, key: str) -> str | None:
        """Return why an image is skipped that is for a platform that is not wanted, or None if none is recorded."""
        ...

    def has_sparse_images(self, repository: str) -> bool:
        """Return whether `sparse_images` has anything to return. This does not block."""
        ...

    def sparse_images(self, repository: str) -> Mapping[str, Mapping[Digest, str]]:
        """Return the platforms that sparse images in a target repository have, by tag and digest."""
        ...

    def is_unfinished(self, repository: str) -> bool:
        """Return whether an earlier run started to write to a target repository but did not finish."""
        ...

    def first_seen(self, repository: str, tag: str) -> FirstSeen | None:
        """Return the image that a tag at a source was last recorded with, and since when, or None if unknown."""
        ...

    def record_first_seen(self, repository: str, tag: str, seen: FirstSeen) -> None:
        """Record since when a tag at a source refers to an image. Commands that only read record nothing."""
        ...

    def image_date(self, repository: str, identity: str) -> int | None:
        """Return the date of an image at a source, in microseconds since the epoch, or None if none is recorded."""
        ...

    def record_image_dates(self, repository: str, dates: Mapping[str, int]) -> None:
        """Record the dates of images at a source. Commands that only read record nothing."""
        ...

    def delete_other_image_dates(self, repository: str, identities: Collection[str]) -> None:
        """Delete the recorded dates of all images at a source except these."""
        ...

    def checked_attachments(
        self, source: str, repository: str, digests: Collection[Digest], after: float, until: float
    ) -> set[Digest]:
        """Return those of the images `digests` on a target whose attachments were found complete in a period of time.

        source: the source, with the rules for its attachments. after, until: seconds since the epoch."""
        ...
