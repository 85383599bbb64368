"""The protocols `Source` and `Target`, through which the rest of the package uses every store.

Registries (v2), old registries (v1, read-only), OCI image layouts and bundles are stores. The planner uses a target
only as a `Source`, so it cannot write to the target. Each method may be called on any thread, and blocks until it is
done. It raises `Cancelled` when `work` is stopped. All its errors are of the class `MirrorError`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol, runtime_checkable

from mirror.errors import MirrorError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.util.cancellation import Work
from mirror.util.structs import Struct

DAMAGED = frozenset(
    {
        "digest_mismatch",
        "size_mismatch",
        "type_mismatch",
        "manifest_invalid",
        "manifest_ambiguous",
        "manifest_too_big",
        "bundle_invalid",
        "bundle_incomplete",
    }
)
"""Codes of errors that show that an object in a store does not have the expected bytes."""


class TransformPart(Struct, frozen=True):
    """A part of a converted image, such as a layer, that a transform creates before it builds the image.

    Parts with equal keys are created only once in a run. size: the size in bytes, if known."""

    key: Hashable
    size: int | None = None


def _do_nothing() -> None:
    """Do nothing: the default of TransformResult.release."""


class TransformResult(Struct, frozen=True):
    """The result of a transform: a root manifest, and the store that contains its blobs and child manifests.

    release: called when the result is no longer needed. It may be called more than once."""

    root: Manifest
    source: Source
    repository: str
    release: Callable[[], None] = _do_nothing


class Transform(Protocol):
    """The conversion of an image that targets do not accept unchanged. It runs during the copy, not during planning.

    identity: identifies the image and the kind of conversion; the same in all runs. The state stores the digest of the
    result under this key. The methods run on threads, with a permit for the source's host. `create_part` may run on
    several threads at once."""

    identity: str

    def parts(self, work: Work) -> Sequence[TransformPart]:
        """Return the parts that must be created, in any order, before `build_image` is called."""
        ...

    def create_part(self, part: TransformPart, work: Work) -> None:
        """Create one part: fetch and convert it. May be called again after a retryable failure."""
        ...

    def build_image(self, work: Work) -> TransformResult:
        """Build the image from the parts and return it. Runs after all parts have been created."""
        ...


@runtime_checkable
class DatedTransform(Transform, Protocol):
    """A Transform that determines the creation date of its image, which has no config at the source."""

    def created(self, work: Work) -> str:
        """Return the date on which the image was created, as stated at the source, or "" if none is stated."""
        ...


class Version(Struct, frozen=True):
    """The manifest, or the image to be converted, that a tag or digest refers to at the time of the lookup.

    digest: the digest of the manifest that is written to targets. If a transform or the selection of platforms changes
    the image, the digest that resulted the last time, or None if that is not known.
    manifest: set if the body had to be read to determine the digest.
    media_type: the media type of the manifest, if the store returned it.
    protocol: the registry protocol that was used.
    reason: why this protocol was used, if there was a choice.
    platforms: the platforms of a sparse image that the store contains, if the store records them; empty for a complete
    image.
    other_platform: why the image is skipped, if an earlier run found that it is for a platform that is not selected.
    source_id: the identifier at the source, if it may differ from the digest on targets: an image id, or the digest of
    the manifest at the source."""

    digest: Digest | None
    manifest: Manifest | None = None
    protocol: str = "v2"
    source_id: str = ""
    transform: Transform | None = None
    media_type: str = ""
    reason: str = ""
    platforms: tuple[str, ...] = ()
    other_platform: str = ""

    @property
    def is_unknown(self) -> bool:
        """Whether the digest is unknown until the image has been read, because the state contains no earlier result."""
        return self.digest is None

    @property
    def source_digest(self) -> str | None:
        """The digest of the manifest at the source, or None for an image of v1, which has no manifest."""
        return (self.source_id if ":" in self.source_id else None) if self.source_id else self.digest


class BlobReader(AbstractContextManager["BlobReader"], Protocol):
    """A reader for the bytes of one blob, from an offset to the end. Use it as a context manager."""

    size: int | None  # bytes of the whole blob, as reported by the store; None if it does not report a size

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes into the beginning of `buffer`. Return the number of bytes read, or 0 at the end of the blob.

        Raises NetworkError if the blob ends early."""
        ...


