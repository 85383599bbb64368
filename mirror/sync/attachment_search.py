"""Searches a source for the attachments of an image: referrers, cosign's signatures, and the attachments of these.

The source lists the referrers of a manifest or, if it does not support this, an index under a tag lists them
(distribution-spec, "Referrers Tag Schema"). cosign's tags are found in the tag list of the repository, which is read
once in a run. If the list cannot be read, each possible tag is requested by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from mirror.errors import Cancelled, MirrorError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import INDEX_TYPES, Kind
from mirror.oci.referrers import is_attachment_tag, kinds_of_type, referrers_tag, signature_tags
from mirror.selection.attachment_rules import AttachmentRules
from mirror.store import Version
from mirror.sync.attachment_subjects import SubjectReader, Subjects
from mirror.sync.manifest_graph import MAX_DEPTH, ManifestCache
from mirror.sync.plan_model import MirrorEntry, reference_suffix
from mirror.transfer.calls import Calls
from mirror.transfer.shared_tasks import SharedTasks
from mirror.transfer.tasks import run_group
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

MAX_ATTACHMENTS = 10_000  # maximum number of attachments of one image
NO_ATTACHMENTS_HINT = (
    "to copy the image without its signatures and other artifacts, set `referrers: false` for this mirror"
)

_log = logging.getLogger("mirror.sync")


class AttachmentRef(Struct, frozen=True):
    """An attachment that was found at a source, and has not been read.

    subject: the manifest to which the attachment belongs.
    tag: the tag under which cosign stores the attachment; empty for a referrer.
    names: the artifact type and the kinds of the attachment, to which the rules of the mirror apply.
    ordinary: whether the run mirrors the tag that leads to the attachment, so that it is copied like any other image.
    list_is_ordinary: whether the source lists the subject's referrers under a tag that the run mirrors.
    in_ordinary_list: whether this list contains the attachment. A source with the referrers API may have an old list.
    level: 1 for an attachment of the image, 2 for an attachment of such an attachment, and so on."""

    subject: Digest
    descriptor: Descriptor
    tag: str = ""
    names: frozenset[str] = frozenset()
    ordinary: bool = False
    list_is_ordinary: bool = False
    in_ordinary_list: bool = False
    level: int = 1

    @property
    def reference(self) -> str:
        """The tag or digest under which a target stores the attachment."""
        return self.tag or self.descriptor.digest

    @property
    def is_listed_by_target(self) -> bool:
        """Whether a target must list the attachment as a referrer, because the run does not copy a list with it."""
        return not self.tag and not self.in_ordinary_list


class AttachmentTags:
    """The tags of attachments in each source repository, from tag lists that are read at most once in a run."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._lists: dict[str, frozenset[str] | None] = {}  # by the name of the repository
        self._listings: SharedTasks[str, frozenset[str] | None] = SharedTasks(calls.tasks)

    def keep(self, entry: MirrorEntry, tags: Iterable[str]) -> None:
        """Keep the tags of attachments from a tag list that was read to select tags. May be called on any thread."""
        if entry.attachments is not None:
            self._lists[entry.name] = frozenset(tag for tag in tags if is_attachment_tag(tag))

    async def read(self, entry: MirrorEntry) -> frozenset[str] | None:
        """Return the tags of attachments in a source repository, or None if its tags cannot be listed."""
        if entry.name not in self._lists:
            run: Callable[[Work], frozenset[str] | None] = partial(_list_attachment_tags, entry)
            self._lists[entry.name] = await self._listings.run(
                entry.name, lambda: self._calls.call_host(entry.source.host, run)
            )
        return self._lists[entry.name]


