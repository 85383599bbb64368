"""What is to be copied: reads only.

For each mirror of the configuration: the source's tags, selected; what each target has; and for each
(reference, target) whether it is equal, has to be copied, or cannot be told. Findings are handed on as they are
made, so that copying starts while listing goes on. Typed on the reading half of stores: it cannot write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from mirror.errors import MirrorError, NotFound
from mirror.selection.tag_rules import Selection, select
from mirror.store import Source, Version
from mirror.sync.empty_selection import WildcardSelection, is_empty, nothing_selected
from mirror.sync.plan_model import (
    Action,
    MirrorEntry,
    PlanEntry,
    PlanHints,
    PlanReceiver,
    RepositoryFilter,
    SourceReference,
    TargetEntry,
    listed_version,
    plan_image,
)
from mirror.sync.planner_queries import Named, Note, answered, catalog, is_broken, listed, named, with_result
from mirror.sync.target_tags import TargetTagReader, TargetTags
from mirror.sync.write_conflicts import WriteConflicts, may_conflict
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.tasks import gather_results, run_group, run_in_background
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

T = TypeVar("T")

LARGEST_BATCH = 64  # references that one call asks for


class _Batch:
    """References of a source that are asked for together. asking: the targets that need it ask one after another."""

    def __init__(self, references: list[SourceReference]) -> None:
        self.references = references
        self.asking = asyncio.Lock()


class Planner:
    """Plans entries; finds go to `findings`."""

    def __init__(
        self,
        calls: Calls,
        memory: PlanHints,
        plan_entries: PlanReceiver,
        *,
        chosen: RepositoryFilter,
        parallel: Mapping[str, int],
        believe: bool = True,
        remake: bool = False,
        repair: bool = False,
        note: Note | None = None,
    ) -> None:
        """parallel: slots of each host; believe: what state says of exclusive targets and immutable tags, and what
        lists of tags say of digests; remake: not even what state says a transform made; repair: of damaged
        immutable tags, copy those that had the digest of the source; note: is given manifests that
        had to be read to learn what a tag of a source names."""
        self._calls = calls
        self._memory = memory
        self._receiver = plan_entries
        self._chosen = chosen
        self._parallel = parallel
        self._believe = believe
        self._remake = remake
        self._repair = repair
        self._note = note
        self._write_conflicts = WriteConflicts()
        self._catalogs: dict[
            int, list[MirrorEntry] | MirrorError
        ] = {}  # read to find conflicts, by the id of the entry
        self._target_tags = TargetTagReader(calls, memory, believe=believe, repair=repair)

    async def plan_all(self, entries: Iterable[MirrorEntry]) -> None:
        """Plan every entry. Ends when all was handed on; only a bug is raised: errors become findings."""
        configured = list(entries)
        doubtful = may_conflict(configured)
        kept_back = {id(one) for one in doubtful}
        await run_group([self._each(one for one in configured if id(one) not in kept_back), self._doubtful(doubtful)])

    async def _each(self, entries: Iterable[MirrorEntry]) -> None:
        await run_group(self.plan_mirror(one) for one in entries if one.wildcard or self._chosen.may_select(one.name))

    async def _doubtful(self, entries: Sequence[MirrorEntry]) -> None:
        """Plan entries of which only catalogs show whether they write the same tags: read all catalogs first.

        All of them, whatever `--only` and the shard select, so that the order of answers and the part that is run make
        no difference. A catalog that cannot be read is a failure of its own entry and does not stop the others."""
        wildcards = [one for one in entries if one.wildcard]
        catalogs = await gather_results(self._repositories(one) for one in wildcards)
        self._catalogs = {id(one): catalog for one, catalog in zip(wildcards, catalogs, strict=True)}
        known: list[MirrorEntry] = []
        for one in entries:
            found = self._catalogs.get(id(one), [one])
            known += found if not isinstance(found, MirrorError) else ()
        self._write_conflicts = WriteConflicts(known)
        await self._each(entries)

    async def plan_mirror(self, entry: MirrorEntry, matched: WildcardSelection | None = None) -> None:
        """Plan one mirror. Ends when all of it was handed on; only a bug is raised.

        matched: of the wildcard that the repository belongs to."""
        try:
            if entry.wildcard:
                await self._matching(entry)
                return
            entry, conflicts = self._write_conflicts.without_conflicts(entry)
            for part, conflict in conflicts:
                self._failed(part, conflict, matched)
            if not entry.targets:
                return
        except MirrorError as error:
            self._failed(entry, error, matched)
            return
        # Targets list their tags while the source lists its own.
        async with run_in_background(self._target_tags.listing(entry, target) for target in entry.targets) as listings:
            try:
                references = await self._readings(entry, matched)
            except MirrorError as error:
                self._failed(entry, error, matched)
                return
            batches = self._batches(entry, references)
            await run_group(
                self._target(entry, target, batches, listing)
                for target, listing in zip(entry.targets, listings, strict=True)
            )

    def _failed(self, entry: MirrorEntry, error: MirrorError, matched: WildcardSelection | None) -> None:
        """Record that nothing more of an entry can be planned."""
        if matched is not None:
            matched.failed(error)
        self._chosen.note_unlisted(entry.name)
        self._receiver.listing_failed(entry, error)

    # ---- wildcards

    async def _matching(self, entry: MirrorEntry) -> None:
        """Plan every repository that a wildcard matches. Raises as the catalog does."""
        found = self._catalogs.get(id(entry))
        if found is None:
            found = await self._repositories(entry)
        if isinstance(found, MirrorError):
            raise found
        if not found:
            raise NotFound(f"{entry.name} matches no repository", hint="check what stands before the `*`")
        matched = WildcardSelection(entry)
        taken = [one for one in found if self._chosen.may_select(one.name)]
        await run_group(self.plan_mirror(one, matched) for one in taken)
        if matched.is_empty:
            others = sorted({one.repository for one in found} - {one.repository for one in taken})
            error = await self._read(entry.source, partial(matched.error, others))
            if error is not None:
                raise error

    async def _repositories(self, entry: MirrorEntry) -> list[MirrorEntry]:
        """An entry for each repository that a wildcard matches."""
        names = await self._read(entry.source, partial(catalog, entry))
        self._refused(entry, names.refused)
        return [entry.for_repository(name) for name in names.usable]

    def _refused(self, entry: MirrorEntry, errors: Iterable[MirrorError]) -> None:
        for error in errors:
            self._receiver.reject_name(entry, error)

    # ---- the source

    async def _readings(self, entry: MirrorEntry, matched: WildcardSelection | None) -> list[SourceReference]:
        rules = entry.rules
        rejected: Mapping[str, int] = {}
        if rules.digest is not None:
            names = rules.literal or (rules.digest,)
            references = [SourceReference(entry, rules.digest, name, users=len(entry.targets)) for name in names]
        else:
            selection = select(rules, ()) if rules.is_literal else await self._selected(entry)
            rejected = selection.rejected
            if matched is not None:
                matched.add(selection)
            elif is_empty(rules, selection):
                raise nothing_selected(entry, rejected)
            references = [
                SourceReference(
                    entry, tag, tag, listed_version(tag) if self._believe else None, users=len(entry.targets)
                )
                for tag in selection.selected
            ]
        references = [reference for reference in references if self._chosen.is_selected(reference.name)]
        self._receiver.selected(entry, len(references), rejected)
        return references

    async def _selected(self, entry: MirrorEntry) -> Selection:
        def run(work: Work) -> tuple[Selection, list[MirrorError]]:
            names = listed(entry, work)
            return select(entry.rules, names.usable), names.refused

        selection, refused = await self._read(entry.source, run)
        self._refused(entry, refused)
        return selection

    def _batches(self, entry: MirrorEntry, references: list[SourceReference]) -> list[_Batch]:
        slots = max(1, self._parallel.get(entry.source.host, 8))
        size = max(1, min(LARGEST_BATCH, -(-len(references) // slots)))
        return [_Batch(references[start : start + size]) for start in range(0, len(references), size)]

    async def _versions(self, batch: _Batch, wanted: Sequence[SourceReference]) -> None:
        """Resolve those of `wanted` that are not yet, once for all targets that ask."""
        async with batch.asking:
            todo = [reference for reference in wanted if reference.version is None]
            if not todo:
                return
            entry = todo[0].entry

            def run(work: Work) -> list[Version | MirrorError]:
                names = [reference.identifier for reference in todo]
                answers = answered(entry.source, entry.repository, names, work, self._note)
                return answers if self._remake else [with_result(self._memory, one) for one in answers]

            for reference, version in zip(todo, await self._read(entry.source, run), strict=True):
                reference.version = version

    # ---- one target

    async def _target(
        self,
        entry: MirrorEntry,
        target: TargetEntry,
        batches: Sequence[_Batch],
        listing: asyncio.Task[TargetTags | None],
    ) -> None:
        references = [reference for batch in batches for reference in batch.references]
        try:
            present = await self._target_tags.find(entry, target, references, listing)
        except MirrorError as error:
            self._all_failed(references, target, error)
            return
        await run_group(self._compare(target, present, batch) for batch in batches)

    def _all_failed(self, references: Sequence[SourceReference], target: TargetEntry, error: MirrorError) -> None:
        for reference in references:
            self._receiver.found(PlanEntry(reference, target, Action.FAILED, error=error))

    async def _compare(self, target: TargetEntry, present: TargetTags, batch: _Batch) -> None:
        references = self._unsettled(target, present, batch)
        if not references:
            return
        listed = [reference for reference in references if present.tags is None or reference.tag in present.tags]
        need = references if present.tags is None or references[0].entry.heads_first else listed
        try:
            olds = await self._both_sides(target, present, batch, need, listed)
            olds |= await self._unlisted(target, present, batch, references)
            if any(old is not None for old in olds.values()):
                present.may_have = True  # whatever its listing says
            elif present.may_have is None:
                present.may_have = await self._target_tags.may_have(target, present)
        except MirrorError as error:
            self._all_failed(references, target, error)
            return
        for reference in references:
            planned = plan_image(
                reference,
                target,
                olds.get(reference.tag),
                believed=present.settled.get(reference.tag),
                may_have=bool(present.may_have),
                broken=reference.tag in present.broken,
                repair=self._repair,
                was=present.was(reference.tag),
            )
            self._receiver.found(planned)

    def _unsettled(self, target: TargetEntry, present: TargetTags, batch: _Batch) -> list[SourceReference]:
        """Those of a batch that have to be asked about; the others are found equal.

        An immutable tag that was equal is believed, unless the listing of the target lacks it."""
        left = []
        for reference in batch.references:
            digest = present.settled.get(reference.tag)
            if digest is None or (present.tags is not None and reference.tag not in present.tags):
                left.append(reference)
            else:
                self._receiver.note_target_tag(target.repository, reference.tag, digest)
                self._receiver.found(PlanEntry(reference, target, Action.EQUAL, digest))
        return left

    async def _unlisted(
        self, target: TargetEntry, present: TargetTags, batch: _Batch, references: Sequence[SourceReference]
    ) -> dict[str, Named]:
        """Ask the target for the immutable tags that its listing lacks -> what they name.

        Listings may be incomplete (a 404, pages that end early), and no listing is a reason to overwrite an immutable
        tag. The source is asked only about tags that exist and are not what was equal in an earlier run."""
        if present.tags is None:
            return {}
        immutable = references[0].entry.rules.is_immutable
        unlisted = [one for one in references if one.tag not in present.tags and immutable(one.tag)]
        olds = await self._both_sides(target, present, batch, [], unlisted)
        differing = [one for one in unlisted if olds[one.tag] not in (None, present.settled.get(one.tag))]
        await self._versions(batch, differing)
        return olds

    async def _both_sides(
        self,
        target: TargetEntry,
        present: TargetTags,
        batch: _Batch,
        need: Sequence[SourceReference],
        asked: Sequence[SourceReference],
    ) -> dict[str, Named]:
        """Ask the source and the target at the same time. -> what the target's references name."""
        tags = [reference.tag for reference in asked]
        unknown = [tag for tag in tags if tag not in present.recalled]
        async with run_in_background([self._versions(batch, need)]) as (versions,):
            answers = await self._at_target(target, unknown)
            await versions
        olds: dict[str, Named] = {tag: present.recalled[tag] for tag in tags if tag in present.recalled}
        kept = batch.references[0].entry.rules.is_immutable
        for tag, answer in zip(unknown, answers, strict=True):
            if is_broken(answer):
                present.broken[tag] = answer.tag_digest
            olds[tag] = named(answer, certain=kept(tag))
        for tag, digest in olds.items():
            if isinstance(digest, str):
                self._receiver.note_target_tag(target.repository, tag, digest)
        return olds

    async def _at_target(self, target: TargetEntry, references: Sequence[str]) -> list[Version | MirrorError]:
        if not references:
            return []
        return await self._read(
            target.store, lambda work: answered(target.store, target.repository.path, references, work)
        )

    async def _read(self, store: Source, run: Callable[[Work], T]) -> T:
        return await self._calls.call(run, needs=(host_permit(store.host),), policy=ONCE)
