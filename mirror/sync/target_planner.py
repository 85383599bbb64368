"""Plans the references of one mirror for one target by comparing the source with the target. Read-only."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mirror.errors import MirrorError
from mirror.store import Version
from mirror.sync.plan_model import (
    Action,
    MirrorEntry,
    PlanEntry,
    PlanHints,
    PlanReceiver,
    SourceReference,
    TargetEntry,
    hide_digest,
    plan_image,
)
from mirror.sync.planner_queries import (
    DigestOrError,
    KeepManifest,
    add_earlier_result,
    digest_or_error,
    may_be_damaged,
    resolve_all,
    resolve_references,
)
from mirror.sync.target_tags import TargetTagReader, TargetTags
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group, run_in_background
from mirror.util.cancellation import Work

LARGEST_BATCH = 64  # maximum number of references that one call resolves


class Batch:
    """A batch of references from one source, which are resolved together.

    lock: held while they are resolved, so that each reference is resolved once for all targets."""

    def __init__(self, references: list[SourceReference]) -> None:
        self.references = references
        self.lock = asyncio.Lock()


def make_batches(references: list[SourceReference], parallel: int) -> list[Batch]:
    """Divide references into batches, so that up to `parallel` batches can be resolved at the same time."""
    size = max(1, min(LARGEST_BATCH, -(-len(references) // max(1, parallel))))
    return [Batch(references[start : start + size]) for start in range(0, len(references), size)]


class TargetPlanner:
    """Plans the references of a mirror for one target at a time, and passes each plan entry to a PlanReceiver.

    The parameters are described in `Planner`."""

    def __init__(
        self,
        calls: Calls,
        hints: PlanHints,
        receiver: PlanReceiver,
        *,
        use_hints: bool,
        repeat_transforms: bool,
        repair: bool,
        keep_manifest: KeepManifest | None,
    ) -> None:
        self._calls = calls
        self._hints = hints
        self._receiver = receiver
        self._use_hints = use_hints
        self._repeat_transforms = repeat_transforms
        self._repair = repair
        self._keep_manifest = keep_manifest
        self._target_tags = TargetTagReader(calls, hints, use_hints=use_hints, repair=repair)

    async def list_if_needed(self, entry: MirrorEntry, target: TargetEntry) -> TargetTags | None:
        """List the tags of a target if planning certainly needs them. Otherwise, return None without a request."""
        return await self._target_tags.list_if_needed(entry, target)

    async def plan_target(
        self,
        entry: MirrorEntry,
        target: TargetEntry,
        batches: Sequence[Batch],
        listing: asyncio.Task[TargetTags | None],
    ) -> None:
        """Plan the references in `batches` for one target of `entry`. listing: the task that runs `list_if_needed`."""
        references = [reference for batch in batches for reference in batch.references]
        try:
            target_tags = await self._target_tags.read(entry, target, references, listing)
        except MirrorError as error:
            self._add_failed_entries(references, target, error)
            return
        await run_group(self._plan_batch(target, target_tags, batch) for batch in batches)

    def _add_failed_entries(
        self, references: Sequence[SourceReference], target: TargetEntry, error: MirrorError
    ) -> None:
        """Add a plan entry with the action FAIL and the same error for each reference."""
        for reference in references:
            self._receiver.add_plan_entry(PlanEntry(reference, target, Action.FAIL, error=error))

    async def _plan_batch(self, target: TargetEntry, target_tags: TargetTags, batch: Batch) -> None:
        """Plan the references of one batch for one target."""
        references = self._skip_known_equal(target, target_tags, batch)
        if not references:
            return
        tags = target_tags.tags
        listed = [reference for reference in references if tags is None or reference.tag in tags]
        entry = references[0].entry
        # With its digest, the state may know the result of selecting platforms, so that nothing has to be read.
        heads_first = entry.heads_first or entry.platforms is not None
        at_source = references if tags is None or heads_first else listed
        try:
            digests = await self._resolve_at_both(target, target_tags, batch, at_source, listed)
            digests |= await self._resolve_unlisted_immutable(target, target_tags, batch, references)
            if any(digest is not None for digest in digests.values()):
                target_tags.may_have_blobs = True  # even if its list of tags is empty
            elif target_tags.may_have_blobs is None:
                target_tags.may_have_blobs = await self._target_tags.may_have_blobs(target, target_tags)
        except MirrorError as error:
            self._add_failed_entries(references, target, error)
            return
        for reference in references:
            plan_entry = plan_image(
                reference,
                target,
                digests.get(reference.tag),
                known_equal=target_tags.known_equal.get(reference.tag),
                may_have_blobs=bool(target_tags.may_have_blobs),
                damaged=reference.tag in target_tags.damaged,
                repair=self._repair,
                damaged_digest=target_tags.damaged_digest(reference.tag),
                platforms=target_tags.platforms(reference.tag, digests.get(reference.tag)),
            )
            self._receiver.add_plan_entry(plan_entry)

    def _skip_known_equal(self, target: TargetEntry, target_tags: TargetTags, batch: Batch) -> list[SourceReference]:
        """Skip the references that are known to be equal at the source and on the target. Return the other references.

        An immutable tag that was equal in an earlier run is assumed to be still equal, unless the target does not list
        it."""
        others = []
        for reference in batch.references:
            digest = target_tags.known_equal.get(reference.tag)
            if digest is None or (target_tags.tags is not None and reference.tag not in target_tags.tags):
                others.append(reference)
            else:
                self._receiver.record_target_tag(target.repository, reference.tag, digest)
                self._receiver.add_plan_entry(PlanEntry(reference, target, Action.SKIP, digest))
        return others

    async def _resolve_unlisted_immutable(
        self, target: TargetEntry, target_tags: TargetTags, batch: Batch, references: Sequence[SourceReference]
    ) -> dict[str, DigestOrError]:
        """Look up the immutable tags that the target does not list. Return their digests on the target, by tag.

        A list may be incomplete, for example after a 404 or if its pages end early, so an immutable tag is not
        overwritten just because it is not listed. If a tag exists on the target, it is also resolved at the source,
        unless it has the digest that was equal in an earlier run."""
        if target_tags.tags is None:
            return {}
        immutable = references[0].entry.rules.is_immutable
        unlisted = [
            reference for reference in references if reference.tag not in target_tags.tags and immutable(reference.tag)
        ]
        digests = await self._resolve_at_both(target, target_tags, batch, [], unlisted)
        differing = [
            reference
            for reference in unlisted
            if digests[reference.tag] not in (None, target_tags.known_equal.get(reference.tag))
        ]
        await self.resolve_at_source(batch, differing)
        return digests

    async def _resolve_at_both(
        self,
        target: TargetEntry,
        target_tags: TargetTags,
        batch: Batch,
        at_source: Sequence[SourceReference],
        at_target: Sequence[SourceReference],
    ) -> dict[str, DigestOrError]:
        """Resolve references at the source and on the target in parallel. Return the digests on the target, by tag."""
        tags = [reference.tag for reference in at_target]
        unknown = [tag for tag in tags if tag not in target_tags.known_digests]
        async with run_in_background([self.resolve_at_source(batch, at_source)]) as (source_task,):
            versions = await self._resolve_at_target(target, unknown)
            await source_task
        digests: dict[str, DigestOrError] = {
            tag: target_tags.known_digests[tag] for tag in tags if tag in target_tags.known_digests
        }
        is_immutable = batch.references[0].entry.rules.is_immutable
        for tag, version in zip(unknown, versions, strict=True):
            if may_be_damaged(version):
                target_tags.damaged[tag] = version.tag_digest
            digests[tag] = digest_or_error(version, immutable=is_immutable(tag))
            if isinstance(version, Version) and version.digest is not None and version.platforms:
                target_tags.sparse[tag] = {version.digest: ",".join(version.platforms)}
        for tag, digest in digests.items():
            if isinstance(digest, str):
                self._receiver.record_target_tag(target.repository, tag, digest)
        return digests

    async def _resolve_at_target(self, target: TargetEntry, tags: Sequence[str]) -> list[Version | MirrorError]:
        """Return what each tag refers to on the target, or an error for each tag that cannot be resolved."""
        if not tags:
            return []
        return await self._calls.call_host(
            target.store.host, lambda work: resolve_all(target.store, target.repository.path, tags, work)
        )

    async def resolve_at_source(self, batch: Batch, references: Sequence[SourceReference]) -> None:
        """Resolve the references that have no version yet at their source, and set their versions."""
        async with batch.lock:
            unresolved = [reference for reference in references if reference.version is None]
            if not unresolved:
                return
            entry = unresolved[0].entry

            def run(work: Work) -> list[Version | MirrorError]:
                """Resolve the references on a worker thread, and add the results of earlier runs."""
                versions = resolve_references(entry, unresolved, work, self._keep_manifest)
                if self._repeat_transforms:
                    return [
                        one if isinstance(one, MirrorError) else hide_digest(one, entry.platforms) for one in versions
                    ]
                return [
                    add_earlier_result(self._hints, version, entry.platforms, use_hints=self._use_hints)
                    for version in versions
                ]

            for reference, version in zip(unresolved, await self._calls.call_host(entry.source.host, run), strict=True):
                reference.version = version
