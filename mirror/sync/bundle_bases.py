"""Checks that targets have the blobs that differential bundles leave out. Read-only.

A sync runs this check before the first write, and `plan` runs it, too.
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
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work

_MOST_DIGESTS = 4  # maximum number of missing blobs that a message names

_log = logging.getLogger("mirror.sync")


class BundleBases:
    """Checks whether targets have the blobs that partial sources, which are differential bundles, leave out."""

    def __init__(
        self, calls: Calls, reader: ImageReader, locations: BlobLocations, targets: Mapping[str, Target]
    ) -> None:
        self._calls = calls
        self._requests: SharedTasks[tuple[Repository, Digest], bool] = SharedTasks(calls.tasks)
        self._reader = reader
        self._locations = locations
        self._targets = targets

    def allow_mounts(self, repositories: Iterable[Repository]) -> None:
        """Allow blobs to be mounted from these repositories into other repositories on the same host."""
        self._locations.allow_mounts_from(repositories)

    async def find_missing(self, plan_entries: Sequence[PlanEntry]) -> dict[PlanEntry, MirrorError]:
        """Check whether the targets have the blobs that a partial source leaves out. Return errors by plan entry.

        plan_entries: all plan entries with the source. If any of the blobs is missing on a target, return an error for
        each plan entry. Otherwise, return errors only for the images that cannot be read."""
        errors: dict[PlanEntry, MirrorError] = {}
        wanted: dict[tuple[Repository, Digest], Descriptor] = {}
        images = await self._reader.read_images([plan_entry.reference for plan_entry in plan_entries])
        for plan_entry, image in zip(plan_entries, images, strict=True):
            if isinstance(image, MirrorError):
                errors[plan_entry] = image
                continue
            attachments = (one.graph for one in image.attachments)
            for blob in (blob for graph in (image.graph, *attachments) for blob in graph.blobs):
                if plan_entry.reference.entry.source.omits_blob(blob):
                    wanted[plan_entry.target.repository, blob.digest] = blob
        missing = await self._find_missing_blobs(wanted)
        if missing:
            source = plan_entries[0].reference.entry.source.host
            for repository, digest in missing:
                text = f"the bundle {source} relies on {digest}, which is missing in {repository}"
                _log.warning("base_missing", extra={"target": str(repository), "digest": digest, "text": text})
            digests = list(dict.fromkeys(digest for _, digest in missing))
            rest = len(digests) - _MOST_DIGESTS
            more = f" and {rest} more, which the log lists" if rest > 0 else ""
            error = Refused(
                f"the bundle {source} relies on {len(digests)} blobs that are missing on its targets: "
                f"{', '.join(digests[:_MOST_DIGESTS])}{more}",
                hint="first import the bundle on which this one is based, or export this bundle again without `base`",
                code="bundle_incomplete",
            )
            errors = {plan_entry: errors.get(plan_entry, error) for plan_entry in plan_entries}
        return errors

    async def _find_missing_blobs(
        self, wanted: Mapping[tuple[Repository, Digest], Descriptor]
    ) -> list[tuple[Repository, Digest]]:
        """Return the wanted blobs that a repository lacks and cannot mount from another repository."""
        answers = await run_group(self.has_blob(repository, blob) for (repository, _), blob in wanted.items())
        missing = []
        for ((repository, digest), blob), exists in zip(wanted.items(), answers, strict=True):
            if exists:
                self._locations.add_blob(repository, digest)
            elif not await self._is_in_sibling(repository, blob):
                missing.append((repository, digest))
        return missing

    async def _is_in_sibling(self, repository: Repository, blob: Descriptor) -> bool:
        """Return whether another repository on the same host has a blob, from which the blob may be mounted."""
        if self._locations.find_holder(repository, blob.digest) is not None:
            return True
        for sibling in self._locations.sibling_repositories(repository):
            if await self.has_blob(sibling, blob):
                self._locations.add_blob(sibling, blob.digest)
                return True
        return False

    async def has_blob(self, repository: Repository, blob: Descriptor) -> bool:
        """Return whether a target repository has a blob. Concurrent calls for the same blob share one request.

        Raises the same errors as `Target.has_blob`."""

        def look_up(work: Work) -> bool:
            """Look up the blob. Runs on a worker thread."""
            return self._targets[repository.host].has_blob(repository.path, blob, work)

        return await self._requests.run(
            (repository, blob.digest),
            lambda: self._calls.call_host(repository.host, look_up),
        )
