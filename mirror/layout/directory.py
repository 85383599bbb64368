"""An OCI image layout in a directory, as a Source and a Target. Many repositories share the blobs of the layout.

A blob gets its name only when it is complete and on disk, and index.json names only content that is on disk. The
layout is therefore consistent even if the process is killed or the power fails, and a later run reuses all complete
blobs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from mirror.errors import MirrorError, NotFound, Refused, RemoteError
from mirror.layout.files import LayoutFiles
from mirror.layout.garbage import find_unused
from mirror.layout.index import Index, find_repositories
from mirror.layout.index_file import IndexFile
from mirror.layout.referrers import Referrers
from mirror.layout.root import Root
from mirror.oci import manifest as manifests
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Kind, Manifest, parse_manifest
from mirror.store import BlobReader, ExpectedImage, LeftOut, Mount, Version
from mirror.util.cancellation import Work
from mirror.util.file_reader import FileReader

_BUFFER_BYTES = 256 << 10  # size of a write buffer
_RECOPY_HINT = "copy the layout again, or export the images again"


class MissingContentError(NotFound):
    """Raised if a layout refers to content that is missing. The layout is damaged, or was copied only partially."""

    code = "bundle_incomplete"
    exit_code = Refused.exit_code


class ManifestInUseError(RemoteError):
    """Raised if a manifest cannot be removed because an image index in the same repository refers to it."""


class LayoutStore:
    """A Source and Target for an OCI layout in a directory. Thread-safe. `close` releases the lock on the layout.

    adopts: the repositories to which tags without a repository name are assigned, such as the repository in
    `oci:DIR:REPOSITORY`. new: True for a target, whose directory may be missing or empty."""

    partial = False
    needs_all_images = False
    incomplete = False
    on_disk = True

    def __init__(self, directory: Path, *, adopts: Collection[str] = (), new: bool = False) -> None:
        self.host = f"oci:{directory}"
        self._files = LayoutFiles(directory)
        self._index_file = IndexFile(self._files, self.host, adopts, new=new)
        self._referrers = Referrers(self.manifest)
        self._new = new

    def close(self) -> None:
        """Release the lock and close all directories."""
        self._index_file.close()
        self._files.close()

    # ---- reading

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the repositories whose names start with `prefix`.

        If the index has entries but no repository, return the errors that explain why."""
        names, strays = self._index_file.query(lambda index: (index.repositories(), index.unnamed_errors()))
        return [*strays, *(name for name in names if name.startswith(prefix))]

    def tags(self, repository: str, work: Work) -> Iterable[str | MirrorError]:
        """Return the sorted tags of a repository, and errors for entries that cannot be used. Raises NotFound."""
        return self._index_file.query(lambda index: index.tags(repository))

    def resolve(self, repository: str, references: Sequence[str], work: Work) -> Iterator[Version | MirrorError]:
        """Resolve tags and digests: for each, yield a Version with the digest of the manifest, or an error."""
        for reference in references:
            work.stop.raise_if_requested()
            yield self._resolve(repository, reference)

    def _resolve(self, repository: str, reference: str) -> Version | MirrorError:
        """Resolve one tag or digest: return a Version with the digest of the manifest, or an error."""
        descriptor = self._lookup(repository, reference)
        if isinstance(descriptor, MirrorError):
            return descriptor
        try:
            size = self._files.blob_size(descriptor.digest)
            if size is None:
                return self._missing_error(repository, reference, descriptor)
            self._check_size(descriptor, size)
        except Refused as error:
            error.tag_digest = descriptor.digest
            return error
        platforms = self._platforms(repository, reference)
        return Version(descriptor.digest, media_type=descriptor.media_type, platforms=platforms)

    def _platforms(self, repository: str, reference: str) -> tuple[str, ...]:
        """Return the platforms that a sparse image contains, or an empty tuple if the image is complete."""
        return self._index_file.query(lambda index: index.platforms(repository, reference))

    def read(self, repository: str, reference: str, work: Work) -> Version:
        """Read the manifest that a tag or digest refers to, and return it in a Version. Raises NotFound, Refused."""
        manifest = self.manifest(repository, reference, work)
        return Version(manifest.digest, manifest, platforms=self._platforms(repository, reference))

    def manifest(self, repository: str, reference: str, work: Work) -> Manifest:
        """Read the manifest that a tag or digest refers to, and verify its digest. Raises NotFound, Refused."""
        descriptor = self._lookup(repository, reference)
        if isinstance(descriptor, MirrorError):
            raise descriptor
        path = self._files.blob_path(descriptor.digest)
        size = self._files.blob_size(descriptor.digest)
        if size is not None:
            self._check_size(descriptor, size)
            if size > manifests.MAX_BYTES:
                raise manifests.manifest_too_big_error(str(path), size)
        body = self._files.read_blob(descriptor.digest, manifests.MAX_BYTES)
        if body is None:
            raise self._missing_error(repository, reference, descriptor)
        return parse_manifest(body, descriptor.media_type, expected=descriptor.digest, what=str(path))

    def open_blob(self, repository: str, blob: Descriptor, work: Work, *, offset: int = 0) -> FileReader:
        """Open a blob for reading from byte `offset`.

        Raises MissingContentError if the blob is missing, and Refused if its file is unsafe or has the wrong size."""
        reader = self._files.open_blob(blob.digest, offset)
        if reader is None:
            raise MissingContentError(f"{self.host} does not have blob {blob.digest}", hint=_RECOPY_HINT)
        try:
            self._check_size(blob, reader.size or 0)
        except BaseException:
            reader.__exit__(None, None, None)
            raise
        return reader

    def omits_blob(self, blob: Descriptor) -> bool:
        """Return False, because a layout never leaves out blobs."""
        return False

    def referrers(self, repository: str, digest: Digest, work: Work) -> Iterable[Descriptor]:
        """Return the descriptors of all manifests whose subject is `digest`.

        The first call reads all manifests of the layout; later calls reuse the result until the index changes."""

        def roots() -> list[Root]:
            """Return the root manifests that the current index.json lists."""
            return self._index_file.query(lambda index: list(index.roots()))

        name = self._index_file.query(lambda index: index.effective_repository(repository))  # also updates `revision`
        return self._referrers.find(name, digest, self._index_file.revision, roots, work)

    def _lookup(self, repository: str, reference: str) -> Descriptor | NotFound | Refused:
        """Return the descriptor of the manifest that a tag or digest refers to, or an error if it is not found.

        If `reference` is a digest, the descriptor has neither a size nor a media type. Raises Refused and LocalError if
        the whole layout is unusable."""

        def find(index: Index) -> Descriptor | NotFound | Refused:
            """Find the tag in the index. Return a NotFound or Refused error instead of raising it."""
            try:
                return index.find(repository, reference).descriptor
            except (NotFound, Refused) as error:
                return error

        return Descriptor(Digest.parse(reference), None) if ":" in reference else self._index_file.query(find)

    def _missing_error(self, repository: str, reference: str, descriptor: Descriptor) -> NotFound:
        """Return the error for a manifest that the layout does not have."""
        if ":" in reference:
            return NotFound(f"{self.host}:{repository}@{reference} does not exist")
        return MissingContentError(
            f"{self.host}:{repository}:{reference} refers to {descriptor.digest}, which is missing", hint=_RECOPY_HINT
        )

    def _check_size(self, descriptor: Descriptor, size: int) -> None:
        """Raise Refused (size_mismatch) if the descriptor of a blob states a size other than `size`.

        size: the size of the blob's file in bytes."""
        if descriptor.size not in (None, size):
            raise Refused(
                f"{self._files.blob_path(descriptor.digest)} has {size} bytes, expected {descriptor.size}",
                hint="the layout is damaged: remove that file, then export the image again",
                code="size_mismatch",
            )

    # ---- writing

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        """Create the layout if it does not exist, and acquire the lock on it.

        Raises LockBusy if another run has the lock, and LocalError."""
        self._index_file.begin(work)

    def finish(self, *, whole: bool, work: Work) -> None:
        """Write index.json with all manifests that were added, even if other images failed.

        Raises LocalError."""
        self._index_file.publish()

    def has_blob(self, repository: str, blob: Descriptor, work: Work) -> bool:
        """Return whether the layout has the blob. Raises Refused (size_mismatch) if its file has the wrong size."""
        if self._new and not self._index_file.has_lock and not self._index_file.exists():
            return False
        size = self._files.blob_size(blob.digest)
        if size is not None:
            self._check_size(blob, size)
        return size is not None

    def mount_blob(self, repository: str, blob: Descriptor, from_repository: str, work: Work) -> Mount | LayoutUpload:
        """Return MOUNTED if the layout has the blob, otherwise ABSENT.

        Nothing is copied, because all repositories in a layout share their blobs."""
        return Mount.MOUNTED if self.has_blob(repository, blob, work) else Mount.ABSENT

    def begin_upload(self, repository: str, blob: Descriptor, work: Work) -> LayoutUpload:
        """Return an upload session that writes a blob to the layout."""
        self._index_file.begin(work)
        return LayoutUpload(self._files, blob)

    def put_manifest(
        self, repository: str, reference: str, manifest: Manifest, work: Work, *, left_out: LeftOut | None = None
    ) -> bool:
        """Write a manifest and add it to the index. For a sparse image, the index also records the image's platforms.

        Return True, because a layout needs no lists of referrers. Raises RemoteError (blob_missing if the layout lacks
        a blob or a child manifest, manifest_invalid for schema 1), LocalError."""
        if manifest.kind is Kind.SCHEMA1:
            raise RemoteError(
                f"{self.host}:{repository}:{reference} is a schema 1 image, which an OCI layout cannot store",
                hint="set `schema1: convert` for this mirror",
                code="manifest_invalid",
            )
        self._index_file.begin(work)
        for part in (*manifest.children, *manifest.blobs):
            # index.json must not refer to content that does not exist.
            if left_out is not None and left_out.covers(manifest, part):
                continue
            if not part.foreign and not self.has_blob(repository, part, work):
                raise RemoteError(
                    f"{self.host}:{repository}:{reference} refers to {part.digest}, which the layout does not have",
                    code="blob_missing",
                )
        # Compare the size first: a damaged file may be larger than the limit for reading a manifest.
        same_size = self._files.blob_size(manifest.digest) == manifest.size
        if not same_size or self._files.read_blob(manifest.digest, manifests.MAX_BYTES) != manifest.body:
            with self._files.write_blob(manifest.digest) as file:
                file.write(manifest.body)

        def put(index: Index) -> bool:
            """Add the manifest to the index, and return True, because the index has changed."""
            index.put(repository, reference, manifest, left_out.platforms if left_out is not None else ())
            return True

        try:
            self._index_file.change(put)
        except BaseException:
            self._referrers.invalidate()  # if writing index.json failed, the index in memory has still changed
            raise
        self._referrers.add(repository, manifest)
        return True

    def delete(self, repository: str, reference: str, work: Work) -> None:
        """Remove a tag, or all entries for a manifest. Blobs are kept. Does nothing if the index has no such entry."""
        self._index_file.begin(work)
        try:
            self._index_file.change(lambda index: index.remove(repository, reference))
        finally:
            self._referrers.invalidate()

    def delete_unused(self, manifests: Collection[Digest], work: Work) -> int:
        """Delete manifests that index.json no longer references, and the content that only they reference.

        manifests: the candidates. Return the number of bytes that were freed. If the index has an entry that cannot be
        interpreted, nothing is deleted, because the entry may need any content. Must not be called while another thread
        writes. Raises LocalError, Cancelled."""
        self._index_file.begin(work)
        self._index_file.publish()  # index.json must not name a removed file
        roots, is_known = self._index_file.query(lambda one: (list(one.roots()), not one.has_unusable_entries))
        unused = find_unused(manifests, roots, lambda one: self.manifest("", one, work), work) if is_known else ()
        freed = 0
        for digest in unused:
            freed += self._files.blob_size(digest) or 0
            self._files.remove_blob(digest)
        return freed

    def remove_manifest(self, repository: str, digest: Digest, work: Work) -> bool:
        """Remove a manifest and all its tags from a repository. Return whether its file was also removed.

        The file is kept if another repository has the manifest. Must not be called while another thread calls
        `put_manifest`. Raises ManifestInUseError if an image index in the repository refers to the manifest,
        LocalError, Cancelled."""
        self._index_file.begin(work)
        roots = self._index_file.query(lambda index: list(index.roots()))
        as_root, under_index = find_repositories(digest, roots, lambda one: self.manifest("", one, work), work)
        if under_index & {repository, None, *self._index_file.adopted_names(repository)}:
            raise ManifestInUseError(
                f"{digest} cannot be deleted: an image index in {repository} refers to it",
                hint="delete that index first; tags can be deleted at any time",
            )
        self.delete(repository, digest, work)
        as_root -= {repository, *self._index_file.adopted_names(repository)}
        if as_root | under_index:
            return False
        self._index_file.publish()  # index.json must not name a removed file
        self._files.remove_blob(digest)
        return True


class LayoutUpload:
    """An UploadSession that writes one blob to the layout. A failed upload leaves no file behind."""

    resumable = False

    def __init__(self, files: LayoutFiles, blob: Descriptor) -> None:
        self._files = files
        self._blob = blob
        self.committed = False

    def send(self, body: Callable[[int], BlobReader], work: Work) -> None:
        """Write the blob to the layout.

        body: opens the blob at an offset in bytes; its reader verifies the digest at the end. Raises LocalError,
        Cancelled, and the exceptions of the reader."""
        buffer = memoryview(bytearray(min(_BUFFER_BYTES, self._blob.size or _BUFFER_BYTES)))
        with body(0) as reader, self._files.write_blob(self._blob.digest) as file:
            while count := reader.readinto(buffer):
                work.stop.raise_if_requested()
                file.write(buffer[:count])
                work.progress(count)
        self.committed = True

    def __enter__(self) -> LayoutUpload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
