"""Checks for new attachments of images that have not changed, and copies the attachments that a target lacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mirror.errors import Cancelled, MirrorError
from mirror.oci.digest import Digest
from mirror.sync.attachments import AttachmentReader
from mirror.sync.copy_hints import CopyHintWriter
from mirror.sync.image_copier import ImageCopier
from mirror.sync.plan_model import PlanEntry
from mirror.sync.recorder import BlobCounts
from mirror.sync.target_lifecycle import TargetLifecycle
from mirror.transfer.tasks import gather_results


class Recheck:
    """Checks the attachments of images that are up to date, and copies missing attachments.

    clock: returns the time, in seconds since the epoch."""

    def __init__(
        self,
        reader: AttachmentReader,
        copier: ImageCopier,
        notes: CopyHintWriter,
        lifecycle: TargetLifecycle,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._reader = reader
        self._copier = copier
        self._notes = notes
        self._lifecycle = lifecycle
        self._clock = clock

    async def copy_missing(self, plan_entry: PlanEntry, digest: Digest, counts: BlobCounts) -> bool:
        """Copy the attachments of an image that a target lacks. Return whether the target lacked any of them.

        digest: the digest of the image on the target. Raises the errors that the stores raise."""
        refs = await self._reader.find_for_target(plan_entry, digest)
        missing = await self._reader.find_missing(plan_entry, refs)
        counts.attachments["exists"] += len(refs) - len(missing)
        if not missing:
            return False
        attachments = await self._reader.read(plan_entry.reference, missing)
        await self._lifecycle.begin(plan_entry.target.repository.host)
        return await self._copier.copy_attachments(plan_entry, attachments, counts)

    async def are_complete(self, plan_entries: Sequence[PlanEntry]) -> bool:
        """Return whether a bundle has all attachments of the images whose attachments are due to be checked.

        Return False if this could not be determined. The error then occurs again, and is reported, when the images are
        read. Raises Cancelled."""
        due = [plan_entry for plan_entry in plan_entries if plan_entry.recheck]
        results = await gather_results(self._is_complete(plan_entry) for plan_entry in due)
        for result in results:
            if isinstance(result, Cancelled):
                raise result
        if not all(result is True for result in results):
            return False
        for plan_entry in due:
            self.record_complete(plan_entry, plan_entry.old_digest)
        return True

    async def _is_complete(self, plan_entry: PlanEntry) -> bool | MirrorError:
        """Return whether a target has all attachments of one image."""
        if plan_entry.old_digest is None:
            return False
        refs = await self._reader.find_for_target(plan_entry, plan_entry.old_digest)
        return not await self._reader.find_missing(plan_entry, refs)

    def record_complete(self, plan_entry: PlanEntry, digest: Digest | None) -> None:
        """Record for later runs that a target has all attachments of an image now."""
        entry = plan_entry.reference.entry
        if entry.attachments is not None and digest is not None:
            repository = str(plan_entry.target.repository)
            self._notes.record_attachments(entry.attachments_key, repository, digest, self._clock())
