"""The order of writes: the only code that decides it.

For one image on one target: its blobs; then its manifests, children before parents, by digest; then the root by
its tag, last. So a tag names at every instant its old image or the new one, whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Literal, Protocol

from mirror.errors import Cancelled, MirrorError, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import Target, Version
from mirror.sync.image_reader import Image
from mirror.sync.manifest_graph import permits
from mirror.sync.plan_model import Finding
from mirror.sync.planner_queries import equal_to, is_broken
from mirror.sync.recorder import Tally
from mirror.transfer.blob_copier import Deliveries
from mirror.transfer.blob_locations import Inventory, Place
from mirror.transfer.blob_outcomes import Outcomes
from mirror.transfer.blob_request import Effort, Order, Outcome
from mirror.transfer.calls import ABANDONED, Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.shared import Shared
from mirror.transfer.tasks import gather_results, run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

_log = logging.getLogger("mirror.sync")


def descriptor(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.digest, manifest.size, manifest.media_type)


class Memory(Protocol):
    """What is noted for later runs: takes notes and writes them later, but for withdrawals."""

    def note_tag(self, side: Literal["source", "target"], repository: str, tag: str, digest: Digest | None) -> None: ...
    def note_graph(self, repository: str, root: Digest, blobs: Collection[Digest]) -> None: ...
    def withdraw_tag(self, repository: str, tag: str, *, noted: bool) -> None: ...


class Sync:
    """Brings images to targets.

    outcomes: where it is recorded what became of each manifest; certain: believe nothing that is known, ask for every
    object; repair: read every manifest on the target, the root too; writing: called, on a thread, before a write."""

    def __init__(
        self,
        calls: Calls,
        deliveries: Deliveries,
        inventory: Inventory,
        memory: Memory,
        targets: Mapping[str, Target],
        outcomes: Outcomes,
        *,
        certain: bool,
        repair: bool = False,
        writing: Callable[[Place], None],
    ) -> None:
        self._calls = calls
        self._puts: Shared[tuple[Place, str, Digest], None] = Shared(calls.tasks)
        self._outcomes = outcomes
        self._deliveries = deliveries
        self._inventory = inventory
        self._memory = memory
        self._targets = targets
        self._certain = certain
        self._repair = repair
        self._writing = writing

    async def bring(self, finding: Finding, image: Image, tally: Tally) -> bool:
        """Everything under the root, then the root. -> whether anything was missing. Raises as the stores do."""
        place = finding.target.place
        digests = [blob.digest for blob in image.graph.blobs]
        if self._mountable(image):
            self._inventory.suggest(Place(image.origin.source.host, image.origin.repository), digests)
        if not self._certain and not self._targets[place.host].on_disk:
            unknown = [digest for digest in digests if not self._inventory.knows(place, digest)]
            if unknown:
                hints = await self._calls.call(lambda work: self._inventory.read_hints(place, unknown), policy=ONCE)
                self._inventory.note_hints(place, hints)
        try:
            return await self._push(finding, image, tally, certain=self._certain)
        except RemoteError as error:
            if error.code != "blob_missing":
                raise
            text = f"{finding.name}: something believed to be on the target is not there; looking again"
            _log.warning("distrust", extra={"target": finding.name, "code": error.code, "text": text})
        self._inventory.distrust(place)
        tally.push_again()
        return await self._push(finding, image, tally, certain=True)

    async def _push(self, finding: Finding, image: Image, tally: Tally, *, certain: bool) -> bool:
        place, graph = finding.target.place, image.graph
        store = self._targets[place.host]

        def ordered(what: Descriptor, *, is_root: bool = False) -> Order:
            return Order(what, store, place, image.origin, finding.reading.name, finding.may_have, certain, is_root)

        changed = await self._deliver([ordered(blob) for blob in graph.blobs], tally)
        for level in graph.levels:
            ask = certain or finding.old == graph.root.digest
            missing, broken = await self._missing(store, place, level, ask=ask)
            lacking = {child.digest for child in missing}
            for child in level:
                if child.digest not in lacking:
                    self._outcomes.manifest(ordered(descriptor(child)), Effort().result(Outcome.EXISTS))
            await run_group(self._put(ordered(descriptor(child)), child.digest, child) for child in missing)
            await run_group(self._confirm(ordered(descriptor(child)), child.digest, child) for child in broken)
            changed = changed or bool(missing)
        root, tag = graph.root, finding.reading.tag
        changed = changed or finding.old != root.digest
        if not changed and self._repair:
            changed = not await self._names(store, place, tag, root)
        if changed:
            await self._put(ordered(descriptor(root), is_root=True), tag, root, before=partial(self._withdraw, finding))
        else:
            self._outcomes.manifest(ordered(descriptor(root), is_root=True), Effort().result(Outcome.EXISTS))
        if finding.broken:
            await self._confirm(ordered(descriptor(root), is_root=True), tag, root)
        self._note(place, finding, image)
        return changed

    async def _deliver(self, orders: list[Order], tally: Tally) -> bool:
        """Bring the blobs of an image. -> whether any was missing."""
        left = {order.blob.digest: order.blob for order in orders}

        async def deliver(order: Order) -> bool:
            try:
                delivered = await self._deliveries.deliver(order)
            except MirrorError as error:
                if not isinstance(error, Cancelled):
                    tally.add_failed(left.pop(order.blob.digest), self._outcomes.spent(order))
                raise
            tally.add(left.pop(order.blob.digest), delivered)
            return delivered.outcome is not Outcome.EXISTS

        try:
            if not self._repair:
                return any(await run_group(deliver(order) for order in orders))
            # One run names all that a registry's operator has to delete.
            results = await gather_results(deliver(order) for order in orders)
            for result in results:
                if isinstance(result, MirrorError):
                    raise result
            return any(results)
        finally:
            for blob in left.values():  # every blob is counted, also where another blob of the image failed
                tally.add_interrupted(blob)

    async def _missing(
        self, store: Target, place: Place, level: Collection[Manifest], *, ask: bool
    ) -> tuple[list[Manifest], list[Manifest]]:
        """The manifests of a level that have to be put: those that this run did not put there yet. -> these, and those
        of them that the target has and cannot give.

        No earlier run's word is taken for a child: a registry's clean-up removes untagged manifests, those of indexes
        too, and many take an index whose child is gone. A PUT costs no more than asking; that is for where all is
        likely to be there."""
        if not ask:
            return [one for one in level if not self._inventory.has_manifest(place, one.digest)], []

        def look(work: Work) -> list[Version | MirrorError]:
            return list(store.resolve(place.path, [one.digest for one in level], work))

        answers = await self._calls.call(look, needs=(host_permit(place.host),), policy=ONCE)
        asked = list(zip(level, answers, strict=True))
        missing = [one for one, answer in asked if not isinstance(answer, Version)]
        return missing, [one for one, answer in asked if is_broken(answer)]

    async def _confirm(self, order: Order, reference: str, manifest: Manifest) -> None:
        """Read what was put where the target had a copy that it could not give: it may have kept that.

        By GET: some registries answer a HEAD with an error although they have the manifest."""
        place = order.place

        def look(work: Work) -> None:
            try:
                stored = order.target.manifest(place.path, reference, work).digest
            except MirrorError as error:
                if not is_broken(error):
                    raise
                raise kept(error.what) from error
            if stored != manifest.digest:
                raise kept(f"it is {stored} still")

        def kept(why: str) -> Refused:
            return Refused(
                f"{place} accepted the upload of {manifest.digest} but still serves a damaged copy: {why}",
                hint="run `mirror sync --repair CONFIG`, which says what to delete there",
                code="target_lied",
            )

        try:
            await self._calls.call(look, needs=(host_permit(place.host),), policy=ONCE)
        except MirrorError as error:
            self._outcomes.blob(order, error)  # what was copied turned out not to be there
            raise

    async def _names(self, store: Target, place: Place, tag: str, root: Manifest) -> bool:
        """Whether the tag leads to the root, as the target says when it is asked again."""

        def look(work: Work) -> bool:
            (answer,) = store.resolve(place.path, [tag], work)
            return isinstance(answer, Version) and answer.digest == root.digest

        return await self._calls.call(look, needs=(host_permit(place.host),), policy=ONCE)

    def _withdraw(self, finding: Finding) -> None:
        """Forget durably what the tag names on the target: after a PUT whose answer is lost nobody knows."""
        self._memory.withdraw_tag(str(finding.target.place), finding.reading.tag, noted=finding.old is not None)

    async def _put(
        self, order: Order, reference: str, manifest: Manifest, *, before: Callable[[], None] = lambda: None
    ) -> None:
        """Put a manifest under a tag or its digest; `order` is for the record. before: called before each attempt."""
        place, effort = order.place, Effort()

        def run(work: Work) -> None:
            effort.attempts += 1
            self._writing(place)
            before()
            order.target.put_manifest(place.path, reference, manifest, work)
            self._outcomes.manifest(order, effort.result(Outcome.COPIED))

        try:
            await self._puts.run(
                (place, reference, manifest.digest),
                lambda: self._calls.call(run, needs=permits(place.host, manifest.size)),
            )
            self._inventory.add_manifest(place, manifest.digest)
        except asyncio.CancelledError:
            self._outcomes.manifest(order, Cancelled(ABANDONED))
            raise
        except MirrorError as error:
            # Where the target lacks a blob, the image is pushed once more.
            if error.code != "blob_missing" or order.certain:
                self._outcomes.manifest(order, error)
            raise

    def _mountable(self, image: Image) -> bool:
        """Whether blobs can be mounted from the source: it is a repository of a target's host that holds the image."""
        target = self._targets.get(image.origin.source.host)
        return target is not None and not target.on_disk and image.version.transform is None

    def _note(self, place: Place, finding: Finding, image: Image) -> None:
        entry, root, tag = finding.reading.entry, image.graph.root.digest, finding.reading.tag
        blobs = [blob.digest for blob in image.graph.blobs]
        self._memory.note_graph(str(place), root, blobs)
        self._memory.note_tag("target", str(place), tag, root)
        if self._mountable(image):
            self._memory.note_graph(entry.name, root, blobs)
            self._memory.note_tag("source", entry.name, tag, root)
        if entry.rules.is_immutable(tag):
            self._memory.note_tag("source", equal_to(entry, place), tag, root)
