"""Sources that are not whole: a differential bundle relies on blobs that its base has brought to the targets.

Whether they are there is found out before anything is written, and by `plan`. Reads only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from mirror.errors import MirrorError, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.store import Target
from mirror.sync.image_reader import ImageReader
from mirror.sync.plan_model import PlanEntry
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_NAMED = 4  # missing blobs that a message names

_log = logging.getLogger("mirror.publish")


class BundleBases:
    """Finds out whether targets have what partial sources have left out."""

    def __init__(
        self, calls: Calls, reader: ImageReader, locations: BlobLocations, targets: Mapping[str, Target]
    ) -> None:
        self._calls = calls
        self._looks: Shared[tuple[Repository, Digest], bool] = Shared(calls.tasks)
        self._reader = reader
        self._locations = locations
        self._targets = targets

    def allow_mounts(self, repositories: Iterable[Repository]) -> None:
        """What these repositories have can be mounted in their siblings."""
        self._locations.allow(repositories)

    async def find_missing(self, plan_entries: Sequence[PlanEntry]) -> dict[PlanEntry, MirrorError]:
        """Look for what one partial source relies on. -> an error for each finding, if anything is missing."""
        errors: dict[PlanEntry, MirrorError] = {}
        wanted: dict[tuple[Repository, Digest], Descriptor] = {}
        images = await self._reader.read_images([one.reference for one in plan_entries])
        for plan_entry, image in zip(plan_entries, images, strict=True):
            if isinstance(image, MirrorError):
                errors[plan_entry] = image
                continue
            for blob in image.graph.blobs:
                if plan_entry.reference.entry.source.leaves_out(blob):
                    wanted[plan_entry.target.repository, blob.digest] = blob
        lacking = await self._find_missing_blobs(wanted)
        if lacking:
            source = plan_entries[0].reference.entry.source.host
            for repository, digest in lacking:
                text = f"{source} relies on {digest}, which is missing in {repository}"
                _log.warning("base_missing", extra={"target": str(repository), "digest": digest, "text": text})
            every = list(dict.fromkeys(digest for _, digest in lacking))
            more = f" and {len(every) - _NAMED} more, which the log names" if len(every) > _NAMED else ""
            error = Refused(
                f"{source} relies on {len(every)} blobs that are missing: {', '.join(every[:_NAMED])}{more}",
                hint="import what it is based on first, or export without `base`",
                code="bundle_incomplete",
            )
            errors = {plan_entry: errors.get(plan_entry, error) for plan_entry in plan_entries}
        return errors

    async def _find_missing_blobs(
        self, wanted: Mapping[tuple[Repository, Digest], Descriptor]
    ) -> list[tuple[Repository, Digest]]:
        """Ask each place, and for what is not there its siblings, from which it can be mounted. -> what is nowhere."""
        answers = await run_group(self.has_blob(repository, blob) for (repository, _), blob in wanted.items())
        lacking = []
        for ((repository, digest), blob), there in zip(wanted.items(), answers, strict=True):
            if there:
                self._locations.add(repository, digest)
            elif not await self._is_in_sibling(repository, blob):
                lacking.append((repository, digest))
        return lacking

    async def _is_in_sibling(self, repository: Repository, blob: Descriptor) -> bool:
        if self._locations.find_holder(repository, blob.digest) is not None:
            return True
        for sibling in self._locations.siblings(repository):
            if await self.has_blob(sibling, blob):
                self._locations.add(sibling, blob.digest)
                return True
        return False

    async def has_blob(self, repository: Repository, blob: Descriptor) -> bool:
        """Ask a target for a blob."""

        def look(work: Work) -> bool:
            return self._targets[repository.host].has_blob(repository.path, blob, work)

        return await self._looks.run(
            (repository, blob.digest),
            lambda: self._calls.call(look, needs=(host_permit(repository.host),), policy=ONCE),
        )