class AttachmentSearch:
    """One search for the attachments of an image.

    read: whether to read the manifests under cosign's tags, because they will be copied; otherwise only their digests
    are requested.
    is_selected: returns whether the run mirrors a source reference, according to `--only`.
    found: the attachments that the rules select, those of the image first; complete after `run`."""

    def __init__(
        self,
        calls: Calls,
        manifests: ManifestCache,
        tags: AttachmentTags,
        entry: MirrorEntry,
        rules: AttachmentRules,
        *,
        read: bool,
        is_selected: Callable[[str], bool],
    ) -> None:
        self._calls = calls
        self._is_selected = is_selected
        self._manifests = manifests
        self._tag_reader = tags
        self._entry = entry
        self._rules = rules
        self._read = read
        self._tags: frozenset[str] | None = None  # None if they cannot be listed
        self._found: dict[tuple[Digest, str], AttachmentRef] = {}
        self._has_lists = True  # whether the source lists referrers by itself

    @property
    def found(self) -> list[AttachmentRef]:
        """The attachments that the search has found so far."""
        return list(self._found.values())

    def names(self, subject: Digest | None) -> list[frozenset[str]]:
        """Return the names of each attachment that was found for a manifest."""
        return [ref.names for ref in self._found.values() if ref.subject == subject]

    async def run(self, root: Digest | None, read_subjects: SubjectReader) -> Subjects:
        """Find the attachments of an image, then the attachments of these attachments, and so on.

        Return the manifests below the root.

        root: None if the source does not have the root manifest. read_subjects: reads the manifests below the root;
        called only if these can have attachments. Raises Refused (too_many, too_deep), and the errors of the source."""
        new: list[AttachmentRef] = []
        if root is not None:
            self._tags = await self._tag_reader.read(self._entry)
            new = self._add(await self._find_attachments(root, 1))
            if not self._has_lists and self._tags is not None and not self._tags:
                return Subjects()
        subjects = await read_subjects()
        if root is None and subjects.children:
            self._tags = await self._tag_reader.read(self._entry)
        seen = {digest for digest in (root, *subjects.children) if digest is not None}
        pending = [digest for digest in subjects.children if digest != root]
        level = 1
        while True:
            new += await self._find_on_level(pending, level)
            if level > MAX_DEPTH and new:
                what = f"attachments of attachments are nested more than {MAX_DEPTH} levels deep"
                raise Refused(what, hint=NO_ATTACHMENTS_HINT, code="too_deep")
            pending = [digest for digest in await self._digests_of(new) if digest not in seen]
            seen.update(pending)
            if not pending:
                return subjects
            level, new = level + 1, []

    async def _find_on_level(self, pending: Sequence[Digest], level: int) -> list[AttachmentRef]:
        """Find the attachments of several manifests. Return the new attachments that the rules select."""
        results = await run_group(self._find_attachments(digest, level) for digest in pending)
        return [ref for refs in results for ref in self._add(refs)]

    def _add(self, refs: Iterable[AttachmentRef]) -> list[AttachmentRef]:
        """Add the attachments that the rules select to the result. Return the new ones. Raises Refused (too_many)."""
        new = []
        for ref in refs:
            key = (ref.descriptor.digest, ref.tag)
            if key not in self._found and (not self._rules.has_filter or self._rules.selects(ref.names)):
                self._found[key] = ref
                new.append(ref)
        if len(self._found) > MAX_ATTACHMENTS:
            what = f"the image has more than {MAX_ATTACHMENTS} signatures and other artifacts"
            raise Refused(what, hint=NO_ATTACHMENTS_HINT, code="too_many")
        return new

    async def _digests_of(self, refs: Sequence[AttachmentRef]) -> list[Digest]:
        """Return the digests of the manifests of attachments, which may have attachments of their own.

        An attachment that is copied like any other image is left out, because its attachments are found with it."""
        digests: dict[Digest, None] = {}
        for ref in refs:
            if ref.ordinary:
                continue
            digests[ref.descriptor.digest] = None
            if ref.descriptor.media_type in INDEX_TYPES:
                source, repository = self._entry.source, self._entry.repository
                graph = await self._manifests.read_graph(source, repository, ref.descriptor.digest)
                digests |= dict.fromkeys(one.digest for one in graph.manifests())
        return list(digests)

    async def _find_attachments(self, subject: Digest, level: int) -> list[AttachmentRef]:
        """Return the attachments of a manifest: its referrers, and the manifests under cosign's tags for it."""
        listed = await self._manifests.read_referrers(self._entry.source, self._entry.repository, subject)
        tag = referrers_tag(subject)
        may_exist = self._tags is None or tag in self._tags
        is_ordinary = may_exist and is_copied_as_image(self._entry, tag, self._is_selected)
        read_index = listed is None
        if listed is None:
            self._has_lists = False
            listed = await self._read_referrers_index(tag) if may_exist else ()
        index = await self._read_referrers_index(tag) if is_ordinary and listed and not read_index else listed
        in_index = {one.digest for one in index} if is_ordinary else set()
        refs = [
            AttachmentRef(
                subject,
                descriptor,
                names=await self._read_names(descriptor),
                ordinary=read_index and is_ordinary,
                list_is_ordinary=is_ordinary,
                in_ordinary_list=descriptor.digest in in_index,
                level=level,
            )
            for descriptor in listed
        ]
        return refs + await self._find_signatures(subject, level)

    async def _find_signatures(self, subject: Digest, level: int) -> list[AttachmentRef]:
        """Return the attachments under cosign's tags for a manifest.

        A tag that is missing from the tag list is also used if the check for `verify-signatures` has found it."""
        entry = self._entry
        wanted = {
            tag: kind
            for tag, kind in signature_tags(subject).items()
            if self._tags is None
            or tag in self._tags
            or self._manifests.find_tag(entry.source, entry.repository, tag) is not None
        }
        if not wanted:
            return []
        listed = self._tags is not None
        resolve = partial(_resolve_tags, entry, self._manifests, list(wanted), self._read, listed)
        descriptors = await self._calls.call_host(entry.source.host, resolve)
        return [
            AttachmentRef(
                subject,
                descriptor,
                tag,
                names=frozenset({kind}),
                ordinary=is_copied_as_image(entry, tag, self._is_selected),
                level=level,
            )
            for (tag, kind), descriptor in zip(wanted.items(), descriptors, strict=True)
            if descriptor is not None
        ]

    async def _read_names(self, descriptor: Descriptor) -> frozenset[str]:
        """Return the artifact type and kinds of a referrer. If the list lacks a type that the rules need, read it."""
        kind = descriptor.artifact_type
        if not kind and (self._rules.has_filter or self._rules.require):
            source, repository = self._entry.source, self._entry.repository
            manifest = await self._manifests.read(source, repository, descriptor.digest, descriptor.size)
            kind = manifest.artifact_type
        return kinds_of_type(kind) | {kind}

    async def _read_referrers_index(self, tag: str) -> Sequence[Descriptor]:
        """Return the entries of the index of referrers under a tag, or none if there is no such index."""
        try:
            index = await self._manifests.read_tag(self._entry.source, self._entry.repository, tag)
        except NotFound:
            return ()
        if index.kind is Kind.INDEX and not index.blobs:
            return index.children
        text = f"{self._entry.name}:{tag} is not an index of manifests, so it is not used as a list of referrers"
        _log.warning("no_referrers_index", extra={"source": self._entry.name, "text": text})
        return ()


