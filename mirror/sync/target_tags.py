"""What the repositories of targets have: the tags that they list, and what the state says of them."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from functools import partial

from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag, Repository
from mirror.sync.plan_model import MirrorEntry, PlanHints, SourceReference, TargetEntry
from mirror.sync.planner_queries import listed_at_target, recalled_tags, settled_tags
from mirror.transfer.calls import Calls
from mirror.transfer.permits import host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, field, replace


class TargetTags(Struct):
    """What a target repository has. tags: those listed; None: not listed, each is asked for by name."""

    tags: Collection[str] | None = None
    recalled: Mapping[str, Digest] = field(default_factory=dict)
    settled: Mapping[str, Digest] = field(default_factory=dict)  # immutable tags that were equal in an earlier run
    may_have: bool | None = None  # None: not known yet
    broken: dict[str, str | None] = field(default_factory=dict)  # tags that it has and cannot give, with their digests
    last_equal: Mapping[str, Digest] = field(default_factory=dict)  # as `settled`, for a repair: not believed otherwise

    def was(self, tag: str) -> str | None:
        """The digest that a damaged tag is known to have had: as the target says, or as an earlier run saw it."""
        return self.broken.get(tag) or self.last_equal.get(tag)


class TargetTagReader:
    """Finds out what target repositories have. believe: what the state says, and the digests that
    lists of tags name; repair: look up what damaged immutable tags had."""

    def __init__(self, calls: Calls, memory: PlanHints, *, believe: bool, repair: bool = False) -> None:
        self._calls = calls
        self._looks: SharedTasks[Repository, bool] = SharedTasks(calls.tasks)
        self._memory = memory
        self._believe = believe
        self._repair = repair

    async def listing(self, entry: MirrorEntry, target: TargetEntry) -> TargetTags | None:
        """What a target lists; None where that may not be needed."""
        if entry.rules.is_literal or (target.exclusive and self._believe):
            return None
        return await self._list(target)

    async def find(
        self,
        entry: MirrorEntry,
        target: TargetEntry,
        references: Sequence[SourceReference],
        listing: Awaitable[TargetTags | None],
    ) -> TargetTags:
        """What a target has of the readings. listing: what `listing` returns, when it is there."""
        name = str(target.repository)
        settled: dict[str, Digest] = {}
        if entry.rules.immutable and (self._believe or self._repair):
            settled = await self._calls.call(
                lambda work: settled_tags(self._memory, entry, target, references), policy=ONCE
            )
        last_equal, settled = settled, settled if self._believe else {}
        if target.exclusive and self._believe:
            recalled = await self._calls.call(
                lambda work: recalled_tags(self._memory, name, [one.tag for one in references])
            )
            if recalled:
                # Who promises that nobody else writes here spares the target every question that state can answer.
                return TargetTags(recalled=recalled, settled=settled, may_have=True)
        if entry.rules.is_literal:
            return TargetTags(settled=settled, last_equal=last_equal)
        present = await listing or await self._list(target)
        return replace(present, settled=settled, last_equal=last_equal)

    async def may_have(self, target: TargetEntry, present: TargetTags) -> bool:
        """Whether the repository may hold blobs: it has tags, or a run that wrote there did not end."""
        return await self._looks.run(target.repository, lambda: self._may_have(target, present))

    async def _may_have(self, target: TargetEntry, present: TargetTags) -> bool:
        if present.may_have is None:
            present.may_have = bool((await self._list(target)).may_have)
        return present.may_have

    async def _list(self, target: TargetEntry) -> TargetTags:
        run = partial(self._tags_of, target)
        return await self._calls.call(run, needs=(host_permit(target.store.host),), policy=ONCE)

    def _tags_of(self, target: TargetEntry, work: Work) -> TargetTags:
        tags = listed_at_target(target.store, target.repository.path, work)
        if tags is None:
            return TargetTags(may_have=True)
        told = {str(tag): tag.digest for tag in tags if isinstance(tag, ListedTag)}
        # A repository that lost its last run to a kill has blobs and no tag: real registries then answer 404.
        return TargetTags(
            tags=tags,
            recalled=told if self._believe else {},
            may_have=bool(tags) or self._memory.is_unfinished(str(target.repository)),
        )
