"""What the repositories of targets have: the tags that they list, and what the state says of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from mirror.oci.digest import Digest
from mirror.oci.reference import ListedTag
from mirror.sync.plan_model import Entry, Memory, Reading, TargetEntry
from mirror.sync.planner_queries import listed_at_target, recalled_tags, settled_tags
from mirror.transfer.manager import Manager
from mirror.transfer.scheduler import host_permit
from mirror.transfer.steps import Steps
from mirror.transfer.watch import Watch
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, field, replace


class Present(Struct):
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


Listing: TypeAlias = Watch[Present] | None


class Presence:
    """Finds out what target repositories have, as jobs of a manager. believe: what the state says, and the digests that
    lists of tags name; repair: look up what damaged immutable tags had."""

    def __init__(self, manager: Manager, memory: Memory, *, believe: bool, repair: bool = False) -> None:
        self._manager = manager
        self._memory = memory
        self._believe = believe
        self._repair = repair

    def listing(self, entry: Entry, target: TargetEntry) -> Listing:
        """What a target has, being listed; None where that may not be needed."""
        if entry.rules.is_literal or (target.exclusive and self._believe):
            return None
        return self._list(target)

    def find(self, entry: Entry, target: TargetEntry, readings: Sequence[Reading], listing: Listing) -> Steps[Present]:
        name = str(target.place)
        settled: dict[str, Digest] = {}
        if entry.rules.immutable and (self._believe or self._repair):
            settled = yield self._manager.transfer(
                object(), lambda work: settled_tags(self._memory, entry, target, readings), needs=(), policy=ONCE
            )
        last_equal, settled = settled, settled if self._believe else {}
        if target.exclusive and self._believe:
            recalled = yield self._manager.transfer(
                object(), lambda work: recalled_tags(self._memory, name, [one.tag for one in readings]), needs=()
            )
            if recalled:
                # Who promises that nobody else writes here spares the target every question that state can answer.
                return Present(recalled=recalled, settled=settled, may_have=True)
        if entry.rules.is_literal:
            return Present(settled=settled, last_equal=last_equal)
        present: Present = yield listing or self._list(target)
        return replace(present, settled=settled, last_equal=last_equal)

    def may_have(self, target: TargetEntry, present: Present) -> Watch[bool]:
        """Whether the repository may hold blobs: it has tags, or a run that wrote there did not end."""
        return self._manager.transfer(
            ("has tags", target.place),
            partial(self._may_have, target, present),
            needs=(host_permit(target.store.host),),
            policy=ONCE,
        )

    def _list(self, target: TargetEntry) -> Watch[Present]:
        run = partial(self._tags_of, target)
        return self._manager.transfer(object(), run, needs=(host_permit(target.store.host),), policy=ONCE)

    def _tags_of(self, target: TargetEntry, work: Work) -> Present:
        tags = listed_at_target(target.store, target.place.path, work)
        if tags is None:
            return Present(may_have=True)
        told = {str(tag): tag.digest for tag in tags if isinstance(tag, ListedTag)}
        # A repository that lost its last run to a kill has blobs and no tag: real registries then answer 404.
        return Present(
            tags=tags,
            recalled=told if self._believe else {},
            may_have=bool(tags) or self._memory.unfinished(str(target.place)),
        )

    def _may_have(self, target: TargetEntry, present: Present, work: Work) -> bool:
        if present.may_have is None:
            present.may_have = bool(self._tags_of(target, work).may_have)
        return present.may_have
