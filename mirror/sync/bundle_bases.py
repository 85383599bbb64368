"""Sources that are not whole: a differential bundle relies on blobs that its base has brought to the targets.

Whether they are there is found out before anything is written, and by `plan`. Reads only.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from mirror.errors import MirrorError, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.store import Target
from mirror.sync.image_reader import Reader
from mirror.sync.plan_model import Finding
from mirror.transfer.blob_locations import Inventory, Place
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_NAMED = 4  # missing blobs that a message names

_log = logging.getLogger("mirror.publish")


class Bases:
    """Finds out whether targets have what partial sources have left out."""

    def __init__(self, calls: Calls, reader: Reader, inventory: Inventory, targets: Mapping[str, Target]) -> None:
        self._calls = calls
        self._looks: Shared[tuple[Place, Digest], bool] = Shared(calls.tasks)
        self._reader = reader
        self._inventory = inventory
        self._targets = targets

    def allow(self, places: Iterable[Place]) -> None:
        """What these repositories have can be mounted in their siblings."""
        self._inventory.allow(places)

    async def missing(self, findings: Sequence[Finding]) -> dict[Finding, MirrorError]:
        """Look for what one partial source relies on. -> an error for each finding, if anything is missing."""
        errors: dict[Finding, MirrorError] = {}
        wanted: dict[tuple[Place, Digest], Descriptor] = {}
        images = await self._reader.images([one.reading for one in findings])
        for finding, image in zip(findings, images, strict=True):
            if isinstance(image, MirrorError):
                errors[finding] = image
                continue
            for blob in image.graph.blobs:
                if finding.reading.entry.source.lacks(blob):
                    wanted[finding.target.place, blob.digest] = blob
        lacking = await self._look(wanted)
        if lacking:
            source = findings[0].reading.entry.source.host
            for place, digest in lacking:
                text = f"{source} relies on {digest}, which is missing in {place}"
                _log.warning("base_missing", extra={"target": str(place), "digest": digest, "text": text})
            every = list(dict.fromkeys(digest for _, digest in lacking))
            more = f" and {len(every) - _NAMED} more, which the log names" if len(every) > _NAMED else ""
            error = Refused(
                f"{source} relies on {len(every)} blobs that are missing: {', '.join(every[:_NAMED])}{more}",
                hint="import what it is based on first, or export without `base`",
                code="bundle_incomplete",
            )
            errors = {finding: errors.get(finding, error) for finding in findings}
        return errors

    async def _look(self, wanted: Mapping[tuple[Place, Digest], Descriptor]) -> list[tuple[Place, Digest]]:
        """Ask each place, and for what is not there its siblings, from which it can be mounted. -> what is nowhere."""
        answers = await run_group(self.has(place, blob) for (place, _), blob in wanted.items())
        lacking = []
        for ((place, digest), blob), there in zip(wanted.items(), answers, strict=True):
            if there:
                self._inventory.add(place, digest)
            elif not await self._at_a_sibling(place, blob):
                lacking.append((place, digest))
        return lacking

    async def _at_a_sibling(self, place: Place, blob: Descriptor) -> bool:
        if self._inventory.holder(place, blob.digest) is not None:
            return True
        for sibling in self._inventory.siblings(place):
            if await self.has(sibling, blob):
                self._inventory.add(sibling, blob.digest)
                return True
        return False

    async def has(self, place: Place, blob: Descriptor) -> bool:
        """Ask a target for a blob."""

        def look(work: Work) -> bool:
            return self._targets[place.host].has_blob(place.path, blob, work)

        return await self._looks.run(
            (place, blob.digest), lambda: self._calls.call(look, needs=(host_permit(place.host),), policy=ONCE)
        )
