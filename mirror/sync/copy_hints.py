"""The interfaces that record copies in the state."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, Protocol

from mirror.oci.digest import Digest


class CopyHintWriter(Protocol):
    """Records in the state which tags and blobs repositories have, so that later runs need fewer requests.

    `delete_tag_record` and `record_sparse_image` write their records immediately. The other methods queue them."""

    def record_tag(self, side: Literal["source", "target"], repository: str, tag: str, digest: Digest | None) -> None:
        """Record the digest to which a tag refers. If `digest` is None, remove the record.

        side: whether the tag is at a source or on a target."""
        ...

    def record_image_blobs(self, repository: str, root: Digest, blobs: Collection[Digest]) -> None:
        """Record that a repository contains the image `root` and its blobs."""
        ...

    def record_attachments(self, source: str, repository: str, digest: Digest, time: float) -> None:
        """Record when the attachments of an image were found complete on a target, in seconds since the epoch.

        source: the key for the source and the rules for its attachments."""
        ...

    def delete_tag_record(self, repository: str, tag: str, *, was_recorded: bool) -> None:
        """Remove the recorded digest of a tag on a target. When this returns, the change has been written to disk.

        was_recorded: whether this run has recorded a digest for the tag. Raises LocalError if the write fails."""
        ...

    def record_sparse_image(self, repository: str, tag: str, digest: Digest, platforms: Collection[str]) -> None:
        """Record that a tag will refer to a sparse image with these platforms.

        When this returns, the record has been written to disk. Raises LocalError if the write fails."""
        ...

    def update_sparse_image(self, repository: str, tag: str, digest: Digest, platforms: Collection[str]) -> None:
        """Record that a tag refers to a sparse image with these platforms, or to a complete image if there are none."""
        ...


class OwnershipWriter(Protocol):
    """Records the tags and manifests that this run writes to targets. `mirror prune` may delete only these."""

    def record(
        self, repository: str, reference: str, digest: Digest, source: str, subject: Digest | None = None
    ) -> None:
        """Record that a tag or manifest was written to a target. The record is queued to be written later.

        reference: the tag, or the digest of a manifest without a tag. source: the source repository of the image.
        subject: for a referrer without a tag, the digest of its subject."""
        ...
