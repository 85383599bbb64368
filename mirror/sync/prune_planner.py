"""Finds the tags on targets that a prune may delete. Read-only.

A tag may be deleted if all of these conditions are met:

* The configuration still has the mirror that wrote the tag, and no mirror selects the tag now.
* The tag still refers to the digest that a sync with this configuration wrote last, and no other configuration that
  shares the state has written the tag.
* No mirror of the repository has the tag under `immutable`.
* If the tag list of the source lacks the tag, a request for the tag confirms that it does not exist at the source.

If one of the first three conditions is not met, the tag is kept. If a tag list is incomplete, or a condition cannot be
checked, nothing in the target repository may be deleted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from mirror.errors import Cancelled, MirrorError, NotFound
from mirror.oci.digest import Digest
from mirror.oci.reference import is_tag
from mirror.oci.referrers import is_attachment_tag
from mirror.selection.locations import is_bundle
from mirror.state.ownership import OwnershipRecords, WrittenReference
from mirror.sync.plan_model import MirrorEntry, TargetEntry, reference_suffix
from mirror.sync.planner_queries import resolve_all
from mirror.sync.prune_attachments import OwnedAttachments
from mirror.sync.prune_plan import PlannedDeletion, PruneRefused, RepositoryPlan
from mirror.sync.prune_selection import PruneSelection, SelectedRepository
from mirror.sync.repository_content import RepositoryContent
from mirror.sync.unrecorded_tags import UnrecordedTagCounter
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import gather_results
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct, field, replace

_PARALLEL = 8  # maximum number of repositories that are examined at the same time


class PrunableRepository(Struct):
    """A target repository that a prune has examined, with the tags that may be deleted.

    written: the tags and manifests that the configuration wrote. owned: the number of owned tags: those that nobody has
    changed since. tags: the tags that may be deleted."""

    name: str
    content: RepositoryContent
    attachments: OwnedAttachments
    written: frozenset[str]
    owned: int = 0
    tags: list[PlannedDeletion] = field(default_factory=list)


class PruneSurvey(Struct):
    """The result of examining all target repositories for a prune.

    kept: tags that are not selected but must not be deleted, each with the reason. refused: the target repositories
    that could not be examined completely, each with the error."""

    repositories: list[PrunableRepository] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    refused: dict[str, MirrorError] = field(default_factory=dict)


class PrunePlanner:
    """Compares the tags that a configuration wrote with the current selection, and with the content of the targets.

    selection: the tags that all mirrors select; complete before `find` is called."""

    def __init__(self, calls: Calls, records: OwnershipRecords, selection: PruneSelection) -> None:
        self._calls = calls
        self._records = records
        self._selection = selection

    async def find(self, also: Collection[str] = (), counter: UnrecordedTagCounter | None = None) -> PruneSurvey:
        """Examine all target repositories, and return which tags may be deleted. Raises Cancelled.

        also: repositories to examine even if all their tags are selected. counter: counts the unrecorded tags of
        all target repositories; the tags of those that are not examined are listed for this purpose."""
        survey = PruneSurvey(refused=dict(self._selection.failures))
        rows = await self._calls.call(lambda work: self._records.repositories(), policy=ONCE)
        names: list[str] = []
        for name, count in sorted(rows.items()):
            if is_bundle(name.rpartition(":")[0]):
                continue  # a bundle contains only what the last export selected
            error = self._selection.error_for(name)
            if error is not None:
                survey.refused[name] = error
            elif name in self._selection.repositories:
                names.append(name)
            else:
                what = "tag or attachment" if count == 1 else "tags and attachments"
                survey.kept[name] = f"{count} {what}: no mirror copies to this repository any more"
        for start in range(0, len(names), _PARALLEL):
            part = names[start : start + _PARALLEL]
            results = await gather_results(self._examine(name, survey, also=name in also) for name in part)
            for name, result in zip(part, results, strict=True):
                if isinstance(result, Cancelled):
                    raise result
                if isinstance(result, MirrorError):
                    survey.refused[name] = result
                elif result is not None:
                    survey.repositories.append(result)
        if counter is not None:
            await self._count_unrecorded(counter, survey)
        return survey

    async def _count_unrecorded(self, counter: UnrecordedTagCounter, survey: PruneSurvey) -> None:
        """Count the unrecorded tags of all target repositories whose tags can be listed."""
        examined = {found.name: found.content.tags for found in survey.repositories}

        async def count(name: str, target: TargetEntry) -> None:
            """Count the unrecorded tags of one repository."""
            content = RepositoryContent(self._calls, target.store, target.repository.path)
            tags: Collection[str] = examined[name] if name in examined else await content.list_tags()
            await self._calls.call(lambda work: counter.count(target.repository, tags), policy=ONCE)

        unknown = survey.refused.keys()
        names = [name for name in self._selection.repositories if name not in unknown]
        for start in range(0, len(names), _PARALLEL):
            part = ((name, self._selection.repositories[name].target) for name in names[start : start + _PARALLEL])
            for result in await gather_results(count(*one) for one in part):
                if isinstance(result, Cancelled):
                    raise result

    async def _examine(self, name: str, survey: PruneSurvey, *, also: bool) -> PrunableRepository | None:
        """Examine one target repository. Return None if all its tags are selected, unless `also` is set.

        Raises PruneRefused, and the errors of the source and of the target."""
        selected = self._selection.repositories[name]
        written, others = await self._calls.call(partial(self._read_records, name), policy=ONCE)
        rules = _KeepRules(selected, others)
        tags: defaultdict[str, list[WrittenReference]] = defaultdict(list)
        attachments: list[WrittenReference] = []
        roots = {Digest(reference) for reference in selected.references if ":" in reference}
        roots |= {digest for reference, digest in others if ":" in reference}
        for one in written:
            if is_attachment_tag(one.reference) or one.subject is not None:
                attachments.append(one)
            elif ":" in one.reference:
                roots.add(one.digest)  # an image without a tag: it is never deleted
            else:
                tags[one.reference].append(one)
        unselected = sorted(tag for tag in tags if tag not in selected.references)
        if not unselected and not also:
            return None
        content = RepositoryContent(self._calls, selected.target.store, selected.target.repository.path)
        references = frozenset(one.reference for one in written)
        await content.read_tags(expected=[reference for reference in references if ":" not in reference])
        mine = (one for one in attachments if rules.may_delete_attachment(one))
        found = PrunableRepository(name, content, OwnedAttachments(content, mine, roots), references)
        found.owned = sum(
            any(one.digest == content.tags.get(tag) for one in versions) for tag, versions in tags.items()
        )
        candidates: list[PlannedDeletion] = []
        for tag in unselected:
            current = content.tags.get(tag)
            if current is None:
                continue
            source = rules.source_of(tag, current, tags[tag])
            if isinstance(source, PruneRefused):
                survey.kept[f"{name}:{tag}"] = source.what
            else:
                candidates.append(PlannedDeletion(f"{name}:{tag}", tag, current, source))
        wanted = {reference for reference in selected.references if ":" not in reference}
        if candidates and wanted and not content.tags.keys() & wanted:
            what = f"{name} has none of the tags that are selected for it"
            raise PruneRefused(what, hint="run `mirror sync CONFIG` first, so that the repository is not left empty")
        found.tags = await self._add_reasons(candidates, selected)
        return found

    def _read_records(self, name: str, work: Work) -> tuple[list[WrittenReference], set[tuple[str, Digest]]]:
        """Return the references that this configuration wrote to a repository, and those that others wrote. Blocks."""
        return self._records.written(name), self._records.written_by_others(name)

    async def _add_reasons(
        self, tags: Sequence[PlannedDeletion], selected: SelectedRepository
    ) -> list[PlannedDeletion]:
        """Return tags with the reason why each of them is not selected.

        Raises PruneRefused if a source has a tag that it does not list, and the errors of the sources."""
        reasons: dict[str, str] = {}
        for entry, target in selected.mirrors:
            listed = self._selection.listed.get(entry.name)
            unlisted: list[str] = []
            for one in tags:
                if one.source != entry.name:
                    continue
                source_tag = target.tags.source_tag(one.reference) if not target.tags.is_fixed else None
                if listed is None or source_tag is None or not is_tag(source_tag):
                    reasons.setdefault(one.reference, "no longer selected")
                elif source_tag in listed:
                    rule = entry.rules.rejecting_rule(source_tag) or "newest"
                    reasons.setdefault(one.reference, f"left out by `{rule}`")
                else:
                    reasons.setdefault(one.reference, "deleted at the source")
                    unlisted.append(source_tag)
            if unlisted:
                await self._check_absent(entry, unlisted)
        return [replace(one, reason=reasons[one.reference]) for one in tags]

    async def _check_absent(self, entry: MirrorEntry, source_tags: Sequence[str]) -> None:
        """Check that tags which a source does not list do not exist at the source.

        Raises PruneRefused if one of them exists, and the errors of the source."""
        run = partial(resolve_all, entry.source, entry.repository, source_tags)
        versions = await self._calls.call_host(entry.source.host, run)
        for tag, version in zip(source_tags, versions, strict=True):
            if isinstance(version, NotFound):
                continue
            if isinstance(version, MirrorError):
                raise version
            what = f"the tag list of the source {entry.name} is incomplete: it lacks `{tag}`, which the source has"
            raise PruneRefused(what, hint="check the registry, and the proxies between it and this machine")


class _KeepRules:
    """Decides which tags and attachments of a repository must be kept.

    others: the references, with digests, that other configurations with the same state wrote to the repository."""

    def __init__(self, selected: SelectedRepository, others: Collection[tuple[str, Digest]]) -> None:
        self._selected = selected
        self._others = others
        self._sources = {entry.name for entry, _ in selected.mirrors}

    def source_of(self, tag: str, current: Digest, written: Sequence[WrittenReference]) -> str | PruneRefused:
        """Return the source from which an unselected tag was copied, or the reason why the tag must be kept.

        current: the digest to which the tag refers. written: the records of this configuration for the tag."""
        own = [one.source for one in written if one.digest == current]
        source = next((one for one in own if one in self._sources), None)
        if not own:
            return PruneRefused(f"someone else changed the tag: it refers to {current} now")
        if (tag, current) in self._others:
            return PruneRefused("another configuration that uses the same state directory has also copied it")
        if source is None:
            return PruneRefused(f"it was copied from {own[0]}, and the configuration no longer has this mirror")
        if any(entry.rules.is_immutable(tag) for entry, _ in self._selected.mirrors):
            return PruneRefused("the tag is `immutable`")
        return source

    def may_delete_attachment(self, written: WrittenReference) -> bool:
        """Return whether an attachment may be deleted together with its subject."""
        if written.reference in self._selected.references:
            return False
        return isinstance(self.source_of(written.reference, written.digest, [written]), str)


async def plan_repository(found: PrunableRepository) -> tuple[RepositoryPlan, dict[str, str]]:
    """Return the plan for one repository, with the sizes of images, and the attachments to delete with them.

    Also return the attachments of these images that stay, each with the reason. Raises the errors of the target."""
    deleted, images = {one.reference for one in found.tags}, [one.digest for one in found.tags]
    tags = []
    for one in found.tags:
        manifest = await found.content.read_manifest(one.digest)
        size = None
        if manifest is not None and not manifest.children:
            size = manifest.size + sum(blob.size or 0 for blob in manifest.blobs)
        shares = sorted(
            tag for tag, digest in found.content.tags.items() if digest == one.digest and tag not in deleted
        )
        tags.append(replace(one, size=size, shares_with=tuple(shares)))
    orphans = await found.attachments.find_orphans(deleted, images)
    reason = "it belongs to a deleted image, but someone else wrote it or a part of it"
    kept = {f"{found.name}:{tag}": reason for tag in await found.attachments.find_kept_tags(deleted, images)}
    return RepositoryPlan(found.name, found.owned, tags, plan_attachments(found.name, orphans)), kept


def plan_attachments(repository: str, written: Iterable[WrittenReference]) -> list[PlannedDeletion]:
    """Return the planned deletions for attachments. Attachments with a tag come first."""
    ordered = sorted(written, key=lambda one: (":" in one.reference, one.reference))
    return [
        PlannedDeletion(repository + reference_suffix(one.reference), one.reference, one.digest, one.source)
        for one in ordered
    ]
