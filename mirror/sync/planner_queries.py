"""The planner's requests to stores, and the hints that make some of these requests unnecessary.

Functions that query a store or the state block; they run on worker threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, TypeGuard

from mirror.errors import AuthError, Cancelled, MirrorError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.platform_filter import PlatformFilter
from mirror.oci.reference import Repository
from mirror.store import DAMAGED, Source, Version
from mirror.sync.plan_hints import PlanHints
from mirror.sync.plan_model import MirrorEntry, SourceReference, TargetEntry, hide_digest
from mirror.util.cancellation import Work
from mirror.util.structs import Struct, replace

_log = logging.getLogger("mirror.plan")

KeepManifest: TypeAlias = Callable[[Source, str, Manifest], object]
"""A callback that stores a manifest for later use. Arguments: the store, the repository, and the manifest."""

KeepTags: TypeAlias = Callable[[MirrorEntry, Iterable[str]], object]
"""A callback that keeps the tags of attachments in a tag list. Arguments: a mirror, and the tag list of its source."""

DigestOrError: TypeAlias = Digest | MirrorError | None
"""The result of looking up a tag on a target: its digest, None if it may be written without a check, or an error."""


class RepositorySelection(Struct, frozen=True):
    """The result of selecting repositories under a wildcard.

    selected: the names of the selected repositories, sorted. rejected: the number of repositories that each rule leaves
    out. errors: one error for each invalid name."""

    selected: list[str]
    rejected: Mapping[str, int]
    errors: list[MirrorError]


def select_repositories(entry: MirrorEntry, work: Work) -> RepositorySelection:
    """List the repositories that a wildcard matches, and apply its rules to them.

    Raises the same errors as `Source.repositories`."""
    names, errors = _split_names(entry.source.repositories(entry.prefix, work))
    selected, rejected = entry.repository_rules.select(names, entry.prefix)
    return RepositorySelection(selected, rejected, errors)


def list_source_tags(entry: MirrorEntry, work: Work) -> tuple[list[str], list[MirrorError]]:
    """Return the sorted tags of a source repository, and an error for each invalid name.

    Raises the same errors as `Source.tags`, with a hint added to NotFound."""
    try:
        names = list(entry.source.tags(entry.repository, work))
    except NotFound as error:
        hint = "check the repository's name and the credentials; some registries respond with 404 if there are no tags"
        what = f"{entry.name} was not found: {error.what}"
        raise NotFound(what, hint=error.hint or hint, status=404, protocol=error.protocol) from error
    if not names and not entry.rules.allow_empty:
        text = f"the source {entry.name} lists no tags"
        _log.warning("no_tags", extra={"source": entry.name, "text": text})
    return _split_names(names)


def list_target_tags(store: Source, repository: str, work: Work) -> set[str] | None:
    """Return the tags that a target lists, or an empty set if the repository does not exist.

    Return None if the list cannot be read, so that each tag must be requested by name. Raises RateLimited, LocalError,
    Cancelled, and Refused, except if the list is too large (`too_many`)."""
    try:
        return {name for name in store.tags(repository, work) if isinstance(name, str)}
    except NotFound:
        return set()
    except RateLimited:
        raise
    except (RemoteError, Refused) as error:
        if isinstance(error, Refused) and error.code != "too_many":
            raise
        target = f"{store.host}/{repository}"
        text = f"the tags of {target} cannot be listed, so each tag is requested by name: {error}"
        _log.warning("target_not_listed", extra={"target": target, "code": error.code, "text": text})
        return None


def _split_names(names: Iterable[str | MirrorError]) -> tuple[list[str], list[MirrorError]]:
    """Split the result of a listing into the valid names, sorted, and the errors for invalid names."""
    valid, errors = [], []
    for name in names:
        if isinstance(name, MirrorError):
            errors.append(name)
        else:
            valid.append(name)
    return sorted(valid), errors


def resolve_all(
    store: Source,
    repository: str,
    references: Sequence[str],
    work: Work,
    keep_manifest: KeepManifest | None = None,
    *,
    raise_common_error: bool = False,
) -> list[Version | MirrorError]:
    """Resolve references in a store, and return a version or an error for each of them, in the same order.

    An error that concerns all references is returned for each reference that has not been resolved yet or, if
    `raise_common_error` is set, raised. Manifests that the store had to read are passed to `keep_manifest`. They are
    not part of the result, because all of them together may need too much memory. Raises Cancelled."""
    versions: list[Version | MirrorError] = []
    try:
        for version in store.resolve(repository, references, work):
            if isinstance(version, Version) and version.manifest is not None:
                if keep_manifest is not None:
                    keep_manifest(store, repository, version.manifest)
                versions.append(replace(version, manifest=None))
            else:
                versions.append(version)
    except Cancelled:
        raise
    except MirrorError as error:
        if raise_common_error:
            raise
        versions += [error] * (len(references) - len(versions))
    return versions


def resolve_references(
    entry: MirrorEntry,
    references: Sequence[SourceReference],
    work: Work,
    keep_manifest: KeepManifest | None,
    *,
    raise_common_error: bool = False,
) -> list[Version | MirrorError]:
    """Resolve references at the source of their entry, as `resolve_all` does.

    The versions of locked images come from the image lock, without a request to the source."""
    if entry.locked is not None:
        images = entry.locked[entry.repository]
        found = [images[reference.tag] for reference in references]
        return [Version(image.digest, media_type=image.media_type) for image in found]
    identifiers = [reference.identifier for reference in references]
    return resolve_all(
        entry.source, entry.repository, identifiers, work, keep_manifest, raise_common_error=raise_common_error
    )


def digest_or_error(version: Version | MirrorError, *, immutable: bool) -> DigestOrError:
    """Convert the result of looking up a tag on a target: to its digest, None if it may be overwritten, or an error.

    A missing tag may be overwritten, and so may a tag whose manifest may be damaged, unless the tag is immutable. For
    example, if a registry's file for a tag is empty, it responds with 500 until the tag is pushed again."""
    if isinstance(version, Version):
        return version.digest
    overwritable = isinstance(version, NotFound) or (may_be_damaged(version) and not immutable)
    return None if overwritable else version


