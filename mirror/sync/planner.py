"""What is to be copied: reads only.

For each mirror of the configuration: the source's tags, selected; what each target has; and for each
(reference, target) whether it is equal, has to be copied, or cannot be told. Findings are handed on as they are
made, so that copying starts while listing goes on. Typed on the reading half of stores: it cannot write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from mirror.errors import Cancelled, MirrorError, NotFound
from mirror.oci.digest import Digest
from mirror.selection.tag_rules import select
from mirror.store import Source
from mirror.sync.empty_selection import WildcardSelection, is_empty, nothing_selected
from mirror.sync.plan_model import (
    Chosen,
    Entry,
    Finding,
    Findings,
    Memory,
    Reading,
    TargetEntry,
    Verdict,
    judged,
    listed_version,
)
from mirror.sync.planner_queries import Named, Note, answered, catalog, is_broken, listed, named, with_result
from mirror.sync.target_tags import Listing, Presence, Present
from mirror.sync.write_conflicts import Claims, may_conflict
from mirror.transfer.manager import Manager
from mirror.transfer.scheduler import host_permit
from mirror.transfer.steps import Steps, settled
from mirror.transfer.watch import Watch
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct

T = TypeVar("T")

LARGEST_BATCH = 64  # references that one job asks for


class _Batch(Struct):
    readings: list[Reading]


class Planner:
    """Plans entries as tasks of a manager; finds go to `findings`."""

    def __init__(
        self,
        manager: Manager,
        memory: Memory,
        findings: Findings,
        *,
        chosen: Chosen,
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
        self._manager = manager
        self._memory = memory
        self._findings = findings
        self._chosen = chosen
        self._parallel = parallel
        self._believe = believe
        self._remake = remake
        self._repair = repair
        self._note = note
        self._claims = Claims()
        self._catalogs: dict[int, Watch[list[Entry]]] = {}  # read to find conflicts, by the id of the entry
        self._presence = Presence(manager, memory, believe=believe, repair=repair)

    def all(self, entries: Iterable[Entry]) -> Steps[None]:
        """Steps: plan every entry. Raises Cancelled, and what is a bug; what is remote becomes a finding."""
        configured = list(entries)
        doubtful = may_conflict(configured)
        kept_back = {id(one) for one in doubtful}
        tasks = self._spawned(one for one in configured if id(one) not in kept_back)
        if doubtful:
            tasks.append(self._manager.spawn(self._doubtful(doubtful), name="plan what may conflict"))
        yield from self._each(tasks)

    def _spawned(self, entries: Iterable[Entry]) -> list[Watch[None]]:
        taken = [one for one in entries if one.wildcard or self._chosen.takes(one.name)]
        return [self._manager.spawn(self.entry(one), name=f"plan {one.name}") for one in taken]

    def _doubtful(self, entries: Sequence[Entry]) -> Steps[None]:
        """Steps: plan entries of which only catalogs show whether they write the same tags: read all catalogs first.

        All of them, whatever `--only` and the shard select, so that the order of answers and the part that is run make
        no difference. A catalog that cannot be read is a failure of its own entry and does not stop the others."""
        self._catalogs = {id(one): self._repositories(one) for one in entries if one.wildcard}
        with suppress(Cancelled):  # each entry reports it
            yield settled(self._catalogs.values())
        known: list[Entry] = []
        for one in entries:
            watch = self._catalogs.get(id(one))
            if watch is None:
                known.append(one)
            elif watch.done and watch.error is None:
                known += watch.result()
        self._claims = Claims(known)
        yield from self._each(self._spawned(entries))

    def _each(self, watches: list[Watch[None]]) -> Steps[None]:
        """Wait for all, then raise the first error, if there is any: tasks of a plan have none but a stop or a bug."""
        try:
            yield settled(watches)
        except Cancelled:
            yield settled(watches)  # they still tell of what they leave undone
            raise
        for watch in watches:
            if watch.error is not None:
                raise watch.error

    def entry(self, entry: Entry, matched: WildcardSelection | None = None) -> Steps[None]:
        """Steps: plan one mirror. Ends when all of it was handed on; never raises for a remote reason.

        matched: of the wildcard that the repository belongs to."""
        try:
            if entry.wildcard:
                yield from self._matching(entry)
                return
            entry, conflicts = self._claims.without_conflicts(entry)
            for part, conflict in conflicts:
                self._failed(part, conflict, matched)
            if not entry.targets:
                return
            listings = [
                self._presence.listing(entry, target) for target in entry.targets
            ]  # while the source lists its own
            readings = yield from self._readings(entry, matched)
        except MirrorError as error:
            self._failed(entry, error, matched)
            return
        batches = self._batches(entry, readings)
        yield from self._each(
            [
                self._manager.spawn(self._target(entry, target, batches, listing), name=f"plan {target.place}")
                for target, listing in zip(entry.targets, listings, strict=True)
            ]
        )

    def _failed(self, entry: Entry, error: MirrorError, matched: WildcardSelection | None) -> None:
        """Record that nothing more of an entry can be planned."""
        if matched is not None:
            matched.failed(error)
        self._chosen.not_seen(entry.name)
        self._findings.listing_failed(entry, error)

    # ---- wildcards

    def _matching(self, entry: Entry) -> Steps[None]:
        """Plan every repository that a wildcard matches. Raises as the catalog does."""
        found: list[Entry] = yield self._catalogs.get(id(entry)) or self._repositories(entry)
        if not found:
            raise NotFound(f"{entry.name} matches no repository", hint="check what stands before the `*`")
        matched = WildcardSelection(entry)
        taken = [one for one in found if self._chosen.takes(one.name)]
        yield from self._each([self._manager.spawn(self.entry(one, matched), name=f"plan {one.name}") for one in taken])
        if matched.is_empty:
            others = sorted({one.repository for one in found} - {one.repository for one in taken})
            error = yield self._read(entry.source, partial(matched.error, others))
            if error is not None:
                raise error

    def _repositories(self, entry: Entry) -> Watch[list[Entry]]:
        """An entry for each repository that a wildcard matches."""
        return self._read(entry.source, lambda work: [entry.of(name) for name in catalog(entry, self._findings, work)])

    # ---- the source

    def _readings(self, entry: Entry, matched: WildcardSelection | None) -> Steps[list[Reading]]:
        rules = entry.rules
        rejected: Mapping[str, int] = {}
        if rules.digest is not None:
            names = rules.literal or (rules.digest,)
            readings = [Reading(entry, rules.digest, name, users=len(entry.targets)) for name in names]
        else:
            tags = () if rules.is_literal else (yield self._read(entry.source, partial(listed, entry, self._findings)))
            selection = select(rules, tags)
            rejected = selection.rejected
            if matched is not None:
                matched.add(selection)
            elif is_empty(rules, selection):
                raise nothing_selected(entry, rejected)
            readings = [
                Reading(entry, tag, tag, listed_version(tag) if self._believe else None, users=len(entry.targets))
                for tag in selection.selected
            ]
        readings = [reading for reading in readings if self._chosen.wants(reading.name)]
        self._findings.selected(entry, len(readings), rejected)
        return readings

    def _batches(self, entry: Entry, readings: list[Reading]) -> list[_Batch]:
        slots = max(1, self._parallel.get(entry.source.host, 8))
        size = max(1, min(LARGEST_BATCH, -(-len(readings) // slots)))
        return [_Batch(readings[start : start + size]) for start in range(0, len(readings), size)]

    def _versions(self, batch: _Batch, wanted: Sequence[Reading]) -> Steps[None]:
        """Resolve those of `wanted` that are not yet, once for all targets that ask."""

        def run(missing: Sequence[Reading], work: Work) -> None:
            todo = [reading for reading in missing if reading.version is None]
            entry = batch.readings[0].entry
            names = [reading.reference for reading in todo]
            answers = answered(entry.source, entry.repository, names, work, self._note)
            for reading, version in zip(todo, answers, strict=True):
                reading.version = version if self._remake else with_result(self._memory, version)

        while missing := [reading for reading in wanted if reading.version is None]:
            yield self._manager.transfer(
                ("resolve", id(batch)),
                partial(run, missing),
                needs=(host_permit(missing[0].entry.source.host),),
                policy=ONCE,
            )

    # ---- one target

    def _target(self, entry: Entry, target: TargetEntry, batches: Sequence[_Batch], listing: Listing) -> Steps[None]:
        readings = [reading for batch in batches for reading in batch.readings]
        try:
            present = yield from self._presence.find(entry, target, readings, listing)
        except MirrorError as error:
            self._all_failed(readings, target, error)
            return
        yield from self._each(
            [
                self._manager.spawn(self._compare(target, present, batch), name=f"compare {target.place}")
                for batch in batches
            ]
        )

    def _all_failed(self, readings: Sequence[Reading], target: TargetEntry, error: MirrorError) -> None:
        for reading in readings:
            self._findings.found(Finding(reading, target, Verdict.FAILED, error=error))

    def _compare(self, target: TargetEntry, present: Present, batch: _Batch) -> Steps[None]:
        readings = self._unsettled(target, present, batch)
        if not readings:
            return
        listed = [reading for reading in readings if present.tags is None or reading.tag in present.tags]
        need = readings if present.tags is None or readings[0].entry.heads_first else listed
        try:
            olds = yield from self._both_sides(target, present, batch, need, listed)
            olds |= yield from self._unlisted(target, present, batch, readings)
            if any(old is not None for old in olds.values()):
                present.may_have = True  # whatever its listing says
            elif present.may_have is None:
                present.may_have = yield self._presence.may_have(target, present)
        except MirrorError as error:
            self._all_failed(readings, target, error)
            return
        for reading in readings:
            finding = judged(
                reading,
                target,
                olds.get(reading.tag),
                believed=present.settled.get(reading.tag),
                may_have=bool(present.may_have),
                broken=reading.tag in present.broken,
                repair=self._repair,
                was=present.was(reading.tag),
            )
            self._findings.found(finding)

    def _unsettled(self, target: TargetEntry, present: Present, batch: _Batch) -> list[Reading]:
        """Those of a batch that have to be asked about; the others are found equal.

        An immutable tag that was equal is believed, unless the listing of the target lacks it."""
        left = []
        for reading in batch.readings:
            digest = present.settled.get(reading.tag)
            if digest is None or (present.tags is not None and reading.tag not in present.tags):
                left.append(reading)
            else:
                self._findings.saw_target(target.place, reading.tag, digest)
                self._findings.found(Finding(reading, target, Verdict.EQUAL, digest))
        return left

    def _unlisted(
        self, target: TargetEntry, present: Present, batch: _Batch, readings: Sequence[Reading]
    ) -> Steps[dict[str, Named]]:
        """Ask the target for the immutable tags that its listing lacks -> what they name.

        Listings may be incomplete (a 404, pages that end early), and no listing is a reason to overwrite an immutable
        tag. The source is asked only about tags that exist and are not what was equal in an earlier run."""
        if present.tags is None:
            return {}
        immutable = readings[0].entry.rules.is_immutable
        unlisted = [one for one in readings if one.tag not in present.tags and immutable(one.tag)]
        olds = yield from self._both_sides(target, present, batch, [], unlisted)
        differing = [one for one in unlisted if olds[one.tag] not in (None, present.settled.get(one.tag))]
        yield from self._versions(batch, differing)
        return olds

    def _both_sides(
        self,
        target: TargetEntry,
        present: Present,
        batch: _Batch,
        need: Sequence[Reading],
        asked: Sequence[Reading],
    ) -> Steps[dict[str, Named]]:
        """Ask the source and the target at the same time. -> what the target's references name."""
        waits: list[Any] = []
        if any(reading.version is None for reading in need):
            waits.append(self._manager.spawn(self._versions(batch, need), name="resolve"))
        tags = [reading.tag for reading in asked]
        unknown = [tag for tag in tags if tag not in present.recalled]
        if unknown:
            path, store = target.place.path, target.store
            waits.append(self._read(store, lambda work: answered(store, path, unknown, work)))
        results = (yield waits) if waits else []
        olds: dict[str, Digest | MirrorError | None] = {
            tag: present.recalled[tag] for tag in tags if tag in present.recalled
        }
        if unknown:
            kept = batch.readings[0].entry.rules.is_immutable
            present.broken.update(
                (tag, answer.names) for tag, answer in zip(unknown, results[-1], strict=True) if is_broken(answer)
            )
            olds.update(
                (tag, named(answer, certain=kept(tag))) for tag, answer in zip(unknown, results[-1], strict=True)
            )
        for reference, digest in olds.items():
            if isinstance(digest, str):
                self._findings.saw_target(target.place, reference, digest)
        return olds

    def _read(self, store: Source, run: Callable[[Work], T]) -> Watch[T]:
        return self._manager.transfer(object(), run, needs=(host_permit(store.host),), policy=ONCE)
