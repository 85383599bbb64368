"""A registry with the v2 protocol, as a Source and a Target.

Source of the rules: distribution-spec v1.1.1. Deviations of real registries are noted where they matter;
docs/compatibility.md lists the tested registries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from urllib.parse import quote

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError, printable
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.oci.reference import is_path, is_tag
from mirror.registry.auth.authorizer import CATALOG, Scope, pull_scopes, push_scopes
from mirror.registry.blobs import BlobStream, blob_size, open_blob
from mirror.registry.listings import Paging, list_names
from mirror.registry.manifests import (
    content_digest,
    manifest_name,
    read_manifest,
    read_referrers,
    resolve_reference,
)
from mirror.registry.push_errors import SCHEMA1_HINT, classify_mount_error, explain_manifest_error, may_be_stored
from mirror.registry.session import Response, Session
from mirror.registry.upload_capabilities import UploadCapabilities
from mirror.registry.uploads import RegistryUpload
from mirror.store import ExpectedImage, Mount, Version
from mirror.util.cancellation import Work

# After a stop, the response to a POST is still awaited: without it the upload session could not be deleted.
RESPONSE_TIMEOUT = 1.0  # seconds


class RegistryV2:
    """One registry host. Thread-safe; closes its session when closed.

    as_target: reads request the scopes `pull,push`, because registries that hide repositories (Quay) answer 401 to
    `pull` for a repository that does not exist yet."""

    partial = False
    needs_all_images = False
    incomplete = False
    on_disk = False

    def __init__(self, session: Session, *, as_target: bool = False) -> None:
        self._session = session
        self._as_target = as_target
        self._read_scopes = push_scopes if as_target else pull_scopes
        self.host = session.settings.host
        self._capabilities = UploadCapabilities()
        self._paging = {"repositories": Paging(), "tags": Paging()}

    def as_target(self) -> RegistryV2:
        """Return the same registry, with the same session, for use as a target."""
        return RegistryV2(self._session, as_target=True)

    def close(self) -> None:
        """Close the session."""
        self._session.close()

    @property
    def speaks_v2(self) -> bool:
        """Whether a response of the host named the API version."""
        return self._session.speaks_v2

    def ping(self, work: Work) -> None:
        """Request `/v2/`, so that `speaks_v2` is known; any status is accepted.

        Raises NetworkError, Refused, Cancelled, RemoteError (tls_error)."""
        with suppress(AuthError):
            self._session.call("GET", "/v2/", work, kind="ping", expect=range(100, 600))

    def note_exhausted(self, error: MirrorError) -> None:
        """Note an error that remained after all retries of a transfer; the session does not see those."""
        self._session.note_exhausted(error)

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the repositories of the catalog under `prefix`; a Refused error for an invalid name."""
        try:
            for name in self._list_names("/v2/_catalog", "repositories", CATALOG, work):
                if not is_path(name):
                    yield _invalid_name_error(f"{self.host} lists a repository", name)
                elif name.startswith(prefix):
                    yield name
        except NotFound as error:
            error.hint = error.hint or "some registries cannot list repositories: write one mirror for each repository"
            raise

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the tags of a repository; a Refused error for an invalid name. Raises NotFound, AuthError."""
        scopes = self._read_scopes(repository)
        try:
            for name in self._list_names(f"/v2/{repository}/tags/list", "tags", scopes[0], work):
                yield name if is_tag(name) else _invalid_name_error(f"{self.host}/{repository} lists a tag", name)
        except AuthError:
            if self._as_target:
                self._session.authorizer.allow_one_more(scopes)  # a target does not need the list
            raise

    def _list_names(self, path: str, key: str, scope: Scope, work: Work) -> Iterable[str]:
        """Yield the names of a list, which are not checked. key: the key of the list in a page."""
        return list_names(self._session, path, key, scope, work, self._paging[key])

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        """Yield the version of each reference, or the error that concerns it, in the same order."""
        failed_before = False
        for reference in references:
            work.stop.raise_if_requested()
            try:
                yield resolve_reference(self._session, repository, reference, self._read_scopes(repository), work)
                failed_before = False
            except NetworkError as error:
                if failed_before:
                    raise  # twice in a row: the error does not concern this reference alone
                failed_before = True
                yield error

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Return the version of a reference with its manifest."""
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest, media_type=manifest.media_type)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Return the manifest of a tag or digest, verified. Raises NotFound, Refused."""
        return read_manifest(self._session, repository, reference, self._read_scopes(repository), work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobStream:
        """Open a blob at `offset`, bytes; use with `with`. The caller verifies the digest. Raises NotFound."""
        return open_blob(self._session, repository, blob, self._read_scopes(repository), work, offset=offset)

    def leaves_out(self, blob: Descriptor) -> bool:
        """Return False: a registry leaves out no blob."""
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """Return the referrers of a manifest, from the referrers API; none if the registry does not have it."""
        return read_referrers(self._session, repository, digest, self._read_scopes(repository), work)

    # ---- writing

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        """Do nothing: a registry needs no preparation."""

    def finish(self, *, whole: bool, work: Work) -> None:
        """Do nothing: each tag is visible as soon as it is put."""

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Return whether the repository has a blob. Raises Refused (size_mismatch) if it has another size."""
        size = blob_size(self._session, repository, blob, self._read_scopes(repository), work)
        if size is None or blob.size is None or size == blob.size:
            return size is not None
        raise Refused(
            f"{self.host}/{repository} has {size} bytes for {blob.digest}, whose size is {blob.size} bytes",
            hint="the storage of the target is damaged: run `mirror sync --repair CONFIG`",
            code="size_mismatch",
        )

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | RegistryUpload:
        """Mount a blob from another repository. If the registry opens an upload session instead, return that."""
        query = f"mount={quote(blob.digest, safe=':')}&from={quote(from_repository, safe='/')}"
        try:
            with work.with_grace_period(RESPONSE_TIMEOUT) as waiting:
                response = self._session.call(
                    "POST",
                    f"/v2/{repository}/blobs/uploads/?{query}",
                    waiting.without_retries(),
                    kind="mount",
                    scopes=(*push_scopes(repository), *pull_scopes(from_repository)),
                    expect={201, 202},
                )
        except RemoteError as error:
            work.stop.raise_if_requested()
            if isinstance(error, RateLimited) or (error.retryable and not error.retries_exhausted):
                raise
            return classify_mount_error(error)
        if response.status == 202:
            return self._create_upload(repository, blob, response)
        reported = content_digest(response)
        if reported == blob.digest or (reported is None and self.has_blob(repository, blob, work)):
            return Mount.MOUNTED
        return Mount.ABSENT

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> RegistryUpload:
        """Open an upload session."""
        try:
            with work.with_grace_period(RESPONSE_TIMEOUT) as waiting:
                response = self._session.call(
                    "POST",
                    f"/v2/{repository}/blobs/uploads/",
                    waiting,
                    kind="upload",
                    scopes=push_scopes(repository),
                    expect={202},
                )
        except NotFound as error:
            if not self.speaks_v2:
                error.hint = error.hint or "a target must support v2"
            raise
        return self._create_upload(repository, blob, response)

    def _create_upload(self, repository: str, blob: Descriptor, response: Response) -> RegistryUpload:
        """Return the upload session that a response opens."""
        return RegistryUpload(self._session, self._capabilities, repository, blob, push_scopes(repository), response)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> None:
        """Put a manifest under a tag or its digest, and check that the registry stored it.

        Raises Refused (target_lied, ...), RemoteError."""
        what = manifest_name(self._session, repository, reference)
        try:
            response = self._session.call(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                work,
                kind="manifest",
                scopes=push_scopes(repository),
                headers=(("Content-Type", manifest.media_type),),
                body=manifest.body,
                expect={200, 201, 202},
            )
        except RemoteError as error:
            refusal = explain_manifest_error(error, what, manifest)
            # If the response to a PUT is lost, the PUT is repeated, and a registry with immutable tags rejects it.
            if may_be_stored(refusal) and self._has_manifest(repository, reference, manifest, work):
                return
            raise refusal from error
        reported = content_digest(response)
        if reported is not None and reported.algorithm == manifest.digest.algorithm and reported != manifest.digest:
            hint = SCHEMA1_HINT if manifest.kind is Kind.SCHEMA1 else ""
            text = f"{what} has the digest {manifest.digest}, but the target stored {reported}"
            raise Refused(text, hint=hint, code="target_lied")
        # Some registries answer 200 or 202 for a stored manifest; some proxies answer 200 to every request.
        if response.status != 201 and not self._has_manifest(repository, reference, manifest, work):
            failure = self._session.error_for(response, "PUT", "manifest").with_subject(what)
            failure.hint = failure.hint or "the target acknowledged the manifest, but did not store it"
            raise failure

    def _has_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> bool:
        """Return whether `reference` now names `manifest`. Raises retryable errors and rate limits."""
        try:
            found = resolve_reference(self._session, repository, reference, self._read_scopes(repository), work)
        except RemoteError as error:
            work.stop.raise_if_requested()
            found = error
        if isinstance(found, MirrorError) and (found.retryable or isinstance(found, RateLimited)):
            raise found
        return isinstance(found, Version) and found.digest == manifest.digest

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Delete a tag or a manifest. A reference that does not exist is not an error."""
        self._session.call(
            "DELETE",
            f"/v2/{repository}/manifests/{reference}",
            work,
            kind="manifest",
            scopes=(Scope(repository, ("delete",)),),
            expect={200, 202, 204, 404},
        )


def _invalid_name_error(subject: str, name: str) -> Refused:
    """Return the error for an invalid name in a list."""
    return Refused(f"{subject} with an invalid name: {printable(name, 80)!r}", code="ref_invalid")