class UploadSession(AbstractContextManager["UploadSession"], Protocol):
    """An upload session for one blob and one repository. If it is closed before the commit, the store deletes it."""

    @property
    def committed(self) -> bool:
        """Whether the store has confirmed that it has stored the blob."""
        ...

    @property
    def resumable(self) -> bool:
        """Whether `send` can continue after the bytes that the store already has."""
        ...

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Upload the blob and commit it.

        `body(offset)` opens the blob at `offset`; it may be called several times. The reader raises an error at its
        end if the bytes do not match the blob, so `send` holds back the last bytes until then. After a retryable
        failure `send` may be called again, as long as the session exists."""
        ...


class Mount(Enum):
    """The outcome of a mount request that did not open an upload session."""

    MOUNTED = "mounted"
    ABSENT = "absent"  # this blob cannot be mounted from that repository; other blobs may be
    REFUSED = "refused"  # no blob can be mounted from that repository; the image does not fail because of this


class LeftOut(Struct, frozen=True):
    """The parts of an image that a sparse copy leaves out on purpose. The index is copied unchanged.

    platforms: the platforms that the copy contains, in the form of `oci/platform.py`, sorted. indexes: the indexes
    whose entries were selected by platform. digests: the manifests and blobs that are left out."""

    platforms: tuple[str, ...]
    indexes: frozenset[Digest]
    digests: frozenset[Digest]

    def covers(self, parent: Manifest, part: Descriptor) -> bool:
        """Return whether the copy leaves out `part`, which the manifest `parent` lists."""
        return parent.digest in self.indexes and part.digest in self.digests

    def has_part_of(self, index: Manifest) -> bool:
        """Return whether `index` lists a manifest or blob that the copy leaves out."""
        return any(self.covers(index, part) for part in (*index.children, *index.blobs))


class ExpectedImage(Struct, frozen=True):
    """An image that will be written: its blobs, and its manifests with children before parents and the root last."""

    repository: str
    reference: str
    manifests: tuple[Manifest, ...]
    blobs: tuple[Descriptor, ...]
    left_out: LeftOut | None = None


class Source(Protocol):
    """A store from which images can be read.

    host: the name of the host, for permits and reports.
    partial: whether the store may leave out blobs that the target is expected to have. A run looks for such blobs on
    the target before it writes anything."""

    host: str
    partial: bool

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield the paths of the repositories under `prefix`, from the complete catalog.

        For an invalid name, yield a Refused error instead."""
        ...

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Yield each tag once, in no particular order, as a ListedTag if the list also contains its digest.

        For a name that violates the grammar of tags, yield a Refused error instead.
        Raises NotFound if the repository does not exist or has no tags."""
        ...

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        """Resolve tags and digests: for each of `references`, in order, yield a Version or an error.

        A store uses as few requests as possible. An error for one reference, such as NotFound, is yielded in its place,
        and the other references are still resolved. Raises errors that concern all references, such as failed
        authentication or a host that is down."""
        ...

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Read the manifest that `reference` refers to, and return it in a Version.

        In contrast to `resolve`, this method always reads the manifest, even if its digest is available without it."""
        ...

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Return a manifest with its exact bytes, verified against `reference` if that is a digest.

        Raises NotFound if there is no such manifest, and Refused if it is invalid or has a different digest."""
        ...

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open a blob for reading from byte `offset`. Use the reader in a `with` block.

        The caller verifies the bytes. Raises NotFound if the blob does not exist."""
        ...

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return whether this is a partial source that leaves out `blob`. Sends no request and reads no file."""
        ...

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor] | None:
        """Return the descriptors of the manifests whose subject is `digest`.

        Return None if the store has no lists of referrers. In this case, an index under the tag
        `oci.referrers.referrers_tag` lists them."""
        ...


class Target(Source, Protocol):
    """A store to which images can be written.

    needs_all_images: whether `begin` needs the list of all images before the first byte is written, as for a bundle.
    incomplete: whether the store needs all images, and its existing content is marked as lacking some of them.
    on_disk: whether the store is on disk, so that its repositories share their blobs and a lookup costs no request."""

    needs_all_images: bool
    incomplete: bool
    on_disk: bool

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        """Prepare the store before a run writes to it.

        images: all images that will be written, if the store needs them; otherwise empty.
        missing: the references that were selected but cannot be fetched.
        If a store needs all images, `begin` may be called again after `finish`."""
        ...

    def finish(self, *, whole: bool, work: Work) -> None:
        """Finish writing to the store at the end of a run.

        whole: whether every image was written. Only then does a store that needs all images publish them."""
        ...

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Return whether the repository has the blob. Raises Refused (size_mismatch) if its size is wrong."""
        ...

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | UploadSession:
        """Mount a blob from another repository on the same host.

        If the registry opens an upload session instead, return it: the caller must use or close it.
        Raises errors that a retry may resolve. Other failures to mount the blob are returned as a Mount."""
        ...

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> UploadSession:
        """Open an upload session for a blob. Use it in a `with` block."""
        ...

    def put_manifest(
        self, repository: str, reference: str, manifest: Manifest, work: Work, *, left_out: LeftOut | None = None
    ) -> bool:
        """Store `manifest` under a tag or its digest.

        left_out: the parts that a sparse image leaves out on purpose. Return whether `referrers` now lists the
        manifest; True if the manifest has no subject. Raises RemoteError (blob_missing) if anything else that the
        manifest refers to is missing, or if the store does not accept sparse images."""
        ...

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Delete a tag or manifest. Only `prune` calls it."""
        ...
