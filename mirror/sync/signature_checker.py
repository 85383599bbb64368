"""Checks, before an image is copied, that the image has a signature which `verify-signatures` of its mirror accepts.

The signatures are read from the source. If they cannot be read, the image is not copied.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mirror.errors import NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest
from mirror.oci.referrers import is_attachment_tag, referrers_tag
from mirror.signatures.discovery import (
    SignatureLayer,
    has_image_layers,
    may_be_signature,
    signature_layers,
    signature_tag,
)
from mirror.signatures.formats import NOT_SIGNED, check_bundle, check_simple_signing
from mirror.signatures.policy import SignaturePolicy, VerificationKey
from mirror.store import DAMAGED, Source, Version
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import SourceReference
from mirror.transfer.blob_request import BlobSource
from mirror.transfer.calls import Calls
from mirror.transfer.downloads import BlobDownload, BufferedBlob
from mirror.transfer.permits import DOWNLOADS, host_permit
from mirror.transfer.shared_tasks import SharedTasks
from mirror.util.cancellation import Work
from mirror.util.retry_policy import ONCE

MAX_DOCUMENT = 1 << 20  # maximum size of a signed payload or bundle in bytes
MAX_DOCUMENTS = 100  # maximum number of payloads and bundles that are read for one image
_MAX_KEPT = 4 << 10  # payloads of at most this size in bytes are kept in memory; larger payloads may be read again
MAX_SIGNATURES = 200  # maximum number of signatures that are checked for one image
MAX_REFERRERS = 100  # maximum number of referrers that are read for one image
_MAX_REASONS = 3  # maximum number of reasons in a message
# Error codes for content that is not a valid signature. After any other error, such as an untrusted certificate of the
# registry, it is unknown whether the image is signed.
_INVALID = DAMAGED | {NOT_SIGNED, "ref_invalid", "too_many"}

_log = logging.getLogger("mirror.sync")


class SignatureChecker:
    """Checks the signatures of images. The results are kept in memory during a run, and never stored.

    manifests: reads manifests. Must be used on the event loop."""

    def __init__(self, calls: Calls, manifests: ManifestCache) -> None:
        self._calls = calls
        self._manifests = manifests
        # A digest with an accepted signature is accepted in every repository. A missing signature is recorded for one
        # repository only, because another repository may contain a signature.
        self._signed: set[tuple[frozenset[str], Digest]] = set()
        self._refused: dict[tuple[frozenset[str], str, str, Digest], Refused] = {}
        self._checks: SharedTasks[tuple[frozenset[str], str, str, Digest], None] = SharedTasks(calls.tasks)

    async def check(self, reference: SourceReference, version: Version) -> None:
        """Raise Refused (not_signed) unless the image of a reference has a signature that its mirror accepts.

        version: the version to which the reference refers. The digest at the source must be signed, even if the image
        is changed before it is copied. Raises the errors of the source if signatures cannot be read."""
        entry = reference.entry
        policy = entry.signature_policy
        if policy is None:
            return
        digest = version.digest if not version.source_id else None
        if ":" in version.source_id:
            digest = Digest.parse(version.source_id)
        if digest is None:
            what = f"{reference.name} has no digest that could be signed, because it is read over the v1 protocol"
            raise Refused(what, hint="remove `verify-signatures` from this mirror to copy it", code=NOT_SIGNED)
        if is_attachment_tag(reference.tag) and version.transform is None:
            graph = await self._manifests.read_graph(entry.source, entry.repository, digest, version.manifest)
            if not await self._calls.call(lambda work: has_image_layers(graph.manifests()), policy=ONCE):
                return  # signatures and SBOMs are not signed themselves
        if (policy.fingerprint, digest) in self._signed:
            return
        key = (policy.fingerprint, entry.source.host, entry.repository, digest)
        if key not in self._refused:
            await self._checks.run(key, lambda: self._search(entry.source, entry.repository, digest, policy))
        if (error := self._refused.get(key)) is not None:
            raise error.with_text(error.what)

    async def _search(self, source: Source, repository: str, digest: Digest, policy: SignaturePolicy) -> None:
        """Check the signatures of an image until a signature is accepted, and keep the result."""
        search = _SignatureSearch(self._calls, self._manifests, source, repository, digest, policy)
        signer = await search.run()
        name = f"{source.host}/{repository}@{digest}"
        if signer is not None:
            self._signed.add((policy.fingerprint, digest))
            text = f"{name} is signed with {signer.name}"
            _log.info("signature_verified", extra={"source": name, "key": signer.fingerprint, "text": text})
            return
        self._refused[policy.fingerprint, source.host, repository, digest] = Refused(
            f"{name} is not signed with a key in `verify-signatures`: {search.describe_failure()}",
            hint="sign the image at the source, or add the key with which it is signed",
            code=NOT_SIGNED,
        )


class _SignatureSearch:
    """A search for a signature of one image that the signature policy accepts."""

    def __init__(
        self,
        calls: Calls,
        manifests: ManifestCache,
        source: Source,
        repository: str,
        digest: Digest,
        policy: SignaturePolicy,
    ) -> None:
        self._calls = calls
        self._manifests = manifests
        self._source = source
        self._repository = repository
        self._digest = digest
        self._policy = policy
        self._documents: dict[Digest, bytes] = {}  # small payloads and bundles that were read
        self._reads = 0  # the number of payloads and bundles that were read
        self._count = 0  # the number of signatures that were found
        self._reasons: dict[str, None] = {}  # why signatures were not accepted, in order and without repetitions

    async def run(self) -> VerificationKey | None:
        """Return the key that signed the image, or None if no signature is accepted.

        The tag of cosign is read first. The referrers are read only if the tag has no accepted signature. Raises the
        errors of the source, except for missing and invalid signatures."""
        tag = signature_tag(self._digest)
        if tag is not None and (signer := await self._check_manifest(await self._read(tag))) is not None:
            return signer
        listed = [referrer for referrer in await self._list_referrers() if may_be_signature(referrer)]
        if len(listed) > MAX_REFERRERS:
            self._reasons[f"only {MAX_REFERRERS} of {len(listed)} referrers were read"] = None
        for referrer in sorted(listed, key=lambda one: not one.artifact_type)[:MAX_REFERRERS]:
            signer = await self._check_manifest(await self._read(referrer.digest, referrer.size))
            if signer is not None:
                return signer
        return None

    def describe_failure(self) -> str:
        """Return the reason why no signature was accepted, as the end of a message."""
        reasons = list(self._reasons)
        more = f"; and {len(reasons) - _MAX_REASONS} other reasons" if len(reasons) > _MAX_REASONS else ""
        shown = "; ".join(reasons[:_MAX_REASONS]) + more
        if self._count == 1:
            return f"one signature was found, but it is not accepted: {shown}"
        if self._count:
            return f"{self._count} signatures were found, but none is accepted: {shown}"
        return f"no signature was found{f' ({shown})' if shown else ''}"

    async def _read(self, reference: str, size: int | None = None) -> Manifest | None:
        """Read a manifest of the search. Return None if it does not exist or is invalid. size: in bytes, if known."""
        try:
            if ":" not in reference:
                return await self._manifests.read_tag(self._source, self._repository, reference)
            return await self._manifests.read(self._source, self._repository, reference, size)
        except NotFound:
            return None
        except Refused as error:
            self._record_rejection(error)
            return None

    async def _list_referrers(self) -> Sequence[Descriptor]:
        """Return the referrers of the image, from the referrers tag if the source does not list referrers.

        A source that lists them has to list those of the tag as well (distribution-spec, "Enabling the Referrers API"),
        and attachments are copied by the same rule, so that the target gets the signature that was accepted."""
        try:
            listed = await self._manifests.read_referrers(self._source, self._repository, self._digest, keep=True)
        except NotFound:
            listed = None
        except Refused as error:
            self._record_rejection(error)
            return ()
        if listed is not None:
            return listed
        index = await self._read(referrers_tag(self._digest))
        return index.children if index is not None and index.kind is Kind.INDEX else ()

    async def _check_manifest(self, manifest: Manifest | None) -> VerificationKey | None:
        """Return the key of the first accepted signature in a manifest, or None if no signature is accepted."""
        if manifest is None:
            return None
        for layer in await self._calls.call(lambda work: signature_layers(manifest), policy=ONCE):
            self._count += 1
            if self._count > MAX_SIGNATURES:
                self._reasons[f"only {MAX_SIGNATURES} signatures were checked"] = None
                return None
            try:
                return await self._check_layer(layer)
            except NotFound:
                self._reasons[f"{layer.blob.digest} is missing"] = None
            except Refused as error:
                self._record_rejection(error)
        return None

    async def _check_layer(self, layer: SignatureLayer) -> VerificationKey:
        """Read the payload or bundle in a layer, and return the key that signed it. Raises Refused, NotFound."""
        blob = layer.blob
        document = self._documents.get(blob.digest) or await self._read_document(blob)

        if layer.is_bundle:
            return await self._calls.call(lambda work: check_bundle(document, self._digest, self._policy), policy=ONCE)
        return await self._calls.call(
            lambda work: check_simple_signing(document, layer.signature, self._digest, self._policy), policy=ONCE
        )

    async def _read_document(self, blob: Descriptor) -> bytes:
        """Read a payload or bundle, and verify its size and digest.

        Raises Refused if the document is too large, or if too many documents have been read."""
        size = blob.size or 0
        if size > MAX_DOCUMENT:
            raise Refused(f"{blob.digest} has {size} bytes; the limit is {MAX_DOCUMENT}", code=NOT_SIGNED)
        self._reads += 1
        if self._reads > MAX_DOCUMENTS:
            raise Refused(f"only {MAX_DOCUMENTS} payloads and bundles were read", code=NOT_SIGNED)
        download = BlobDownload(blob, [BlobSource(self._source, self._repository)])

        def read(work: Work) -> bytes:
            """Read the payload or bundle on a worker thread."""
            return BufferedBlob.read_from(download, size, work).content

        document = await self._calls.call(read, needs=(host_permit(self._source.host), DOWNLOADS))
        if size <= _MAX_KEPT:
            self._documents[blob.digest] = document
        return document

    def _record_rejection(self, error: Refused) -> None:
        """Record an error of invalid content as the reason why a signature is not accepted. Raise any other error."""
        if error.code not in _INVALID:
            raise error
        self._reasons[error.what] = None
