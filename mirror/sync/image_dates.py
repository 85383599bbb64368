"""Reads the dates on which images were created, for `newest` with `by: created`. Each image is read once.

The date of an index is that of its first child manifest that is not an attestation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from mirror.errors import AuthError, MirrorError, RateLimited, Refused, RemoteError
from mirror.oci.created import NO_DATE, date_in_config, date_in_manifest, parse_date
from mirror.oci.descriptor import Descriptor
from mirror.oci.manifest import Kind, Manifest
from mirror.store import DatedTransform, Version
from mirror.sync.manifest_graph import LARGE_SIZE, MAX_DEPTH, ManifestCache
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import MirrorEntry, SourceReference
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload
from mirror.transfer.permits import DOWNLOADS, LARGE, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import gather_results
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct

MAX_CONFIG_BYTES = 8 << 20  # larger configs are not read for their date
_READ_AT_ONCE = 64  # maximum number of images that are read at the same time; permits also limit the requests


def image_identity(version: Version) -> str:
    """Return the identifier of an image at its source: its digest, or its image id in a v1 registry."""
    return version.source_id or str(version.digest)


class ReadDates(Struct, frozen=True):
    """The creation dates of images, by reference, or the errors. new: the number of dates that were not recorded."""

    dates: dict[SourceReference, int | MirrorError]
    new: int


class ImageDates:
    """Reads and records the creation dates of images, in microseconds since the epoch.

    reread: whether to ignore the dates that the state has recorded, and read them again."""

    def __init__(self, calls: Calls, hints: PlanHints, manifests: ManifestCache, *, reread: bool) -> None:
        self._calls = calls
        self._hints = hints
        self._manifests = manifests
        self._reread = reread
        self._read: dict[tuple[str, str], int] = {}  # in this run, by host and identity
        self._reads: SharedTasks[tuple[str, str], int] = SharedTasks(calls.tasks)

    def find_recorded(self, entry: MirrorEntry, identity: str) -> int | None:
        """Return the date that the state has recorded for an image, or None if there is none. Blocks."""
        return None if self._reread else self._hints.image_date(entry.name, identity)

    async def read_all(self, entry: MirrorEntry, references: Sequence[SourceReference]) -> ReadDates:
        """Return the creation date of the image of each reference, or the error if it cannot be read.

        Raises errors that concern all references, for example if the host is down. Dates that were read before such an
        error are recorded, so that the next run does not read them again."""
        dates: dict[SourceReference, int | MirrorError] = {}
        count = 0
        for start in range(0, len(references), _READ_AT_ONCE):
            part = references[start : start + _READ_AT_ONCE]
            recorded = await self._calls.call(partial(self._find_all_recorded, entry, part), policy=ONCE)
            unread = [reference for reference in part if reference not in recorded]
            results = await gather_results(self._read_once(entry, reference) for reference in unread)
            read = dict(zip(unread, results, strict=True))
            self._hints.record_image_dates(entry.name, _by_identity(read))
            for error in results:
                if isinstance(error, MirrorError) and not _concerns_one_image(error):
                    raise error
            dates |= recorded | read
            count += len(unread)
        if count:
            self._hints.delete_other_image_dates(entry.name, _by_identity(dates).keys())
        return ReadDates(dates, count)

    def _find_all_recorded(
        self, entry: MirrorEntry, references: Sequence[SourceReference], work: Work
    ) -> dict[SourceReference, int | MirrorError]:
        """Return the recorded dates for references, and the errors of references that could not be resolved."""
        found: dict[SourceReference, int | MirrorError] = {}
        for reference in references:
            if isinstance(reference.version, MirrorError):
                found[reference] = reference.version
            elif isinstance(reference.version, Version):
                date = self.find_recorded(entry, image_identity(reference.version))
                if date is not None:
                    found[reference] = date
        return found

    async def _read_once(self, entry: MirrorEntry, reference: SourceReference) -> int:
        """Return the date of an image, and read it unless this run has read it already."""
        version = reference.version
        if not isinstance(version, Version):
            raise RuntimeError(f"{reference.name} is not resolved")
        key = (entry.source.host, image_identity(version))
        date = self._read.get(key)
        if date is None:
            date = self._read[key] = await self._reads.run(key, lambda: self._read_date(entry, version))
        return date

    async def _read_date(self, entry: MirrorEntry, version: Version) -> int:
        """Read the creation date of an image from its source. Raises the errors that the source raises."""
        host, repository = entry.source.host, entry.repository
        if isinstance(version.transform, DatedTransform):
            return parse_date(await self._calls.call_host(host, version.transform.created))
        manifest = await self._manifests.read(entry.source, repository, image_identity(version))
        for _ in range(MAX_DEPTH):
            child = _dated_child(entry, manifest)
            if child is None:
                break
            manifest = await self._manifests.read(entry.source, repository, child.digest, child.size)
        date = NO_DATE
        config = manifest.blobs[0] if manifest.kind is Kind.IMAGE and manifest.blobs else None
        if config is not None and 0 < (config.size or 0) <= MAX_CONFIG_BYTES:
            run = partial(_read_config_date, config, BlobSource(entry.source, repository))
            date = await self._calls.call(run, needs=(host_permit(host), DOWNLOADS, *_parse_permits(config.size)))
        if date == NO_DATE:
            needs = _parse_permits(manifest.size)
            date = await self._calls.call(lambda work: date_in_manifest(manifest), needs=needs, policy=ONCE)
        return date


def _by_identity(dates: Mapping[SourceReference, int | MirrorError]) -> dict[str, int]:
    """Return the dates that could be read, by image identity."""
    return {
        image_identity(reference.version): date
        for reference, date in dates.items()
        if isinstance(reference.version, Version) and not isinstance(date, MirrorError)
    }


def _parse_permits(size: int | None) -> tuple[str, ...]:
    """Return the permits for parsing a document of a given size, which may need several times its size in memory."""
    return (LARGE,) if (size or 0) > LARGE_SIZE else ()


def _dated_child(entry: MirrorEntry, index: Manifest) -> Descriptor | None:
    """Return the child manifest that determines the date of an index: the first that the mirror copies, or None."""
    wanted = entry.platforms
    images = [one for one in index.children if not _is_attestation(one)]
    copied = (one for one in images if wanted is None or one.platform is None or wanted.selects(one.platform))
    return next(copied, images[0] if images else None)


def _is_attestation(child: Descriptor) -> bool:
    """Return whether a child of an index is an attestation, which Docker's buildx adds for each platform."""
    return child.platform is not None and (child.platform.os, child.platform.architecture) == ("unknown", "unknown")


def _read_config_date(config: Descriptor, source: BlobSource, work: Work) -> int:
    """Read the config of an image, and return the date in it. Raises Refused if its size or digest is wrong."""
    data = bytearray(config.size or 0)
    free = memoryview(data)
    with BlobDownload(config, [source]).open(0, work) as reader:
        # Read once more after the last byte, because the blob is verified at its end.
        while count := reader.readinto(free or memoryview(bytearray(1))):
            free = free[count:]
    return date_in_config(bytes(data))


def _concerns_one_image(error: MirrorError) -> bool:
    """Return whether an error concerns only one image, and not its whole repository or host."""
    if isinstance(error, AuthError):
        return error.code == "auth_denied"
    return isinstance(error, Refused) or (
        isinstance(error, RemoteError) and error.status is not None and not isinstance(error, RateLimited)
    )
