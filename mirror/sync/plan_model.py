"""The data types of a plan: mirrors, source references, and one plan entry for each reference and target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Protocol

from mirror.errors import MirrorError
from mirror.oci.digest import Digest
from mirror.oci.platform import parse_platform
from mirror.oci.platform_filter import PlatformFilter
from mirror.oci.reference import ListedTag, Repository
from mirror.selection.attachment_rules import AttachmentRules
from mirror.selection.locations import MATCHED
from mirror.selection.repository_rules import RepositoryRules
from mirror.selection.tag_rules import SelectionSummary, TagRules
from mirror.selection.tag_templates import KEEP_TAG, TagTemplate
from mirror.signatures.policy import SignaturePolicy
from mirror.store import Source, Version
from mirror.sync.image_lock import LockedImage
from mirror.util.structs import Struct, replace


class TargetEntry(Struct, frozen=True):
    """A target repository of a mirror, and the store that contains it.

    exclusive: whether no other tool writes to the repository. If so, the digests that the state has recorded for its
    tags are used without a request to the target.
    tags: the template for the tags that images get in the repository. It does not apply to tags of attachments, which
    contain the digest of an image."""

    store: Source
    repository: Repository
    exclusive: bool = False
    tags: TagTemplate = KEEP_TAG

    def tag_of(self, reference: SourceReference) -> str:
        """Return the tag that an image gets in the repository, or the digest of an image that gets no tag.

        The tag is invalid if it is too long."""
        return self.tags.apply(reference.tag)


class MirrorEntry(Struct, frozen=True):
    """A mirror: a source repository, the rules that select its tags, and the target repositories.

    heads_first: whether digests are requested with HEAD before a manifest is read, because the source counts GET
    requests for manifests against a quota, but not HEAD requests.
    schema1: whether images with schema 1 manifests are allowed. converts_schema1: whether they are converted.
    foreign_layers: whether foreign layers are copied.
    platforms: the platforms to copy; None for all.
    signature_policy: the keys of which one must have signed each image; None if no signature is required.
    attachments: the rules for the attachments of images; None if they are not copied.
    wildcard: whether `repository` is a prefix, and all source repositories below the prefix are mirrored. In the target
    repositories, MATCHED is then replaced by the part of the source repository's name after the prefix.
    repository_rules: the rules that select repositories below the prefix of a wildcard.
    number: the index of the mirror in the configuration, counted from 0.
    lock_key: identifies the content of the image lock; empty without an image lock.
    locked: the images from the image lock, by repository and tag, which are copied instead of those that the rules
    select. None without an image lock.
    wildcard_name: the name of the wildcard from which this entry was expanded; empty if there is none."""

    source: Source
    repository: str
    rules: TagRules
    targets: tuple[TargetEntry, ...]
    heads_first: bool = False
    schema1: bool = True
    converts_schema1: bool = False
    foreign_layers: bool = False
    wildcard: bool = False
    repository_rules: RepositoryRules = RepositoryRules()
    platforms: PlatformFilter | None = None
    signature_policy: SignaturePolicy | None = None
    number: int = 0
    locked: Mapping[str, Mapping[str, LockedImage]] | None = None
    attachments: AttachmentRules | None = None
    lock_key: str = ""
    wildcard_name: str = ""

    @property
    def mirror_name(self) -> str:
        """The source of the mirror in the configuration, which may be a wildcard, in the form of `name`."""
        return self.wildcard_name or self.name

    @property
    def attachments_key(self) -> str:
        """The key under which the state records when the attachments of the mirror's images were checked.

        The key depends on the tags of attachments that are mirrored like the tags of images, because a check does not
        cover these attachments."""
        rules = self.attachments.key if self.attachments is not None else ""
        tags = self.lock_key or (self.rules.attachments_key if self.keeps_tags else "")
        return " ".join(part for part in (self.name, rules, tags) if part)

    @property
    def keeps_tags(self) -> bool:
        """Whether images have the same tags on all targets as at the source."""
        return all(target.tags == KEEP_TAG for target in self.targets)

    @property
    def name(self) -> str:
        """The source repository as `HOST/REPOSITORY`, or as `HOST/PREFIX/*` for a wildcard."""
        if self.wildcard:
            return str(Repository(self.source.host, f"{self.repository}/*" if self.repository else "*"))
        return str(Repository(self.source.host, self.repository))

    @property
    def prefix(self) -> str:
        """The beginning of the names that a wildcard matches: `repository` and a slash, or an empty string."""
        return f"{self.repository}/" if self.repository else ""

    def mirrors_attachment_tag(self, tag: str) -> bool:
        """Return whether the mirror copies a tag of attachments like the tag of an image, under the same name.

        Return False if the selection depends on more than the name, because `newest` and `min-age` may leave the tag
        out although they select its image."""
        if self.locked is not None:
            is_mirrored = tag in self.locked.get(self.repository, {})
        else:
            decided_by_name = not self.rules.needs_digests and self.rules.newest is None
            is_mirrored = decided_by_name and self.rules.rejecting_rule(tag) is None
        return is_mirrored and self.keeps_tags

    def has_repository(self, repository: str) -> bool:
        """Return whether the mirror copies a repository or, if it is a wildcard, may match the repository."""
        if not self.wildcard:
            return repository == self.repository
        return bool(repository) and repository.startswith(self.prefix)

    def may_read(self, source: str) -> bool:
        """Return whether a repository, given as `HOST/REPOSITORY`, is a source repository of the mirror."""
        return source.startswith(self.name[:-1]) if self.wildcard else source == self.name

    def expand_wildcard(self, repository: str) -> MirrorEntry:
        """Return the mirror entry for a single source repository that this wildcard matches."""
        matched = repository.removeprefix(self.prefix)
        targets = (
            replace(
                target, repository=Repository(target.repository.host, target.repository.path.replace(MATCHED, matched))
            )
            for target in self.targets
        )
        return replace(
            self, repository=repository, targets=tuple(targets), wildcard=False, wildcard_name=self.mirror_name
        )


class SourceReference(Struct, eq=False):
    """A tag or digest that a mirror selects at its source. A run resolves it at most once, and reads its image once.

    identifier: the tag or digest that is requested from the source.
    tag: the tag, or the digest of an image without a tag. `TargetEntry.tag_of` returns the tag on a target.
    version: the result of resolving the reference: a version or an error. None until it is resolved.
    users: the number of targets that may still need the image."""

    entry: MirrorEntry
    identifier: str
    tag: str
    version: Version | MirrorError | None = None
    users: int = 0

    @property
    def name(self) -> str:
        """The reference at the source as `HOST/REPOSITORY:TAG`, or `HOST/REPOSITORY@DIGEST`."""
        return self.entry.name + reference_suffix(self.tag)

    @property
    def is_pinned(self) -> bool:
        """Whether the configuration or an image lock sets the digest that the tag gets on the targets."""
        return self.identifier != self.tag


class Action(Enum):
    """The action that a run takes for one reference on one target."""

    SKIP = "skip"  # the target has the image already
    COPY = "copy"
    FAIL = "fail"  # the reference is in conflict, or could not be compared


class PlanEntry(Struct, frozen=True, eq=False):
    """The planned action for one source reference on one target.

    old_digest: the digest to which the tag on the target refers now; None if it is unknown or there is no tag.
    may_have_blobs: whether the target repository may already contain blobs.
    recheck: whether the target has the image already, but its attachments are due to be requested from the source.
    incomplete: whether the tag has the digest of the source's index, but the target lacks manifests that the mirror
    copies, because an earlier run left them out.
    damaged: whether the target has the tag but cannot return its manifest, probably because the stored manifest is
    damaged. A push might fail to replace a damaged manifest.
    error: set if the action is FAIL."""

    reference: SourceReference
    target: TargetEntry
    action: Action
    old_digest: Digest | None = None
    may_have_blobs: bool = True
    damaged: bool = False
    error: MirrorError | None = None
    recheck: bool = False
    incomplete: bool = False

    @property
    def name(self) -> str:
        """The reference on the target as `HOST/REPOSITORY:TAG`, or `HOST/REPOSITORY@DIGEST`."""
        return str(self.target.repository) + reference_suffix(self.tag)

    @property
    def tag(self) -> str:
        """The tag that the image gets on the target, or its digest if it gets no tag."""
        return self.target.tag_of(self.reference)


class RepositoryFilter(Protocol):
    """Selects the repositories and references that a run mirrors, according to `--only` and `--shard`."""

    def is_selected(self, reference: str) -> bool:
        """Return whether the run mirrors a source reference."""
        ...

    def excludes_any(self, references: Iterable[str]) -> bool:
        """Return whether the run excludes any of the given source references, which need not exist.

        If the run excludes no references, `references` is not iterated."""
        ...

    def may_select(self, repository: str) -> bool:
        """Return whether the run may mirror any reference in a source repository."""
        ...

    def mark_unlisted(self, repository: str) -> None:
        """Record that the tags of a repository, or the repositories that a wildcard matches, could not be listed.

        `--only` patterns for these repositories are then not reported as unused.
        repository: `HOST/REPOSITORY`, or `HOST/PREFIX/*` for a wildcard."""
        ...


class PlanReceiver(Protocol):
    """Receives plan entries while planning continues. The methods are called on the event loop and must not block."""

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Receive the plan entry for one reference on one target."""
        ...

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a mirror cannot be planned.

        Its tags or repositories could not be listed, no tag is selected, or it conflicts with another mirror."""
        ...

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a source lists a tag or repository whose name is invalid."""
        ...

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Record the digest to which a tag on a target refers. Only a sync stores this digest in the state."""
        ...

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Record a summary of the references that a mirror selects."""
        ...

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Record the number of repositories that a wildcard selects. rejected: the number that each rule leaves out."""
        ...


def reference_suffix(reference: str) -> str:
    """Return the part of an image name after the repository: `:TAG` for a tag, or `@DIGEST` for a digest."""
    return ("@" if ":" in reference else ":") + reference


def listed_version(tag: str) -> Version | None:
    """Return a Version with the digest that a tag list contained for a tag, or None if it contained no digest."""
    return Version(tag.digest) if isinstance(tag, ListedTag) else None


def hide_digest(version: Version, wanted: PlatformFilter | None) -> Version:
    """Remove the digest from a version if the selection of platforms may change the digest on targets.

    The digest at the source is kept as `source_id`."""
    if wanted is None or version.transform is not None or version.digest is None:
        return version
    media_type = version.manifest.media_type if version.manifest is not None else version.media_type
    digest = version.digest if wanted.keeps_digest(media_type) else None
    return replace(version, digest=digest, source_id=version.digest)


def selected_platforms(entry: MirrorEntry, version: Version | MirrorError | None) -> PlatformFilter | None:
    """Return the platforms to copy, which the mirror or a sparse image at the source determines, or None for all."""
    if entry.platforms is None and isinstance(version, Version) and version.platforms:
        return PlatformFilter.of(map(parse_platform, version.platforms), sparse=True)
    return entry.platforms


def wanted_platforms(entry: MirrorEntry, version: Version | None = None) -> str:
    """Return the platforms of a sparse copy, separated by commas, or an empty string if the copy is not sparse."""
    selected = selected_platforms(entry, version)
    return ",".join(map(str, selected.platforms)) if selected is not None and selected.sparse else ""


def source_digest(version: Version | MirrorError | None) -> Digest | None:
    """Return the digest of a version at the source, which may differ from the digest on targets.

    Return None for an error, and for an image that a transform converts."""
    if not isinstance(version, Version) or version.transform is not None:
        return None
    return Digest(version.source_id) if ":" in version.source_id else version.digest
