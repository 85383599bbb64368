"""A client for registries with the v2 API. It implements the protocols `Source` and `Target`.

The client follows distribution-spec v1.1.1. Comments state where real registries deviate from it;
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
from mirror.registry.auth.authorizer import Scope, pull_scopes, push_scopes
from mirror.registry.blobs import BlobStream, blob_size, open_blob
from mirror.registry.catalog import Catalog, V2Catalog
from mirror.registry.foreign_layers import open_foreign_layer
from mirror.registry.listings import Paging, list_names
from mirror.registry.manifests import (
    content_digest,
    manifest_name,
    read_manifest,
    resolve_reference,
)
from mirror.registry.missing_repositories import MissingRepositories
from mirror.registry.push_errors import SCHEMA1_HINT, classify_mount_error, explain_manifest_error, may_be_stored
from mirror.registry.referrers import ReferrersApi
from mirror.registry.session import Response, Session
from mirror.registry.upload_capabilities import UploadCapabilities, is_known_to_reject_chunks
from mirror.registry.uploads import RegistryUpload
from mirror.store import ExpectedImage, LeftOut, Mount, Version
from mirror.util.cancellation import Work

# How long a POST that opens an upload session may continue after a stop request. The response contains the URL that is
# needed to delete the session.
RESPONSE_TIMEOUT = 1.0  # seconds


class RegistryV2:
    """A client for one registry, used as a source or a target of copies. Thread-safe.

    If the registry is a target (`as_target`), tokens for reading are requested with the actions `pull` and `push`. With
    `pull` alone, registries that hide repositories (such as Quay) respond with 401 if a repository does not exist yet.
    missing: creates repositories that a target lacks, if the configuration allows that."""

    partial = False
    needs_all_images = False
    incomplete = False
    on_disk = False

    def __init__(
        self,
        session: Session,
        *,
        as_target: bool = False,
        catalog: Catalog | None = None,
        missing: MissingRepositories | None = None,
        referrers_api: ReferrersApi | None = None,
    ) -> None:
        """Create a client. If `catalog` is None, repositories are listed with the v2 API."""
        self._session = session
        self._catalog = catalog or V2Catalog(session)
        self._missing = missing or MissingRepositories(session.settings.host)
        self._referrers_api = referrers_api or ReferrersApi(session)
        self._as_target = as_target
        self._read_scopes = push_scopes if as_target else pull_scopes
        self.host = session.settings.host
        self._capabilities = UploadCapabilities(rejects_chunks=is_known_to_reject_chunks(self.host))
        self._paging = Paging()

    def as_target(self) -> RegistryV2:
        """Return a client that uses the same session and treats the registry as a target."""
        return RegistryV2(
            self._session,
            as_target=True,
            catalog=self._catalog,
            missing=self._missing,
            referrers_api=self._referrers_api,
        )

    def close(self) -> None:
        """Close the HTTP session."""
        self._session.close()

    @property
    def speaks_v2(self) -> bool:
        """Whether the host has sent a response header that states the v2 API version."""
        return self._session.speaks_v2

    def ping(self, work: Work) -> None:
        """Send a GET request to `/v2/` to find out whether the host supports v2. Any response status is accepted.

        If the response states the v2 API version, `speaks_v2` is true afterwards. Raises NetworkError or RemoteError
        (tls_error) if there is no response, and Refused if the response is unsafe."""
        with suppress(AuthError):
            self._session.call("GET", "/v2/", work, kind="ping", expect=range(100, 600))

    def mark_down_if_unreachable(self, error: MirrorError) -> None:
        """Mark the host as down if a blob transfer failed after all its retries because the host is unavailable.

        `error` is the last error of the transfer. The host is unavailable if it did not respond or still limits
        requests. The caller reports the error, because the session does not retry blob transfers itself."""
        self._session.mark_down_if_unreachable(error)

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the repositories in the registry's catalog whose names begin with `prefix`.

        For an invalid name, a Refused error is yielded instead. Raises NotFound if the registry has no catalog."""
        try:
            for name in self._catalog.list_repositories(prefix, work):
                if not is_path(name):
                    yield _invalid_name_error(f"{self.host} lists a repository", name)
                elif name.startswith(prefix):
                    yield name
        except NotFound as error:
            error.hint = error.hint or "the registry may have no catalog: configure one mirror for each repository"
            raise

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the tags of a repository. For an invalid tag, yield a Refused error instead.

        Raises NotFound if the repository does not exist, and AuthError if access is denied."""
        scopes = self._read_scopes(repository)
        try:
            path = f"/v2/{repository}/tags/list"
            for name in list_names(self._session, path, "tags", scopes[0], work, self._paging):
                self._missing.record_existing(repository)
                yield name if is_tag(name) else _invalid_name_error(f"{self.host}/{repository} lists a tag", name)
        except AuthError:
            # Images can be copied without the list, unless the registry has refused everything so far.
            self._session.authorizer.allow_one_more_request(scopes, only_if_accepted=not self._as_target)
            raise

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        """Yield the version of each reference, in the same order, or the error if a reference cannot be resolved.

        Raises NetworkError if two consecutive references fail with a NetworkError, and any error that concerns more
        than one reference."""
        failed_before = False
        for reference in references:
            work.stop.raise_if_requested()
            try:
                yield resolve_reference(self._session, repository, reference, self._read_scopes(repository), work)
                failed_before = False
            except NetworkError as error:
                if failed_before:
                    raise  # two failures in a row: the host has a problem, not this reference
                failed_before = True
                yield error

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Return the version that a tag or digest refers to, including its manifest."""
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest, media_type=manifest.media_type)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Fetch the manifest that a tag or digest refers to, and verify its digest.

        Raises NotFound if it does not exist, Refused if it is invalid."""
        return read_manifest(self._session, repository, reference, self._read_scopes(repository), work)

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobStream:
        """Open a blob for reading, starting at byte `offset`. Use the result in a `with` block.

        The caller verifies the digest. Raises NotFound if the registry does not have the blob. A foreign layer that a
        source lacks is read from the URLs in its descriptor."""
        try:
            return open_blob(self._session, repository, blob, self._read_scopes(repository), work, offset=offset)
        except NotFound as error:
            if self._as_target or not blob.foreign:
                raise
            return open_foreign_layer(self._session, repository, blob, error, work, offset=offset)

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return False, because a registry is expected to have every blob of its images."""
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        """Return the referrers of a manifest, or None if its repository does not have the referrers API."""
        return self._referrers_api.read_list(repository, digest, self._read_scopes(repository), work)

    # ---- writing

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        """Do nothing: a registry needs no preparation."""

    def finish(self, *, whole: bool, work: Work) -> None:
        """Do nothing: a registry publishes each tag as soon as its manifest is pushed."""

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Return whether the repository contains `blob`.

        Raises Refused (size_mismatch) if the blob's size on the registry differs from the size in its descriptor."""
        size = blob_size(self._session, repository, blob, self._read_scopes(repository), work)
        if size is None or blob.size is None or size == blob.size:
            return size is not None
        raise Refused(
            f"{self.host}/{repository}@{blob.digest} has {size} bytes, but the size in its descriptor is {blob.size}",
            hint="the target's storage is damaged: run `mirror sync --repair CONFIG`",
            code="size_mismatch",
        )

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | RegistryUpload:
        """Mount a blob from another repository of this registry, and return the outcome.

        If the registry opens an upload session instead, return that session as a RegistryUpload."""
        query = f"mount={quote(blob.digest, safe=':')}&from={quote(from_repository, safe='/')}"
        scopes = (*push_scopes(repository), *pull_scopes(from_repository))

        def post() -> Response:
            """Request the mount."""
            path = f"/v2/{repository}/blobs/uploads/?{query}"
            with work.with_grace_period(RESPONSE_TIMEOUT) as waiting:
                return self._session.call(
                    "POST", path, waiting.without_retries(), kind="mount", scopes=scopes, expect={201, 202}
                )

        try:
            response = self._missing.send(repository, work, post, names_another=True)
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
        """Open an upload session for a blob, and return it as a RegistryUpload."""

        def post() -> Response:
            """Open the session."""
            path, scopes = f"/v2/{repository}/blobs/uploads/", push_scopes(repository)
            with work.with_grace_period(RESPONSE_TIMEOUT) as waiting:
                return self._session.call("POST", path, waiting, kind="upload", scopes=scopes, expect={202})

        try:
            response = self._missing.send(repository, work, post)
        except NotFound as error:
            if not self.speaks_v2:
                error.hint = error.hint or "a target must support the v2 API, but no response shows that this host does"
            raise
        return self._create_upload(repository, blob, response)

    def _create_upload(self, repository: str, blob: Descriptor, response: Response) -> RegistryUpload:
        """Return a RegistryUpload for the upload session that the registry opened. `response` contains its URL."""
        return RegistryUpload(self._session, self._capabilities, repository, blob, push_scopes(repository), response)

    def put_manifest(
        self, repository: str, reference: str, manifest: Manifest, work: Work, *, left_out: LeftOut | None = None
    ) -> bool:
        """Push a manifest under a tag or its digest, and check that the registry stored it.

        Return whether the registry lists the manifest among the referrers of its subject. If the response to the push
        was lost, the registry is asked whether it has the referrers API. Raises Refused or RemoteError if the registry
        rejects the manifest, SparseRefused if it does not accept sparse images, and Refused (target_lied) if it stored
        a different manifest."""
        what = manifest_name(self._session, repository, reference)

        def put() -> Response:
            """Send the manifest."""
            return self._session.call(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                work,
                kind="manifest",
                scopes=push_scopes(repository),
                headers=(("Content-Type", manifest.media_type),),
                body=manifest.body,
                expect={200, 201, 202},
            )

        try:
            response = self._missing.send(repository, work, put)
        except RemoteError as error:
            refusal = explain_manifest_error(error, what, manifest, sparse=left_out is not None)
            # If the response to a PUT is lost, the PUT is repeated. If tags are immutable, the second PUT fails.
            if may_be_stored(refusal) and self._has_manifest(repository, reference, manifest, work):
                subject = manifest.subject
                return subject is None or self.referrers(repository, subject.digest, work) is not None
            raise refusal from error
        reported = content_digest(response)
        if reported is not None and reported.algorithm == manifest.digest.algorithm and reported != manifest.digest:
            hint = SCHEMA1_HINT if manifest.kind is Kind.SCHEMA1 else ""
            text = f"{what}: the pushed manifest has the digest {manifest.digest}, but the target reports {reported}"
            raise Refused(text, hint=hint, code="target_lied")
        # Some registries respond with 200 or 202 for a stored manifest. Some proxies respond with 200 to every request.
        if response.status != 201 and not self._has_manifest(repository, reference, manifest, work):
            failure = self._session.error_for(response, "PUT", "manifest").with_subject(what)
            failure.hint = failure.hint or "the target acknowledged the manifest, but did not store it"
            raise failure
        if response.headers.get("oci-subject"):
            self._referrers_api.record_support(repository)
            return True
        return manifest.subject is None

    def _has_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> bool:
        """Return whether `reference` refers to `manifest` on the registry. Raises only errors that may be temporary."""
        try:
            found = resolve_reference(self._session, repository, reference, self._read_scopes(repository), work)
        except RemoteError as error:
            work.stop.raise_if_requested()
            found = error
        if isinstance(found, MirrorError) and (found.retryable or isinstance(found, RateLimited)):
            raise found
        return isinstance(found, Version) and found.digest == manifest.digest

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Delete a tag or a manifest. It is not an error if the reference does not exist."""
        self._session.call(
            "DELETE",
            f"/v2/{repository}/manifests/{reference}",
            work,
            kind="manifest",
            scopes=(Scope(repository, ("delete",)),),
            expect={200, 202, 204, 404},
        )


def _invalid_name_error(subject: str, name: str) -> Refused:
    """Return the error for an invalid repository or tag name in a list."""
    return Refused(f"{subject} with an invalid name: {printable(name, 80)!r}", code="ref_invalid")