def may_be_damaged(version: Version | MirrorError) -> TypeGuard[MirrorError]:
    """Return whether the result of a lookup is an error that a damaged manifest on the target may cause.

    A push may repair a damaged manifest."""
    if isinstance(version, Refused):
        return version.code in DAMAGED
    if not isinstance(version, MirrorError) or isinstance(version, NotFound | AuthError | RateLimited):
        return False
    return version.status is not None


def read_target_tags(hints: PlanHints, repository: str, references: Sequence[str]) -> dict[str, Digest]:
    """Return the digests that the state has recorded for tags on a target, by tag."""
    digests = {reference: hints.target_tag(repository, reference) for reference in references}
    return {reference: digest for reference, digest in digests.items() if digest is not None}


def read_equal_tags(
    hints: PlanHints, entry: MirrorEntry, target: TargetEntry, references: Sequence[SourceReference]
) -> dict[str, Digest]:
    """Return the immutable tags that had the same digest at the source and on a target in an earlier run.

    The result contains the digests by tag. Tags that a later run saw on the target with a different digest are left
    out."""
    equal = {}
    for reference in references:
        tag = target.tag_of(reference)
        if entry.rules.is_immutable(tag):
            digest = hints.target_tag(str(target.repository), tag)
            if digest is not None and digest == hints.source_tag(equality_key(reference, target.repository), tag):
                equal[tag] = digest
    return equal


def equality_key(reference: SourceReference, repository: Repository) -> str:
    """Return the key under which the state stores the digests that were equal at a source and on a target.

    Each target has its own key, because one target may be equal to the source while another target differs. Each digest
    that the configuration or an image lock sets has its own key, because the target may differ from the next digest
    that is set, or from the tag at the source. Different platforms also have different keys, because they may result in
    different digests."""
    entry = reference.entry
    pin = f"@{reference.identifier}" if reference.is_pinned else ""
    platforms = f" {entry.platforms.key}" if entry.platforms is not None else ""
    return f"{entry.name}{pin} {repository}{platforms}"


def add_earlier_result(
    hints: PlanHints, version: Version | MirrorError, wanted: PlatformFilter | None, *, use_hints: bool
) -> Version | MirrorError:
    """Add the recorded digest to a version whose digest a transform or the selection of platforms changes.

    wanted: the platforms of the mirror. Errors, and versions of images that are not changed, are returned unchanged.
    `other_platform` is set only if `use_hints` is set, because a wrong record would not be noticed later."""
    if isinstance(version, MirrorError):
        return version
    version = hide_digest(version, wanted)
    if not version.is_unknown:
        return version
    key = version.transform.identity if version.transform is not None else version.source_id
    if wanted is not None:
        key = wanted.result_key(key)
        reason = hints.other_platform(key) if use_hints else None
        if reason is not None:
            return replace(version, other_platform=reason)
    return replace(version, digest=hints.transform_digest(key))
