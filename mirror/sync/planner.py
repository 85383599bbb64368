"""Plans a run: which references of the sources are copied to which targets. Read-only.

For each mirror of the configuration, the planner lists and selects the tags of the source, looks up the tags of each
target, and decides for each reference and target whether to skip it, to copy it, or to report a failure. Each plan
entry is passed on immediately, so that copying starts while other tags are still being listed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial

from mirror.errors import MirrorError, NotFound
from mirror.sync.digest_rules import DigestRules
from mirror.sync.empty_selection import WildcardSelection, no_repository_selected_error
from mirror.sync.image_dates import ImageDates
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import MirrorEntry, PlanReceiver, RepositoryFilter, SourceReference
from mirror.sync.planner_queries import KeepTags, select_repositories
from mirror.sync.source_resolver import SourceResolver, make_batches
from mirror.sync.source_selection import SourceSelector
from mirror.sync.target_planner import TargetPlanner
from mirror.sync.target_tags import KeepTargetTags
from mirror.sync.write_conflicts import WriteConflicts, find_possible_conflicts
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import gather_results, run_group, run_in_background


class Planner:
    """Plans the mirrors of a configuration, and passes each plan entry to a PlanReceiver."""

    def __init__(
        self,
        calls: Calls,
        hints: PlanHints,
        receiver: PlanReceiver,
        *,
        only: RepositoryFilter,
        parallel: Mapping[str, int],
        use_hints: bool = True,
        repeat_transforms: bool = False,
        repair: bool = False,
        reread_dates: bool = False,
        manifests: ManifestCache | None = None,
        receive_references: Callable[[Sequence[SourceReference]], None] | None = None,
        resolve_references: bool = True,
        now: Callable[[], float] = time.time,
        keep_tags: KeepTags | None = None,
        keep_target_tags: KeepTargetTags | None = None,
    ) -> None:
        """Create a planner.

        hints: the records of earlier runs in the state.
        only: selects the repositories and references that the run mirrors.
        parallel: the number of parallel requests to each host.
        use_hints: whether to trust the digests in tag lists, and the records in the state about exclusive targets and
        immutable tags.
        repeat_transforms: whether to ignore the transform results that the state has recorded.
        repair: whether to copy a damaged immutable tag if the source still has the digest that the tag had.
        reread_dates: whether to ignore the dates of images that the state has recorded.
        manifests: the cache for manifests of sources, from which images are copied later.
        receive_references: if given, the targets are not planned. Instead, this function is called with the selected
        references of each source repository.
        resolve_references: whether to resolve references before they are passed to `receive_references`.
        keep_tags: called on a thread with each tag list of a source.
        keep_target_tags: called on a thread with each tag list of a target.
        now: returns the time in seconds since the epoch."""
        self._calls = calls
        self._receiver = receiver
        self._only = only
        self._parallel = parallel
        self._receive_references = receive_references
        self._resolve_references = resolve_references
        self._write_conflicts = WriteConflicts()
        # For wildcard entries that may conflict with another entry, by id: the entries for the matched repositories.
        self._expanded: dict[int, list[MirrorEntry] | MirrorError] = {}
        manifests = manifests or ManifestCache(calls)
        self._source_resolver = SourceResolver(
            calls, hints, use_hints=use_hints, repeat_transforms=repeat_transforms, keep_manifest=manifests.add
        )
        dates = ImageDates(calls, hints, manifests, reread=reread_dates)
        self._source_selector = SourceSelector(
            calls,
            receiver,
            DigestRules(calls, hints, self._source_resolver, dates, use_hints=use_hints, now=now),
            only=only,
            parallel=parallel,
            use_hints=use_hints,
            keep_tags=keep_tags,
        )
        self._target_planner = TargetPlanner(
            calls,
            hints,
            receiver,
            self._source_resolver,
            only=only,
            use_hints=use_hints,
            repair=repair,
            now=now,
            keep_target_tags=keep_target_tags,
        )

    async def plan_all(self, entries: Iterable[MirrorEntry], numbers: Container[int] | None = None) -> None:
        """Plan the mirrors in `entries`. Errors are passed to the PlanReceiver; only exceptions from bugs are raised.

        numbers: if given, only the mirrors with these numbers are planned. The other mirrors are still checked for
        write conflicts with them."""
        configured = list(entries)
        possible_conflicts = find_possible_conflicts(configured)
        ids = {id(entry) for entry in possible_conflicts}
        await run_group(
            [
                self._plan_each([entry for entry in configured if id(entry) not in ids], numbers),
                self._plan_possible_conflicts(possible_conflicts, numbers),
            ]
        )

    async def _plan_each(self, entries: Iterable[MirrorEntry], numbers: Container[int] | None) -> None:
        """Plan each entry whose number is in `numbers`, unless `--only` or `--shard` excludes all its references."""
        planned = []
        for entry in entries:
            if numbers is not None and entry.number not in numbers:
                self._only.mark_unlisted(entry.name)
            elif entry.wildcard or self._only.may_select(entry.name):
                planned.append(entry)
        await run_group(map(self.plan_mirror, planned))

    async def _plan_possible_conflicts(self, entries: Sequence[MirrorEntry], numbers: Container[int] | None) -> None:
        """Plan the entries that may conflict. First expand their wildcards to determine the actual conflicts.

        This reads a catalog for each wildcard, even if `--only` or `--shard` excludes the entry. The result therefore
        depends neither on these options nor on the order of responses. If a catalog cannot be read, only its own entry
        fails."""
        wildcards = [entry for entry in entries if entry.wildcard]
        results = await gather_results(self._expand_wildcard(entry) for entry in wildcards)
        self._expanded = {id(entry): result for entry, result in zip(wildcards, results, strict=True)}
        known: list[MirrorEntry] = []
        for entry in entries:
            expanded = self._expanded.get(id(entry), [entry])
            known += expanded if not isinstance(expanded, MirrorError) else ()
        self._write_conflicts = WriteConflicts(known)
        await self._plan_each(entries, numbers)

    async def plan_mirror(self, entry: MirrorEntry, selection: WildcardSelection | None = None) -> None:
        """Plan one mirror. Errors are passed to the PlanReceiver; only exceptions from bugs are raised.

        selection: if a wildcard was expanded to this entry, collects the selected tags of the whole wildcard."""
        try:
            if entry.wildcard:
                await self._plan_wildcard(entry)
                return
            entry, conflicts = self._write_conflicts.remove_conflicts(entry)
            for part, conflict in conflicts:
                self._record_failure(part, conflict, selection)
            if not entry.targets:
                return
            if self._receive_references is not None:
                references = await self._source_selector.select(entry, selection)
                if self._resolve_references:
                    batches = make_batches(references, self._parallel.get(entry.source.host, 8))
                    await run_group(self._source_resolver.resolve(batch, batch.references) for batch in batches)
                self._receive_references(references)
                return
        except MirrorError as error:
            self._record_failure(entry, error, selection)
            return
        # The targets list their tags while the source lists its tags.
        async with run_in_background(
            self._target_planner.list_if_needed(entry, target) for target in entry.targets
        ) as listings:
            try:
                references = await self._source_selector.select(entry, selection)
            except MirrorError as error:
                self._record_failure(entry, error, selection)
                return
            batches = make_batches(references, self._parallel.get(entry.source.host, 8))
            await run_group(
                self._target_planner.plan_target(entry, target, batches, listing)
                for target, listing in zip(entry.targets, listings, strict=True)
            )

    def _record_failure(self, entry: MirrorEntry, error: MirrorError, selection: WildcardSelection | None) -> None:
        """Pass on the error for an entry that cannot be planned. selection: see `plan_mirror`."""
        if selection is not None:
            selection.add_failure(error)
        self._only.mark_unlisted(entry.name)
        self._receiver.record_mirror_failure(entry, error)

    # ---- wildcards

    async def _plan_wildcard(self, entry: MirrorEntry) -> None:
        """Plan all repositories that a wildcard matches.

        Raises NotFound if there are none, RemoteError (nothing_selected) if the rules select no repository, or no tag
        in any repository, and the same errors as `select_repositories`."""
        expanded = self._expanded.get(id(entry))
        if expanded is None:
            expanded = await self._expand_wildcard(entry)
        if isinstance(expanded, MirrorError):
            raise expanded
        if not expanded:
            raise NotFound(f"{entry.name} matches no repository", hint="check the prefix before the `*`")
        selection = WildcardSelection(entry)
        selected = [each for each in expanded if self._only.may_select(each.name)]
        await run_group(self.plan_mirror(each, selection) for each in selected)
        if selection.is_wrongly_empty:
            others = sorted({each.repository for each in expanded} - {each.repository for each in selected})
            error = await self._calls.call_host(entry.source.host, partial(selection.find_error, others))
            if error is not None:
                raise error

    async def _expand_wildcard(self, entry: MirrorEntry) -> list[MirrorEntry]:
        """Return an entry for each repository that a wildcard selects. Record an error for each invalid name.

        With an image lock, these are the locked repositories, and the catalog is not read.

        Raises RemoteError (nothing_selected) if the rules leave out all repositories, and the same errors as
        `select_repositories`."""
        if entry.locked is not None:
            return [entry.expand_wildcard(name) for name in sorted(entry.locked)]
        found = await self._calls.call_host(entry.source.host, partial(select_repositories, entry))
        self._record_invalid_names(entry, found.errors)
        if entry.repository_rules:
            self._receiver.record_repositories(entry, len(found.selected), found.rejected)
        if found.rejected and not found.selected:
            raise no_repository_selected_error(entry, found.rejected)
        return [entry.expand_wildcard(name) for name in found.selected]

    def _record_invalid_names(self, entry: MirrorEntry, errors: Iterable[MirrorError]) -> None:
        """Record the invalid names in a catalog or tag list. errors: one error for each name."""
        for error in errors:
            self._receiver.record_invalid_name(entry, error)
