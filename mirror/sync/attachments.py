"""Finds and reads the attachments of each image once for all targets, and finds those that a target lacks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

from mirror.errors import Cancelled, MirrorError, NotFound, Refused
from mirror.oci.digest import Digest
from mirror.oci.manifest import INDEX_TYPES, Kind, Manifest, is_manifest_type
from mirror.oci.platform_filter import PlatformFilter
from mirror.selection.attachment_rules import AttachmentRules
from mirror.selection.tag_rules import TagRules
from mirror.store import LeftOut, Version
from mirror.sync.attachment_search import (
    NO_ATTACHMENTS_HINT,
    AttachmentRef,
    AttachmentSearch,
    AttachmentTags,
)
from mirror.sync.attachment_subjects import SubjectReader, Subjects, read_subjects, subjects_of_graph
from mirror.sync.locked_attachments import keep_attachments_below, restore_attachments
from mirror.sync.manifest_graph import ManifestCache, ManifestGraph, check_descriptor
from mirror.sync.plan_model import MirrorEntry, PlanEntry, SourceReference, selected_platforms
from mirror.sync.platform_reader import PlatformReader
from mirror.sync.referrers_index import read_listed_referrers
from mirror.sync.required_attachments import check_required, find_missing_locked
from mirror.sync.tag_protection import TagProtection
from mirror.transfer.calls import Calls
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

MAX_KEPT_SEARCHES = 10_000

# The values that determine the result of a search: the repository and the rules for attachments, the number of the
# rules for tags, whether images keep their tags, the platforms, and the root manifest.
_SearchKey: TypeAlias = tuple[str, int, bool, PlatformFilter | None, Digest | None, Digest]


class _SearchResult(Struct, frozen=True):
    """The result of a search for the attachments of an image.

    refs: the attachments, except those that are copied like other images. missing: a name in `referrers.require` that
    no attachment has; empty if there is none."""

    refs: tuple[AttachmentRef, ...]
    missing: str


class Attachment(Struct, frozen=True):
    """An attachment that was read. graph: the manifests and blobs of the attachment."""

    ref: AttachmentRef
    graph: ManifestGraph


class AttachmentReader:
    """Finds and reads the attachments of images at their sources.

    platforms: determines the parts that sparse images leave out.
    protection: compares tags of attachments on targets.
    is_selected: returns whether the run mirrors a source reference, according to `--only`.
    tags: the tag lists of the sources, to which the planner adds the lists that it reads."""

    def __init__(
        self,
        calls: Calls,
        manifests: ManifestCache,
        platforms: PlatformReader,
        protection: TagProtection,
        is_selected: Callable[[str], bool] = lambda reference: True,
    ) -> None:
        self.protection = protection
        self._is_selected = is_selected
        self.tags = AttachmentTags(calls)
        self._calls = calls
        self._manifests = manifests
        self._platforms = platforms
        # Mirrors with equal rules for tags have the same number, so that they share the results of searches.
        self._rules: dict[int, int] = {}  # the numbers of the rules, by the number of the mirror
        self._rules_numbers: dict[tuple[TagRules, int | None], int] = {}
        # The results of the most recent searches, because several tags often refer to the same image.
        self._found: OrderedDict[_SearchKey, _SearchResult] = OrderedDict()
        self._searches: SharedTasks[_SearchKey, _SearchResult] = SharedTasks(calls.tasks)
        self._kept: dict[SourceReference, dict[AttachmentRef, Attachment]] = {}
        self._reads: SharedTasks[tuple[SourceReference, AttachmentRef], Attachment] = SharedTasks(calls.tasks)

    def release(self, reference: SourceReference) -> None:
        """Discard the attachments of an image, because no target needs them any more."""
        self._kept.pop(reference, None)

    async def read_all(self, reference: SourceReference, graph: ManifestGraph) -> tuple[Attachment, ...]:
        """Read the attachments of an image that is copied. Return none if the mirror does not copy attachments.

        graph: the image. Raises Refused if a required attachment is missing, if there are too many (too_many,
        too_deep), or if an attachment differs from its entry in the list. Also raises the errors of the source."""
        if reference.entry.attachments is None:
            return ()

        refs = await self._find(reference, graph.root.digest, partial(subjects_of_graph, graph), read=True)
        return tuple(await self.read(reference, refs))

    async def find_for_target(
        self, plan_entry: PlanEntry, root: Digest, graph: ManifestGraph | None = None
    ) -> tuple[AttachmentRef, ...]:
        """Find the attachments of an image that a target already has, without reading the image at the source.

        graph: the image, if it has been read from the target. Otherwise, its indexes are read from the target, where
        they are the same as at the source. Raises the same errors as `read_all`."""
        reference = plan_entry.reference
        if reference.entry.attachments is None:
            return ()
        read_subjects: SubjectReader = partial(self._read_subjects, plan_entry, root)
        if graph is not None:
            read_subjects = partial(subjects_of_graph, graph)
        return await self._find(reference, root, read_subjects, read=False)

    async def find_at_source(
        self, reference: SourceReference, root: Digest, graph: ManifestGraph | None = None
    ) -> tuple[AttachmentRef, ...]:
        """Find the attachments of an image, without reading them.

        root: the root manifest that targets get. graph: the image, if it has been read. Otherwise, its indexes are
        read, and the image must not be sparse. Raises the same errors as `read_all`."""
        find: SubjectReader = partial(self._read_subjects_at_source, reference.entry, root)
        if graph is not None:
            find = partial(subjects_of_graph, graph)
        return await self._find(reference, root, find, read=False)

    async def find_missing(self, plan_entry: PlanEntry, refs: Sequence[AttachmentRef]) -> list[AttachmentRef]:
        """Return the attachments of an image that a target lacks, or does not list as referrers.

        Raises Refused (target_conflict) if a tag of an attachment must not be overwritten, and the errors of the
        stores."""
        target = plan_entry.target
        repository = target.repository

        def resolve(work: Work) -> list[Version | MirrorError]:
            """Look the attachments up on the target. Runs on a worker thread."""
            return list(target.store.resolve(repository.path, [ref.reference for ref in refs], work))

        if not refs:
            return []
        versions = await self._calls.call_host(repository.host, resolve)
        pairs = list(zip(refs, versions, strict=True))
        results = await run_group(self._has(plan_entry, ref, version) for ref, version in pairs)
        found = {ref for (ref, _), has in zip(pairs, results, strict=True) if has}
        # An earlier run may have ended after it wrote a referrer, and before it wrote the list of referrers.
        subjects = list({ref.subject: None for ref in refs if ref in found and ref.is_listed_by_target})
        lists = await run_group(
            self._calls.call_host(
                repository.host, partial(read_listed_referrers, target.store, repository.path, subject)
            )
            for subject in subjects
        )
        listed = dict(zip(subjects, lists, strict=True))
        return [
            ref
            for ref in refs
            if ref not in found or (ref.is_listed_by_target and ref.descriptor.digest not in listed[ref.subject])
        ]

    async def _has(self, plan_entry: PlanEntry, ref: AttachmentRef, version: Version | MirrorError) -> bool:
        """Return whether a target has an attachment. version: the result of looking up its tag or digest there."""
        if not isinstance(version, Version) or version.digest is None:
            return False
        entry, target = plan_entry.reference.entry, plan_entry.target
        if version.digest == ref.descriptor.digest:
            if ref.tag:
                self.protection.record(entry, target.repository, ref.tag, version.digest)
            return True
        return not await self.protection.needs_write(entry, target, ref.reference, version.digest, ref.descriptor)

    async def read(self, reference: SourceReference, refs: Iterable[AttachmentRef]) -> list[Attachment]:
        """Read attachments that a search has found. Raises the same errors as `read_all`."""
        kept = self._kept.setdefault(reference, {})

        async def read_one(ref: AttachmentRef) -> Attachment:
            """Read one attachment, unless it has been read for another target."""
            if ref not in kept:
                run = partial(self._read_one, reference, ref)
                kept[ref] = await self._reads.run((reference, ref), run)
            return kept[ref]

        return await run_group(read_one(ref) for ref in refs)

    async def _find(
        self, reference: SourceReference, digest: Digest, read_subjects: SubjectReader, *, read: bool
    ) -> tuple[AttachmentRef, ...]:
        """Find the attachments of an image. Raises Refused if an attachment that the rules require is missing.

        With an image lock, the locked attachments are used without a search. digest: the root that targets get."""
        entry = reference.entry
        image = (entry.locked or {}).get(entry.repository, {}).get(reference.tag)
        try:
            if image is not None and image.attachments is not None:
                locked = image.attachments
                if selected_platforms(entry, reference.version) is not None:
                    locked = keep_attachments_below(locked, (digest, *(await read_subjects()).children))
                refs = await restore_attachments(self._manifests, entry, locked, self._is_selected)
                missing = await find_missing_locked(self._manifests, entry, locked, digest, read_subjects)
                found = _SearchResult(refs, missing)
            else:
                found = await self._search_once(reference, digest, read_subjects, read=read)
        except MirrorError as error:
            raise _explain_error(error, reference.name) from error
        await check_required(self._calls, self._manifests, reference, digest, found.missing)
        return found.refs

    async def _search_once(
        self, reference: SourceReference, digest: Digest, read_subjects: SubjectReader, *, read: bool
    ) -> _SearchResult:
        """Search for the attachments of an image, or return the result of an earlier search with the same key."""
        entry = reference.entry
        root = await self._find_root(reference, digest)
        platforms = selected_platforms(entry, reference.version)
        key = (entry.attachments_key, self._rules_number(entry), entry.keeps_tags, platforms, root, digest)
        found = self._found.get(key)
        if found is None:
            run = partial(self._search, reference, root, read_subjects, read=read)
            found = self._found[key] = await self._searches.run(key, run)
            if len(self._found) > MAX_KEPT_SEARCHES:
                self._found.popitem(last=False)
        return found

    def _rules_number(self, entry: MirrorEntry) -> int:
        """Return a number that identifies the rules with which a mirror copies tags of attachments like other tags."""
        number = self._rules.get(entry.number)
        if number is None:
            rules = (entry.rules, entry.number if entry.locked is not None else None)
            number = self._rules[entry.number] = self._rules_numbers.setdefault(rules, len(self._rules_numbers))
        return number

    async def _find_root(self, reference: SourceReference, digest: Digest) -> Digest | None:
        """Return `digest` if the source has a root manifest with this digest, otherwise None.

        digest: the root manifest that targets get, which a transform or the selection of platforms may have changed. If
        it was changed, the attachments of the root at the source are left out, because targets lack their subject."""
        version, entry = reference.version, reference.entry
        if isinstance(version, Version) and (version.source_id or version.transform is not None):
            return digest if version.source_digest == digest else None
        keeps_digest = entry.platforms is None or entry.platforms.sparse
        if keeps_digest and not (entry.converts_schema1 and version is None):
            return digest

        def resolve(work: Work) -> Version | MirrorError:
            """Look up the manifest, because an immutable tag may not have been resolved. Runs on a worker thread."""
            (found,) = entry.source.resolve(entry.repository, [digest], work)
            return found

        found = await self._calls.call_host(entry.source.host, resolve)
        if isinstance(found, MirrorError) and not isinstance(found, NotFound):
            raise found
        return digest if isinstance(found, Version) else None

    async def _search(
        self, reference: SourceReference, root: Digest | None, read_subjects: SubjectReader, *, read: bool
    ) -> _SearchResult:
        """Search the source for the attachments of an image. root: None if the source does not have the root."""
        rules = reference.entry.attachments or AttachmentRules()
        search = AttachmentSearch(
            self._calls,
            self._manifests,
            self.tags,
            reference.entry,
            rules,
            read=read,
            is_selected=self._is_selected,
        )
        subjects = await search.run(root, read_subjects)
        missing = rules.missing(search.names(root), [search.names(digest) for digest in subjects.platforms])
        return _SearchResult(tuple(ref for ref in search.found if not ref.ordinary), missing)

    async def _read_subjects(self, plan_entry: PlanEntry, root: Digest) -> Subjects:
        """Read the indexes of an image from the target, or from the source if the target cannot return them."""
        version = plan_entry.reference.version
        media_type = version.media_type if isinstance(version, Version) else ""
        is_image = is_manifest_type(media_type) and media_type not in INDEX_TYPES
        if is_image or (isinstance(version, Version) and version.protocol == "v1"):
            return Subjects()
        read = partial(self._read_index, plan_entry)
        top = await read(root)
        return await read_subjects(top, read, await self._find_left_out(plan_entry, top))

    async def _read_subjects_at_source(self, entry: MirrorEntry, root: Digest) -> Subjects:
        """Read the indexes of a complete image from the source."""
        read = partial(self._manifests.read, entry.source, entry.repository)
        return await read_subjects(await read(root), read)

    async def _find_left_out(self, plan_entry: PlanEntry, root: Manifest) -> LeftOut | None:
        """Return the parts that a sparse image leaves out, or None if the image is complete. root: its root manifest.

        Nested indexes are read from the target or, if the target cannot return them, from the source."""
        target, entry = plan_entry.target, plan_entry.reference.entry
        find = partial(self._platforms.find_left_out, plan_entry.reference)
        try:
            return await find(target.store, target.repository.path, root)
        except MirrorError as error:
            if isinstance(error, Cancelled):
                raise
            return await find(entry.source, entry.repository, root)

    async def _read_index(self, plan_entry: PlanEntry, digest: Digest) -> Manifest:
        """Read one manifest of an image, if possible from the target, which does not use up the source's quota."""
        target, entry = plan_entry.target, plan_entry.reference.entry
        try:
            return await self._manifests.read(target.store, target.repository.path, digest)
        except MirrorError as error:
            if isinstance(error, Cancelled):
                raise
            return await self._manifests.read(entry.source, entry.repository, digest)

    async def _read_one(self, reference: SourceReference, ref: AttachmentRef) -> Attachment:
        """Read one attachment, and check that it matches the entry in the source's list."""
        try:
            graph = await self._manifests.read_graph(
                reference.entry.source, reference.entry.repository, ref.descriptor.digest
            )
            _check_attachment(reference.entry, ref, graph)
        except MirrorError as error:
            raise _explain_error(error, reference.name) from error
        return Attachment(ref, graph)


