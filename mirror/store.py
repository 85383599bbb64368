"""The seam: what a store of repositories can be asked, and told, whatever it is made of.

Registries (v2), old registries (v1, read only), OCI image layouts and bundles are stores. Planning is typed
on `Source`, so it cannot write. All methods may be called from any thread, block until done, stop with
`Cancelled` when `work` is stopped, and raise only `MirrorError`s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Protocol

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
"""Codes of errors that say of something in a store that its bytes are not what they should be."""


class Part(Struct, frozen=True):
    """Something that a transform has to make first; equal keys are made once in a run. size: bytes, if known."""

    key: Hashable
    size: int | None = None


def _nothing() -> None:
    pass


class Transformed(Struct, frozen=True):
    """What a transform made: a root manifest, and where the blobs and children under it are read from.

    release: called when nothing of it will be read any more, perhaps more than once."""

    root: Manifest
    source: Source
    repository: str
    release: Callable[[], None] = _nothing


class Transform(Protocol):
    """Makes a version that no target takes as it is into one that they take. Runs when copying, never when planning.

    identity: of the version and of the way it is made, the same over runs: under it the result is remembered.
    Its calls are made in jobs that hold a slot of the source's host; `make` may be called from several at once."""

    identity: str

    def parts(self, work: Work) -> Sequence[Part]:
        """What has to be made first, in any order."""
        ...

    def make(self, part: Part, work: Work) -> None:
        """Fetch and make one part. May be called again after a retryable failure."""
        ...

    def finish(self, work: Work) -> Transformed:
        """Put the parts together."""
        ...


class Version(Struct, frozen=True):
    """What a reference names now.

    digest: of the manifest that a target gets; with a transform: what it made last time, None if that is not known.
    manifest: where a body had to be read to know. media_type: of the manifest, where the store said it.
    protocol: which one was used, and the reason, where there was a choice. source_id: what the source calls it, where
    that is not the digest that a target gets: an image id, or another digest."""

    digest: Digest | None
    manifest: Manifest | None = None
    protocol: str = "v2"
    source_id: str = ""
    transform: Transform | None = None
    media_type: str = ""
    reason: str = ""

    @property
    def unmade(self) -> bool:
        """Whether only its transform can tell what it is: nobody remembers what that made."""
        return self.transform is not None and self.digest is None


class BlobReader(AbstractContextManager["BlobReader"], Protocol):
    """The bytes of a blob, read once, from an offset on."""

    size: int | None  # of the whole blob, bytes, as the store says; None where it does not

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of `buffer`; -> how many bytes; 0 only at the end. Raises where the blob ends early."""
        ...


class UploadSession(AbstractContextManager["UploadSession"], Protocol):
    """An upload in progress, for one blob of one repository. Left uncommitted, it is DELETEd.

    `committed` is true once the store has said that it holds the blob; `resumable` while `send` can go on from
    bytes that the store already has."""

    @property
    def committed(self) -> bool: ...

    @property
    def resumable(self) -> bool: ...

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Upload and commit. `body(offset)` opens the bytes from `offset` on; it may be called again.

        A body raises, at its end, if its bytes were not the blob's; the last bytes are held back until then.
        May be called again after a retryable failure, while the session lives."""
        ...


class Mount(Enum):
    """Outcome of a mount that opened no session."""

    MOUNTED = "mounted"
    ABSENT = "absent"  # this blob cannot be mounted from there; others may be
    REFUSED = "refused"  # nothing can be mounted from there: never a failure of the image


class Coming(Struct, frozen=True):
    """An image that will be written: all its manifests, children before parents, the root last; and its blobs."""

    repository: str
    reference: str
    manifests: tuple[Manifest, ...]
    blobs: tuple[Descriptor, ...]


class Source(Protocol):
    """The reading half of a store. host: whose permits its calls use, and what it is called in reports.

    partial: some blobs may be left out here on purpose, since the target is expected to have them: what is missing
    is looked for there before anything is written."""

    host: str
    partial: bool

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Paths of the repositories under `prefix`, from a catalog that is read to its end; as `tags`."""
        ...

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Every tag, in no order, each once; a ListedTag where the list says what it names. A name that breaks the
        grammar is a Refused in its place.

        Raises NotFound: no such repository, or none with tags."""
        ...

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterable[Version | MirrorError]:
        """What each of `references` (tags or digests) names now, in their order, as cheaply as the store can.

        An answer for one reference never keeps the others from theirs: what went wrong with one is in its place
        (NotFound: it is not there). Raises for what concerns all of them: authentication, a host that is down."""
        ...

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """What `reference` names now, with its manifest, in one go: for what will be copied in any case."""
        ...

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """The exact bytes, verified against `reference` if that is a digest. Raises NotFound, Refused."""
        ...

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> BlobReader:
        """Open a blob; use with `with`. Not verified here: the reader's user does that. Raises NotFound."""
        ...

    def lacks(self, blob: Descriptor) -> bool:
        """Whether a partial source has left this blob out. Does no I/O."""
        ...

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """Manifests whose subject is `digest`."""
        ...


class Target(Source, Protocol):
    """A store that can be written to. gathers: it has to know all that comes before the first byte (a bundle).
    incomplete: it gathers, and what is there says itself that it lacks images that it was to have.

    on_disk: its repositories have their blobs in common, and asking for one costs no request."""

    gathers: bool
    incomplete: bool
    on_disk: bool

    def begin(self, images: Sequence[Coming], work: Work, *, missing: Collection[str] = ()) -> None:
        """Before the first write of a run. images: all that will come, if the store gathers; else nothing. missing:
        the names of what was to come and cannot be fetched. A store that gathers can begin again after `finish`."""
        ...

    def finish(self, *, whole: bool, work: Work) -> None:
        """After the last write. whole: nothing failed; only then a store that gathers shows what was written."""
        ...

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Whether it is there, with the right size. Raises Refused (size_mismatch) for another size."""
        ...

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | UploadSession:
        """Link a blob from a sibling repository. A session: not mounted, an upload was opened: use it or close it.

        Raises what may succeed when it is tried again."""
        ...

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> UploadSession:
        """Open an upload. Use with `with`."""
        ...

    def put_manifest(self, repository: str, reference: str, manifest: Manifest, work: Work) -> None:
        """Store `manifest` under a tag or its digest. Raises RemoteError (blob_missing): it lacks what it names."""
        ...

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Take a tag or manifest away. Only prune calls it."""
        ...
