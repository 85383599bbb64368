"""Applies the rules that need the digests of tags: `min-age`, and `newest` with `by: created`. Only reads the source.

This adds no HEAD requests, because the digests become the versions of the references, which the planner would otherwise
request.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from functools import partial

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.selection.tag_rules import FirstSeen
from mirror.selection.versions import find_newest_versions, version_order
from mirror.store import Version
from mirror.sync.image_dates import ImageDates, image_identity
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import MirrorEntry, SourceReference
from mirror.sync.planner_queries import read_equal_tags
from mirror.sync.source_resolver import Batch, SourceResolver, make_batches
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct


class DigestSelection(Struct, frozen=True):
    """The references that the rules select, in their original order.

    waiting: the references that `min-age` leaves out. until: when the first of them will be selected, in seconds since
    the epoch; None if no reference waits. older: the number of references that `newest` leaves out. dates_read: the
    number of images that were read for their dates."""

    references: list[SourceReference]
    waiting: tuple[SourceReference, ...] = ()
    until: float | None = None
    older: int = 0
    dates_read: int = 0


class DigestRules:
    """Applies `min-age` and `newest` to the candidates that the rules for names have selected.

    use_hints: whether to trust the records of immutable tags in the state. now: returns the time in seconds since the
    epoch."""

    def __init__(
        self,
        calls: Calls,
        hints: PlanHints,
        resolver: SourceResolver,
        dates: ImageDates,
        *,
        use_hints: bool,
        now: Callable[[], float],
    ) -> None:
        self._calls = calls
        self._hints = hints
        self._resolver = resolver
        self._dates = dates
        self._use_hints = use_hints
        self._now = now

    async def apply(
        self, entry: MirrorEntry, candidates: Sequence[SourceReference], *, parallel: int
    ) -> DigestSelection:
        """Select references from the candidates of a mirror.

        parallel: the number of parallel requests to the source. Candidates that cannot be resolved, or whose date
        cannot be read, stay selected, so that each of them is reported as a failure. Raises errors that concern all
        candidates, for example if the host is down."""
        batches = make_batches(list(candidates), parallel)
        waits = dict(
            wait for part in await run_group(self._find_waiting(entry, batch) for batch in batches) for wait in part
        )
        ready = [reference for reference in candidates if reference not in waits]
        until = min(waits.values(), default=None)
        rules = entry.rules
        if rules.newest is None:
            return DigestSelection(ready, tuple(waits), until)
        if rules.by_created:
            selected, read = await self._select_last_created(entry, ready, rules.newest)
        else:
            newest = find_newest_versions((reference.tag for reference in ready), rules.newest)
            selected, read = [reference for reference in ready if reference.tag in newest], 0
        return DigestSelection(selected, tuple(waits), until, len(ready) - len(selected), read)

    async def _find_waiting(self, entry: MirrorEntry, batch: Batch) -> list[tuple[SourceReference, float]]:
        """Resolve the references of a batch. Return those that `min-age` leaves out, each with the end of its wait."""
        if self._use_hints and entry.rules.immutable:
            await self._calls.call(partial(self._reuse_equal_tags, entry, batch.references), policy=ONCE)
        await self._resolver.resolve(batch, batch.references, raise_common_error=True)
        if not entry.rules.min_age:
            return []
        return await self._calls.call(partial(self._compare_ages, entry, batch.references), policy=ONCE)

    def _reuse_equal_tags(self, entry: MirrorEntry, references: Sequence[SourceReference], work: Work) -> None:
        """Set the versions of immutable tags that an earlier run found equal at the source and on all targets.

        Such a tag is not requested again if the state also has the age and the date that the rules need."""
        equal = [(target, read_equal_tags(self._hints, entry, target, references)) for target in entry.targets]
        for reference in references:
            digest, *others = {digests.get(target.tag_of(reference)) for target, digests in equal}
            if digest is not None and not others and self._is_recorded(entry, reference.tag, digest):
                reference.version = reference.version or Version(digest)

    def _is_recorded(self, entry: MirrorEntry, tag: str, digest: Digest) -> bool:
        """Return whether the state contains the age of a tag with a digest and, if required, the image's date."""
        rules = entry.rules
        seen = self._hints.first_seen(entry.name, tag) if rules.min_age else None
        if rules.min_age and (seen is None or seen.identity != digest):
            return False
        return not (rules.newest and rules.by_created) or self._dates.find_recorded(entry, digest) is not None

    def _compare_ages(
        self, entry: MirrorEntry, references: Sequence[SourceReference], work: Work
    ) -> list[tuple[SourceReference, float]]:
        """Return the references whose digests are newer than `min-age`, each with the end of its wait.

        Record when each digest was first seen. A recorded time in the future, caused by a wrong clock, is replaced."""
        now = self._now()
        waits = []
        for reference in references:
            if not isinstance(reference.version, Version):
                continue
            seen = FirstSeen(image_identity(reference.version), now)
            known = self._hints.first_seen(entry.name, reference.tag)
            if known is not None and known.identity == seen.identity and known.time <= now:
                seen = known
            else:
                self._hints.record_first_seen(entry.name, reference.tag, seen)
            if now - seen.time < entry.rules.min_age:
                waits.append((reference, seen.time + entry.rules.min_age))
        return waits

    async def _select_last_created(
        self, entry: MirrorEntry, references: list[SourceReference], count: int
    ) -> tuple[list[SourceReference], int]:
        """Return the `count` references with the newest images, and the number of images that were read for this.

        References whose date cannot be read are also returned, with the error as their version, so that they are
        reported as failed instead of being copied."""
        found = await self._dates.read_all(entry, references)
        dated = [(date, reference) for reference, date in found.dates.items() if not isinstance(date, MirrorError)]
        # Reproducible builds may have the same date. The version then determines the order.
        first = heapq.nlargest(count, dated, key=lambda one: (one[0], version_order(one[1].tag)))
        kept = {reference for _, reference in first}
        for reference, date in found.dates.items():
            if isinstance(date, MirrorError):
                reference.version = date
                kept.add(reference)
        return [reference for reference in references if reference in kept], found.new