def is_copied_as_image(entry: MirrorEntry, tag: str, is_selected: Callable[[str], bool]) -> bool:
    """Return whether a run mirrors a tag of attachments like other tags, under the same name on all targets.

    is_selected: returns whether the run mirrors a source reference, according to `--only`."""
    return entry.mirrors_attachment_tag(tag) and is_selected(entry.name + reference_suffix(tag))


def _list_attachment_tags(entry: MirrorEntry, work: Work) -> frozenset[str] | None:
    """Return the tags of attachments in a source repository, or None if its tags cannot be listed.

    Registries respond with 404 if a repository has no tags. If an image was found by its tag, the repository has tags,
    so a 404 then means that they are not listed."""
    try:
        tags = entry.source.tags(entry.repository, work)
        return frozenset(tag for tag in tags if isinstance(tag, str) and is_attachment_tag(tag))
    except (Cancelled, RateLimited):
        raise
    except (RemoteError, Refused) as error:
        if isinstance(error, NotFound) and entry.rules.digest is not None:
            return frozenset()
        if error.is_transient or (isinstance(error, Refused) and error.code != "too_many"):
            raise
        text = f"the tags of {entry.name} cannot be listed, so the tags of signatures are requested by name: {error}"
        _log.warning("source_not_listed", extra={"source": entry.name, "code": error.code, "text": text})
        return None


def _resolve_tags(
    entry: MirrorEntry, manifests: ManifestCache, tags: Sequence[str], read: bool, listed: bool, work: Work
) -> list[Descriptor | None]:
    """Return the descriptor of the manifest to which each tag refers, or None if the tag does not exist.

    read: whether to read the manifests, and keep them in `manifests`. listed: whether the source listed the tags.
    Raises NotFound if a listed tag does not exist, because it has just been deleted, or the source has lost it."""
    found: list[Descriptor | None] = []
    for tag in tags:
        known = manifests.find_tag(entry.source, entry.repository, tag)
        if known is not None and known.kind is not Kind.SCHEMA1:
            version: Version | None = Version(known.digest, known, media_type=known.media_type)
        else:
            version = _resolve_tag(entry, tag, read, work)
        if version is None and listed:
            raise NotFound(f"{entry.name}:{tag} is in the tag list of the source, but does not exist")
        manifest = version.manifest if version is not None else None
        if manifest is not None and manifest is not known:
            manifests.add(entry.source, entry.repository, manifest)
        # A tag that needs a transform is an image of an old registry, not a signature.
        if version is None or version.digest is None or version.transform is not None:
            found.append(None)
        else:
            found.append(Descriptor(version.digest, manifest.size if manifest else None, version.media_type))
    return found


def _resolve_tag(entry: MirrorEntry, tag: str, read: bool, work: Work) -> Version | None:
    """Return the version to which a tag refers, or None if it does not exist. read: whether to read the manifest."""
    try:
        if read:
            return entry.source.read(entry.repository, tag, work)
        (version,) = entry.source.resolve(entry.repository, [tag], work)
    except NotFound:
        return None
    if isinstance(version, NotFound):
        return None
    if isinstance(version, MirrorError):
        raise version
    return version
