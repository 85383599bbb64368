"""Deletes the tags and attachments of a prune plan from the targets.

A tag is deleted by its name if the registry supports this. Otherwise, its manifest is deleted by its digest, which
removes all tags that refer to the manifest. Therefore, this is done only if nothing else in the repository uses the
manifest (distribution-spec v1.1.1, "Content Management"). The content of a repository is read again before the first
deletion. Each tag is also resolved immediately before its deletion, and afterwards, to check that it is gone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Literal, Protocol, runtime_checkable

from mirror.errors import AuthError, Cancelled, MirrorError
from mirror.oci.digest import Digest
from mirror.state.ownership import OwnershipRecords, WrittenReference
from mirror.store import Target
from mirror.sync.deletions import Deletions, DeletionsRejected, TagDeletionRejected
from mirror.sync.prune_plan import PlannedDeletion, PruneRefused
from mirror.sync.prune_planner import PrunableRepository, plan_attachments
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Stop, Work
from mirror.util.structs import Struct

Outcome = Literal["deleted", "gone", "kept", "failed"]
RecordOutcome = Callable[[PlannedDeletion, Outcome, MirrorError | None], None]
"""Records the outcome for a tag or an attachment. `gone`: it no longer existed on the target."""


@runtime_checkable
class CollectingTarget(Target, Protocol):
    """A Target without its own garbage collection, such as a layout. `mirror` must delete its unused content."""

    def delete_unused(self, manifests: Collection[Digest], work: Work) -> int:
        """Delete manifests and all objects to which they refer, except objects that are still in use.

        Return the number of bytes that were freed. Raises LocalError."""
        ...


class RepositoryTask(Struct):
    """The tags and attachments to delete from one repository.

    tags: the tags of images. allowed: the digests of the attachments that may be deleted if their subjects are gone, by
    reference."""

    found: PrunableRepository
    tags: Sequence[PlannedDeletion]
    allowed: Mapping[str, Digest]


class Pruner:
    """Deletes the tags and attachments that a plan allows.

    targets: the targets by host. record: called on the event loop, at most once for each tag and attachment.
    freed: the number of bytes that were freed in stores on disk."""

    def __init__(
        self, calls: Calls, records: OwnershipRecords, targets: Mapping[str, Target], record: RecordOutcome
    ) -> None:
        self.freed = 0
        self._calls = calls
        self._records = records
        self._targets = targets
        self._record = record
        self._errors: dict[str, MirrorError] = {}  # by the host or repository that rejects all deletions
        self._cannot_untag: set[str] = set()  # hosts that reject the deletion of a tag by its name
        self._accepting: set[str] = set()  # hosts that have accepted a deletion
        self._open: set[str] = set()  # hosts whose stores have not been finished

    async def prune_host(self, host: str, tasks: Sequence[RepositoryTask]) -> None:
        """Delete tags and attachments from the repositories of one host.

        Raises Cancelled, and LocalError if a store cannot be finished."""
        store = self._targets[host]
        try:
            await self._calls.call_host(host, lambda work: store.begin((), work))
        except Cancelled:
            raise
        except MirrorError as error:
            self._errors[host] = error
        else:
            self._open.add(host)
        deleted = [digest for part in await run_group(map(self._prune, tasks)) for digest in part]
        if host in self._open:
            await self._calls.call_host(host, partial(self._finish, store, deleted))
            self._open.discard(host)

    def _finish(self, store: Target, deleted: Collection[Digest], work: Work) -> None:
        """Finish writing to a store. If the store is on disk, also delete its unused content. Blocks."""
        store.finish(whole=True, work=work)
        if deleted and isinstance(store, CollectingTarget):
            self.freed += store.delete_unused(deleted, work)

    def close(self) -> None:
        """Finish the stores that a stopped run left open. Blocks. Call this only after all deletions have ended."""
        while self._open:
            self._targets[self._open.pop()].finish(whole=True, work=Work(Stop()))

    async def _prune(self, task: RepositoryTask) -> list[Digest]:
        """Delete tags and attachments from one repository. Return the digests of the deleted objects, each once."""
        found = task.found
        try:
            if (error := self._error_for(found)) is not None:
                raise error
            await found.content.read_tags(expected=[one for one in found.written if ":" not in one])
            present = self._select_present(task)
            used, _ = await found.attachments.divide({one.reference for one in present})
        except Cancelled:
            raise
        except MirrorError as failure:
            self._record_all(task.tags, "failed", failure)
            return []
        deleted = await self._delete_images(found, present, used)
        try:
            used, orphans = await found.attachments.divide(deleted)
        except Cancelled:
            raise
        except MirrorError as failure:
            allowed = (WrittenReference(reference, digest, "") for reference, digest in task.allowed.items())
            self._record_all(plan_attachments(found.name, allowed), "failed", failure)
            orphans = []
        deletions = [one for one in orphans if task.allowed.get(one.reference) == one.digest]
        for attachment in plan_attachments(found.name, deletions):
            references = {*deleted, *(one.reference for one in deletions)}
            if await self._delete_attachment(found, attachment, references, in_use=attachment.digest in used):
                deleted[attachment.reference] = attachment.digest
        return list(dict.fromkeys(deleted.values()))

    def _select_present(self, task: RepositoryTask) -> list[PlannedDeletion]:
        """Return the planned tags that still have the planned digest. Record the outcome for the other tags.

        Also delete the records of all tags that no longer exist on the target."""
        found, present = task.found, []
        for one in task.tags:
            current = found.content.tags.get(one.reference)
            if current == one.digest:
                present.append(one)
            elif current is None:
                self._record(one, "gone", None)
            else:
                self._record(one, "kept", PruneRefused(f"someone else changed the tag: it refers to {current} now"))
        for reference in found.written:
            if ":" not in reference and reference not in found.content.tags:
                self._records.forget(found.name, reference)
        return present

    async def _delete_images(
        self, found: PrunableRepository, tags: Sequence[PlannedDeletion], used: Collection[Digest]
    ) -> dict[str, Digest]:
        """Delete the tags of images. Return the tags that no longer exist on the target, each with its digest.

        used: the manifests that another tag or manifest in the repository uses."""
        groups: defaultdict[Digest, list[PlannedDeletion]] = defaultdict(list)
        for one in tags:
            groups[one.digest].append(one)
        gone: dict[str, Digest] = {}
        for digest, group in groups.items():
            for tag in await self._delete_group(found, digest, group, in_use=digest in used):
                gone[tag] = digest
        return gone

    async def _delete_group(
        self, found: PrunableRepository, digest: Digest, group: Sequence[PlannedDeletion], *, in_use: bool
    ) -> list[str]:
        """Delete tags that refer to one manifest. Return the tags that no longer exist on the target.

        in_use: whether another object uses the manifest."""
        gone: list[str] = []
        rejected: list[PlannedDeletion] = []
        planned = {one.reference for one in group}
        others = sorted(tag for tag, other in found.content.tags.items() if other == digest and tag not in planned)
        in_use = in_use or bool(others)
        for one in group:
            is_gone = await self._delete_tag(found, one, one.reference, others if in_use else None)
            if is_gone is None:
                rejected.append(one)
            elif is_gone:
                gone.append(one.reference)
        if rejected and in_use:
            self._record_all(rejected, "kept", _in_use_error(others))
        elif rejected and await self._delete_manifest(found, digest, rejected, [one.reference for one in rejected]):
            gone += [one.reference for one in rejected]
        return gone

    async def _delete_attachment(
        self, found: PrunableRepository, attachment: PlannedDeletion, deleted: Collection[str], *, in_use: bool
    ) -> bool:
        """Delete an attachment. Return whether it no longer exists on the target.

        deleted: the tags and attachments that are deleted. in_use: whether another object uses the manifest."""
        tags = [] if ":" in attachment.reference else [attachment.reference]
        others = [tag for tag, other in found.content.tags.items() if other == attachment.digest and tag not in deleted]
        in_use = in_use or bool(others)
        if tags:
            is_gone = await self._delete_tag(found, attachment, attachment.reference, others if in_use else None)
            if is_gone is not None:
                return is_gone
        if in_use:
            self._record(attachment, "kept", _in_use_error(others))
            return False
        return await self._delete_manifest(found, attachment.digest, [attachment], tags)

    # ---- one deletion

    async def _delete_tag(
        self,
        found: PrunableRepository,
        item: PlannedDeletion,
        tag: str,
        others: Sequence[str] | None,
    ) -> bool | None:
        """Delete a tag by its name, and record the outcome. Return whether it no longer exists on the target.

        Return None, and record nothing, if the registry does not support this. others: see `Deletions.delete_tag`."""
        host = found.content.store.host
        if host in self._cannot_untag:
            return None
        run = partial(self._deletions(found).delete_tag, tag, item.digest, others=others)
        try:
            outcome = await self._run(found, [item], run)
        except TagDeletionRejected:
            self._cannot_untag.add(host)
            return None
        return outcome in ("deleted", "gone")

    async def _delete_manifest(
        self,
        found: PrunableRepository,
        digest: Digest,
        items: Sequence[PlannedDeletion],
        tags: Sequence[str],
    ) -> bool:
        """Delete a manifest by its digest, with all its tags, and record the outcome for `items`.

        Return whether the manifest no longer exists on the target."""
        run = partial(self._deletions(found).delete_manifest, digest, tags)
        return await self._run(found, items, run) in ("deleted", "gone")

    def _deletions(self, found: PrunableRepository) -> Deletions:
        """Create the Deletions object for a repository."""
        store = self._targets[found.content.store.host]
        return Deletions(store, found.content.path, self._records)

    async def _run(
        self,
        found: PrunableRepository,
        items: Sequence[PlannedDeletion],
        run: Callable[[Work], bool],
    ) -> Outcome:
        """Run a deletion on a worker thread. Record and return the outcome. Raises Cancelled, TagDeletionRejected.

        run: returns whether the object to delete existed. After an error that concerns all deletions of a host or
        repository, no more deletions are sent."""
        outcome: Outcome = "failed"
        host, error = found.content.store.host, self._error_for(found)
        if error is None:
            try:
                outcome = "deleted" if await self._calls.call_host(host, run) else "gone"
                if outcome == "deleted":
                    self._accepting.add(host)
            except (Cancelled, TagDeletionRejected):
                raise
            except MirrorError as failure:
                error = failure
                if isinstance(error, DeletionsRejected) and host in self._cannot_untag - self._accepting:
                    self._errors[host] = error
                elif isinstance(error, AuthError):
                    self._errors[found.name] = error
                outcome = "kept" if isinstance(error, PruneRefused) else "failed"
        self._record_all(items, outcome, error)
        if error is None:
            for item in items:
                self._records.forget(found.name, item.reference)
        return outcome

    def _record_all(self, items: Sequence[PlannedDeletion], outcome: Outcome, error: MirrorError | None) -> None:
        """Record the same outcome for several tags or attachments."""
        for item in items:
            self._record(item, outcome, error)

    def _error_for(self, found: PrunableRepository) -> MirrorError | None:
        """Return the error with which the host or the repository has rejected all deletions, or None."""
        return self._errors.get(found.content.store.host) or self._errors.get(found.name)


def _in_use_error(tags: Sequence[str]) -> PruneRefused:
    """Return the error for a tag that cannot be deleted without its manifest. tags: other tags of the manifest."""
    users = " and ".join(f"the tag {tag}" for tag in tags[:3]) or "an index"
    what = f"the registry deletes a tag only together with its manifest, and the manifest is also used by {users}"
    return PruneRefused(what)