def _check_attachment(entry: MirrorEntry, ref: AttachmentRef, graph: ManifestGraph) -> None:
    """Raise Refused if an attachment is not an artifact, or its subject is not the manifest for which it is listed."""
    name = f"{entry.name}@{ref.descriptor.digest}"
    check_descriptor(graph.root, ref.descriptor, entry.name)
    subject = graph.root.subject.digest if graph.root.subject is not None else None
    if not ref.tag and subject != ref.subject:
        what = f"{name} is listed as a referrer of {ref.subject}, but its subject is {subject or 'not set'}"
        raise Refused(what, hint=NO_ATTACHMENTS_HINT, code="manifest_invalid")
    if any(manifest.kind is Kind.SCHEMA1 for manifest in graph.manifests()):
        raise Refused(f"{name} is a schema 1 image, not an artifact", hint=NO_ATTACHMENTS_HINT, code="manifest_invalid")


def _explain_error(error: MirrorError, name: str) -> MirrorError:
    """Return the error for an image whose attachments cannot be read. name: the image at the source."""
    if isinstance(error, Cancelled):
        return error
    explained = error.with_text(f"{name}: its signatures and other artifacts cannot be read: {error.what}")
    explained.hint = explained.hint or NO_ATTACHMENTS_HINT
    explained.retries_exhausted = error.retries_exhausted
    return explained
