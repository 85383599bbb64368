"""A registry that speaks the v2 protocol, as a Source and a Target.

Source of the rules: distribution-spec v1.1.1. What real registries do otherwise is handled where it matters
and said there; docs/compatibility.md lists what was run against which of them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext, suppress
from urllib.parse import quote

from mirror.errors import AuthError, MirrorError, NetworkError, NotFound, RateLimited, Refused, RemoteError, printable
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPTED, MAX_BYTES, Kind, Manifest, parse_manifest, plain_type, too_big
from mirror.oci.reference import is_path, is_tag
from mirror.registry.auth.authorizer import CATALOG, Scope, pull, push
from mirror.registry.blobs import BlobStream, blob_size, open_blob
from mirror.registry.listings import Paging, listed
from mirror.registry.push_errors import SCHEMA1, may_be_there, refused_manifest, refused_mount
from mirror.registry.session import Answer, Session, TooBig
from mirror.registry.uploads import Upload, UploadHabits
from mirror.store import Coming, Mount, Version
from mirror.util.cancellation import Work

# When the work is stopped, the answer to a POST is still waited for: a session of which we do not hear cannot be
# deleted.
ANSWER_WITHIN = 1.0  # seconds

# Larger manifests are parsed one at a time, since that takes several times their size in memory; those that had to be
# read to learn a digest are not handed on, and read again if they are copied.
LARGE = 64 << 10  # bytes
_parsing = threading.Lock()

# Registry 2.3 and 2.4 compare whole Accept lines, so each type goes in a line of its own.
_ACCEPT = tuple(("Accept", media_type) for media_type in ACCEPTED)


class RegistryV2:
    """One registry host. Thread-safe; closes its session when closed.

    as_target: what is read is asked for with the right to push as well: registries that hide repositories (Quay)
    answer 401 to `pull` alone where one is still to be made."""

    partial = False
    gathers = False
    incomplete = False
    on_disk = False

    def __init__(self, session: Session, *, as_target: bool = False) -> None:
        self._session = session
        self._as_target = as_target
        self._reading = push if as_target else pull
        self.host = session.settings.host
        self._habits = UploadHabits()
        self._paging = {"repositories": Paging(), "tags": Paging()}

    def as_target(self) -> RegistryV2:
        """The same registry, with the same session, as one that is written to."""
        return RegistryV2(self._session, as_target=True)

    def close(self) -> None:
        self._session.close()

    @property
    def speaks_v2(self) -> bool:
        """Whether any of its answers named the version of the API."""
        return self._session.speaks_v2

    def ping(self, work: Work) -> None:
        """Ask for the API's root, whatever it answers: then `speaks_v2` tells. Raises NetworkError, Refused, Cancelled,
        RemoteError (tls_error)."""
        with suppress(AuthError):
            self._session.call("GET", "/v2/", work, kind="ping", expect=range(100, 600))

    def gave_up(self, error: MirrorError) -> None:
        """`error` outlived the retries of a transfer, which are not made in the session."""
        self._session.gave_up(error)

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        try:
            for name in self._listed("/v2/_catalog", "repositories", CATALOG, work):
                if not is_path(name):
                    yield _hostile(f"{self.host} lists a repository", name)
                elif name.startswith(prefix):
                    yield name
        except NotFound as error:
            error.hint = error.hint or "some registries have no list of repositories: write one mirror for each"
            raise

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        scopes = self._reading(repository)
        try:
            for name in self._listed(f"/v2/{repository}/tags/list", "tags", scopes[0], work):
                yield name if is_tag(name) else _hostile(f"{self.host}/{repository} lists a tag", name)
        except AuthError:
            if self._as_target:
                self._session.authorizer.allow_another(scopes)  # there the list is only advice
            raise

    def _listed(self, path: str, key: str, scope: Scope, work: Work) -> Iterable[str]:
        return listed(self._session, path, key, scope, work, self._paging[key])

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        broken = False
        for reference in references:
            work.stop.check()
            try:
                yield self._resolve(repository, reference, work)
                broken = False
            except NetworkError as error:
                if broken:
                    raise  # twice in a row: it is not about this reference
                broken = True
                yield error

    def _resolve(self, repository: str, reference: str, work: Work) -> Version | MirrorError:
        try:
            answer = self._session.call(
                "HEAD",
                f"/v2/{repository}/manifests/{reference}",
                work,
                kind="manifest",
                scopes=self._reading(repository),
                headers=_ACCEPT,
                expect={200, 404, 405, 501},
            )
            if answer.status == 404:
                return self._absent(repository, reference)
            digest = _content_digest(answer)
            if answer.status == 200 and digest is not None:
                return Version(digest, media_type=plain_type(answer.headers.get("content-type") or ""))
            # No HEAD here, or a HEAD that does not say the digest: the body does.
            manifest = self.manifest(repository, reference, work)
            kept = manifest if manifest.size <= LARGE else None
            return Version(manifest.digest, kept, media_type=manifest.media_type)
        except (NotFound, Refused) as error:
            return error
        except AuthError as error:
            if error.code == "auth_denied":
                return error
            raise
        except RemoteError as error:
            if error.status is None or isinstance(error, RateLimited):
                raise
            return error

    def _absent(self, repository: str, reference: str) -> NotFound:
        mark = "@" if ":" in reference else ":"
        return NotFound(f"{self.host}/{repository}{mark}{reference} does not exist", status=404)

    def read(self, repository: str, reference: str, work: Work) -> Version:
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest, media_type=manifest.media_type)

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        try:
            return self._manifest(repository, reference, work)
        except Refused as error:
            if error.code != "digest_mismatch":
                raise
            # One fresh read tells a broken cache on the way from a registry whose bytes are wrong.
            return self._manifest(repository, reference, work)

    def _manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        expected = Digest.parse(reference) if ":" in reference else None
        what = f"{self.host}/{repository}{'@' if expected else ':'}{reference}"
        try:
            answer = self._session.call(
                "GET",
                f"/v2/{repository}/manifests/{reference}",
                work,
                kind="manifest",
                scopes=self._reading(repository),
                headers=_ACCEPT,
                expect={200, 404},
                limit=MAX_BYTES,
            )
        except TooBig as error:
            raise too_big(what) from error
        if answer.status == 404:
            raise self._absent(repository, reference)
        content_type = answer.headers.get("content-type") or ""
        with _parsing if len(answer.body) > LARGE else nullcontext():
            manifest = parse_manifest(answer.body, content_type, expected=expected, what=what)
        said = _content_digest(answer)
        if said is not None and said.algorithm == manifest.digest.algorithm and said != manifest.digest:
            text = f"{what}: the bytes hash to {manifest.digest}, the answer says {said}"
            stranger = manifest.kind is Kind.SCHEMA1 and said == Digest.of(answer.body)
            hint = "this registry does not know schema 1: push the image again as schema 2" if stranger else ""
            raise Refused(text, hint=hint, code="digest_mismatch")
        return manifest

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobStream:
        return open_blob(self._session, repository, blob, self._reading(repository), work, offset=offset)

    def lacks(self, blob: Descriptor) -> bool:
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """By the referrers API; none where the registry has no such API."""
        what = f"the referrers of {self.host}/{repository}@{digest}"
        try:
            answer = self._session.call(
                "GET",
                f"/v2/{repository}/referrers/{digest}",
                work,
                kind="referrers",
                scopes=self._reading(repository),
                expect={200, 400, 404, 405},
                limit=MAX_BYTES,
            )
        except TooBig as error:
            raise too_big(what) from error
        if answer.status != 200:
            return ()
        listed = parse_manifest(answer.body, what=what)
        return listed.children if listed.kind is Kind.INDEX else ()

    # ---- writing

    def begin(self, images: Sequence[Coming], work: Work, *, missing: Collection[str] = ()) -> None:
        """A registry shows each tag when it is put: there is nothing to prepare."""

    def finish(self, *, whole: bool, work: Work) -> None:
        """And nothing to publish."""

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        size = blob_size(self._session, repository, blob, self._reading(repository), work)
        if size is None or blob.size is None or size == blob.size:
            return size is not None
        raise Refused(
            f"{self.host}/{repository} has {size} bytes as {blob.digest}, which is {blob.size} bytes long",
            hint="the target's storage is damaged: run `mirror sync --repair CONFIG`",
            code="size_mismatch",
        )

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | Upload:
        query = f"mount={quote(blob.digest, safe=':')}&from={quote(from_repository, safe='/')}"
        try:
            with work.with_grace_period(ANSWER_WITHIN) as waiting:
                answer = self._session.call(
                    "POST",
                    f"/v2/{repository}/blobs/uploads/?{query}",
                    waiting.once(),
                    kind="mount",
                    scopes=(*push(repository), *pull(from_repository)),
                    expect={201, 202},
                )
        except RemoteError as error:
            work.stop.check()
            if isinstance(error, RateLimited) or (error.retryable and not error.spent):
                raise
            return refused_mount(error)
        if answer.status == 202:
            return self._upload(repository, blob, answer)
        said = _content_digest(answer)
        if said == blob.digest or (said is None and self.has_blob(repository, blob, work)):
            return Mount.MOUNTED
        return Mount.ABSENT

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> Upload:
        try:
            with work.with_grace_period(ANSWER_WITHIN) as waiting:
                answer = self._session.call(
                    "POST",
                    f"/v2/{repository}/blobs/uploads/",
                    waiting,
                    kind="upload",
                    scopes=push(repository),
                    expect={202},
                )
        except NotFound as error:
            if not self.speaks_v2:
                error.hint = error.hint or "mirror writes to v2 registries only"
            raise
        return self._upload(repository, blob, answer)

    def _upload(self, repository: str, blob: Descriptor, answer: Answer) -> Upload:
        return Upload(self._session, self._habits, repository, blob, push(repository), answer)

    def put_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> None:
        what = f"{self.host}/{repository}{'@' if ':' in reference else ':'}{reference}"
        try:
            answer = self._session.call(
                "PUT",
                f"/v2/{repository}/manifests/{reference}",
                work,
                kind="manifest",
                scopes=push(repository),
                headers=(("Content-Type", manifest.media_type),),
                body=manifest.body,
                expect={200, 201, 202},
            )
        except RemoteError as error:
            refusal = refused_manifest(error, what, manifest)
            # A PUT whose answer was lost is sent again, and a tag that the registry keeps immutable is then refused.
            if may_be_there(refusal) and self._names(repository, reference, manifest, work):
                return
            raise refusal from error
        said = _content_digest(answer)
        if said is not None and said.algorithm == manifest.digest.algorithm and said != manifest.digest:
            hint = SCHEMA1 if manifest.kind is Kind.SCHEMA1 else ""
            raise Refused(f"{what} was put as {manifest.digest} and stored as {said}", hint=hint, code="target_lied")
        # Some registries have answered 200 or 202 to a manifest that they stored; proxies answer 200 to anything.
        if answer.status != 201 and not self._names(repository, reference, manifest, work):
            failure = self._session.failure(answer, "PUT", "manifest").about(what)
            failure.hint = failure.hint or "the target acknowledged the manifest, but does not have it under that name"
            raise failure

    def _names(self, repository: str, reference: str, manifest: Manifest, work: Work) -> bool:
        """Whether `reference` names `manifest` now. Raises what may pass when the HEAD is sent again, and limits."""
        try:
            found = self._resolve(repository, reference, work)
        except RemoteError as error:
            work.stop.check()
            found = error
        if isinstance(found, MirrorError) and (found.retryable or isinstance(found, RateLimited)):
            raise found
        return isinstance(found, Version) and found.digest == manifest.digest

    def delete(self, repository: str, reference: str, work: Work) -> None:
        self._session.call(
            "DELETE",
            f"/v2/{repository}/manifests/{reference}",
            work,
            kind="manifest",
            scopes=(Scope(repository, ("delete",)),),
            expect={200, 202, 204, 404},
        )


def _hostile(who: str, name: str) -> Refused:
    return Refused(f"{who} with a hostile name: {printable(name, 80)!r}", code="ref_invalid")


def _content_digest(answer: Answer) -> Digest | None:
    """What the answer says the digest is; None where it does not say, or not in a way that we can use."""
    said = answer.headers.all("docker-content-digest")
    try:
        return Digest.parse(said[0]) if len(said) == 1 else None
    except Refused:
        return None
