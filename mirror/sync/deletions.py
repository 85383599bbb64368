"""Deletes one tag or manifest from a target. In a prune, only this module calls `Target.delete`.

Source: distribution-spec v1.1.1, "Content Management". Many registries reject the deletion of a tag by its name. The
deletion of a manifest by its digest removes all tags that refer to it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mirror.errors import MirrorError, NotFound, Refused, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.state.ownership import OwnershipRecords
from mirror.store import Target, Version
from mirror.sync.plan_model import reference_suffix
from mirror.sync.planner_queries import resolve_all
from mirror.sync.prune_plan import PruneRefused
from mirror.util.cancellation import Work

_NOT_SUPPORTED = frozenset({400, 405, 501})  # statuses of registries that do not support a deletion
_RESTORE_TIMEOUT = 2.0  # seconds after a signal in which a manifest can be restored
_ENABLE = (
    "allow deletions in the configuration of the registry (docker-registry: REGISTRY_STORAGE_DELETE_ENABLED=true), or "
    "delete the tags with the tools of the registry"
)


class TagDeletionRejected(RemoteError):
    """The error of a registry that does not support the deletion of a tag by its name."""


class DeletionsRejected(RemoteError):
    """The error of a registry that does not support the deletion of a manifest by its digest."""

    code = "prune_refused"


class Deletions:
    """Deletes tags and manifests from one repository. All methods block. They raise LocalError and store errors."""

    def __init__(self, store: Target, path: str, records: OwnershipRecords) -> None:
        self._store = store
        self._path = path
        self._name = str(Repository(store.host, path))
        self._records = records

    def delete_tag(self, tag: str, digest: Digest, work: Work, *, others: Collection[str] | None = None) -> bool:
        """Delete a tag by its name. Return False if the tag no longer existed.

        digest: the digest to which the tag must refer. others: None if nothing else uses the manifest. Otherwise, the
        other tags of the manifest, if any: if the registry deletes the manifest with the tag, the manifest and these
        tags are restored. Raises PruneRefused if the tag has another digest, TagDeletionRejected, and Refused
        (target_lied)."""
        if not self._check_tag(tag, digest, work):
            return False
        if others is None:
            self._send_tag_deletion(tag, digest, work)
            return True
        manifest = self._store.manifest(self._path, digest, work)
        # After a signal or an error, the registry may have deleted the manifest, too.
        with work.with_grace_period(_RESTORE_TIMEOUT) as restoring:
            try:
                self._send_tag_deletion(tag, digest, restoring)
            finally:
                self._check_manifest(manifest, others, restoring)
        return True

    def _send_tag_deletion(self, tag: str, digest: Digest, work: Work) -> None:
        """Delete a tag by its name, and check that it is gone. Raises TagDeletionRejected."""
        self._records.delete_hint(self._name, tag)
        try:
            self._store.delete(self._path, tag, work)
        except RemoteError as error:
            if error.status not in _NOT_SUPPORTED:
                raise
            raise TagDeletionRejected(error.what, status=error.status) from error
        (version,) = self._resolve([tag], work)
        if isinstance(version, Version) and version.digest == digest:
            raise TagDeletionRejected(f"{self._name}:{tag} still exists after the registry accepted its deletion")

    def _check_tag(self, tag: str, digest: Digest, work: Work) -> bool:
        """Return whether a tag exists. Raises PruneRefused if the tag has another digest than `digest`."""
        (version,) = self._resolve([tag], work)
        if isinstance(version, NotFound):
            return False
        if isinstance(version, MirrorError):
            raise version
        if version.digest != digest:
            raise PruneRefused(f"someone else changed the tag: it refers to {version.digest} now")
        return True

    def _check_manifest(self, manifest: Manifest, tags: Collection[str], work: Work) -> None:
        """Check that a manifest was not deleted together with a tag. If it was, restore it with its other tags.

        Raises Refused (target_lied), and the error of the request if it is unknown whether the manifest exists."""
        (version,) = self._resolve([manifest.digest], work)
        if isinstance(version, Version):
            return
        if not isinstance(version, NotFound):
            raise version
        errors: dict[str, MirrorError] = {}
        for reference in tags or (manifest.digest,):
            try:
                self._store.put_manifest(self._path, reference, manifest, work)
            except MirrorError as error:
                errors[f"{self._name}{reference_suffix(reference)}"] = error
        what = f"{self._name} deleted the manifest {manifest.digest} together with one of its tags"
        hint = "use the tools of this registry to delete its tags"
        if errors:
            names, first = " and ".join(errors), next(iter(errors.values()))
            lost = f"{what}, and {names} could not be restored: {first.what}"
            raise Refused(lost, hint=f"push {names} again; {hint}", code="target_lied") from first
        raise Refused(f"{what}, although it is still in use; the manifest was restored", hint=hint, code="target_lied")

    def delete_manifest(self, digest: Digest, tags: Sequence[str], work: Work) -> bool:
        """Delete a manifest by its digest, together with all its tags. Return False if the manifest no longer existed.

        tags: all tags of the manifest. Nothing else may use the manifest. Raises PruneRefused if one of the tags has
        another digest, and DeletionsRejected."""
        exists = [self._check_tag(tag, digest, work) for tag in tags]
        (version,) = self._resolve([digest], work)
        if isinstance(version, NotFound) and not any(exists):
            return False
        for tag in tags:
            self._records.delete_hint(self._name, tag)
        try:
            self._store.delete(self._path, digest, work)
        except RemoteError as error:
            if error.status not in _NOT_SUPPORTED:
                raise
            raise DeletionsRejected(error.what, hint=_ENABLE, status=error.status) from error
        if not self._store.on_disk:  # a store on disk keeps the file until `delete_unused`
            for found in self._resolve((*tags, digest), work):
                if isinstance(found, Version) and found.digest == digest:
                    raise RemoteError("the manifest still exists, although the registry accepted its deletion")
        return True

    def _resolve(self, references: Sequence[str], work: Work) -> list[Version | MirrorError]:
        """Resolve references in the repository now. Return a version or an error for each."""
        return resolve_all(self._store, self._path, references, work)
