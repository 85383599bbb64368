"""Plans the references of one mirror for one target by comparing the source with the target. Read-only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from mirror.errors import MirrorError, Refused, printable
from mirror.oci.digest import Digest
from mirror.oci.reference import is_tag, tag_hint
from mirror.oci.referrers import referrers_tag, signature_tags
from mirror.selection.tag_templates import KEEP_TAG
from mirror.store import Version
from mirror.sync.plan_decisions import plan_image
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import (
    Action,
    MirrorEntry,
    PlanEntry,
    PlanReceiver,
    RepositoryFilter,
    SourceReference,
    TargetEntry,
    reference_suffix,
)
from mirror.sync.planner_queries import (
    DigestOrError,
    digest_or_error,
    may_be_damaged,
    resolve_all,
)
from mirror.sync.source_resolver import Batch, SourceResolver
from mirror.sync.target_tags import KeepTargetTags, TargetTagReader, TargetTags
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group, run_in_background
from mirror.util.retry_policy import ONCE
from mirror.util.structs import replace


class TargetPlanner:
    """Plans the references of a mirror for one target at a time, and passes each plan entry to a PlanReceiver.

    The parameters are described in `Planner`."""

    def __init__(
        self,
        calls: Calls,
        hints: PlanHints,
        receiver: PlanReceiver,
        source_resolver: SourceResolver,
        *,
        only: RepositoryFilter,
        use_hints: bool,
        repair: bool,
        now: Callable[[], float],
        keep_target_tags: KeepTargetTags | None,
    ) -> None:
        self._calls = calls
        self._receiver = receiver
        self._source_resolver = source_resolver
        self._only = only
        self._repair = repair
        self._hints = hints
        self._use_hints = use_hints
        self._now = now
        self._target_tags = TargetTagReader(
            calls, hints, use_hints=use_hints, repair=repair, keep_tags=keep_target_tags
        )

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
        """Plan batches of references for one target of a mirror. listing: the task that runs `list_if_needed`."""
        valid = {batch: self._check_tags(target, batch.references) for batch in batches}
        references = [reference for batch in batches for reference in valid[batch]]
        try:
            target_tags = await self._target_tags.read(entry, target, references, listing)
        except MirrorError as error:
            self._add_failed_entries(references, target, error)
            return
        await run_group(self._plan_batch(target, target_tags, batch, valid[batch]) for batch in batches)

    def _check_tags(self, target: TargetEntry, references: list[SourceReference]) -> list[SourceReference]:
        """Return the references that get a valid tag on a target. Add a failed plan entry for each other reference."""
        if target.tags == KEEP_TAG:
            return references
        valid = []
        for reference in references:
            tag = target.tag_of(reference)
            if ":" in tag or is_tag(tag):
                valid.append(reference)
            else:
                what = f"its tag on the target would be {printable(tag, 160)}: {tag_hint(tag)}"
                hint = "shorten the tag of the target in the configuration, or exclude this tag of the source"
                self._add_failed_entries([reference], target, Refused(what, hint=hint, code="ref_invalid"))
        return valid

    def _add_failed_entries(
        self, references: Sequence[SourceReference], target: TargetEntry, error: MirrorError
    ) -> None:
        """Add a plan entry with the action FAIL and the same error for each reference."""
        for reference in references:
            self._receiver.add_plan_entry(PlanEntry(reference, target, Action.FAIL, error=error))

    async def _plan_batch(
        self, target: TargetEntry, target_tags: TargetTags, batch: Batch, references: Sequence[SourceReference]
    ) -> None:
        """Plan the references of one batch for one target."""
        references, plan_entries = self._skip_known_equal(target, target_tags, references)
        if references:
            try:
                plan_entries += await self._plan_references(target, target_tags, batch, references)
            except MirrorError as error:
                self._add_failed_entries(references, target, error)
        for plan_entry in await self._mark_for_recheck(plan_entries):
            self._receiver.add_plan_entry(plan_entry)

    async def _plan_references(
        self, target: TargetEntry, target_tags: TargetTags, batch: Batch, references: Sequence[SourceReference]
    ) -> list[PlanEntry]:
        """Resolve references at the source and on the target, and plan them."""
        tags = target_tags.tags
        listed = [reference for reference in references if tags is None or target.tag_of(reference) in tags]
        entry = references[0].entry
        # For a known digest, the state may contain the result of selecting platforms, so that nothing has to be read.
        heads_first = entry.heads_first or entry.platforms is not None
        at_source = references if tags is None or heads_first else listed
        digests = await self._resolve_at_both(target, target_tags, batch, at_source, listed)
        digests |= await self._resolve_unlisted_immutable(target, target_tags, batch, references)
        if any(digest is not None for digest in digests.values()):
            target_tags.may_have_blobs = True  # even if its list of tags is empty
        elif target_tags.may_have_blobs is None:
            target_tags.may_have_blobs = await self._target_tags.may_have_blobs(target, target_tags)
        plan_entries = []
        for reference in references:
            tag = target.tag_of(reference)
            plan_entry = plan_image(
                reference,
                target,
                digests.get(tag),
                known_equal=target_tags.known_equal.get(tag),
                may_have_blobs=bool(target_tags.may_have_blobs),
                damaged=tag in target_tags.damaged,
                repair=self._repair,
                damaged_digest=target_tags.damaged_digest(tag),
                platforms=target_tags.platforms(tag, digests.get(tag)),
            )
            plan_entries.append(plan_entry)
        return plan_entries

    async def _mark_for_recheck(self, plan_entries: Sequence[PlanEntry]) -> list[PlanEntry]:
        """Return plan entries, with `recheck` set for the images whose attachments are due to be requested.

        plan_entries: plan entries of one mirror and one target. If hints are not used, no image is due, because all
        images are checked anyway."""
        skipped = [one for one in plan_entries if one.action is Action.SKIP and one.old_digest is not None]
        entry = plan_entries[0].reference.entry if plan_entries else None
        if not skipped or entry is None or entry.attachments is None or not self._use_hints:
            return list(plan_entries)
        key, repository = entry.attachments_key, str(skipped[0].target.repository)
        digests = {one.old_digest for one in skipped if one.old_digest is not None}
        now, period = self._now(), entry.attachments.recheck
        checked: set[Digest] = set()
        if period:
            checked = await self._calls.call(
                lambda work: self._hints.checked_attachments(key, repository, digests, now - period, now), policy=ONCE
            )
        due = {one for one in digests if one not in checked or self._only.excludes_any(_mirrored_tags(entry, one))}
        return [
            replace(one, recheck=True) if one.action is Action.SKIP and one.old_digest in due else one
            for one in plan_entries
        ]

    def _skip_known_equal(
        self, target: TargetEntry, target_tags: TargetTags, references: Sequence[SourceReference]
    ) -> tuple[list[SourceReference], list[PlanEntry]]:
        """Skip the references that are known to be equal at the source and on the target.

        Return the other references, and the plan entries of the skipped references. An immutable tag that was equal in
        an earlier run is assumed to be still equal, unless the target does not list the tag."""
        others, skipped = [], []
        for reference in references:
            tag = target.tag_of(reference)
            digest = target_tags.known_equal.get(tag)
            if digest is None or (target_tags.tags is not None and tag not in target_tags.tags):
                others.append(reference)
            else:
                self._receiver.record_target_tag(target.repository, tag, digest)
                skipped.append(PlanEntry(reference, target, Action.SKIP, digest))
        return others, skipped

    async def _resolve_unlisted_immutable(
        self, target: TargetEntry, target_tags: TargetTags, batch: Batch, references: Sequence[SourceReference]
    ) -> dict[str, DigestOrError]:
        """Look up the immutable tags that the target does not list. Return their digests on the target, by tag.

        A list may be incomplete, for example after a 404 or if its pages end early, so an unlisted immutable tag must
        not be overwritten without a lookup. If a tag exists on the target, it is also resolved at the source, unless it
        has the digest that was equal in an earlier run."""
        if target_tags.tags is None:
            return {}
        immutable = references[0].entry.rules.is_immutable
        tags = ((reference, target.tag_of(reference)) for reference in references)
        unlisted = [reference for reference, tag in tags if tag not in target_tags.tags and immutable(tag)]
        digests = await self._resolve_at_both(target, target_tags, batch, [], unlisted)
        differing = [
            reference
            for reference in unlisted
            if digests[tag := target.tag_of(reference)] not in (None, target_tags.known_equal.get(tag))
        ]
        await self._source_resolver.resolve(batch, differing)
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
        tags = [target.tag_of(reference) for reference in at_target]
        unknown = [tag for tag in tags if tag not in target_tags.known_digests]
        async with run_in_background([self._source_resolver.resolve(batch, at_source)]) as (source_task,):
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
        """Resolve tags on the target. Return a version or an error for each tag."""
        if not tags:
            return []
        return await self._calls.call_host(
            target.store.host, lambda work: resolve_all(target.store, target.repository.path, tags, work)
        )


def _mirrored_tags(entry: MirrorEntry, subject: Digest) -> Iterator[str]:
    """Yield the references of those attachments of a manifest whose tags a mirror copies like the tags of images.

    A check of attachments leaves these attachments to the copies of their tags. A run that excludes such a tag does not
    copy it, so this run must request the attachments again."""
    for tag in (referrers_tag(subject), *signature_tags(subject)):
        if entry.mirrors_attachment_tag(tag):
            yield entry.name + reference_suffix(tag)
